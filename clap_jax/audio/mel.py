"""Front ends as data: sizes, mel filter banks and windows."""

import base64
import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from clap_jax import config as config_lib

BANKS = ("slaney", "htk", "kaldi", "stored")
FILLS = ("repeatpad", "pad", "repeat")

FLOOR_POWER = 1e-10
"""Mel power below which everything is silence, but see `Frontend.floor_power`."""

VIEWS = 4
"""Views of a fused front end: global, front, middle, back."""


def pack(values: Float[np.ndarray, "..."]) -> str:
    """A float32 array as text, for `Frontend`: base64 of its compressed bytes."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def unpack(text: str) -> Float[np.ndarray, " n"]:
    """The inverse of `pack`, flat. Errors: ValueError when it is not such a text."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"packed values are damaged: {error}") from error
    return np.frombuffer(data, "<f4").astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Frontend:
    """Everything that turns a waveform into a log-mel spectrogram.

    rate_hz: sample rate of the waveform.
    clip_seconds: length of one training clip.
    n_fft, window_samples, hop_samples: the short-time Fourier transform.
    mels, fmin_hz, fmax_hz: the mel bands.
    bank: "slaney" (Slaney scale, each filter of unit area: librosa's default) or "htk"
        (HTK scale, filters of unit height: torchaudio's default), or "stored": the one
        in `bank_values`. A model trained on one is useless with the other: for noise
        the two differ by 22 dB. "kaldi": filters and frames of Kaldi's fbank, see
        `is_kaldi`.
    fill: how a short clip is filled up, see `clap_jax.audio.crop.fill`.
    int16_trip: samples go through 16-bit integers first (`clap_jax.audio.io.quantise`).
    bank_rate_hz: the rate that the bank believes in, where that is not `rate_hz`.
    views: 1, or 4: the log-mel of the whole clip shrunk to one window ("global") and
        three windows of it (front, middle, back), as LAION-CLAP's feature fusion takes.
    antialias: the global view is shrunk with antialias, as LAION-CLAP's package does
        with the torchvision of today, and not as its models were trained
        (`clap_jax.audio.views.resize`).
    whole_clip: the model takes clips of any length as they are, with their number of
        frames; `clip_seconds` is then the length of a training crop.
    bank_values, window_values: a filter bank [bins, F] and a window [n_fft] that no
        formula gives, as `pack` writes them; "" for the bank above and Hann's window.
    beside: front ends of the same waves whose log-mels a model hears beside this one's,
        as the `joint` tower does; given as front ends or as tables of their values.
        They have windows of its length, whatever they say, and must have its rate.
    """

    rate_hz: int
    clip_seconds: float | int
    n_fft: int
    window_samples: int
    hop_samples: int
    mels: int
    fmin_hz: float | int
    fmax_hz: float | int
    bank: str
    fill: str
    int16_trip: bool = False
    bank_rate_hz: int | None = None
    views: int = 1
    antialias: bool = False
    whole_clip: bool = False
    bank_values: str = ""
    window_values: str = ""
    beside: tuple["Frontend", ...] = ()

    def __post_init__(self):
        if self.bank not in BANKS:
            raise ValueError(f"bank is {self.bank!r}, expected one of {BANKS}")
        if self.fill not in FILLS:
            raise ValueError(f"fill is {self.fill!r}, expected one of {FILLS}")
        for name in ("rate_hz", "clip_seconds", "n_fft", "hop_samples", "mels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected > 0")
        if self.n_fft % 2:
            raise ValueError(f"n_fft is {self.n_fft}, expected an even number")
        if not 0 < self.window_samples <= self.n_fft:
            raise ValueError(
                f"window_samples is {self.window_samples}, expected 1 to n_fft, "
                f"which is {self.n_fft}"
            )
        if self.views not in (1, VIEWS):
            raise ValueError(f"views is {self.views}, expected 1 or {VIEWS}")
        if self.views > 1 and self.whole_clip:
            raise ValueError("a front end with views does not take whole clips")
        if (self.bank == "stored") != bool(self.bank_values):
            raise ValueError('bank "stored" and bank_values go together')
        nyquist_hz = (self.bank_rate_hz or self.rate_hz) / 2
        if not 0 <= self.fmin_hz < self.fmax_hz <= nyquist_hz:
            raise ValueError(
                f"mel range is {self.fmin_hz} to {self.fmax_hz} Hz, expected a rising "
                f"range within 0 to {nyquist_hz} Hz"
            )
        if not isinstance(self.beside, list | tuple):
            raise ValueError(f"beside is {self.beside!r}, expected several front ends")
        beside = tuple(self._beside(number) for number in range(len(self.beside)))
        object.__setattr__(self, "beside", beside)

    def _beside(self, number: int) -> "Frontend":
        """One of those beside, of this window. Raises ValueError for what cannot be."""
        one, name = self.beside[number], f"frontend.beside[{number}]"
        if not isinstance(one, Frontend):
            if not isinstance(one, Mapping):
                raise ValueError(f"{name} is {one!r}, expected a table")
            one = config_lib.build(Frontend, one, name)
        for field in ("rate_hz", "fill", "int16_trip"):
            found, wanted = getattr(one, field), getattr(self, field)
            if found != wanted:
                raise ValueError(
                    f"{name} has {field} {found!r}, expected {wanted!r}: front ends "
                    "beside each other hear the same waves"
                )
        if self.whole_mel or one.whole_mel or one.beside:
            raise ValueError(
                f"{name}: front ends beside each other take windows, without views, "
                "and have no others beside them"
            )
        return dataclasses.replace(one, clip_seconds=self.clip_seconds)

    @property
    def whole_mel(self) -> bool:
        """Whether the mel is made of the whole clip, by the host, and not of a window."""
        return self.views > 1 or self.whole_clip

    @property
    def is_kaldi(self) -> bool:
        """Whether frames are those of Kaldi's fbank (as torchaudio has it, without
        dither): all inside the wave, none centred on its ends; of each its mean is
        taken away, and 0.97 of every sample from the next; Povey's window."""
        return self.bank == "kaldi"

    @property
    def frame_samples(self) -> int:
        """Samples of one frame, before zeros make it `n_fft` long."""
        return self.window_samples if self.is_kaldi else self.n_fft

    @property
    def floor_power(self) -> float:
        """Mel power below which everything is silence. Kaldi's is the step of float32
        at one, of a wave that is 2^15 times as large."""
        return 2.0**-53 if self.is_kaldi else FLOOR_POWER

    @property
    def clip_samples(self) -> int:
        """Samples of one clip."""
        return round(self.rate_hz * self.clip_seconds)

    @property
    def clip_frames(self) -> int:
        """Frames of one clip."""
        return self.frames(self.clip_samples)

    def frames(self, samples: int) -> int:
        """Frames of a waveform of `samples` samples: centred, or see `is_kaldi`."""
        if self.is_kaldi:
            return 1 + (samples - self.window_samples) // self.hop_samples
        return 1 + samples // self.hop_samples


