"""Transformer decoders that write captions about a sequence of audio features.

Source: wsntxxn/AudioCaption, `captioning/models/transformer_decoder.py` (the captioner
of BLAT's synthetic captions): a plain decoder and two that sound event tags guide.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32, Int

from clap_jax import config as config_lib
from clap_jax.models import layers
from clap_jax.models.tower import Tower, defaults, from_linen

GUIDES = ("none", "event", "keyword")


class Draft(NamedTuple):
    """A caption so far, and what it is about.

    ids: int32 [B, L], the start token first. mask: bool [B, L], true where a token is.
    memory: float32 [B, N, M], audio features over time. frames: int32 [B], how many of
    them belong to the clip. tags: float32 [B, C], sound events, 0 or 1, or (for the
    guide "keyword") probabilities; None for the guide "none".
    """

    ids: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    memory: Float[Array, "B N M"]
    frames: Int[Array, " B"]
    tags: Float[Array, "B C"] | None = None


def sinusoids(rows: int, width: int) -> Float32[np.ndarray, "rows width"]:
    """Sines in even columns, cosines in odd ones, of position / 10000^(2i / width).

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    rate = np.exp(np.arange(0, width, 2) * (-np.log(10_000.0) / width))
    angle = np.arange(rows)[:, None] * rate
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return table.reshape(rows, width).astype(np.float32)


class _Block(nn.Module):
    """Self-attention, attention to the memory, MLP, each with LayerNorm after it."""

    heads: int
    mlp: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B N D"] | layers.Past,
        bias: Float[Array, "..."],
        memory_bias: Float[Array, "B 1 1 N"],
        train: bool,
        past: layers.Past | None = None,
    ) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], layers.Past]:
        def attention(name: str) -> layers.Attention:
            return layers.Attention(self.heads, self.dropout, self.dtype, name=name)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=layers.transformer_init,
                name=name,
            )

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def norm(y: jax.Array, number: int) -> jax.Array:
            return layers.layer_norm(1e-5, self.dtype, f"norm{number}")(y)

        own = attention("attention")(x, bias, train, past=past)
        own, past = (own, None) if past is None else own
        x = norm(x + drop(own), 1)
        listened = attention("cross")(x, memory_bias, train, memory)
        x = norm(x + drop(listened), 2)
        hidden = drop(nn.relu(dense(self.mlp, "up")(x)))
        x = norm(x + drop(dense(x.shape[-1], "down")(hidden)), 3)
        return x if past is None else (x, past)


class _CaptionDecoder(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 256
    depth: int = 2
    heads: int = 4
    mlp: int = 1024
    position_table: int = 100
    dropout: float = 0.2
    guide: str = "none"
    tags: int = 527
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, draft: Draft, train: bool
    ) -> tuple[Float[Array, "B L C"], dict[str, Any]]:
        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        length = draft.ids.shape[1]
        self._check(length)
        memory = drop(self._memory(draft.memory))
        memory = layers.layer_norm(1e-5, self.dtype, "norm_memory")(memory)
        bias = layers.causal_bias(length, length)
        bias = bias + jnp.where(draft.mask, 0.0, layers.MASKED)[:, None, None, :]
        words = self._words(draft.ids, self._guide(draft.tags))
        x = drop((words + self._positions()[:length]).astype(self.dtype))
        for i in range(self.depth):
            x = self._block(i)(x, memory, bias, _memory_bias(memory, draft), train)
        return self._scores(x), {"hidden": x}

    def _check(self, length: int) -> None:
        if length > self.position_table:
            raise ValueError(
                f"captions of {length} tokens; this decoder takes {self.position_table}"
            )

    def _memory(self, memory: Float[Array, "B N M"]) -> Float[Array, "B N D"]:
        dense = nn.Dense(self.width, dtype=self.dtype, name="memory")
        return nn.relu(dense(memory))

    def _positions(self) -> Float[Array, "P D"]:
        # State, not computed: the reference means them to be sinusoids, but its
        # initialisation draws every matrix anew (Xavier), this one too, and then keeps
        # it fixed. Its checkpoints hold that noise.
        table = self.variable("batch_stats", "positions", self._sinusoids)
        return jnp.asarray(table.value)

    def _sinusoids(self) -> jax.Array:
        return jnp.asarray(sinusoids(self.position_table, self.width))

    def _block(self, number: int) -> _Block:
        return _Block(
            self.heads, self.mlp, self.dropout, self.dtype, name=f"block{number}"
        )

    def _scores(self, x: Float[Array, "B L D"]) -> Float[Array, "B L C"]:
        logits = nn.Dense(
            self.vocab_size, use_bias=False, dtype=self.dtype, name="classifier"
        )(x)
        return logits.astype(jnp.float32)

    def _guide(self, tags: Float[Array, "B C"] | None) -> Float[Array, "B D"] | None:
        """What the tags add to every word."""
        if self.guide == "none":
            return None
        if self.guide not in GUIDES:
            raise ValueError(config_lib.unknown("guide", self.guide, GUIDES))
        if tags is None:
            raise ValueError(f"a decoder with the guide {self.guide!r} needs tags")
        if self.guide == "event":
            events = self.param(
                "events", layers.transformer_init, (self.tags, self.width)
            )
            # The mean over the tags; without any, nothing is added.
            return tags @ events / jnp.maximum(tags.sum(1, keepdims=True), 1.0)
        return nn.Dense(self.width, dtype=self.dtype, name="keywords")(tags)

    def _words(
        self, ids: Int[Array, "B L"], guide: Float[Array, "B D"] | None
    ) -> Float[Array, "B L D"]:
        """Scaled word embeddings with the guide added to every one."""
        words = layers.table(self.vocab_size, self.width, "tokens")(ids)
        words = words * self.width**0.5
        if guide is None:
            return words
        words = words + guide[:, None]
        if self.guide == "event":
            return words
        return layers.layer_norm(1e-5, self.dtype, "norm_keywords")(words)


