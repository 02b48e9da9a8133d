"""BART's encoder as a text tower."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from clap_jax.models.tower import Tower, defaults, from_linen


class _Bart(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 768
    depth: int = 6
    heads: int = 12
    mlp: int = 3072
    position_table: int = 1026
    pad_id: int = 1
    eps: float = 1e-5
    dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        raise NotImplementedError


DEFAULTS = defaults(_Bart)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> Tower:
    """BART's encoder as a text tower."""
    return from_linen(_Bart(vocab_size, **options, dtype=jnp.dtype(dtype), remat=remat))