_LAION = Frontend(
    rate_hz=48_000,
    clip_seconds=10.0,
    n_fft=1024,
    window_samples=1024,
    hop_samples=480,
    mels=64,
    fmin_hz=50.0,
    fmax_hz=14_000.0,
    bank="slaney",
    fill="repeatpad",
    int16_trip=True,
)
_MSCLAP = dataclasses.replace(
    _LAION,
    rate_hz=44_100,
    clip_seconds=5.0,
    hop_samples=320,
    fill="repeat",
    int16_trip=False,
)

FRONTENDS: dict[str, Frontend] = {
    # LAION-CLAP computes the mels of its fused models with another library, and
    # therefore with another bank, than those of its unfused ones.
    "laion_unfused": _LAION,
    "laion_fused": dataclasses.replace(_LAION, bank="htk", views=VIEWS),
    "msclap2022": _MSCLAP,
    # MS-CLAP 2023 resamples to 44.1 kHz, yet builds the bank for 32 kHz.
    "msclap2023": dataclasses.replace(_MSCLAP, clip_seconds=7.0, bank_rate_hz=32_000),
    "blat": dataclasses.replace(
        _MSCLAP, rate_hz=32_000, clip_seconds=10.0, fill="pad", whole_clip=True
    ),
    # Whisper's has one frame less, no decibels and a limited range, see its tower.
    "whisper": Frontend(
        rate_hz=16_000,
        clip_seconds=30.0,
        n_fft=400,
        window_samples=400,
        hop_samples=160,
        mels=80,
        fmin_hz=0.0,
        fmax_hz=8_000.0,
        bank="slaney",
        fill="pad",
    ),
    "beats": Frontend(
        rate_hz=16_000,
        clip_seconds=10.0,
        n_fft=512,
        window_samples=400,
        hop_samples=160,
        mels=128,
        fmin_hz=20.0,
        fmax_hz=8_000.0,
        bank="kaldi",
        fill="pad",
    ),
    "small_16k": Frontend(
        rate_hz=16_000,
        clip_seconds=2.56,
        n_fft=512,
        window_samples=512,
        hop_samples=320,
        mels=64,
        fmin_hz=50.0,
        fmax_hz=7_600.0,
        bank="slaney",
        fill="pad",
    ),
    "small_22k": Frontend(
        rate_hz=22_050,
        clip_seconds=5.0,
        n_fft=1024,
        window_samples=1024,
        hop_samples=441,
        mels=64,
        fmin_hz=50.0,
        fmax_hz=10_000.0,
        bank="slaney",
        fill="pad",
    ),
}


