"""From one embedding to a prefix that a language model reads like words.

Source: MS-CLAP `models/mapper.py` (clapcap), after ClipCap (Mokady et al. 2021,
arXiv 2111.09734).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clap_jax.models import layers
from clap_jax.models.tower import Tower, defaults, from_linen


class _Mapper(nn.Module):
    """See `tower`."""

    width: int = 768
    length: int = 40
    clip_length: int = 40
    depth: int = 8
    heads: int = 8
    mlp_ratio: int = 2
    constants_std: float = 1.0
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B E"], train: bool
    ) -> tuple[Float[Array, "B P D"], dict[str, Any]]:
        clip = nn.Dense(
            self.clip_length * self.width,
            dtype=self.dtype,
            kernel_init=layers.torch_init,
            name="linear",
        )(z)
        constants = self.param(
            "constants",
            nn.initializers.normal(self.constants_std),
            (self.length, self.width),
        )
        batch = z.shape[0]
        x = jnp.concatenate(
            [
                clip.reshape(batch, self.clip_length, self.width),
                jnp.broadcast_to(
                    constants.astype(self.dtype), (batch, *constants.shape)
                ),
            ],
            axis=1,
        )
        for i in range(self.depth):
            x = layers.Block(
                heads=self.heads,
                mlp=self.mlp_ratio * self.width,
                eps=self.eps,
                dtype=self.dtype,
                activation="relu",
                qkv_bias=False,
                name=f"block{i}",
            )(x, None, train)
        return x[:, self.clip_length :], {}


DEFAULTS = defaults(_Mapper)


def tower(options: Mapping[str, Any], *, dtype: str = "float32") -> Tower:
    """The mapper of clapcap; `options` override `DEFAULTS`.

    Input [B, E], of length one. A linear map makes `clip_length` vectors of `width` D
    of it, `length` P learnt constants stand behind them; pre-norm blocks with ReLU,
    without biases of queries, keys and values and without a final norm, mix them all.
    Embedding [B, P, D]: what the constants have become. No aux.

    constants_std: of the constants at the start, 1 in the reference. What they hear is
    added to them; a small model that starts fresh hears sooner where they are small.
    """
    return from_linen(_Mapper(**options, dtype=jnp.dtype(dtype)))
