"""The log-mel spectrogram, written once for numpy (workers) and jax.numpy (device)."""

import functools
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
from jaxtyping import Float, Float32, Int16

from clap_jax.audio import mel

FLOOR_POWER = 1e-10
"""Mel power below which everything is silence."""

FLOOR_DB = -100.0
"""The log-mel of digital silence, 10 log10(FLOOR_POWER)."""

INT16_SCALE = 32767.0
"""Full scale of a 16-bit wave. LAION-CLAP scales by 32767, not by 32768."""


def from_int16(wave: Int16[Any, "*shape"], xp: ModuleType = np) -> Float[Any, "*shape"]:
    """A 16-bit wave as float32 in [-1, 1] (`xp` is numpy or jax.numpy)."""
    return wave.astype(xp.float32) / xp.float32(INT16_SCALE)


def frame(wave: Any, frontend: mel.Frontend, xp: ModuleType = np) -> Any:
    """Centred frames of `wave` [..., T], reflected at its ends: [..., N, n_fft].

    The padded wave is cut into chunks of one hop, and a frame is a few neighbouring
    chunks side by side: reshapes and slices only. Gathering by index is as fast forwards,
    but takes up to twice as long for the gradient, which is then a scatter.
    """
    samples, hop = wave.shape[-1], frontend.hop_samples
    half = frontend.n_fft // 2
    if samples <= half:
        raise ValueError(
            f"the wave has {samples} samples, expected more than {half} "
            f"(half of n_fft {frontend.n_fft}) to reflect at its ends"
        )
    frames = frontend.frames(samples)
    chunks = -(-frontend.n_fft // hop)
    batch = [(0, 0)] * (wave.ndim - 1)
    wave = xp.pad(wave, [*batch, (half, half)], mode="reflect")
    total = (frames - 1 + chunks) * hop
    missing = max(0, total - wave.shape[-1])
    wave = xp.pad(wave, [*batch, (0, missing)])[..., :total]
    wave = wave.reshape(*wave.shape[:-1], -1, hop)
    parts = [wave[..., start : start + frames, :] for start in range(chunks)]
    parts[-1] = parts[-1][..., : frontend.n_fft - (chunks - 1) * hop]
    return xp.concatenate(parts, axis=-1)


def log_mel(
    wave: Float32[Any, "*batch T"] | Int16[Any, "*batch T"],
    frontend: mel.Frontend,
    xp: ModuleType = np,
) -> Float32[Any, "*batch N F"]:
    """Log-mel spectrogram in dB: 10 log10(max(mel power, 1e-10)).

    wave: float32 [..., T] at `frontend.rate_hz`, in [-1, 1], or int16; T > n_fft / 2.
    xp: numpy, or jax.numpy (differentiable, for jit).
    Returns float32 [..., N, F] with N = 1 + T // hop. Equal to torchlibrosa's
    Spectrogram and LogmelFilterBank for the "slaney" bank and to torchaudio's
    MelSpectrogram and AmplitudeToDB for the "htk" bank.
    """
    if wave.dtype == np.int16:
        wave = from_int16(wave, xp)
    frames = frame(wave, frontend, xp) * mel.window(frontend)
    # On float32 frames scipy's transform takes a third of the time of numpy's.
    spectrum = scipy.fft.rfft(frames) if xp is np else xp.fft.rfft(frames)
    # Not abs(): its gradient at zero, digital silence, is not a number.
    power = xp.square(spectrum.real) + xp.square(spectrum.imag)
    mels = _bands(power, frontend, xp)
    return 10 * xp.log10(xp.maximum(mels, xp.float32(FLOOR_POWER)))


def _bands(power: Any, frontend: mel.Frontend, xp: ModuleType) -> Any:
    """Power in mel bands: [..., N, bins] to [..., N, F]."""
    if xp is np:
        # A sparse product: BLAS would start threads for each small matrix, which in
        # workers fight each other and the compiled step (three to seven times slower).
        rows = power.reshape(-1, power.shape[-1]) @ _sparse_bank(frontend)
        return rows.reshape(*power.shape[:-1], frontend.mels)
    # Accelerators multiply matrices in reduced precision unless told otherwise, and
    # three digits of power are not enough for a logarithm.
    return xp.matmul(power, mel.mel_bank(frontend), precision="highest")


@functools.lru_cache
def _sparse_bank(frontend: mel.Frontend) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(mel.mel_bank(frontend))
