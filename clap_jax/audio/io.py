"""Audio from files, bytes or arrays: decoding, mono, resampling, quantising.

Whatever is wrong with a clip is an AudioError, one sentence that names the clip, so that
a data pipeline can count bad clips and a person can find them.
"""

import io
import os
from numbers import Real
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

from clap_jax.audio import frontend

MIN_SECONDS = 0.001
"""Shorter clips are refused: there is nothing to hear in them."""

_UNKNOWN_FRAMES = 1 << 40
_BLOCK_FRAMES = 1 << 18
_QUALITY = "HQ"
_REMEDY = "export it again or remove the clip"


class AudioError(ValueError):
    """A clip that cannot be used: says which, what was found and what was expected."""


def read(source: Any, name: str = "") -> tuple[Float32[np.ndarray, " t"], Real]:
    """A mono clip, float32 [t], at its own rate, and that rate in Hz.

    source, name: as in `load`; files are WAV, FLAC, Ogg, MP3 and what else libsndfile
    knows. Raises AudioError.
    """
    if isinstance(source, tuple):
        return _from_array(source, name or "array")
    return _read(source, name or _name_of(source))


def _read(
    source: Any, name: str, target_hz: Real | None = None
) -> tuple[np.ndarray, Real]:
    """As `read`, resampled to `target_hz` if given.

    Block by block, which gives the same bits: an hour of stereo takes no more memory
    than the wave that comes out.
    """
    opened = _open(source, name)
    parts, frames, bad = [], 0, 0
    try:
        with soundfile.SoundFile(opened) as file:
            header_frames, rate_hz, kind = file.frames, file.samplerate, file.format
            if header_frames >= _UNKNOWN_FRAMES:
                raise AudioError(
                    f"{name}: a {kind} stream whose header does not give its length, "
                    "expected a file: encode it again"
                )
            stream = None
            if target_hz not in (None, rate_hz):
                stream = soxr.ResampleStream(rate_hz, target_hz, 1, quality=_QUALITY)
            while len(block := file.read(_BLOCK_FRAMES, "float32", always_2d=True)):
                mono = np.ascontiguousarray(_mono(block), np.float32)
                frames += len(mono)
                bad += _not_finite(mono)
                parts.append(stream.resample_chunk(mono) if stream else mono)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: {_why(error, opened)}") from None
    # soundfile asks for a sample rate when a name ends in .raw.
    except (soundfile.SoundFileError, TypeError) as error:
        raise AudioError(f"{name}: cannot be decoded: {error}; {_REMEDY}") from None
    # The length in an MP3 is an estimate.
    if frames < header_frames and kind != "MP3":
        raise AudioError(
            f"{name}: truncated: {frames} frames found, its header promises "
            f"{header_frames}; {_REMEDY}"
        )
    _check(frames, bad, rate_hz, name)
    if stream is None:
        return np.concatenate(parts), rate_hz
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts), target_hz


def resample(
    wave: Float32[np.ndarray, " t"], rate_hz: Real, target_hz: Real
) -> Float32[np.ndarray, " s"]:
    """Resample float32 [t] with soxr at high quality (deterministic)."""
    if rate_hz == target_hz:
        return wave
    return soxr.resample(wave, rate_hz, target_hz, quality=_QUALITY)


def load(source: Any, rate_hz: Real, name: str = "") -> Float32[np.ndarray, " t"]:
    """A mono clip, float32 [t] at `rate_hz`, from any kind of source.

    source: path, bytes, binary file object, or (array, its rate in Hz). An array is [t],
    [t, channels] or [channels, t] (the shorter axis is the channels), floating point in
    [-1, 1] or integers of full scale. Raises AudioError: missing, empty or undecodable
    files, no samples, samples that are not finite, clips under MIN_SECONDS.
    """
    if isinstance(source, tuple):
        return resample(*read(source, name), rate_hz)
    return _read(source, name or _name_of(source), rate_hz)[0]


