"""CLIP's causal text transformer."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from clap_jax.models.tower import Tower, defaults, from_linen


class _ClipText(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    position_table: int = 77
    eps: float = 1e-5
    activation: str = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        raise NotImplementedError


DEFAULTS = defaults(_ClipText)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> Tower:
    """CLIP's causal text transformer."""
    return from_linen(
        _ClipText(vocab_size, **options, dtype=jnp.dtype(dtype), remat=remat)
    )
