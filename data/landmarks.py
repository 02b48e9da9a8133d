"""Audio fingerprints: pairs of spectral peaks, which survive codecs, gain and cuts.

A wave becomes a picture of peaks in time and frequency; each peak is paired with some
that follow, and (frequency, difference of frequency, difference of time) is a hash. Two
sounds that have many hashes at one time offset in common hold the same recording.
Source: A. Wang, "An Industrial-Strength Audio Search Algorithm", ISMIR 2003.

That a candidate is the same recording, and not another of the same kind, is then seen in
the phases: a cross-correlation in which all frequencies count alike has one sharp peak.
Source: C. Knapp and G. Carter, "The Generalized Correlation Method for Estimation of Time
Delay", IEEE Transactions on Acoustics, Speech and Signal Processing 24 (4), 1976.
"""

from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage

RATE_HZ = 8_000
"""Codecs of low rates drop what is above half of this."""

WINDOW_SAMPLES, HOP_SAMPLES = 512, 128

_NEAR = (9, 15)  # frames and bins within which a peak is the highest
_FLOOR_DB = 70.0  # below the clip's highest peak
_FAN_OUT = 4  # pairs that a peak begins
_MOST_FRAMES, _MOST_BINS = 63, 63  # between the peaks of a pair
_FIRST_BIN = 2  # hum and offset

SHIFTS = 4
"""How often a sound that is searched in is looked at, a part of a hop further each time:
the sound that is looked for begins anywhere between two hops."""


class Landmarks(NamedTuple):
    """Hashes of a sound, uint32 [n], and the frame that each begins at, int32 [n]."""

    hashes: np.ndarray
    frames: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        return self.frames * (HOP_SAMPLES / RATE_HZ)


def landmarks(wave: np.ndarray) -> Landmarks:
    """Landmarks of a mono wave, float32 [t] at RATE_HZ; none where nothing sounds."""
    frames, bins = _peaks(_spectrogram(wave))
    return _pairs(frames, bins)


def _spectrogram(wave: np.ndarray) -> np.ndarray:
    """Decibels, float32 [frames, bins]."""
    short = max(0, WINDOW_SAMPLES - len(wave))
    wave = np.pad(wave, (0, short + HOP_SAMPLES))
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW_SAMPLES)
    windows = windows[::HOP_SAMPLES] * np.hanning(WINDOW_SAMPLES).astype(np.float32)
    power = np.abs(scipy.fft.rfft(windows, axis=1)) ** 2
    return 10 * np.log10(np.maximum(power, 1e-12, dtype=np.float32))


def _peaks(decibels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame and bin of each local maximum, in the order of time."""
    decibels = decibels[:, _FIRST_BIN:]
    highest = scipy.ndimage.maximum_filter(decibels, _NEAR, mode="constant", cval=-200)
    floor = max(decibels.max() - _FLOOR_DB, -110)
    frames, bins = np.nonzero((decibels == highest) & (decibels > floor))
    return frames.astype(np.int32), (bins + _FIRST_BIN).astype(np.int32)


def _pairs(frames: np.ndarray, bins: np.ndarray) -> Landmarks:
    """Each peak with the nearest that follow it, at most _FAN_OUT of them."""
    count = np.zeros(len(frames), np.int32)
    hashes, starts = [], []
    for step in range(1, 8 * _FAN_OUT):
        gap = frames[step:] - frames[:-step]
        rise = bins[step:] - bins[:-step]
        fits = (gap > 0) & (gap <= _MOST_FRAMES) & (np.abs(rise) <= _MOST_BINS)
        fits &= count[: len(gap)] < _FAN_OUT
        if not len(gap) or gap.min() > _MOST_FRAMES:
            break
        count[: len(gap)] += fits
        own = bins[:-step][fits].astype(np.uint32)
        rise = (rise[fits] + _MOST_BINS).astype(np.uint32)
        hashes.append(own << 13 | rise << 6 | gap[fits].astype(np.uint32))
        starts.append(frames[:-step][fits])
    if not hashes:
        return Landmarks(np.zeros(0, np.uint32), np.zeros(0, np.int32))
    return Landmarks(np.concatenate(hashes), np.concatenate(starts))
