"""HTSAT, the audio tower of LAION-CLAP: a Swin transformer over a folded log-mel.

Source: Chen et al. 2022 (arXiv 2202.00874) as configured in LAION-AI/CLAP,
`clap_module/htsat.py`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from clap_jax.audio import augment
from clap_jax.models import layers, swin
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen

# Torch's bicubic kernel. Keys' classical -0.5, which jax.image uses, is another curve.
BICUBIC_A = -0.75


@functools.lru_cache
def bicubic_matrix(out: int, size: int) -> Float32[np.ndarray, "out size"]:
    """The linear map of a bicubic resize from `size` to `out` samples.

    As torch's `interpolate(mode="bicubic", align_corners=True)`: first and last
    samples are kept, a = -0.75, samples beyond an edge repeat the edge. Rows sum to 1.
    """
    place = np.arange(out) * (size - 1) / max(out - 1, 1)
    left = np.floor(place).astype(int)
    matrix = np.zeros((out, size))
    a = BICUBIC_A
    for tap in (-1, 0, 1, 2):
        x = np.abs(place - (left + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(left + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(out), column), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def fold(x: Float[Array, "B N F"], image: int) -> Float[Array, "B I I"]:
    """Log-mel to a square image: `image // F` stretches of time above one another.

    Frames are resized to fill the image (1001 to 1024 for 10 s). Row F * r + f, column
    c of the image is mel f of frame image * r + c. Errors: ValueError when the frames
    are more than the image holds.
    """
    batch, frames, mels = x.shape
    if image % mels:
        raise ValueError(f"{mels} mel bins do not divide the image size {image}")
    rows = image // mels
    if frames > rows * image:
        raise ValueError(
            f"{frames} frames are more than the {rows * image} that HTSAT takes; "
            "cut the clip"
        )
    if frames < rows * image:
        matrix = bicubic_matrix(rows * image, frames)
        x = jnp.einsum("mn,bnf->bmf", matrix, x, precision="highest")
    x = x.reshape(batch, rows, image, mels).transpose(0, 1, 3, 2)
    return x.reshape(batch, image, image)


class _Htsat(nn.Module):
    """See `tower`."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    patch: int = 4
    image: int = 256
    mlp_ratio: int = 4
    eps: float = 1e-5
    drop_path: float = 0.1
    spec_augment: bool = True
    classes: int = 0
    fusion: str = "none"
    flag_one: bool = False
    long_clips: str = "error"
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        x = as_sound(x).mel
        mels = x.shape[-1]
        aux = {}
        x = aux["bn0"] = layers.BatchNorm(name="bn0")(x, train)
        if train and self.spec_augment:
            # After bn0, so that the stripes, filled with 0, are of average loudness.
            x = augment.spec_augment(self.make_rng("augment"), x)
        x = layers.patches(fold(x, self.image)[..., None], (self.patch, self.patch))
        x = nn.Dense(
            self.width, dtype=self.dtype, kernel_init=layers.torch_init, name="patch"
        )(x)
        x = layers.layer_norm(self.eps, self.dtype, "norm_patch")(x)
        aux["patch_embed"] = _flat(x)
        x = self._stages(x, train, aux)
        x = layers.layer_norm(self.eps, self.dtype, "norm")(x)
        tokens = aux["tokens"] = _flat(x)
        # The rows of the map are stretches of time, each of `bins` frequencies.
        stretches = self.image // mels
        batch, rows, columns, channels = x.shape
        x = x.reshape(batch, stretches, rows // stretches, columns, channels)
        x = x.transpose(0, 2, 1, 3, 4)
        x = x.reshape(batch, rows // stretches, stretches * columns, channels)
        aux["fine_grained"] = x.mean(1, dtype=jnp.float32)
        if self.classes:
            self._tag(x, aux)
        return tokens.mean(1, dtype=jnp.float32), aux

    def _stages(self, x: Any, train: bool, aux: dict[str, Any]) -> Any:
        block = layers.rematerialised(swin.Block, self.remat, (2,))
        # np.linspace(0, drop_path): deeper blocks are dropped more often.
        rates = iter(np.linspace(0.0, self.drop_path, sum(self.depths)))
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            # A map of one window has nothing to shift.
            shift = self.window // 2 if min(x.shape[1:3]) > self.window else 0
            for j in range(depth):
                x = block(
                    heads=heads,
                    window=self.window,
                    shift=shift if j % 2 else 0,
                    mlp_ratio=self.mlp_ratio,
                    drop_path=float(next(rates)),
                    eps=self.eps,
                    dtype=self.dtype,
                    name=f"stage{i}_block{j}",
                )(x, train)
            if i < len(self.depths) - 1:
                x = swin.Merge(self.eps, self.dtype, name=f"stage{i}_merge")(x)
            aux[f"stage{i}"] = _flat(x)
        return x

    def _tag(self, x: Float[Array, "B f t C"], aux: dict[str, Any]) -> None:
        """The token-semantic head of AudioSet training."""
        logits = nn.Conv(
            self.classes,
            (x.shape[1], 3),
            padding=((0, 0), (1, 1)),
            kernel_init=layers.torch_init,
            name="tag",
        )(x.astype(jnp.float32))[:, 0]
        aux["framewise"] = nn.sigmoid(logits)
        aux["clipwise"] = nn.sigmoid(logits.mean(1))


def _flat(x: Float[Array, "B H W C"]) -> Float[Array, "B L C"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])


DEFAULTS = defaults(_Htsat)


def tower(
    options: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none"
) -> Tower:
    """HTSAT; tiny, base and large are width 96, 128, 256 (see `zoo`).

    Input log-mel in dB [B, N, F], N at most (image / F) * image (1024). In order: batch
    norm of every mel bin; in training SpecAugment (if `spec_augment`), always on in the
    reference's training; bicubic resize and `fold` to image x image; patches; four
    Swin stages with stochastic depth from 0 to `drop_path`; LayerNorm; mean.
    Embedding [B, D], D = 8 * width. aux, with t = 32 positions for a full clip:
    "tokens" [B, 64, D] (final LayerNorm), "fine_grained" [B, t, D] (mean over
    frequency); with `classes` > 0 also "framewise" [B, t, classes] and "clipwise"
    [B, classes], probabilities of sound events. The reference repeats fine_grained and
    framewise 32 times along time. "bn0" [B, N, F], "patch_embed" and "stage0" to
    "stage3" [B, L, C] (after down-sampling) serve comparisons.
    Errors: ValueError on a clip that is too long.
    """
    return from_linen(_Htsat(**options, dtype=jnp.dtype(dtype), remat=remat))