def to_int16(wave: Float32[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """LAION-CLAP's 16-bit wave: clip to [-1, 1], times 32767, truncate toward zero."""
    scaled = np.clip(wave, -1, 1) * np.float32(frontend.INT16_SCALE)
    return scaled.astype(np.int16)


def quantise(wave: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """LAION-CLAP's trip through 16 bits and back, which its models were trained with."""
    return frontend.from_int16(to_int16(wave))


def _name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source) or "''"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes of audio"
    return str(getattr(source, "name", "") or "file object")


def _open(source: Any, name: str) -> str | io.BytesIO:
    """Something that soundfile opens, once it is known not to be empty."""
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if os.path.isdir(path):
            raise AudioError(f"{name}: is a directory, expected an audio file")
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise AudioError(f"{name}: {error.strerror or error}") from None
        if size == 0:
            raise AudioError(f"{name}: the file is empty; {_REMEDY}")
        return path
    data = source
    if hasattr(source, "read"):
        data = source.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioError(
            f"{name}: found {type(source).__name__}, expected a path, bytes, a binary "
            "file object or (array, rate_hz)"
        )
    if not len(data):
        raise AudioError(f"{name}: there are no bytes; {_REMEDY}")
    return io.BytesIO(data)


def _why(error: soundfile.LibsndfileError, opened: str | io.BytesIO) -> str:
    """What libsndfile said, and how the bytes begin."""
    try:
        if isinstance(opened, io.BytesIO):
            head = opened.getvalue()[:16]
        else:
            with open(opened, "rb") as file:
                head = file.read(16)
    except OSError as trouble:
        return f"cannot be read: {trouble.strerror or trouble}"
    said = error.error_string.rstrip(".")
    return f"not decodable ({said}; starts with {head!r}); {_REMEDY}"


def _mono(samples: np.ndarray) -> np.ndarray:
    """Mean over channels of [t, channels]."""
    if samples.size == 0 or samples.shape[1] == 1:
        return samples.reshape(-1)
    return samples.mean(axis=1)


def _checked(wave: np.ndarray, rate_hz: Real, name: str) -> np.ndarray:
    """`wave` as contiguous float32, or an AudioError."""
    wave = np.ascontiguousarray(wave, np.float32)
    _check(len(wave), _not_finite(wave), rate_hz, name)
    return wave


def _not_finite(wave: np.ndarray) -> int:
    return len(wave) - int(np.count_nonzero(np.isfinite(wave)))


def _check(samples: int, bad: int, rate_hz: Real, name: str) -> None:
    """Raise AudioError for a wave of so many samples, of which some are not finite."""
    if not samples:
        raise AudioError(f"{name}: has no samples; {_REMEDY}")
    if bad:
        raise AudioError(
            f"{name}: {bad} of {samples} samples are not finite (NaN or infinite); "
            f"{_REMEDY}"
        )
    if samples / rate_hz < MIN_SECONDS:
        raise AudioError(
            f"{name}: {samples} samples at {rate_hz} Hz are "
            f"{samples / rate_hz:.6f} s, expected {MIN_SECONDS} s or more; {_REMEDY}"
        )


def _from_array(source: tuple, name: str) -> tuple[np.ndarray, Real]:
    """(array, rate_hz) as checked float32 [t] and its rate."""
    if len(source) != 2:
        raise AudioError(f"{name}: a tuple of {len(source)}, expected (array, rate_hz)")
    array, rate_hz = np.asarray(source[0]), source[1]
    is_number = isinstance(rate_hz, Real) and not isinstance(rate_hz, bool)
    if not is_number or not 0 < rate_hz < float("inf"):
        raise AudioError(f"{name}: rate is {rate_hz!r}, expected a positive number, Hz")
    array = _scaled(array, name)
    if array.ndim == 2:
        if array.shape[0] == array.shape[1] != 1:
            raise AudioError(
                f"{name}: shape {array.shape} does not tell samples from channels"
            )
        array = _mono(array if array.shape[0] > array.shape[1] else array.T)
    elif array.ndim != 1:
        raise AudioError(
            f"{name}: an array of shape {array.shape}, expected [t], [t, channels] or "
            "[channels, t]"
        )
    return _checked(array, rate_hz, name), rate_hz


def _scaled(array: np.ndarray, name: str) -> np.ndarray:
    """Floating point as float32; integers scaled so that full scale is 1."""
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # becomes infinite: `_checked` reports it
            return array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise AudioError(f"{name}: samples are {array.dtype}, expected numbers")
    half_range = 2.0 ** (8 * array.dtype.itemsize - 1)
    offset = half_range if array.dtype.kind == "u" else 0.0
    return ((array.astype(np.float64) - offset) / half_range).astype(np.float32)
