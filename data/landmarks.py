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

from collections.abc import Iterable
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

_LAG_BITS, _LAG_ORIGIN = 24, 1 << 23
_COMMON = 2_000  # hashes that occur more often tell nothing
_LEAST_MATCHES = 3
_LAGS_OF_A_CLIP = 3  # music that repeats fits at several
_CANDIDATES = 24
_SPAN_FRAMES = 16
_SEARCH_SAMPLES = 2 * HOP_SAMPLES  # on both sides of a candidate's lag
_SINC_SAMPLES = 16
_SHORT_SECONDS = 0.3
_REACH_SAMPLES = _SEARCH_SAMPLES + _SINC_SAMPLES
# Rows that interpolate between samples, at every quarter from -1 to 1.
_BETWEEN = np.sinc(
    np.linspace(-1, 1, 9)[:, None] - np.arange(-_SINC_SAMPLES, _SINC_SAMPLES + 1)
)

SHIFTS = 4
"""How often a sound that is searched in is looked at, a part of a hop further each time:
the sound that is looked for begins anywhere between two hops."""


class Landmarks(NamedTuple):
    """Hashes of a sound, uint32 [n], and the frame that each begins at, int32 [n]."""

    hashes: np.ndarray
    frames: np.ndarray


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
        fits = (gap >= 0) & (gap <= _MOST_FRAMES) & (np.abs(rise) <= _MOST_BINS)
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


class Candidate(NamedTuple):
    """Where a sound may be the same as one of the index.

    clip: its number in the index; lag_samples: sample n of the sound is about sample
    n + lag_samples of the clip; matches: hashes in common at this lag; first, end: the
    samples of the sound that these hashes span.
    """

    clip: int
    lag_samples: int
    matches: int
    first: int
    end: int


