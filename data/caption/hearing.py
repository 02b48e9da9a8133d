"""What can be measured of music: sections, tempo, key, loudness, brightness (librosa).

Sections are found by agglomerative clustering of seconds that follow each other
(`librosa.segment.agglomerative`), on their timbre (MFCC) and harmony (chroma); keys by
the correlation of chroma with the profiles of Krumhansl and Kessler (1982).
"""

import dataclasses
from typing import Any

import numpy as np

from clap_jax.audio import io

RATE_HZ = 22_050
HOP = 1024  # samples
LONGEST_SECONDS = 900.0  # of which the beginning is heard
SHORTEST_SECONDS = 3.0
SILENCE_DB = -60.0
LEAST_ONSET_DB = (
    1.0  # mean rise over the mel bands; below, a steady tone has onsets, too
)
SECTION_SECONDS = 22.0  # sections are about so long, and
LEAST_SECTION_SECONDS = 5  # no shorter than this,
MOST_SECTIONS = 8  # and no more than so many

_MAJOR = [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]
_MINOR = [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]
NOTES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A")
NOTES += ("B flat", "B")


class HearingError(ValueError):
    """A clip that nothing can be said about; says why, in a few words."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """What a part of a clip is like, its whole included.

    begin, end: seconds. level_db: mean power against full scale. trend_db: level of its
    last third against its first. brightness_hz: spectral centroid. onsets: a second.
    key: "A minor"; sureness: of the key, the correlation with its profile.
    """

    begin: float
    end: float
    level_db: float
    trend_db: float
    brightness_hz: float
    onsets: float
    key: str
    sureness: float


@dataclasses.dataclass(frozen=True)
class Heard:
    """tempo_bpm: beats a minute. sections: two or more, or none for a short clip."""

    whole: Stretch
    tempo_bpm: float
    sections: tuple[Stretch, ...]


def hear(audio: Any) -> Heard:
    """Measure a clip: a path, the bytes of a file or (array, rate_hz).

    Raises HearingError for one that cannot be read, is silent, or below 3 s.
    """
    try:
        wave = io.load(audio, RATE_HZ)
    except (io.AudioError, OSError) as error:
        raise HearingError("cannot be read") from error
    wave = wave[: round(LONGEST_SECONDS * RATE_HZ)]
    if len(wave) < SHORTEST_SECONDS * RATE_HZ:
        raise HearingError(f"shorter than {SHORTEST_SECONDS:g} s")
    if 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-12) < SILENCE_DB:
        raise HearingError("silent")
    return _measure(wave)


def _measure(wave: np.ndarray) -> Heard:
    import librosa  # takes a second

    spectrum = np.abs(librosa.stft(wave, n_fft=2048, hop_length=HOP))
    power = spectrum**2
    options = {"sr": RATE_HZ, "hop_length": HOP}
    decibels = librosa.power_to_db(
        librosa.feature.melspectrogram(S=power, sr=RATE_HZ, n_mels=64)
    )
    strength = librosa.onset.onset_strength(S=decibels, sr=RATE_HZ, hop_length=HOP)
    frames = {
        "chroma": librosa.feature.chroma_stft(S=power, sr=RATE_HZ, tuning=0.0),
        "mfcc": librosa.feature.mfcc(S=decibels, n_mfcc=13),
        "bright": librosa.feature.spectral_centroid(S=spectrum, sr=RATE_HZ)[0],
        "level": power.sum(axis=0),
    }
    # wait: an attack that straddles two frames is one.
    found = librosa.onset.onset_detect(onset_envelope=strength, wait=1, **options)
    onsets = librosa.frames_to_time(found[strength[found] > LEAST_ONSET_DB], **options)
    tempo = librosa.feature.tempo(onset_envelope=strength, **options)
    duration = len(wave) / RATE_HZ
    edges = _edges(frames, duration)

    def stretch(begin: float, end: float) -> Stretch:
        first, last = (int(t * RATE_HZ / HOP) for t in (begin, end))
        return _stretch(wave, frames, onsets, (begin, end), slice(first, last + 1))

    pairs = list(zip(edges, edges[1:])) if len(edges) > 2 else []
    return Heard(
        stretch(0.0, duration), float(tempo[0]), tuple(stretch(*p) for p in pairs)
    )


def _edges(frames: dict[str, np.ndarray], duration: float) -> list[float]:
    """Where sections begin, in whole seconds, and the end."""
    import librosa

    seconds = int(duration)
    count = min(round(duration / SECTION_SECONDS), MOST_SECTIONS)
    if count < 2:
        return [0.0, duration]
    rows = np.concatenate([_standard(frames["mfcc"]), _standard(frames["chroma"])])
    starts = (np.arange(seconds) * RATE_HZ / HOP).astype(int)
    means = [part.mean(axis=1) for part in np.split(rows, starts[1:], axis=1)]
    blocks = np.stack(means, axis=1)
    near = LEAST_SECTION_SECONDS

    def contrast(edge: int) -> float:
        sides = blocks[:, max(edge - near, 0) : edge], blocks[:, edge : edge + near]
        return float(np.linalg.norm(sides[0].mean(axis=1) - sides[1].mean(axis=1)))

    # Of edges that are too near each other, the clearer one.
    found = librosa.segment.agglomerative(blocks, count)[1:].tolist()
    kept = [0.0, duration]
    for edge in sorted(found, key=contrast, reverse=True):
        if min(abs(edge - other) for other in kept) >= near:
            kept.append(float(edge))
    return sorted(kept)


def _standard(rows: np.ndarray) -> np.ndarray:
    """Each row with mean 0, and all together with variance 1, by how many they are."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / (rows.std() * np.sqrt(len(rows)) + 1e-9)


def _stretch(
    wave: np.ndarray,
    frames: dict[str, np.ndarray],
    onsets: np.ndarray,
    span: tuple[float, float],
    place: slice,
) -> Stretch:
    begin, end = span
    part = wave[int(begin * RATE_HZ) : int(end * RATE_HZ)]
    thirds = [_level_db(third) for third in np.array_split(part, 3)]
    weights = frames["level"][place]
    bright = np.average(frames["bright"][place], weights=weights + 1e-12)
    key, sureness = key_of(frames["chroma"][:, place].mean(axis=1))
    count = int(np.count_nonzero((onsets >= begin) & (onsets < end)))
    return Stretch(
        begin,
        end,
        _level_db(part),
        thirds[2] - thirds[0],
        float(bright),
        count / max(end - begin, 1e-9),
        key,
        sureness,
    )


def _level_db(wave: np.ndarray) -> float:
    power = np.mean(np.square(wave, dtype=np.float64)) if len(wave) else 0.0
    return float(10 * np.log10(power + 1e-9))


def key_of(chroma: np.ndarray) -> tuple[str, float]:
    """The key whose profile a mean chroma [12] follows best, and their correlation."""
    best = ("C major", -1.0)
    if np.std(chroma) < 1e-9:
        return best
    for mode, profile in (("major", _MAJOR), ("minor", _MINOR)):
        for tonic, note in enumerate(NOTES):
            rolled = np.roll(profile, tonic)
            correlation = float(np.corrcoef(chroma, rolled)[0, 1])
            if correlation > best[1]:
                best = (f"{note} {mode}", correlation)
    return best
