"""BEATs, iteration 3: patches, a convolution for positions, gated position bias.

Sources: Chen et al. 2022 (arXiv 2212.09058); microsoft/unilm `beats/BEATs.py` and
`backbone.py`; for the gate Chen et al. 2021 (WavLM, arXiv 2110.13900).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models import drop, layers
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen

# Of all AudioSet, of the natural logarithm of power where a wave is 2^15 at its most.
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582


def normalise(mel_db: Float[Array, "B N F"]) -> Float[Array, "B N F"]:
    """The log-mel in dB of the front end "beats", as BEATs takes it."""
    x = mel_db * (math.log(10) / 10) + 30 * math.log(2)
    return (x - FBANK_MEAN) / (2 * FBANK_STD)


def buckets(length: int, count: int, max_distance: int) -> Int[np.ndarray, "L L"]:
    """Which row of a table of `count` a pair of places has, [query, key].

    Half of the table is for keys that follow. Half of each half has a row for every
    distance, the rest ever wider ranges of them, up to `max_distance`.
    """
    place = np.arange(length)
    ahead = place - place[:, None]
    half, distance = count // 2, np.abs(ahead)
    exact = half // 2
    # In float32, as torch computes it: ranges end where its rounding ends them.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = (
        ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    )
    wide = np.minimum((np.float32(exact) + ratio).astype(np.int32), half - 1)
    return (ahead > 0) * half + np.where(distance < exact, distance, wide)


class _Attention(nn.Module):
    """Self-attention with a bias by distance, which each query opens by a gate.

    With q a head's query before it is scaled, a and b the sigmoids of two sums of four
    of its eight projections, and c a number of the head, the gate is a (b c - 1) + 2.
    """

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        distance: Float[Array, "heads L L"],
        hidden: Float[Array, "#B 1 1 L"],
        train: bool,
    ) -> Float[Array, "B L D"]:
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=layers.transformer_init,
                name=name,
            )

        def split(name: str) -> jax.Array:
            y = dense(width, name)(x)
            return y.reshape(*y.shape[:-1], self.heads, -1)

        query, key, value = (split(name) for name in ("query", "key", "value"))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        gates = dense(8, "gate")(query).astype(wide)
        gates = nn.sigmoid(gates.reshape(*gates.shape[:-1], 2, 4).sum(-1))
        scale = self.param("gate_scale", nn.initializers.ones, (self.heads,))
        gate = gates[..., 0] * (gates[..., 1] * scale - 1.0) + 2.0
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk",
            query * (width // self.heads) ** -0.5,
            key,
            preferred_element_type=wide,
        )
        scores += gate.transpose(0, 2, 1)[..., None] * distance + hidden
        weights = nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return dense(width, "out")(out.reshape(x.shape))


class _Block(nn.Module):
    """Post-norm, what goes round weighed by `residual` (arXiv 2203.00555, DeepNorm)."""

    heads: int
    mlp: int
    residual: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        distance: Float[Array, "heads L L"],
        hidden: Float[Array, "#B 1 1 L"],
        train: bool,
    ) -> Float[Array, "B L D"]:
        def joined(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            return layers.layer_norm(1e-5, self.dtype, name)(self.residual * x + y)

        attention = _Attention(self.heads, self.dropout, self.dtype, name="attention")
        x = joined(x, attention(x, distance, hidden, train), "norm1")
        return joined(x, layers.Mlp(self.mlp, self.dtype, name="mlp")(x), "norm2")


class _Positions(nn.Module):
    """A grouped convolution over tokens, its kernel a direction and a size for each of
    its taps (torch's `weight_norm` over the others)."""

    taps: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width, taps = x.shape[-1], self.taps
        std = math.sqrt(4 / (taps * width))
        kernel = self.param(
            "kernel", nn.initializers.normal(std), (taps, width // self.groups, width)
        )
        start = std * math.sqrt(width * width / self.groups)
        scale = self.param("scale", nn.initializers.constant(start), (taps,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        size = jnp.sqrt(jnp.square(kernel).sum((1, 2), keepdims=True))
        y = jax.lax.conv_general_dilated(
            x,
            (kernel * (scale[:, None, None] / size)).astype(self.dtype),
            (1,),
            # As many tokens come out as go in.
            ((taps // 2, (taps - 1) // 2),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return layers.ACTIVATIONS["gelu"](y + bias.astype(self.dtype))


class _Beats(nn.Module):
    """See `tower`."""

    patch: int = 16
    patch_width: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    taps: int = 128
    groups: int = 16
    buckets: int = 320
    max_distance: int = 800
    deep_norm: bool = True
    dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        sound = as_sound(x)
        rows, bands = sound.mel.shape[1] // self.patch, sound.mel.shape[2] // self.patch
        if not rows or not bands:
            raise ValueError(
                f"a mel of {sound.mel.shape[1]} frames and {sound.mel.shape[2]} bands; "
                f"this tower takes patches of {self.patch} x {self.patch}"
            )
        x = normalise(sound.mel[:, : rows * self.patch, : bands * self.patch])
        seen = self._seen(sound, rows, bands)
        x = layers.patches(x[..., None], (self.patch, self.patch))
        x = x.reshape(x.shape[0], rows * bands, -1)
        x = nn.Dense(self.patch_width, use_bias=False, dtype=self.dtype, name="patch")(
            x
        )
        x = layers.layer_norm(1e-5, self.dtype, "norm_patch")(x)
        if self.patch_width != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name="project")(x)
        x = jnp.where(seen[..., None], x, 0)
        x = x + _Positions(self.taps, self.groups, self.dtype, name="position")(x)
        x = layers.layer_norm(1e-5, self.dtype, "norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        table = layers.table(self.buckets, self.heads, "distances")
        places = buckets(x.shape[1], self.buckets, self.max_distance)
        distance = table(jnp.asarray(places)).transpose(2, 0, 1)
        hidden = jnp.where(seen, 0.0, layers.MASKED)[:, None, None]
        block = layers.rematerialised(_Block, self.remat, (4,))
        for i in range(self.depth):
            x = block(
                heads=self.heads,
                mlp=self.mlp,
                residual=(2 * self.depth) ** 0.25 if self.deep_norm else 1.0,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, distance, hidden, train)
        time = x.reshape(x.shape[0], rows, bands, -1).mean(2, dtype=jnp.float32)
        embedding = layers.mean_over(x.astype(jnp.float32), seen)
        return embedding, {"tokens": x, "fine_grained": time}

    def _seen(self, sound: Sound, rows: int, bands: int) -> Bool[Array, "B L"]:
        """Which tokens have a frame of the clip in them; all of its first row do."""
        if sound.frames is None:
            return jnp.ones((sound.mel.shape[0], rows * bands), jnp.bool_)
        first = jnp.arange(rows) * self.patch
        there = first < jnp.maximum(sound.frames, 1)[:, None]
        return jnp.repeat(there, bands, axis=1)


DEFAULTS = defaults(_Beats)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """BEATs' encoder as it was published for iteration 3.

    Input log-mel in dB [B, N, F] of the front end "beats", cut to whole patches of
    `patch` x `patch`; tokens go along frequency first. `Sound.frames`: what follows is
    padding, which is not attended to. A linear layer from `patch_width` to `width`
    where they differ; a convolution of `taps` in `groups` gives positions; `depth`
    post-norm blocks with DeepNorm (`deep_norm`) share one table of biases by distance,
    along all tokens. Embedding [B, D]: mean of the tokens; aux: "tokens" [B, L, D],
    "fine_grained" [B, time, D], the mean over frequency. In training, `dropout` applies
    as in BERT. (Theirs leaves out whole layers as well, and passes on a share of each
    layer's gradient: see `optim.layer_decay`.)
    Errors: ValueError on mels smaller than a patch, and on anything to drop.
    """
    drop.refuse(
        "beats",
        "its convolution runs over all tokens",
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return from_linen(_Beats(**options, dtype=jnp.dtype(dtype), remat=remat))
