"""PANN convolutional audio towers: Cnn6, Cnn10, Cnn14."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from clap_jax.models.tower import Tower, defaults, from_linen


class _Pann(nn.Module):
    """See `tower`."""

    widths: tuple = (64, 128, 256, 512, 1024, 2048)
    convs: int = 2
    kernel: int = 3
    pool_last: bool = False
    fusion: str = "none"
    flag_one: bool = False
    length_mask: str = "none"
    spec_augment: str = "after_bn0"
    classes: int = 0
    dropout: float = 0.2
    fc_dropout: float = 0.5
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        raise NotImplementedError


DEFAULTS = defaults(_Pann)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> Tower:
    """PANN convolutional audio towers: Cnn6, Cnn10, Cnn14."""
    return from_linen(_Pann(**options, dtype=jnp.dtype(dtype), remat=remat))
