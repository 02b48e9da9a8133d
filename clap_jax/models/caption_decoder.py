"""Transformer decoders that write captions about a sequence of audio features.

Source: wsntxxn/AudioCaption, `captioning/models/transformer_decoder.py` (the captioner
of BLAT's synthetic captions): a plain decoder and two that sound event tags guide.
"""

from collections.abc import Mapping
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
        memory: Float[Array, "B N D"],
        bias: Float[Array, "B 1 L L"],
        memory_bias: Float[Array, "B 1 1 N"],
        train: bool,
    ) -> Float[Array, "B L D"]:
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

        x = norm(x + drop(attention("attention")(x, bias, train)), 1)
        listened = attention("cross")(x, memory_bias, train, memory)
        x = norm(x + drop(listened), 2)
        hidden = drop(nn.relu(dense(self.mlp, "up")(x)))
        return norm(x + drop(dense(x.shape[-1], "down")(hidden)), 3)


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
        if length > self.position_table:
            raise ValueError(
                f"captions of {length} tokens; this decoder takes {self.position_table}"
            )
        memory = nn.Dense(self.width, dtype=self.dtype, name="memory")(draft.memory)
        memory = drop(nn.relu(memory))
        memory = layers.layer_norm(1e-5, self.dtype, "norm_memory")(memory)
        inside = jnp.arange(memory.shape[1]) < draft.frames[:, None]
        memory_bias = jnp.where(inside, 0.0, layers.MASKED)[:, None, None, :]
        bias = layers.causal_bias(length, length)
        bias = bias + jnp.where(draft.mask, 0.0, layers.MASKED)[:, None, None, :]

        words = layers.table(self.vocab_size, self.width, "tokens")(draft.ids)
        x = self._guided(words * self.width**0.5, draft.tags)
        # State, not computed: the reference means them to be sinusoids, but its
        # initialisation draws every matrix anew (Xavier), this one too, and then keeps
        # it fixed. Its checkpoints hold that noise.
        positions = self.variable("batch_stats", "positions", self._sinusoids)
        x = drop((x + positions.value[:length]).astype(self.dtype))
        for i in range(self.depth):
            block = _Block(
                self.heads, self.mlp, self.dropout, self.dtype, name=f"block{i}"
            )
            x = block(x, memory, bias, memory_bias, train)
        logits = nn.Dense(
            self.vocab_size, use_bias=False, dtype=self.dtype, name="classifier"
        )(x)
        return logits.astype(jnp.float32), {"hidden": x}

    def _sinusoids(self) -> jax.Array:
        return jnp.asarray(sinusoids(self.position_table, self.width))

    def _guided(
        self, words: Float[Array, "B L D"], tags: Float[Array, "B C"] | None
    ) -> Float[Array, "B L D"]:
        """Scaled word embeddings with what the tags say added to every one."""
        if self.guide == "none":
            return words
        if self.guide not in GUIDES:
            raise ValueError(config_lib.unknown("guide", self.guide, GUIDES))
        if tags is None:
            raise ValueError(f"a decoder with the guide {self.guide!r} needs tags")
        if self.guide == "event":
            events = self.param(
                "events", layers.transformer_init, (self.tags, self.width)
            )
            # The mean over the tags; without any, nothing is added.
            mean = tags @ events / jnp.maximum(tags.sum(1, keepdims=True), 1.0)
            return words + mean[:, None]
        guide = nn.Dense(self.width, dtype=self.dtype, name="keywords")(tags)
        x = words + guide[:, None]
        return layers.layer_norm(1e-5, self.dtype, "norm_keywords")(x)


DEFAULTS = defaults(_CaptionDecoder)


def tower(
    options: Mapping[str, Any], vocab_size: int, *, dtype: str = "float32"
) -> Tower:
    """A caption decoder; `options` override `DEFAULTS`.

    Input a `Draft`. Embedding: the logits of the next token, float32 [B, L, C];
    aux["hidden"] [B, L, D] is what the classifier reads. Memory: Linear, ReLU,
    LayerNorm. Words: embedding times sqrt(D), the guide, positions, which are
    sinusoids in new models and whatever a converted checkpoint holds. Then post-norm causal blocks with attention to the memory, and a classifier without
    bias. guide="event" adds the mean of the tags' learnt vectors to every word,
    "keyword" a linear map of the tags, followed by LayerNorm.
    Errors: ValueError on captions longer than `position_table`, on an unknown guide and
    on a guide without tags.
    """
    return from_linen(_CaptionDecoder(vocab_size, **options, dtype=jnp.dtype(dtype)))
