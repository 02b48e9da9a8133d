"""Shifted-window attention on [B, H, W, C] maps (Liu et al. 2021, arXiv 2103.14030)."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int64

from clap_jax.models import layers

# Swin adds this, not minus infinity, to the scores of positions that the shift has
# brought together from opposite edges.
SHIFT_MASK = -100.0


def to_windows(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B n L C"]:
    """Cut a map into its n windows of L = size * size positions, row by row.

    Errors: ValueError when they do not fill the map.
    """
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(
            f"a map of {height} x {width} positions is not made of windows of "
            f"{size} x {size}; choose another window, patch or image"
        )
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size, channels)


def from_windows(
    windows: Float[Array, "B n L C"], height: int, width: int
) -> Float[Array, "B H W C"]:
    """The inverse of `to_windows`."""
    batch, _, positions, channels = windows.shape
    size = round(positions**0.5)
    x = windows.reshape(batch, height // size, width // size, size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


@functools.lru_cache
def relative_index(size: int) -> Int64[np.ndarray, "L L"]:
    """Row of the bias table for each pair (query, key) of a window.

    The table has (2 size - 1)^2 rows: offset in rows times (2 size - 1) plus offset in
    columns, both counted from -(size - 1).
    """
    row, column = np.divmod(np.arange(size * size), size)
    rows = row[:, None] - row[None, :] + size - 1
    columns = column[:, None] - column[None, :] + size - 1
    return rows * (2 * size - 1) + columns


@functools.lru_cache
def shift_mask(
    height: int, width: int, size: int, shift: int
) -> Float32[np.ndarray, "n L L"]:
    """0 where two positions of a shifted window are neighbours, -100 where not."""

    def region(length: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - size) + (position >= length - shift).astype(int)

    regions = region(height)[:, None] * 3 + region(width)[None, :]
    windows = regions.reshape(height // size, size, width // size, size)
    windows = windows.transpose(0, 2, 1, 3).reshape(-1, size * size)
    apart = windows[:, :, None] != windows[:, None, :]
    return np.where(apart, np.float32(SHIFT_MASK), np.float32(0))


class Block(nn.Module):
    """A pre-norm block with attention inside windows, shifted by `shift` positions."""

    heads: int
    window: int
    shift: int
    mlp_ratio: float
    drop_path: float
    eps: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B H W C"]:
        height, width, channels = x.shape[1:]
        branch = layers.layer_norm(self.eps, self.dtype, "norm1")(x)
        if self.shift:
            branch = jnp.roll(branch, (-self.shift, -self.shift), (1, 2))
        branch = layers.Attention(self.heads, dtype=self.dtype, name="attention")(
            to_windows(branch, self.window), self._bias(height, width), train
        )
        branch = from_windows(branch, height, width)
        if self.shift:
            branch = jnp.roll(branch, (self.shift, self.shift), (1, 2))
        x = x + layers.DropPath(self.drop_path)(branch, train)
        branch = layers.layer_norm(self.eps, self.dtype, "norm2")(x)
        hidden = int(self.mlp_ratio * channels)
        branch = layers.Mlp(hidden, self.dtype, name="mlp")(branch)
        return x + layers.DropPath(self.drop_path)(branch, train)

    def _bias(self, height: int, width: int) -> Float[Array, "n heads L L"]:
        """Relative position bias plus shift mask; n is 1 without a shift."""
        rows = (2 * self.window - 1) ** 2
        table = self.param("position_bias", layers.transformer_init, (rows, self.heads))
        bias = table[relative_index(self.window)].transpose(2, 0, 1)[None]
        if self.shift:
            bias = bias + shift_mask(height, width, self.window, self.shift)[:, None]
        return bias


class Merge(nn.Module):
    """Halve height and width: LayerNorm of 2x2 neighbours side by side, then Linear.

    Neighbours are concatenated in the order (even row, even column), (odd, even),
    (even, odd), (odd, odd), as the reference code does.
    """

    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = layers.layer_norm(self.eps, self.dtype, "norm")(x)
        return nn.Dense(
            2 * channels,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.transformer_init,
            name="reduce",
        )(x)
