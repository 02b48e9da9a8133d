"""GPT-2 as a text tower and, with a cache of keys and values, as a language model.

Sources: Radford et al. 2019; Hugging Face's `modeling_gpt2.py`; for the pooled position
MS-CLAP `models/clap.py`, `TextEncoder`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib
from clap_jax.models import drop, layers
from clap_jax.models.tower import Tower, defaults, from_linen

POOLS = ("end", "msclap")


class Cache(NamedTuple):
    """What a language model remembers of the positions that it has read, by layer."""

    layers: tuple[layers.Past, ...]

    @property
    def index(self) -> Int[Array, ""]:
        """How many positions have been read."""
        return self.layers[0].index

    @property
    def room(self) -> int:
        """How many positions there are."""
        return self.layers[0].keys.shape[-1]

    def spread(self, count: int) -> "Cache":
        """Each row `count` times, copies side by side."""
        return Cache(tuple(past.spread(count) for past in self.layers))

    def take(self, rows: Int[Array, " B"], shared: int = 0) -> "Cache":
        """Other rows; the first `shared` positions are equal in them, and stay."""
        return Cache(tuple(past.take(rows, shared) for past in self.layers))


class _Gpt2(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    position_table: int = 1024
    eps: float = 1e-5
    dropout: float = 0.1
    pool: str = "end"
    end_id: int = 50256
    pad_id: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"
    token_drop: float = 0.0
    full_length: int = 0

    @nn.compact
    def __call__(
        self, x: tuple[Int[Array, "B L"], Bool[Array, "B L"]], train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        ids, mask = x
        last, positions = self._last(ids, mask), None
        if train and self.token_drop:
            length = ids.shape[1]
            self._check(length)
            kept = drop.tokens_kept(self.token_drop, length, self.full_length)
            # What follows the pooled token has no influence on it.
            seen = jnp.arange(length) <= last[:, None]
            index = drop.token_index(self.make_rng("augment"), seen, last, kept)
            (ids,) = drop.take_tokens(index, ids)
            positions, last = index, drop.place_of(last, index)
        hidden, _ = self._read(self._tokens()(ids), train, positions=positions)
        pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return pooled, {"hidden": hidden}

    def _tokens(self) -> nn.Embed:
        return layers.table(self.vocab_size, self.width, "tokens")

    def _check(self, length: int) -> None:
        if length > self.position_table:
            raise ValueError(
                f"texts of {length} tokens; this tower takes {self.position_table}"
            )

    def _read(
        self,
        x: Float[Array, "B L D"],
        train: bool,
        cache: Cache | None = None,
        positions: Int[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """Token embeddings to the state after the last norm, and the renewed cache.

        positions: rows of the position table; None: one after another, behind those of
        the cache.
        """
        length = x.shape[1]
        self._check(length)
        start = 0 if cache is None else cache.index
        positions = start + jnp.arange(length) if positions is None else positions
        table = layers.table(self.position_table, self.width, "positions")
        x = (x + table(positions)).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        room = length if cache is None else cache.room
        bias = layers.causal_bias(length, room, start)
        block = layers.rematerialised(layers.Block, self.remat)
        pasts = []
        for i in range(self.depth):
            layer = block(
                heads=self.heads,
                mlp=self.mlp,
                eps=self.eps,
                dropout=self.dropout,
                dtype=self.dtype,
                activation="gelu_tanh",
                name=f"block{i}",
            )
            if cache is None:
                x = layer(x, bias, train)
                continue
            x, past = layer(x, bias, train, cache.layers[i])
            pasts.append(past)
        if cache is not None:
            cache = Cache(tuple(pasts))
        return layers.layer_norm(self.eps, self.dtype, "norm")(x), cache

    def _last(self, ids: Any, mask: Any) -> Int[Array, " B"]:
        """Index of the token whose state stands for the text."""
        if self.pool == "msclap":
            # MS-CLAP takes the number of ids that are not 0, minus 1. Its padding, "!",
            # is an ordinary token, so that every "!" in a text moves this one place to
            # the left of the end.
            last = (ids != self.pad_id).sum(1) - 1
        elif self.pool == "end":
            ends = ids == self.end_id
            visible = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
            last = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), visible)
        else:
            raise ValueError(config_lib.unknown("pool of gpt2", self.pool, POOLS))
        return jnp.maximum(last, 0).astype(jnp.int32)


class _LanguageModel(_Gpt2):
    """See `language_model`. It has the parameters of the tower."""

    @nn.compact
    def __call__(
        self,
        x: Int[Array, "B L"] | Float[Array, "B L D"],
        train: bool,
        cache: Cache | None = None,
        last: int = 0,
    ) -> tuple[Float[Array, "B M C"], Cache | None]:
        table = self._tokens()
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = table(x)
        hidden, cache = self._read(x, train, cache)
        # Of a cached run only the last position decides what comes next.
        last = last if cache is None else 1
        hidden = hidden[:, -last:]  # with 0 all of them
        logits = jnp.einsum(
            "bld,cd->blc",
            hidden,
            table.embedding.astype(self.dtype),
            preferred_element_type=jnp.promote_types(self.dtype, jnp.float32),
        )
        return logits, cache


DEFAULTS = defaults(_Gpt2)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
    token_drop: float = 0.0,
    full_length: int = 0,
) -> Tower:
    """GPT-2 as a text tower; `options` override `DEFAULTS`.

    Input `(ids i32 [B, L], mask bool [B, L])`, tokens first, padding behind them.
    Blocks are pre-norm and causal, so that what follows the pooled token, padding
    included, has no influence on it. Embedding [B, D] is the last layer's state, after
    the final norm, of one token: with `pool="end"` the first `end_id`, or the last
    visible token where there is none; with `pool="msclap"` the token that MS-CLAP takes,
    which is another one in texts that contain `pad_id`. aux["hidden"] [B, L, D] has all
    states. In training, `dropout` applies to the embeddings, the attention weights and
    both residual branches.
    token_drop: the share of tokens, of `full_length`, that is left out in training, see
    `drop.tokens_kept`. The first and the pooled one always stay, positions are those of
    the whole text, and aux["hidden"] has fewer of them.
    Errors: ValueError on texts longer than the position table, on unknown pools, and
    when too few tokens would stay.
    """
    return from_linen(
        _Gpt2(
            vocab_size,
            **options,
            dtype=jnp.dtype(dtype),
            remat=remat,
            token_drop=token_drop,
            full_length=full_length,
        )
    )


class LanguageModel(NamedTuple):
    """GPT-2 with its token table as the output layer, as pure functions.

    `params` is the tower's tree. `x` is int32 ids [B, L] or float32 [B, L, D] in the
    place of token embeddings (a prefix); positions are added to both.

    init: `init(key) -> params`.
    embed: `embed(params, ids [B, L]) -> float32 [B, L, D]`, rows of the token table.
    logits: `logits(params, x, *, last=0, train=False, key=None) -> float32 [B, L, C]`,
        at each position those of the next token; with `last` of so many positions at
        the end alone.
    start: `start(batch, length) -> Cache`, empty, for `length` positions in all.
    step: `step(params, cache, x) -> (float32 [B, C], Cache)`: reads L more positions,
        a whole prefix or one token, and gives the logits that follow the last of them.
        It cannot notice that a cache is full: the caller counts.
    """

    init: Callable[..., dict[str, Any]]
    embed: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    start: Callable[..., Cache]
    step: Callable[..., tuple[jax.Array, Cache]]


def language_model(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> LanguageModel:
    """GPT-2 as a language model; `options` as for `tower` (`pool` has no meaning).

    Works under jit and scan; the cache has one size from start to end.
    Errors: ValueError on more positions than the position table has.
    """
    kind = jnp.dtype(dtype)
    module = _LanguageModel(vocab_size, **options, dtype=kind, remat=remat)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        return module.init(key, jnp.zeros((1, 1), jnp.int32), False)["params"]

    def embed(params: Mapping[str, Any], ids: Int[Any, "B L"]) -> jax.Array:
        return jnp.asarray(params["tokens"]["embedding"])[ids]

    def logits(
        params: Mapping[str, Any],
        x: Any,
        *,
        last: int = 0,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        if not train:
            return module.apply({"params": params}, x, False, None, last)[0]
        if key is None:
            raise ValueError("a language model in training needs a key; got key=None")
        rngs = {"dropout": key}
        return module.apply({"params": params}, x, True, None, last, rngs=rngs)[0]

    def start(batch: int, length: int) -> Cache:
        if length > module.position_table:
            raise ValueError(
                f"a cache of {length} positions; this model has {module.position_table}"
            )
        empty = layers.Past.empty(batch, length, module.heads, module.width, kind)
        return Cache((empty,) * module.depth)

    def step(
        params: Mapping[str, Any], cache: Cache, x: Any
    ) -> tuple[jax.Array, Cache]:
        scores, cache = module.apply({"params": params}, x, False, cache)
        return scores[:, 0], cache

    return LanguageModel(init, embed, logits, start, step)
