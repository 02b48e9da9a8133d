"""A small transformer over a convolutional stem, for short clips and small machines.

0.4 M parameters at its defaults; measured to learn captioned scenes from scratch in
minutes on two CPU cores.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clap_jax.audio.frontend import FLOOR_DB
from clap_jax.models import drop, layers
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen


class _ConvTransformer(nn.Module):
    """See `tower`."""

    # Frames and mel bins of one patch.
    patch: tuple[int, ...] = (4, 8)
    stem: int = 48
    width: int = 96
    depth: int = 3
    heads: int = 4
    mlp: int = 384
    dropout: float = 0.0
    mean_db: float = -40.0
    std_db: float = 20.0
    dtype: Any = jnp.float32
    remat: str = "none"
    patch_drop: float = 0.0
    frequency_drop: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        x = as_sound(x).mel
        x = layers.fit(x, 2 * self.patch[0], 2 * self.patch[1], FLOOR_DB)
        x = (x - self.mean_db) / self.std_db
        x = layers.patches(x[..., None], self.patch)
        x = nn.gelu(nn.Dense(self.stem, dtype=self.dtype, name="stem")(x))
        x = layers.conv3x3(self.width, 2, self.dtype, name="conv")(x)
        cells = x.shape[1] * x.shape[2]
        positions = self.param(
            "positions", layers.transformer_init, (cells, self.width)
        )
        x = x + positions.astype(self.dtype).reshape(*x.shape[1:])
        if train:
            x = self._drop(x)
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            x = block(
                heads=self.heads,
                mlp=self.mlp,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, None, train)
        x = layers.layer_norm(1e-5, self.dtype, "norm")(x)
        time = x.reshape(-1, *grid, self.width).mean(2, dtype=jnp.float32)
        return x.mean(1, dtype=jnp.float32), {"tokens": x, "fine_grained": time}

    def _drop(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Leave out steps of time, and bands of frequency."""
        for axis, name in ((1, "patch_drop"), (2, "frequency_drop")):
            size = x.shape[axis]
            kept = drop.groups_kept(name, getattr(self, name), size)
            if kept < size:
                index = drop.subset(self.make_rng("augment"), x.shape[0], size, kept)
                x = drop.take_groups(x, index, axis, size)
        return x


DEFAULTS = defaults(_ConvTransformer)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """Patches, one 3x3 convolution of stride 2, pre-norm blocks, mean of the tokens.

    Input log-mel in dB [B, N, F], normalised by the fixed `mean_db` and `std_db`, so
    that loudness survives and digital silence (-100 dB) is -3. Frames and mels are
    cropped or padded to whole cells (`layers.fit`). Embedding [B, D];
    aux: "tokens" [B, L, D], "fine_grained" [B, time, D]. The position table has the
    size of the example given to `init`: other clip lengths are an error.

    patch_drop, frequency_drop: the shares of steps of time, and of bands of frequency,
    that are left out in training, behind the convolution and the positions; another
    choice for every clip. Both round to whole steps and bands, at least one.
    Errors: ValueError on shares that leave nothing.
    """
    module = _ConvTransformer(
        **options,
        dtype=jnp.dtype(dtype),
        remat=remat,
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return from_linen(module)