@functools.lru_cache
def mel_bank(frontend: Frontend) -> Float[np.ndarray, "bins F"]:
    """Triangular mel filters by librosa: float32 [n_fft // 2 + 1, F], read-only.

    "slaney" is the reference's `LogmelFilterBank` (torchlibrosa), "htk" the fused
    models' `torchaudio.transforms.MelSpectrogram` with its default norm=None, "stored"
    what a checkpoint brought along, "kaldi" that of `torchaudio.compliance.kaldi`.
    """
    if frontend.is_kaldi:
        return _kaldi_bank(frontend)
    if frontend.bank == "stored":
        bank = unpack(frontend.bank_values)
        shape = frontend.n_fft // 2 + 1, frontend.mels
        if bank.size != np.prod(shape):
            raise ValueError(
                f"bank_values holds {bank.size} numbers, expected {shape[0]} x {shape[1]}"
            )
        bank = bank.reshape(shape)
        bank.flags.writeable = False
        return bank

    import librosa  # at first use: it takes a while to import

    bank = librosa.filters.mel(
        sr=frontend.bank_rate_hz or frontend.rate_hz,
        n_fft=frontend.n_fft,
        n_mels=frontend.mels,
        fmin=frontend.fmin_hz,
        fmax=frontend.fmax_hz,
        htk=frontend.bank == "htk",
        norm="slaney" if frontend.bank == "slaney" else None,
    ).T
    bank = np.ascontiguousarray(bank)
    bank.flags.writeable = False
    return bank


def _kaldi_bank(frontend: Frontend) -> Float[np.ndarray, "bins F"]:
    """Filters that are triangles over mels, not over hertz; none hears Nyquist's bin."""
    rate_hz = frontend.bank_rate_hz or frontend.rate_hz

    def mels(hz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    bins = mels(np.arange(frontend.n_fft // 2) * rate_hz / frontend.n_fft)[:, None]
    low, high = mels([frontend.fmin_hz, frontend.fmax_hz])
    step = (high - low) / (frontend.mels + 1)
    centre = low + step * np.arange(1, frontend.mels + 1)
    bank = np.maximum(1 - np.abs(bins - centre) / step, 0.0)
    bank = np.pad(bank, ((0, 1), (0, 0))).astype(np.float32)
    bank.flags.writeable = False
    return bank


@functools.lru_cache
def window(frontend: Frontend) -> Float[np.ndarray, " n_fft"]:
    """The window of a frame: float32, read-only.

    Periodic Hann, unless the front end brings its own, zero-padded on both sides to
    n_fft; Povey's as it is.
    """
    if frontend.is_kaldi:
        samples = frontend.window_samples
        phase = 2 * np.pi * np.arange(samples) / (samples - 1)
        povey = np.float32((0.5 - 0.5 * np.cos(phase)) ** 0.85)
        povey.flags.writeable = False
        return povey
    if frontend.window_values:
        values = unpack(frontend.window_values)
        if values.size != frontend.n_fft:
            raise ValueError(
                f"window_values holds {values.size} numbers, expected n_fft, "
                f"which is {frontend.n_fft}"
            )
        values.flags.writeable = False
        return values
    samples = frontend.window_samples
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)
    left = (frontend.n_fft - samples) // 2
    hann = np.pad(hann, (left, frontend.n_fft - samples - left)).astype(np.float32)
    hann.flags.writeable = False
    return hann
