"""Long clips as segments: windows in time, those that are silent marked, static counts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clap_jax.audio import crop
from clap_jax.audio.frontend import INT16_SCALE
from clap_jax.audio.mel import Frontend
from clap_jax.pipeline.buckets import lengths
from clap_jax.pipeline.features import Features

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
    `buckets.lengths`. features_width: D where clips come as `features.Features`, cut
    already, in place of waves.
    Raises ValueError for a front end that needs the mel of whole clips, a hop that
    leaves gaps, and a part shorter than a window.
    """

    frontend: Frontend
    hop_seconds: float
    longest_seconds: float = 300.0
    shorter: Sequence[int] = SHORTER
    features_width: int = 0

    def __post_init__(self) -> None:
        window_seconds = self.frontend.clip_seconds
        if self.frontend.whole_mel:
            raise ValueError(
                "this front end needs the mel of the whole clip: there are no segments "
                "of one window each"
            )
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
    def shape(self) -> tuple[int, int]:
        """Of the longest clip: segments, and samples, or features, of each."""
        return self.counts[-1], self.features_width or self.frontend.clip_samples

    def count(self, seconds: float) -> int:
        """Segments of a clip of this length."""
        more = round(seconds * self.frontend.rate_hz) - self.frontend.clip_samples
        return 1 + -(-max(more, 0) // self.hop_samples)

    @property
    def counts(self) -> tuple[int, ...]:
        """Static counts of segments, rising; the last holds the longest clip."""
        return lengths(self.shorter, self.count(self.longest_seconds))

    def __call__(
        self, wave: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """A clip's segments, as many as there are (S).

        wave: float32 or int16 [t] at the front end's rate, t > 0; or the table of a
        `Features`. rng: draws the part of a longer clip; None: its middle.
        Returns wave [S, T], of the same dtype, or features float32 [S, D]; seconds float32 [S, 2], where each begins
        and ends in the part that is heard; heard bool [S]; start_seconds, float32, where
        that part begins in the clip.
        """
        if self.features_width:
            return self._part_of_features(Features.from_table(wave), rng)
        longest = self.longest_samples
        spare = max(len(wave) - longest, 0)
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        found = self.whole(wave[start : start + longest])
        return found | {"start_seconds": np.float32(start / self.frontend.rate_hz)}

    def seconds(self, wave: np.ndarray) -> float:
        """How long a clip is; `wave` as in `__call__`."""
        if self.features_width:
            return float(Features.from_table(wave).seconds[-1, 1])
        return len(wave) / self.frontend.rate_hz

    def _part_of_features(
        self, clip: Features, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        count = self.counts[-1]
        spare = max(len(clip.heard) - count, 0)
        first = spare // 2 if rng is None else int(rng.integers(spare + 1))
        start_seconds = clip.seconds[first, 0]
        return clip.part(first, count)._asdict() | {"start_seconds": start_seconds}

    def whole(self, part: np.ndarray) -> dict[str, np.ndarray]:
        """As `__call__`, of all of a clip, however long."""
        if self.features_width:
            return Features.from_table(part)._asdict()
        rate_hz, samples = self.frontend.rate_hz, self.frontend.clip_samples
        pieces, held = crop.windows(part, samples, self.hop_samples, self.frontend.fill)
        begin = np.arange(len(pieces)) * self.hop_samples
        seconds = np.stack([begin, begin + held], axis=1) / rate_hz
        # Of what each segment holds, not of what fills it up.
        power = [
            np.mean(np.square(part[first : first + int(count)], dtype=np.float64))
            for first, count in zip(begin, held)
        ]
        full_scale = INT16_SCALE if part.dtype == np.int16 else 1.0
        heard = np.array(power) > full_scale**2 * 10 ** (SILENCE_DB / 10)
        if len(pieces) > 1:
            heard[-1] &= held[-1] >= LEAST_SHARE * samples
        return {
            "wave": pieces,
            "seconds": seconds.astype(np.float32),
            "heard": heard,
        }
