"""GPT-2 as a text tower and as a language model."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from clap_jax.models.tower import Tower, defaults, from_linen


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

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        raise NotImplementedError


DEFAULTS = defaults(_Gpt2)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> Tower:
    """GPT-2 as a text tower and as a language model."""
    return from_linen(_Gpt2(vocab_size, **options, dtype=jnp.dtype(dtype), remat=remat))
