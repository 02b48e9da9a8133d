"""What a `Clap` says of sounds: scores, classes, and when in them."""

import math
from typing import NamedTuple

import numpy as np

from clap_jax.loaded import Audio


class Alignment(NamedTuple):
    """Where in a sound, of S segments, a text of M sentences is heard; see `Clap.align`.

    weights: float32 [S], attention to each segment, the mean over sentences; sums to 1.
    by_sentence: float32 [M, S]. seconds: float32 [S, 2], where each segment begins and
    ends. sentences: the M sentences; neighbours are one where there are more than the
    model compares.
    """

    weights: np.ndarray
    by_sentence: np.ndarray
    seconds: np.ndarray
    sentences: list[str]

    def centres(self) -> np.ndarray:
        """The middle of each sentence's attention in seconds, float64 [M]."""
        return self.by_sentence @ self.seconds.mean(-1, dtype=np.float64)

    def strongest(self) -> list[tuple[float, float]]:
        """Where each sentence's strongest segment begins and ends, in seconds."""
        return [tuple(self.seconds[row.argmax()].tolist()) for row in self.by_sentence]


class Found(NamedTuple):
    """What `Clap.search` says of a sound.

    item: as it was given. score: the model's. alignment: where the text is heard, of a
    model that hears segments. error: why there is no score.
    """

    item: Audio
    score: float = math.nan
    alignment: Alignment | None = None
    error: str = ""


class Classified(NamedTuple):
    """What `Clap.classify_each` says of a sound.

    item: as it was given. probabilities: of the classes, float32 [C]; None where there
    are none. error: why.
    """

    item: Audio
    probabilities: np.ndarray | None
    error: str = ""


class ClassesOverTime(NamedTuple):
    """Which class a sound is in each of its S segments; see `Clap.classify_over_time`.

    probabilities: float32 [S, C]. seconds: float32 [S, 2], where each segment begins and
    ends.
    """

    probabilities: np.ndarray
    seconds: np.ndarray
