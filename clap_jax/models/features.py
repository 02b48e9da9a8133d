"""In place of an audio tower: embeddings that frozen towers made before."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clap_jax.models import drop, layers
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen


class _Features(nn.Module):
    """See `tower`."""

    width: int = 768

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        x = as_sound(x).mel
        if x.ndim != 3 or x.shape[2] != self.width:
            raise ValueError(
                f"features of shape {list(x.shape)}; this tower takes "
                f"[B, N, {self.width}]"
            )
        time = layers.layer_norm(1e-5, jnp.float32, "norm")(x.astype(jnp.float32))
        return time.mean(1), {"fine_grained": time}


DEFAULTS = defaults(_Features)


def features_width(options: Mapping[str, Any]) -> int:
    """How many numbers stand for a segment, where other towers take a mel."""
    return options["width"]


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """A LayerNorm, since embeddings of different towers differ in size.

    Input `Sound.mel` [B, N, D]: N = 1 for a segment, D = `width`. All is float32,
    whatever `dtype` is. Embedding [B, D]: the mean over N; aux: "fine_grained"
    [B, N, D].
    Errors: ValueError on another width, and on anything to drop.
    """
    del dtype, remat
    drop.refuse(
        "features",
        "it hears no mel",
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return from_linen(_Features(**options))
