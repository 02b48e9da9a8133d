"""The audio encoder of Whisper (Radford et al. 2022, arXiv 2212.04356).

Names and arrangement: Hugging Face's `modeling_whisper.py`, `WhisperEncoder`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from clap_jax.models import drop, layers
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen

# Of log10 power: what lies further below the loudest cell of a clip is not heard.
RANGE = 8.0


def normalise(mel_db: Float[Array, "B N F"]) -> Float[Array, "B N F"]:
    """A log-mel in dB as Whisper takes it: log10, 8 below the clip's maximum at the
    least, and then (x + 4) / 4 (`feature_extraction_whisper.py`)."""
    x = mel_db / 10
    x = jnp.maximum(x, x.max((1, 2), keepdims=True) - RANGE)
    return (x + 4) / 4


class _Whisper(nn.Module):
    """See `tower`."""

    width: int = 384
    depth: int = 4
    heads: int = 6
    mlp: int = 1536
    # Rows of the position table: two frames each.
    position_table: int = 1500
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        mel = as_sound(x).mel
        # The front end's last frame is centred on the end of the clip.
        places = mel.shape[1] // 2
        if not 0 < places <= self.position_table:
            raise ValueError(
                f"a mel of {mel.shape[1]} frames; this tower takes 2 to "
                f"{2 * self.position_table + 1}"
            )
        x = normalise(mel[:, : 2 * places])
        x = layers.ACTIVATIONS["gelu"](self._conv(1, "conv1")(x))
        x = layers.ACTIVATIONS["gelu"](self._conv(2, "conv2")(x))
        table = self.param("sinusoids", _sinusoids, (self.position_table, self.width))
        # They are what they are: published ones were never trained.
        x = x + jax.lax.stop_gradient(table[:places]).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            x = block(
                heads=self.heads,
                mlp=self.mlp,
                dropout=self.dropout,
                dtype=self.dtype,
                key_bias=False,
                name=f"block{i}",
            )(x, None, train)
        x = layers.layer_norm(1e-5, self.dtype, "norm")(x)
        time = x.astype(jnp.float32)
        return time.mean(1), {"tokens": x, "fine_grained": time}

    def _conv(self, stride: int, name: str) -> nn.Conv:
        return nn.Conv(
            self.width, (3,), stride, padding=((1, 1),), dtype=self.dtype, name=name
        )


def _sinusoids(key: Any, shape: tuple[int, int], dtype: Any = np.float32) -> jax.Array:
    """Sines, then cosines, of wavelengths from 2 pi to 10,000 * 2 pi."""
    del key
    rows, width = shape
    step = math.log(10_000) / (width // 2 - 1)
    rates = np.exp(-step * np.arange(width // 2, dtype=np.float32))
    phase = np.arange(rows, dtype=np.float32)[:, None] * rates
    return jnp.asarray(np.concatenate([np.sin(phase), np.cos(phase)], axis=1), dtype)


DEFAULTS = defaults(_Whisper)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """Whisper's encoder: two convolutions, fixed sinusoids, pre-norm blocks.

    Input log-mel in dB [B, N, F] of the front end "whisper", up to
    2 * `position_table` frames (30 s) and the one behind them, which is left out, as
    that of an odd number. Whisper itself was trained on 30 s throughout, shorter clips
    filled with silence, which it hears like any sound. Keys have no bias. Embedding
    [B, D]: the mean over time, two frames each; aux: "tokens" and "fine_grained"
    [B, time, D], the states behind the last norm.
    Errors: ValueError on longer clips, and on anything to drop.
    """
    drop.refuse(
        "whisper",
        "its convolutions run over a whole mel",
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return from_linen(_Whisper(**options, dtype=jnp.dtype(dtype), remat=remat))