class Index(NamedTuple):
    """Where each hash occurs, sorted by hash: three arrays of equal length."""

    hashes: np.ndarray  # uint32
    clips: np.ndarray  # int32
    frames: np.ndarray  # int32

    def find(self, sound: Landmarks) -> list[Candidate]:
        """Clips that have hashes in common with a sound at one lag, best first."""
        first = np.searchsorted(self.hashes, sound.hashes, "left")
        count = np.searchsorted(self.hashes, sound.hashes, "right") - first
        count = np.where(count > _COMMON, 0, count)
        total = int(count.sum())
        if not total:
            return []
        place = np.repeat(first - np.cumsum(count) + count, count) + np.arange(total)
        frames = np.repeat(sound.frames, count)
        lags = self.frames[place] - frames + _LAG_ORIGIN
        keys = self.clips[place].astype(np.int64) << _LAG_BITS | lags
        order = np.argsort(keys, kind="stable")
        keys, frames = keys[order], frames[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        return self._best(keys[starts], starts, frames)

    def _best(
        self, keys: np.ndarray, starts: np.ndarray, frames: np.ndarray
    ) -> list[Candidate]:
        """The lags with the most hashes, of each clip at most _LAGS_OF_A_CLIP."""
        counts = np.diff(starts, append=len(frames))
        # Half a hop more or less: the lag falls into one of two neighbours.
        beside = np.where(np.diff(keys, append=-1) == 1, np.append(counts[1:], 0), 0)
        votes = counts + beside
        chosen, taken = [], {}
        for row in np.argsort(-votes, kind="stable"):
            if votes[row] < _LEAST_MATCHES or len(chosen) >= _CANDIDATES:
                break
            clip = int(keys[row] >> _LAG_BITS)
            lag = int(keys[row] & (1 << _LAG_BITS) - 1) - _LAG_ORIGIN
            known = taken.setdefault(clip, [])
            if len(known) >= _LAGS_OF_A_CLIP or any(abs(lag - k) < 3 for k in known):
                continue
            known.append(lag)
            span = np.sort(frames[starts[row] : starts[row] + votes[row]])
            few = len(span) // 50  # that are there by chance
            first, last = int(span[few]), int(span[-1 - few]) + _SPAN_FRAMES
            place = first * HOP_SAMPLES, last * HOP_SAMPLES + WINDOW_SAMPLES
            chosen.append(Candidate(clip, lag * HOP_SAMPLES, int(votes[row]), *place))
        return chosen


def build(sounds: Iterable[tuple[int, np.ndarray]]) -> Index:
    """The index of clips, each its number and its wave, float32 [t] at RATE_HZ."""
    hashes, clips, frames = [], [], []
    for number, wave in sounds:
        for shift in range(SHIFTS):
            found = landmarks(wave[shift * HOP_SAMPLES // SHIFTS :])
            hashes.append(found.hashes)
            frames.append(found.frames)
            clips.append(np.full(len(found.hashes), number, np.int32))
    parts = zip(hashes, clips, frames, strict=True)
    return joined([Index(*part) for part in parts])


def joined(indices: Iterable[Index]) -> Index:
    """One index of several."""
    nothing = Index(
        np.zeros(0, np.uint32), np.zeros(0, np.int32), np.zeros(0, np.int32)
    )
    columns = zip(*(nothing, *indices), strict=True)
    whole = [np.concatenate(parts) for parts in columns]
    order = np.argsort(whole[0], kind="stable")
    return Index(*(part[order] for part in whole))


class Likeness(NamedTuple):
    """How alike two sounds are where they overlap.

    phases: the peak of the cross-correlation of all frequencies alike, 0 to 1;
    shape: the correlation of the samples, 0 to 1; lag_samples: where that is;
    seconds: of the part that was compared.
    """

    phases: float
    shape: float
    lag_samples: int
    seconds: float

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return self.phases * self.shape


def same_recording(
    wave: np.ndarray, clip: np.ndarray, candidate: Candidate
) -> Likeness | None:
    """How alike a wave and a clip are at a candidate's lag, None if they are no copies.

    First the part that the hashes span is compared; then, where the shorter of the two
    lies within the other, all of it: a short sound has few hashes.
    """
    found = compare(wave, clip, candidate)
    if _is_copy(found, candidate.matches):
        return found
    lag = candidate.lag_samples
    first, end = max(0, -lag), min(len(wave), len(clip) - lag)
    if end - first >= 0.9 * min(len(wave), len(clip)):
        whole = compare(wave, clip, candidate._replace(first=first, end=end))
        if _is_whole_copy(whole, candidate.matches):
            return whole
    return None


def _is_copy(found: Likeness, matches: int) -> bool:
    """Whether a part with so many hashes in common is of one recording.

    Another hit of the same drum, or the same word by the same voice, is alike for a
    third of a second: so short a part must be alike in nearly everything, a longer one
    in many hashes. A loud copy that was clipped, or a part of a longer sound, has low
    phases, but hundreds of hashes.
    """
    density = matches / max(found.seconds, _SHORT_SECONDS)
    return (
        (matches >= 16 and found.score >= 0.8)
        or (matches >= 16 and _is_same_shape(found))
        or (
            matches >= 32
            and density >= 40
            and found.score >= 0.2
            and found.seconds >= 1.5 * _SHORT_SECONDS
        )
        or (
            matches >= 200
            and density >= 60
            and found.shape >= 0.8
            and found.phases >= 0.1
        )
    )


def _is_whole_copy(found: Likeness, matches: int) -> bool:
    """As `_is_copy`, where all of a sound is compared. Hits of one drum machine are
    alike for two seconds, too; words and drums of less than one are not."""
    least = 0.42 if found.seconds < 1 else 0.8
    return (matches >= 8 and found.score >= least) or _is_same_shape(found)


def _is_same_shape(found: Likeness) -> bool:
    """Whether the samples are the same but for a hundredth of their energy. A steady
    tone is like any other of its pitch, so that the phases have a say, too."""
    return found.shape >= 0.99 and found.phases >= 0.15


def compare(wave: np.ndarray, clip: np.ndarray, candidate: Candidate) -> Likeness:
    """How alike a wave and a clip are at a candidate's lag, float32 [t] at RATE_HZ."""
    lag, reach = candidate.lag_samples, _REACH_SAMPLES
    first, end = max(0, candidate.first), min(len(wave), candidate.end)
    x = wave[first:end]
    # Wider than x on both sides; beyond its ends there is silence.
    y = _part(clip, first + lag - reach, end + lag + reach)
    size = scipy.fft.next_fast_len(len(x) + len(y), real=True)
    cross = scipy.fft.rfft(y, size) * np.conj(scipy.fft.rfft(x, size))
    flat = cross / np.maximum(np.abs(cross), 1e-30)
    sharp, plain = (
        scipy.fft.irfft(part, size)[: 2 * reach + 1] for part in (flat, cross)
    )
    # A steady tone has many sharp peaks, and is alike only at one of them.
    both = np.abs(sharp * plain)[_SINC_SAMPLES:-_SINC_SAMPLES]
    best = int(both.argmax()) + _SINC_SAMPLES
    # Between samples too: half a sample is half a period of the highest frequencies.
    around = slice(best - _SINC_SAMPLES, best + _SINC_SAMPLES + 1)
    phases, shapes = np.abs(_BETWEEN @ sharp[around]), np.abs(_BETWEEN @ plain[around])
    finest = int(phases.argmax())
    matched = y[best : best + len(x)]
    energy = float(np.sqrt(np.dot(x, x) * np.dot(matched, matched)))
    return Likeness(
        float(phases[finest]),
        float(shapes[finest]) / energy if energy else 0.0,
        lag + best - reach,
        len(x) / RATE_HZ,
    )


def _part(wave: np.ndarray, first: int, end: int) -> np.ndarray:
    """Samples first to end of a wave, zeros where it has none."""
    part = np.zeros(max(0, end - first), np.float32)
    own = wave[max(0, first) : max(0, end)]
    part[max(0, -first) : max(0, -first) + len(own)] = own
    return part