def _memory_bias(
    memory: Float[Array, "B N D"], draft: Draft
) -> Float[Array, "B 1 1 N"]:
    """What hides the frames that are not of the clip."""
    inside = jnp.arange(memory.shape[1]) < draft.frames[:, None]
    return jnp.where(inside, 0.0, layers.MASKED)[:, None, None, :]


class Cache(NamedTuple):
    """What a decoder remembers while it writes R captions of B clips, R = B * n.

    own: by layer, of the tokens so far. heard: by layer, of the memory, made once.
    memory_bias: [R, 1, 1, N], hides what is not of the clip. guide: [R, D], what tags
    add to every word, or None.
    """

    own: tuple[layers.Past, ...]
    heard: tuple[layers.Past, ...]
    memory_bias: Float[Array, "R 1 1 N"]
    guide: Float[Array, "R D"] | None

    def spread(self, count: int) -> "Cache":
        """Each caption `count` times, copies side by side."""

        def rows(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else jnp.repeat(x, count, axis=0)

        own, heard = (tuple(past.spread(count) for past in pasts) for pasts in self[:2])
        return Cache(own, heard, rows(self.memory_bias), rows(self.guide))

    def take(self, rows: Int[Array, " R"]) -> "Cache":
        """Captions of a clip in other places; what the clip sounds like stays."""
        return self._replace(own=tuple(past.take(rows) for past in self.own))


class _CaptionStart(_CaptionDecoder):
    """What is computed once for a clip. It has the parameters of the decoder."""

    @nn.compact
    def __call__(
        self, draft: Draft
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B D"] | None]:
        memory = self._memory(draft.memory)
        memory = layers.layer_norm(1e-5, self.dtype, "norm_memory")(memory)
        return memory, self._guide(draft.tags)


class _CaptionStep(_CaptionDecoder):
    """One token more of each caption. It has the parameters of the decoder."""

    @nn.compact
    def __call__(
        self, cache: Cache, ids: Int[Array, " R"]
    ) -> tuple[Float[Array, "R C"], Cache]:
        words = self._words(ids[:, None], cache.guide)
        index, room = cache.own[0].index, cache.own[0].keys.shape[-1]
        position = jax.lax.dynamic_slice_in_dim(self._positions(), index, 1)
        x = (words + position).astype(self.dtype)
        bias = layers.causal_bias(1, room, index)
        own = []
        for i, (past, heard) in enumerate(zip(cache.own, cache.heard, strict=True)):
            x, past = self._block(i)(x, heard, bias, cache.memory_bias, False, past)
            own.append(past)
        cache = cache._replace(own=tuple(own))
        return self._scores(x)[:, 0], cache


DEFAULTS = defaults(_CaptionDecoder)


def tower(
    options: Mapping[str, Any], vocab_size: int, *, dtype: str = "float32"
) -> Tower:
    """A caption decoder; `options` override `DEFAULTS`.

    Input a `Draft`. Embedding: the logits of the next token, float32 [B, L, C];
    aux["hidden"] [B, L, D] is what the classifier reads. Memory: Linear, ReLU,
    LayerNorm. Words: embedding times sqrt(D), the guide, positions, which are
    sinusoids in new models and whatever a converted checkpoint holds. Then post-norm
    causal blocks with attention to the memory, and a classifier without bias. guide="event" adds the mean of the tags' learnt vectors to every word,
    "keyword" a linear map of the tags, followed by LayerNorm.
    Errors: ValueError on captions longer than `position_table`, on an unknown guide and
    on a guide without tags.
    """
    return from_linen(_CaptionDecoder(vocab_size, **options, dtype=jnp.dtype(dtype)))


class Stepwise(NamedTuple):
    """A caption decoder with a cache, as pure functions of the tower's variables.

    start: `start(variables, draft, length) -> Cache` for `length` tokens; the ids and
        the mask of the draft are not read.
    step: `step(variables, cache, ids int32 [R]) -> (logits float32 [R, C], Cache)`.
        It cannot notice that a cache is full: the caller counts.
    """

    start: Callable[..., Cache]
    step: Callable[..., tuple[jax.Array, Cache]]


def stepwise(
    options: Mapping[str, Any], vocab_size: int, *, dtype: str = "float32"
) -> Stepwise:
    """The decoder of `tower`, token by token; the same logits, but for rounding.

    Errors: ValueError on captions longer than the position table.
    """
    kind = jnp.dtype(dtype)
    first = _CaptionStart(vocab_size, **options, dtype=kind)
    further = _CaptionStep(vocab_size, **options, dtype=kind)

    def collections(variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"params": variables["params"], "batch_stats": variables["state"]}

    def start(variables: Mapping[str, Any], draft: Draft, length: int) -> Cache:
        first._check(length)
        memory, guide = first.apply(collections(variables), draft)
        params = variables["params"]
        heard = tuple(
            layers.keys_values(params[f"block{i}"]["cross"], memory, first.heads, kind)
            for i in range(first.depth)
        )
        empty = layers.Past.empty(len(memory), length, first.heads, first.width, kind)
        own = (empty,) * first.depth
        return Cache(own, heard, _memory_bias(memory, draft), guide)

    def step(
        variables: Mapping[str, Any], cache: Cache, ids: Int[Any, " R"]
    ) -> tuple[jax.Array, Cache]:
        return further.apply(collections(variables), cache, ids)

    return Stepwise(start, step)
