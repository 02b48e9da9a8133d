"""Clips of one length from waveforms, or mels, of any length (along axis 0)."""

import numpy as np

from clap_jax.audio import mel


def fill(wave: np.ndarray, samples: int, mode: str) -> np.ndarray:
    """Make `wave` [t, ...] at least `samples` long; a longer one comes back as it is.

    "repeatpad": as many whole copies as fit, then zeros. "pad": zeros. "repeat": copies,
    the last one cut (LAION-CLAP's data_filling; "repeat" is MS-CLAP's as well).
    """
    if mode not in mel.FILLS:
        raise ValueError(f"fill mode is {mode!r}, expected one of {mel.FILLS}")
    length = len(wave)
    if length >= samples:
        return wave
    if length == 0:
        raise ValueError(f"there are no samples to fill {samples} with")
    if mode == "repeat":
        copies = -(-samples // length)
    else:
        copies = samples // length if mode == "repeatpad" else 1
    filled = np.zeros((samples, *wave.shape[1:]), wave.dtype)
    for start in range(0, min(samples, copies * length), length):
        piece = wave[: samples - start]
        filled[start : start + len(piece)] = piece
    return filled


def random_crop(x: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` neighbours of `x` along axis 0, every legal start equally likely."""
    start = rng.integers(max(len(x) - length, 0) + 1)
    return x[start : start + length]


def center_crop(x: np.ndarray, length: int) -> np.ndarray:
    """The middle `length` entries of `x` along axis 0 (all of a shorter one)."""
    start = max(len(x) - length, 0) // 2
    return x[start : start + length]


def windows(
    wave: np.ndarray, samples: int, hop_samples: int, fill_mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Sliding windows that cover all of `wave` [t].

    Window i starts at i * hop_samples; the last one may be partial and is filled up.
    Returns windows [n, samples] and weights float32 [n], the samples of the wave that
    each window holds, for averaging over windows by seconds covered.
    """
    if not 0 < hop_samples <= samples:
        raise ValueError(
            f"hop_samples is {hop_samples}, expected 1 to {samples}: windows with gaps "
            "between them do not cover the wave"
        )
    count = 1 + -(-max(len(wave) - samples, 0) // hop_samples)
    pieces = [wave[i * hop_samples :][:samples] for i in range(count)]
    weights = np.array([len(piece) for piece in pieces], np.float32)
    return np.stack([fill(piece, samples, fill_mode) for piece in pieces]), weights


def even_parts(x: np.ndarray, longest: int) -> list[np.ndarray]:
    """`x` cut along axis 0 into as few parts as have `longest` entries at most.

    Their lengths differ by one at most, so that no part is a useless remainder.
    """
    return np.array_split(x, max(-(-len(x) // longest), 1))


def pad(x: np.ndarray, length: int, value: float) -> np.ndarray:
    """`x` with `value` after its end along axis 0, `length` entries in all."""
    missing = [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, missing, constant_values=value)


def static_length(length: int) -> int:
    """The smallest of a few lengths that holds `length` entries.

    Those are 4, 5, 6 or 7 times a power of two, 32 and up: few programs to compile, a
    tenth of padding on average and a quarter at most. 1001 frames become 1024.
    """
    step = 8
    while length > 8 * step:
        step *= 2
    return max(-(-length // step), 4) * step
