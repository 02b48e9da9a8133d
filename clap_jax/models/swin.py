"""Shifted-window attention on [B, H, W, C] maps (Liu et al. 2021, arXiv 2103.14030)."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32, Int64

from clap_jax.models import layers

# Swin adds this, not minus infinity, to the scores of positions that the shift has
# brought together from opposite edges.
SHIFT_MASK = -100.0


# Rows and columns of a window, or by how many of them windows are shifted.
Pair = tuple[int, int]


def pair(size: int | Pair) -> Pair:
    """(size, size), or the pair that it is already."""
    return (size, size) if isinstance(size, int) else size


def to_windows(x: Float[Array, "B H W C"], size: int | Pair) -> Float[Array, "B n L C"]:
    """Cut a map into its n windows of L = rows * columns positions, row by row.

    size: rows and columns of a window, or one number for both. Errors: ValueError when
    windows do not fill the map.
    """
    batch, height, width, channels = x.shape
    tall, wide = pair(size)
    if height % tall or width % wide:
        raise ValueError(
            f"a map of {height} x {width} positions is not made of windows of "
            f"{tall} x {wide}; choose another window, patch or image"
        )
    x = x.reshape(batch, height // tall, tall, width // wide, wide, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, tall * wide, channels)


def from_windows(
    windows: Float[Array, "B n L C"], height: int, width: int, size: int | Pair
) -> Float[Array, "B H W C"]:
    """The inverse of `to_windows`."""
    batch, channels = windows.shape[0], windows.shape[-1]
    tall, wide = pair(size)
    x = windows.reshape(batch, height // tall, width // wide, tall, wide, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


@functools.lru_cache
def relative_index(size: int, window: int | Pair = 0) -> Int64[np.ndarray, "L L"]:
    """Row of the bias table for each pair (query, key) of a window.

    The table has (2 size - 1)^2 rows: offset in rows times (2 size - 1) plus offset in
    columns, both counted from -(size - 1). `window` is the window itself when it is
    smaller than the `size` that the table was made for.
    """
    tall, wide = pair(window or size)
    row, column = np.divmod(np.arange(tall * wide), wide)
    rows = row[:, None] - row[None, :] + size - 1
    columns = column[:, None] - column[None, :] + size - 1
    return rows * (2 * size - 1) + columns


@functools.lru_cache
def shift_mask(
    height: int, width: int, size: int | Pair, shift: int | Pair
) -> Float32[np.ndarray, "n L L"]:
    """0 where two positions of a shifted window are neighbours, -100 where not."""
    tall, wide = pair(size)

    def region(length: int, size: int, shift: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - size) + (position >= length - shift).astype(int)

    rows, columns = map(region, (height, width), (tall, wide), pair(shift))
    regions = rows[:, None] * 3 + columns[None, :]
    windows = regions.reshape(height // tall, tall, width // wide, wide)
    windows = windows.transpose(0, 2, 1, 3).reshape(-1, tall * wide)
    apart = windows[:, :, None] != windows[:, None, :]
    return np.where(apart, np.float32(SHIFT_MASK), np.float32(0))


class Block(nn.Module):
    """A pre-norm block with attention inside windows, shifted by `shift` positions.

    window, shift: rows and columns of a window, and of its shift. table_side: of the
    window that the table of relative positions is made for, at least as large.
    remat: see `layers.rematerialised`. Other than with "none", the rows of windows go
    through the block one after another, and each is computed again in the backward
    pass: windows have nothing to do with one another, so that what is alive at a time
    is the inside of one row of them, whatever the size of the map.
    """

    heads: int
    table_side: int
    window: Pair
    shift: Pair
    mlp_ratio: float
    drop_path: float
    eps: float
    dtype: Any
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B H W C"]:
        height, width = x.shape[1:3]
        rows = (2 * self.table_side - 1) ** 2
        table = self.param("position_bias", layers.transformer_init, (rows, self.heads))
        bias = table[relative_index(self.table_side, self.window)].transpose(2, 0, 1)[
            None
        ]
        mask = None
        if any(self.shift):
            mask = shift_mask(height, width, self.window, self.shift)
            x = jnp.roll(x, [-shift for shift in self.shift], (1, 2))
        # Drawn here, once for all rows of windows.
        kept = [
            layers.DropPath(self.drop_path).kept(x.shape[0], train) for _ in range(2)
        ]
        if self.remat == "none" or not train or self.is_initializing():
            x = self._windows(x, mask, bias, kept, train)
        else:
            x = self._by_rows(x, mask, bias, kept, train)
        return jnp.roll(x, self.shift, (1, 2)) if any(self.shift) else x

    def _by_rows(self, x: Any, mask: Any, bias: Any, kept: Any, train: bool) -> Any:
        """`_windows`, one row of them at a time."""
        batch, height, width, channels = x.shape
        tall = self.window[0]
        count = height // tall

        def body(block: Block, carry: tuple, row: tuple, shared: tuple) -> tuple:
            return carry, block._windows(*row, *shared, train)

        body = layers.rematerialised(body, self.remat, (), loop=count > 1)
        if count == 1:
            return body(self, (), (x, mask), (bias, kept))[1]
        rows = x.reshape(batch, count, tall, width, channels).swapaxes(0, 1)
        if mask is not None:
            mask = mask.reshape(count, -1, *mask.shape[1:])
        scan = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
        )
        _, rows = scan(self, (), (rows, mask), (bias, kept))
        return rows.swapaxes(0, 1).reshape(x.shape)

    def _windows(
        self,
        x: Float[Array, "B H W C"],
        mask: Float32[Any, "n L L"] | None,
        bias: Float[Array, "1 heads L L"],
        kept: list[Bool[Array, " B"] | None],
        train: bool,
    ) -> Float[Array, "B H W C"]:
        """The block on a map that is shifted already."""
        height, width, channels = x.shape[1:]
        bias = bias if mask is None else bias + mask[:, None]
        branch = layers.layer_norm(self.eps, self.dtype, "norm1")(x)
        branch = layers.Attention(self.heads, dtype=self.dtype, name="attention")(
            to_windows(branch, self.window), bias, train
        )
        branch = from_windows(branch, height, width, self.window)
        x = x + layers.drop_path(branch, kept[0], self.drop_path)
        branch = layers.layer_norm(self.eps, self.dtype, "norm2")(x)
        hidden = int(self.mlp_ratio * channels)
        branch = layers.Mlp(hidden, self.dtype, name="mlp")(branch)
        return x + layers.drop_path(branch, kept[1], self.drop_path)


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
