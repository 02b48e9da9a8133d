"""The front end that a checkpoint was trained with, from what it stored of it.

The filter bank in the file is the truth. MS-CLAP 2023 says 44.1 kHz and 50 to 8000 Hz,
builds a bank for 32 kHz and 50 to 14000 Hz, and loads whatever the file has.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from clap_jax.audio import mel
from clap_jax.audio.mel import Frontend

# Largest difference to a formula's bank, over its largest value.
TOLERANCE = 1e-6

# Sample rate that the bank believes in, lowest and highest frequency.
_KNOWN = [
    (rate_hz, fmin_hz, fmax_hz)
    for rate_hz in (32_000, 44_100, 48_000)
    for fmin_hz in (50, 0, 20)
    for fmax_hz in (14_000, 8_000, 16_000, 18_000)
    if fmax_hz <= rate_hz / 2
]


def frontend_of(
    base: Frontend,
    bank: np.ndarray | None,
    window: np.ndarray | None,
    tolerance: float = TOLERANCE,
) -> tuple[Frontend, list[str]]:
    """`base` with the bank [bins, F] and the window [n_fft] of a file, and notes.

    Where a formula gives the bank, within `tolerance` or the rounding of the file's
    dtype, the formula is taken. The notes say which one matched.
    """
    if bank is None or bank.ndim != 2 or len(bank) < 3 or not len(bank) % 2:
        missing = "no mel filter bank" if bank is None else f"a bank of {bank.shape}"
        return base, [f"the file has {missing}; assumed {_words(base)}"]
    n_fft = 2 * (len(bank) - 1)
    if (n_fft, bank.shape[1]) != (base.n_fft, base.mels):
        base = dataclasses.replace(
            base, n_fft=n_fft, window_samples=n_fft, mels=bank.shape[1]
        )
    notes = []
    base, note = _with_bank(base, bank, tolerance)
    notes.append(note)
    if window is None or window.shape != (n_fft,):
        return base, [*notes, "the file has no window; assumed Hann's"]
    difference = np.abs(window.astype(np.float64) - mel.window(base)).max()
    if not difference <= max(TOLERANCE, _rounding(window.dtype)):
        values = mel.pack(np.asarray(window, np.float32))
        base = dataclasses.replace(base, window_values=values)
        notes.append(
            f"window: the file's own, which differs from Hann's by {difference:.1e}"
        )
    return base, notes


def _with_bank(
    base: Frontend, bank: np.ndarray, tolerance: float
) -> tuple[Frontend, str]:
    closest, least = base, np.inf
    values = bank.astype(np.float64)
    tolerance = max(tolerance, _rounding(bank.dtype))
    for candidate in _candidates(base):
        expected = mel.mel_bank(candidate).astype(bank.dtype).astype(np.float64)
        difference = np.abs(values - expected).max() / expected.max()
        if difference <= tolerance:
            note = f"mel filter bank: the file's is {_words(candidate)}"
            return candidate, f"{note} (difference {difference:.0e})"
        if difference < least:
            closest, least = candidate, difference
    stored = dataclasses.replace(
        base, bank="stored", bank_values=mel.pack(np.asarray(bank, np.float32))
    )
    return stored, (
        "mel filter bank: the file's own, kept as it is; no known formula gives it "
        f"(closest: {_words(closest)}, difference {least:.1e})"
    )


def _rounding(dtype: np.dtype) -> float:
    """A unit in the last place of a file of 16 bits."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype.name, 0.0)


def _candidates(base: Frontend) -> Iterator[Frontend]:
    if base.bank != "stored":
        yield base
    for kind in ("slaney", "htk"):
        for rate_hz, fmin_hz, fmax_hz in _KNOWN:
            yield dataclasses.replace(
                base,
                bank=kind,
                bank_values="",
                fmin_hz=float(fmin_hz),
                fmax_hz=float(fmax_hz),
                bank_rate_hz=None if rate_hz == base.rate_hz else rate_hz,
            )


def _words(frontend: Frontend) -> str:
    rate_hz = frontend.bank_rate_hz or frontend.rate_hz
    return (
        f"{frontend.bank}, {rate_hz / 1000:g} kHz, {frontend.fmin_hz:g} to "
        f"{frontend.fmax_hz:g} Hz"
    )


def stored(
    tensors: Mapping[str, np.ndarray], prefix: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Bank [bins, F] and window [n_fft] of torchlibrosa's layers; None where missing.

    The real part of the transform at frequency 0 is the window itself.
    """
    kernel = tensors.get(f"{prefix}spectrogram_extractor.stft.conv_real.weight")
    fits = kernel is not None and kernel.ndim == 3
    window = kernel[0, 0] if fits else None
    return tensors.get(f"{prefix}logmel_extractor.melW"), window


def losses(frontend: Frontend, expected: Frontend, whose: str) -> list[str]:
    """What another system's code, which fixes its front end, hears differently.

    The bank and the window that it stores are not counted.
    """
    names = ("rate_hz", "clip_seconds", "hop_samples", "views", "fill", "int16_trip")
    pairs = {name: (getattr(frontend, name), getattr(expected, name)) for name in names}
    return [
        f"front end: {name} is {ours!r} here and {theirs!r} in {whose}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
