"""One clip on its way into a shard: is it whole, and how is it encoded.

A clip that cannot be used is a `Reject`, whose kind counts it and whose reason tells a
person what was found.
"""

import dataclasses
import hashlib
import io
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import soundfile

from clap_jax import remote
from clap_jax.audio import io as audio_io
from data import ogg

ENCODINGS = ("as_is", "flac", "int16", "ogg", "opus")

OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)

# libsndfile's names of formats by what a file's name promises.
FORMATS = {
    **dict.fromkeys((".wav", ".wave"), ("WAV", "WAVEX", "RF64")),
    ".flac": ("FLAC",),
    **dict.fromkeys((".ogg", ".oga", ".opus"), ("OGG",)),
    ".mp3": ("MP3", "MPEG"),
    **dict.fromkeys((".aif", ".aiff", ".aifc"), ("AIFF",)),
    ".au": ("AU",),
    ".caf": ("CAF",),
    ".w64": ("W64",),
}

# Formats of samples that 16 bits hold exactly, and those that 24 bits do.
_IN_16_BITS = ("PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "DPCM_8", "DPCM_16")
_IN_24_BITS = ("PCM_24", "PCM_32", "ALAC_20", "ALAC_24", "ALAC_32")

_UNKNOWN_FRAMES = 1 << 40
_FULL_SCALE = 2.0**15
_WRITTEN_FRAMES = 1 << 16


class Reject(ValueError):
    """A clip that is left out: `kind`, one word for the count, and the reason."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of every clip, and how it is written.

    encoding: "as_is" copies the file byte for byte (a wave that is in no file becomes
        32-bit float WAV); "flac" keeps 16 or 24 bits a sample as the file has them,
        what is lossy or float becomes 16; "int16" is WAV of 16 bits; "ogg" is Vorbis,
        "opus" is Opus at the next rate that it has.
    rate_hz: resample to this, 0: keep. mono: the mean over channels.
    min_seconds, max_seconds: shorter and longer clips are rejected (0: none).
    cut_seconds: of longer clips only the beginning is kept (0: all).
    min_peak_dbfs: quieter clips are silence and rejected.
    any_extension: take files whose name promises another format than they have.
    """

    encoding: str = "as_is"
    rate_hz: int = 0
    mono: bool = False
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    cut_seconds: float = 0.0
    min_peak_dbfs: float = -90.0
    any_extension: bool = False

    def __post_init__(self):
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {self.encoding!r}, expected {ENCODINGS}")
        for name in ("rate_hz", "min_seconds", "max_seconds", "cut_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        changes = [n for n in ("rate_hz", "mono", "cut_seconds") if getattr(self, n)]
        if self.encoding == "as_is" and changes:
            raise ValueError(
                f"{changes[0]} needs an encoding, as_is copies files as they are: "
                "choose flac, int16, ogg or opus"
            )
        if self.encoding == "opus" and self.rate_hz not in (0, *OPUS_RATES_HZ):
            raise ValueError(
                f"rate_hz is {self.rate_hz}, Opus has {', '.join(map(str, OPUS_RATES_HZ))}"
            )
        if 0 < self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds is {self.max_seconds}, expected min_seconds "
                f"({self.min_seconds}) or more"
            )


class Sound(NamedTuple):
    """Decoded samples [t, channels]: int16 or int32 of full scale, or float32."""

    samples: np.ndarray
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


class Packed(NamedTuple):
    """A clip as it goes into a shard."""

    audio: bytes
    seconds: float
    bytes_mark: str  # hex; equal for files of the same bytes
    samples_mark: str  # hex; equal for sounds of the same samples


def prepare(
    example: Mapping[str, Any], settings: Settings, promised_hz: float = 0.0
) -> Packed:
    """Check a clip, as a `Source` gives it, and encode it. Raises Reject.

    promised_hz: the rate that the table says it has, 0: it does not say.
    """
    audio = example["audio"]
    if isinstance(audio, tuple):
        content, sound = b"", _of_array(audio)
    else:
        content = audio if isinstance(audio, bytes) else _read(audio)
        name = audio if isinstance(audio, str) else ""
        sound = decode(content, "" if settings.any_extension else name)
    _check(sound, settings, promised_hz)
    encoded = content or _wav(sound)
    samples = hashlib.blake2b(digest_size=16)
    samples.update(f"{sound.rate_hz} {sound.samples.shape[1]} ".encode())
    samples.update(np.ascontiguousarray(_as_float(sound.samples)))
    seconds = sound.seconds
    if settings.encoding != "as_is":
        sound = _converted(sound, settings)
        encoded, seconds = _encoded(sound, settings.encoding), sound.seconds
    try:
        audio_io.read(encoded, "what was packed")  # as training does
    except audio_io.AudioError as error:
        raise Reject("not_readable", str(error)) from None
    first = hashlib.blake2b(content or encoded, digest_size=16)
    return Packed(encoded, seconds, first.hexdigest(), samples.hexdigest())


# --- reading ---


def _read(path: str | os.PathLike) -> bytes:
    path = os.fspath(path)
    try:
        if not remote.is_remote(path) and os.path.isdir(path):
            raise Reject("directory", "is a directory, expected an audio file")
        content = remote.read(path)
    except remote.StoreError:
        raise
    except FileNotFoundError:
        raise Reject("missing_file", "there is no such file") from None
    except PermissionError as error:
        raise Reject("no_permission", error.strerror or str(error)) from None
    except OSError as error:
        raise Reject("unreadable", error.strerror or str(error)) from None
    return content


def decode(content: bytes, name: str = "") -> Sound:
    """The samples of an audio file. Raises Reject for what is no whole audio file.

    name: its name, where that must fit its format.
    """
    if not content:
        raise Reject("empty_file", "the file is empty")
    _check_riff(content)
    frames = 0
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_name(name, file.format)
            if file.frames >= _UNKNOWN_FRAMES:
                raise Reject("no_length", "a stream whose header gives no length")
            frames, rate_hz, kind = file.frames, file.samplerate, file.format
            dtype = "float32"
            if file.subtype in _IN_16_BITS:
                dtype = "int16"
            elif file.subtype in _IN_24_BITS:
                dtype = "int32"
            samples = file.read(dtype=dtype, always_2d=True)
    except soundfile.LibsndfileError as error:
        said = error.error_string.rstrip(".")
        if frames:  # so its header was good
            reason = f"truncated or damaged: cannot be decoded to its end ({said})"
            raise Reject("truncated", reason) from None
        reason = f"cannot be decoded ({said}; starts with {content[:12]!r})"
        raise Reject("not_audio", reason) from None
    # The length in an MP3 is an estimate.
    if len(samples) < frames and kind != "MP3":
        reason = f"truncated: {len(samples)} frames of {frames} are there"
        raise Reject("truncated", reason)
    if kind == "OGG" and not ogg.is_whole(content):
        raise Reject("truncated", "truncated: its last Ogg page is missing or cut")
    return Sound(samples, rate_hz)


def _check_riff(content: bytes) -> None:
    """libsndfile reads a WAV that was cut as a shorter one; raise Reject for these."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if kind == b"fmt " and content[place + 2 : place + 4] == b"\0\0":
            raise Reject("no_channels", "its header says that it has 0 channels")
        if kind == b"data":
            found = len(content) - place
            # Writers to a pipe put the largest number there, or 0.
            if found < size < 0xFFFFFF00:
                reason = f"truncated: {found} bytes of samples, {size} promised"
                raise Reject("truncated", reason)
            return
        place += size + size % 2
    raise Reject("truncated", "truncated: a WAV without samples")


def _check_name(name: str, kind: str) -> None:
    suffix = os.path.splitext(name)[1].lower()
    if kind not in FORMATS.get(suffix, (kind,)):
        raise Reject("wrong_extension", f"is {kind}, but its name ends in {suffix}")


def _of_array(audio: tuple) -> Sound:
    """(array, rate_hz) as float32 [t, channels], unchecked."""
    array, rate_hz = np.asarray(audio[0]), audio[1]
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is rejected
            array = array.astype(np.float32)
    elif array.dtype.kind == "i":
        full_scale = -float(np.iinfo(array.dtype).min)
        array = (array / full_scale).astype(np.float32)
    else:
        raise Reject("not_audio", f"samples are {array.dtype}, expected signed numbers")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    return Sound(array.reshape(len(array), -1), round(rate_hz))


def _check(sound: Sound, settings: Settings, promised_hz: float) -> None:
    """Raise Reject for what is no sound, or none of those that are wanted."""
    samples, seconds = sound.samples, sound.seconds
    if not samples.size:
        raise Reject("no_samples", "has no samples")
    if samples.dtype.kind == "f":
        bad = samples.size - np.count_nonzero(np.isfinite(samples))
        if bad:
            reason = f"{bad} of {samples.size} samples are not finite (NaN or infinite)"
            raise Reject("not_finite", reason)
    peak = float(np.abs(_as_float(samples)).max())
    if peak <= 10 ** (settings.min_peak_dbfs / 20):
        found = f"{20 * np.log10(peak):.1f} dBFS" if peak else "digital silence"
        raise Reject("silent", f"is silent: its peak is {found}")
    least = max(settings.min_seconds, audio_io.MIN_SECONDS)
    if seconds < least:
        reason = f"too short: {seconds:.4g} s, expected {least:g} s or more"
        raise Reject("too_short", reason)
    if 0 < settings.max_seconds < seconds:
        reason = (
            f"too long: {seconds:.4g} s, expected {settings.max_seconds:g} s or less"
        )
        raise Reject("too_long", reason)
    if promised_hz and promised_hz != sound.rate_hz:
        reason = f"has {sound.rate_hz} Hz, but its table says {promised_hz:g} Hz"
        raise Reject("other_rate", reason)


# --- writing ---


def _as_float(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.float32:
        return samples
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def _converted(sound: Sound, settings: Settings) -> Sound:
    """Cut, mixed and resampled; untouched samples keep their integers."""
    samples, rate_hz = sound
    target_hz = settings.rate_hz or rate_hz
    if settings.encoding == "opus" and target_hz not in OPUS_RATES_HZ:
        higher = [rate for rate in OPUS_RATES_HZ if rate > target_hz]
        target_hz = higher[0] if higher else OPUS_RATES_HZ[-1]
    if settings.cut_seconds:
        samples = samples[: max(1, round(settings.cut_seconds * rate_hz))]
    if settings.mono and samples.shape[1] > 1:
        samples = _as_float(samples).mean(axis=1, keepdims=True)
    if target_hz != rate_hz:
        channels = np.ascontiguousarray(_as_float(samples).T)
        resampled = [audio_io.resample(c, rate_hz, target_hz) for c in channels]
        samples = np.stack(resampled, axis=1)
    return Sound(samples, target_hz)


def _encoded(sound: Sound, encoding: str) -> bytes:
    samples, rate_hz = sound
    if encoding in ("ogg", "opus"):
        subtype = "OPUS" if encoding == "opus" else "VORBIS"
        return ogg.with_serial(_written(_as_float(samples), rate_hz, "OGG", subtype), 1)
    if encoding == "int16":
        return _written(_to_16_bits(samples), rate_hz, "WAV", "PCM_16")
    if samples.dtype == np.int32:
        return _written(samples, rate_hz, "FLAC", "PCM_24")
    return _written(_to_16_bits(samples), rate_hz, "FLAC", "PCM_16")


def _to_16_bits(samples: np.ndarray) -> np.ndarray:
    """The nearest int16: libsndfile reads n as n / 32768."""
    if samples.dtype == np.int16:
        return samples
    scaled = np.rint(_as_float(samples) * np.float32(_FULL_SCALE))
    return np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _wav(sound: Sound) -> bytes:
    return _written(sound.samples, sound.rate_hz, "WAV", "FLOAT")


def _written(samples: np.ndarray, rate_hz: int, kind: str, subtype: str) -> bytes:
    file, channels = io.BytesIO(), samples.shape[1]
    try:
        with soundfile.SoundFile(
            file, "w", rate_hz, channels, subtype, format=kind
        ) as writer:
            # libsndfile's Vorbis takes what it is given onto the stack, and crashes.
            for first in range(0, len(samples), _WRITTEN_FRAMES):
                writer.write(samples[first : first + _WRITTEN_FRAMES])
    except soundfile.LibsndfileError as error:
        reason = (
            f"{channels} channels at {rate_hz} Hz cannot be written as {subtype} "
            f"({error.error_string.rstrip('.')})"
        )
        raise Reject("not_encodable", reason) from None
    return file.getvalue()
