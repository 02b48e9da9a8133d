"""Layers that the towers share.

Parameters are float32. Layers compute in `dtype`; softmax and the statistics of every
norm are taken in float32 whatever `dtype` is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib

# The standard deviation of weights in BERT-like and Swin-like towers at the start.
transformer_init = nn.initializers.normal(0.02)
# What torch gives to Linear and Conv when nobody chooses: U(-1/sqrt(fan_in), +).
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Added to the attention score of a position that must not be seen.
MASKED = -1e9


def layer_norm(eps: float, dtype: Any, name: str, remat: str = "none") -> nn.LayerNorm:
    """LayerNorm over the last axis with two-pass variance, as torch computes it.

    remat: see `rematerialised`; a norm outside of the blocks keeps float32 copies of
    its input otherwise.
    """
    kind = rematerialised(nn.LayerNorm, remat, ())
    return kind(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def table(rows: int, width: int, name: str) -> nn.Embed:
    """A table of `rows` vectors, float32."""
    return nn.Embed(rows, width, embedding_init=transformer_init, name=name)


ACTIVATIONS = {
    # x * Phi(x)
    "gelu": functools.partial(nn.gelu, approximate=False),
    # GPT-2's approximation of it by tanh, "gelu_new" in Hugging Face's configs
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    # OpenAI CLIP's
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
}


class BatchNorm(nn.Module):
    """Batch norm over the last axis with torch's running statistics.

    In training the batch is normalised by its biased variance, while the running
    variance takes the unbiased one: running = 0.9 * running + 0.1 * n/(n-1) * var
    (torch momentum 0.1). Flax's own layer stores the biased variance. With `rows`
    only those rows of the batch count; when there are none, what is stored stays.
    Every row stands for `copies` equal ones, which only n/(n-1) notices.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *n C"],
        train: bool,
        rows: Bool[Array, " B"] | None = None,
        copies: int | Int[Array, ""] = 1,
    ) -> Float[Array, "B *n C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        x = x.astype(jnp.float32)
        if not train:
            return (x - mean.value) * (
                scale * jax.lax.rsqrt(var.value + self.epsilon)
            ) + bias
        axes = tuple(range(x.ndim - 1))
        seen = None if rows is None else rows.reshape(-1, *[1] * (x.ndim - 1))
        count = copies * (x.size // channels)
        if rows is not None:
            count = rows.sum() * (count // x.shape[0])
            # With no row to count, statistics stay finite and are not stored.
            seen = seen | ~rows.any()
        batch_mean, batch_var = x.mean(axes, where=seen), x.var(axes, where=seen)
        if not self.is_initializing():
            keep = jnp.where(count > 0, self.momentum, 1.0)
            unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
            mean.value = keep * mean.value + (1 - keep) * batch_mean
            var.value = keep * var.value + (1 - keep) * unbiased
        return (x - batch_mean) * (
            scale * jax.lax.rsqrt(batch_var + self.epsilon)
        ) + bias


def drop_path(
    x: Float[Array, "B ..."], kept: Bool[Array, " B"] | None, rate: float
) -> Float[Array, "B ..."]:
    """`x`, scaled so that its mean stays, in the examples that are kept; else 0."""
    if kept is None:
        return x
    kept = kept.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch of a whole example with `rate`."""

    rate: float

    def __call__(self, x: Float[Array, "B ..."], train: bool) -> Float[Array, "B ..."]:
        return drop_path(x, self.kept(x.shape[0], train), self.rate)

    def kept(self, batch: int, train: bool) -> Bool[Array, " B"] | None:
        """Which examples keep their branch; None where nothing is dropped."""
        if not train or self.rate == 0.0:
            return None
        return jax.random.bernoulli(
            self.make_rng("droppath"), 1.0 - self.rate, (batch,)
        )


class Past(NamedTuple):
    """Keys and values of positions that an attention has seen already.

    keys, values: [*n, heads, d, P], room for P positions: products over d or over P
    read them as they lie, without a copy at every token. index: int32, how many
    positions are filled.
    """

    keys: Float[Array, "*n heads d P"]
    values: Float[Array, "*n heads d P"]
    index: Int[Array, ""]

    @classmethod
    def empty(cls, rows: int, room: int, heads: int, width: int, dtype: Any) -> "Past":
        """Room for positions of which none is filled; `width` is that of all heads."""
        nothing = jnp.zeros((rows, heads, width // heads, room), dtype)
        return cls(nothing, nothing, jnp.int32(0))

    @classmethod
    def of(cls, keys: jax.Array, values: jax.Array) -> "Past":
        """Of keys and values [*n, P, heads, d], all of them filled."""
        lying = (jnp.moveaxis(x, -3, -1) for x in (keys, values))
        return cls(*lying, jnp.int32(keys.shape[-3]))

    def add(self, keys: jax.Array, values: jax.Array) -> "Past":
        """With the next positions [*n, L, heads, d] behind those that are filled."""
        new = Past.of(keys, values)

        def put(room: jax.Array, x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(room, x, self.index, -1)

        index = self.index + new.index
        return Past(put(self.keys, new.keys), put(self.values, new.values), index)

    def spread(self, count: int) -> "Past":
        """Each row `count` times, copies side by side."""
        keys, values = (jnp.repeat(x, count, axis=0) for x in self[:2])
        return Past(keys, values, self.index)

    def take(self, rows: Int[Array, " R"], shared: int = 0) -> "Past":
        """Other rows; the first `shared` positions are equal in them, and stay."""

        def behind(x: jax.Array) -> jax.Array:
            return x.at[..., shared:].set(x[rows, ..., shared:]) if shared else x[rows]

        return Past(behind(self.keys), behind(self.values), self.index)


def causal_bias(
    queries: int, keys: int, index: int | Int[Array, ""] = 0
) -> Float[Array, "q k"]:
    """0 where a query may see a key, at its own position or before it, else `MASKED`.

    The first query stands at position `index` of the keys.
    """
    position = index + jnp.arange(queries)
    return jnp.where(jnp.arange(keys) <= position[:, None], 0.0, MASKED)


class Attention(nn.Module):
    """Multi-head attention over the second to last axis.

    Keys and values are made of x itself, or of `memory`, or are those of a memory that
    went through `keys_values` once. With `past` (of x alone) they are put behind those
    of earlier positions, and the result is (out, past) with the new ones in it; the
    caller's bias hides the places that are not filled yet.
    `bias` is added to the float32 scores and broadcasts to [..., heads, L, M].
    Queries, keys and values have separate kernels, the layout of BERT and of Hugging
    Face; a source that stores them as one is split in thirds by its converter. Their
    biases are left out with `qkv_bias=False`, that of keys alone with `key_bias=False`.
    """

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    qkv_bias: bool = True
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*n L D"],
        bias: Float[Array, "..."] | None,
        train: bool,
        memory: Float[Array, "*n M K"] | Past | None = None,
        past: Past | None = None,
    ) -> Float[Array, "*n L D"] | tuple[Float[Array, "*n L D"], Past]:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is not divisible by {self.heads} heads")

        def project(name: str, bias: bool = self.qkv_bias) -> nn.Dense:
            return nn.Dense(
                width,
                use_bias=bias,
                dtype=self.dtype,
                kernel_init=transformer_init,
                name=name,
            )

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query = split(project("query")(x)) * (width // self.heads) ** -0.5
        seen = memory
        if not isinstance(memory, Past):
            source = x if memory is None else memory
            key = split(project("key", self.qkv_bias and self.key_bias)(source))
            seen = key, split(project("value")(source))
        if past is not None:
            past = seen = past.add(*seen)
        key, value = seen[:2]
        axes = "hdk" if isinstance(seen, Past) else "khd"
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum(
            f"...qhd,...{axes}->...hqk", query, key, preferred_element_type=wide
        )
        scores = scores if bias is None else scores + bias
        weights = nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout, name="drop")(
            weights, deterministic=not train
        )
        out = jnp.einsum(f"...hqk,...{axes}->...qhd", weights, value)
        out = project("out", bias=True)(out.reshape(x.shape))
        return out if past is None else (out, past)


def keys_values(
    params: Any, memory: Float[Array, "*n M K"], heads: int, dtype: Any
) -> Past:
    """What an `Attention` with these parameters makes of its memory, to be kept."""

    def made(name: str) -> jax.Array:
        kernel = params[name]["kernel"]
        dense = nn.Dense(kernel.shape[1], use_bias="bias" in params[name], dtype=dtype)
        y = dense.apply({"params": params[name]}, memory)
        return y.reshape(*y.shape[:-1], heads, -1)

    return Past.of(made("key"), made("value"))


class Mlp(nn.Module):
    """Linear, one of `ACTIVATIONS`, Linear back to the width of the input."""

    hidden: int
    dtype: Any = jnp.float32
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, dtype=self.dtype, kernel_init=transformer_init, name=name
            )

        activation = ACTIVATIONS[self.activation]
        return dense(x.shape[-1], "down")(activation(dense(self.hidden, "up")(x)))


class Block(nn.Module):
    """A transformer block, with LayerNorm before (`pre`) or after (`post`) the sum.

    With `past`, see `Attention`, the result is (x, past).
    """

    heads: int
    mlp: int
    norm: str = "pre"
    eps: float = 1e-5
    dropout: float = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"
    qkv_bias: bool = True
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        bias: Float[Array, "..."] | None,
        train: bool,
        past: Past | None = None,
    ) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], Past]:
        attention = Attention(
            self.heads,
            self.dropout,
            self.dtype,
            self.qkv_bias,
            self.key_bias,
            name="attention",
        )
        mlp = Mlp(self.mlp, self.dtype, self.activation, name="mlp")
        norm1 = layer_norm(self.eps, self.dtype, "norm1")
        norm2 = layer_norm(self.eps, self.dtype, "norm2")

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def attend(y: jax.Array) -> jax.Array:
            nonlocal past
            if past is None:
                return attention(y, bias, train)
            y, past = attention(y, bias, train, past=past)
            return y

        if self.norm == "pre":
            x = x + drop(attend(norm1(x)))
            x = x + drop(mlp(norm2(x)))
        elif self.norm == "post":
            x = norm1(x + drop(attend(x)))
            x = norm2(x + drop(mlp(x)))
        else:
            raise ValueError(f"norm must be pre or post, got {self.norm!r}")
        return x if past is None else (x, past)


REMAT = ("none", "dots", "blocks")


def _weight_products(primitive: Any, *operands: Any, **params: Any) -> bool:
    """True for products with weights: dots without a batch axis, and convolutions."""
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return dots(primitive, *operands, **params)


def rematerialised(
    block: Any, remat: str, static: tuple[int, ...] = (3,), loop: bool = False
) -> Any:
    """`block`, or one that recomputes its inside in the backward pass.

    block: a class of modules, or a function whose first argument is a module.
    remat: "none" keeps everything; "dots" keeps the results of weight matrices and
    convolutions, and computes norms, activations and attention scores again; "blocks"
    keeps nothing but what goes into the block, for about a third more work in all.
    `static` are the positions of arguments that are no arrays, `self` being 0; the
    default suits the signature (x, bias, train). `loop` says that the block is the
    body of a loop, where nothing keeps the compiler from merging both passes.
    Errors: ValueError on an unknown remat.
    """
    if remat not in REMAT:
        raise ValueError(config_lib.unknown("remat", remat, REMAT))
    if remat == "none":
        return block
    return nn.remat(
        block,
        policy=_weight_products if remat == "dots" else None,
        static_argnums=static,
        prevent_cse=not loop,
    )


def mean_over(
    x: Float[Array, "B L D"], mask: Bool[Array, "B L"]
) -> Float[Array, "B D"]:
    """Mean of the positions where `mask` is true, in float32."""
    weights = mask.astype(jnp.float32)[..., None]
    return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)


def conv3x3(features: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """A 3x3 convolution over [B, H, W, C], zero padded by one on every side."""
    return nn.Conv(
        features, (3, 3), stride, padding=((1, 1), (1, 1)), dtype=dtype, name=name
    )


def patches(
    x: Float[Array, "B H W C"], size: tuple[int, ...]
) -> Float[Array, "B h w P"]:
    """Cut an image into patches, P = size[0] * size[1] * C in the order (H, W, C).

    A Dense layer on top is a convolution with stride = kernel = `size`; as a matrix
    product it is several times faster on CPUs when C is small.
    """
    (b, height, width, c), (tall, wide) = x.shape, size
    x = x.reshape(b, height // tall, tall, width // wide, wide, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height // tall, width // wide, tall * wide * c)


def fit(
    x: Float[Array, "B N F"], frames: int, mels: int, value: float
) -> Float[Array, "B n f"]:
    """Crop or pad with `value` at the end to whole multiples of `frames` and `mels`.

    Rounds to the nearest multiple, at least one: 129 frames, which centred windows
    make of 128 hops, become 128 again, and 251 become 256.
    """
    for axis, cell in ((1, frames), (2, mels)):
        size = x.shape[axis]
        wanted = max(1, (size + cell // 2) // cell) * cell
        x = x[:, :wanted] if axis == 1 else x[:, :, :wanted]
        padding = [(0, 0)] * 3
        padding[axis] = (0, max(0, wanted - size))
        x = jnp.pad(x, padding, constant_values=value)
    return x
