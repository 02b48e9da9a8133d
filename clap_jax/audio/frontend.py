"""The log-mel spectrogram, written once for numpy (workers) and jax.numpy (device)."""

import functools
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
from jaxtyping import Float, Float32, Int16

from clap_jax.audio import mel

FLOOR_POWER = mel.FLOOR_POWER

FLOOR_DB = -100.0
"""The log-mel of digital silence, 10 log10(FLOOR_POWER)."""

INT16_SCALE = 32767.0
"""Full scale of a 16-bit wave. LAION-CLAP scales by 32767, not by 32768."""

BLOCK_FRAMES = 256
"""Frames that numpy transforms at a time: small enough for the processor's cache, and a
long clip then takes hardly more memory than its mels."""


def from_int16(wave: Int16[Any, "*shape"], xp: ModuleType = np) -> Float[Any, "*shape"]:
    """A 16-bit wave as float32 in [-1, 1] (`xp` is numpy or jax.numpy)."""
    return wave.astype(xp.float32) / xp.float32(INT16_SCALE)


def frame(wave: Any, frontend: mel.Frontend, xp: ModuleType = np) -> Any:
    """Centred frames of `wave` [..., T], reflected at its ends: [..., N, n_fft]; or
    Kaldi's, as they lie in the wave: [..., N, window_samples].

    In numpy a read-only view. In jax.numpy the padded wave is cut into chunks of one
    hop, and a frame is a few neighbouring chunks side by side: reshapes and slices only.
    Gathering by index is as fast forwards, but takes up to twice as long for the
    gradient, which is then a scatter.
    """
    samples, hop = wave.shape[-1], frontend.hop_samples
    size = frontend.frame_samples
    half = 0 if frontend.is_kaldi else size // 2
    if samples < (size if frontend.is_kaldi else half + 1):
        raise ValueError(
            f"the wave has {samples} samples, expected {size} or more, a window"
            if frontend.is_kaldi
            else f"the wave has {samples} samples, expected more than {half} "
            f"(half of n_fft {frontend.n_fft}) to reflect at its ends"
        )
    frames = frontend.frames(samples)
    chunks = -(-size // hop)
    batch = [(0, 0)] * (wave.ndim - 1)
    if half:
        wave = xp.pad(wave, [*batch, (half, half)], mode="reflect")
    if xp is np:
        views = np.lib.stride_tricks.sliding_window_view(wave, size, axis=-1)
        return views[..., ::hop, :]
    total = (frames - 1 + chunks) * hop
    missing = max(0, total - wave.shape[-1])
    wave = xp.pad(wave, [*batch, (0, missing)])[..., :total]
    wave = wave.reshape(*wave.shape[:-1], -1, hop)
    parts = [wave[..., start : start + frames, :] for start in range(chunks)]
    parts[-1] = parts[-1][..., : size - (chunks - 1) * hop]
    return xp.concatenate(parts, axis=-1)


def _windowed(frames: Any, frontend: mel.Frontend, xp: ModuleType) -> Any:
    """Frames as they are transformed."""
    if frontend.is_kaldi:
        frames = frames - frames.mean(-1, keepdims=True)
        before = xp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - xp.float32(0.97) * before
    return frames * mel.window(frontend)


def log_mel(
    wave: Float32[Any, "*batch T"] | Int16[Any, "*batch T"],
    frontend: mel.Frontend,
    xp: ModuleType = np,
) -> Float32[Any, "*batch N F"]:
    """Log-mel spectrogram in dB: 10 log10(max(mel power, floor)), the floor 1e-10, or
    that of the front end.

    wave: float32 [..., T] at `frontend.rate_hz`, in [-1, 1], or int16; T > n_fft / 2.
    xp: numpy, or jax.numpy (differentiable, for jit).
    Returns float32 [..., N, F] with N = 1 + T // hop. Equal to torchlibrosa's
    Spectrogram and LogmelFilterBank for the "slaney" bank, to torchaudio's
    MelSpectrogram and AmplitudeToDB for the "htk" bank and, for "kaldi", to its
    compliance.kaldi.fbank but for the logarithm and the size of the wave.
    """
    if wave.dtype == np.int16:
        wave = from_int16(wave, xp)
    mels = _power_by_block(wave, frontend) if xp is np else _power(wave, frontend, xp)
    return 10 * xp.log10(xp.maximum(mels, xp.float32(frontend.floor_power)))


def log_mels(
    wave: Float32[Any, "*batch T"] | Int16[Any, "*batch T"],
    frontend: mel.Frontend,
    xp: ModuleType = np,
) -> Any:
    """What a model hears of a wave: its `log_mel`, and where there are front ends beside,
    a tuple of all of theirs, this one's first."""
    if not frontend.beside:
        return log_mel(wave, frontend, xp)
    return tuple(log_mel(wave, one, xp) for one in (frontend, *frontend.beside))


def _power(wave: Any, frontend: mel.Frontend, xp: ModuleType) -> Any:
    """Power in mel bands on a device: [..., T] to [..., N, F]."""
    frames = _windowed(frame(wave, frontend, xp), frontend, xp)
    spectrum = xp.fft.rfft(frames, frontend.n_fft)
    # Not abs(): its gradient at zero, digital silence, is not a number.
    power = xp.square(spectrum.real) + xp.square(spectrum.imag)
    # Accelerators multiply matrices in reduced precision unless told otherwise, and
    # three digits of power are not enough for a logarithm.
    return xp.matmul(power, mel.mel_bank(frontend), precision="highest")


def _power_by_block(wave: Any, frontend: mel.Frontend) -> Float32[np.ndarray, "..."]:
    """Power in mel bands in numpy: [..., T] to float32 [..., N, F].

    Whole batches at once would take twice as long: their arrays are memory that the
    system has to find and clear for every call.
    """
    bins, bank = _sparse_bank(frontend)
    batch, frames = wave.shape[:-1], frontend.frames(wave.shape[-1])
    # Frames so far apart still touch: together they hold every sample.
    apart = max(frontend.frame_samples // frontend.hop_samples, 1)
    mels = np.empty((*batch, frames, frontend.mels), np.float32)
    for clip in np.ndindex(batch):
        views = frame(wave[clip], frontend)
        for start in range(0, frames, BLOCK_FRAMES):
            block = views[start : start + BLOCK_FRAMES]
            if not (block[::apart].any() or block[-1].any()):
                # Padding, and digital silence: the transform of zeros is zeros.
                mels[clip][start : start + BLOCK_FRAMES] = 0
                continue
            block = _windowed(block, frontend, np)
            # On float32 scipy's transform takes a third of the time of numpy's. Frames
            # become columns, so that the bank multiplies rows that lie in one piece.
            spectrum = scipy.fft.rfft(block.T, frontend.n_fft, axis=0)[bins]
            power = np.square(spectrum.real)
            power += np.square(spectrum.imag)
            mels[clip][start : start + BLOCK_FRAMES] = (bank @ power).T
    return mels


@functools.lru_cache
def _sparse_bank(frontend: mel.Frontend) -> tuple[slice, scipy.sparse.csr_array]:
    """The bins that any filter hears, and the bank [F, bins] over them.

    Sparse: BLAS would start threads for each small matrix, which in workers fight each
    other and the compiled step (three to seven times slower).
    """
    bank = mel.mel_bank(frontend)
    heard = np.flatnonzero(bank.any(axis=1))
    bins = slice(heard[0], heard[-1] + 1)
    return bins, scipy.sparse.csr_array(bank[bins].T)
