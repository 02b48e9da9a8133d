"""Long clips as segments: windows in time, those that are silent marked, static counts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clap_jax.audio import crop, io
from clap_jax.audio.mel import Frontend
from clap_jax.pipeline.buckets import lengths, shortest

SHORTER = (1, 2, 4, 8, 16)
"""Counts of segments below the full one: a compiled program for each."""

SILENCE_DB = -60.0
"""Segments whose mean power lies below this, against full scale, are not heard."""

LEAST_SHARE = 0.1
"""A last segment that holds less than this of a window is not heard, but alone."""


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """Cuts waves into segments.

    frontend: rate and length of a window. hop_seconds: from the beginning of one to
    that of the next, a window at most. longest_seconds: what of a clip is heard; of a
    longer one, a random part of that length, or its middle. shorter: see
    `buckets.lengths`.
    Raises ValueError for a hop that leaves gaps, and a part shorter than a window.
    """

    frontend: Frontend
    hop_seconds: float
    longest_seconds: float = 300.0
    shorter: Sequence[int] = SHORTER

    def __post_init__(self) -> None:
        window_seconds = self.frontend.clip_seconds
        if not 0 < self.hop_seconds <= window_seconds:
            raise ValueError(
                f"hop_seconds is {self.hop_seconds}, expected more than 0, and no more "
                f"than a window of {window_seconds} s: gaps would not be heard"
            )
        if self.longest_seconds < window_seconds:
            raise ValueError(
                f"longest_seconds is {self.longest_seconds}, expected a window of "
                f"{window_seconds} s or more"
            )

    @property
    def hop_samples(self) -> int:
        return max(round(self.hop_seconds * self.frontend.rate_hz), 1)

    @property
    def longest_samples(self) -> int:
        return round(self.longest_seconds * self.frontend.rate_hz)

    @property
    def counts(self) -> tuple[int, ...]:
        """Static counts of segments, rising; the last holds the longest clip."""
        more = max(self.longest_samples - self.frontend.clip_samples, 0)
        return lengths(self.shorter, 1 + -(-more // self.hop_samples))

    def __call__(
        self, wave: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """A clip's segments, as many as there are (S).

        wave: float32 [t] at the front end's rate, t > 0. rng: draws the part of a
        longer clip; None: its middle.
        Returns wave int16 [S, T]; seconds float32 [S, 2], where each begins and ends in
        the part that is heard; heard bool [S]; start_seconds, float32, where that part
        begins in the clip.
        """
        rate_hz, samples = self.frontend.rate_hz, self.frontend.clip_samples
        longest = self.longest_samples
        spare = max(len(wave) - longest, 0)
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        part = wave[start : start + longest]
        pieces, held = crop.windows(part, samples, self.hop_samples, self.frontend.fill)
        begin = np.arange(len(pieces)) * self.hop_samples
        seconds = np.stack([begin, begin + held], axis=1) / rate_hz
        # Of what each segment holds, not of what fills it up.
        power = [
            np.mean(np.square(part[first : first + int(count)], dtype=np.float64))
            for first, count in zip(begin, held)
        ]
        heard = np.array(power) > 10 ** (SILENCE_DB / 10)
        if len(pieces) > 1:
            heard[-1] &= held[-1] >= LEAST_SHARE * samples
        return {
            "wave": io.to_int16(pieces),
            "seconds": seconds.astype(np.float32),
            "heard": heard,
            "start_seconds": np.float32(start / rate_hz),
        }

    def together(self, clips: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """A batch [B, S, ...] of clips, S the smallest of `counts` that holds all;
        zeros, which are not heard, behind shorter ones."""
        count = shortest(self.counts, max(len(clip["heard"]) for clip in clips))

        def padded(name: str) -> np.ndarray:
            first = clips[0][name]
            batch = np.zeros((len(clips), count, *first.shape[1:]), first.dtype)
            for row, clip in zip(batch, clips):
                row[: len(clip[name])] = clip[name]
            return batch

        batch = {name: padded(name) for name in ("wave", "seconds", "heard")}
        starts = [clip["start_seconds"] for clip in clips]
        return batch | {"start_seconds": np.array(starts, np.float32)}
