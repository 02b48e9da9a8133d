"""The junctions of segments that a probe for boundaries of sections learns from.

An example is the junction of two segments that are both heard, the second of which is the
first to begin where the other ends, or later (where segments overlap, these are no neighbours in the list, and there
still is a junction every hop). What a head hears of it are |a - b| and a * b, with a and
b the two embeddings, each number of them with mean 0 and deviation 1 over the segments of
the clip: how different, and how alike they are, for this clip. A junction is a boundary
where an annotated one lies nearest to it, within half a hop. What is found are junctions
from a threshold on, and of those that are half a segment apart or less the highest.
Sections are those that the source knows (`sections(index)`: of
pieces, or of a table, see `pipeline.annotations`), else those with times in a clip's
captions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clap_jax.pipeline.features import Features
from clap_jax.text import sections as sections_lib

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

# What lies this near an end of the clip is its end, and boundaries this near are one:
# captions say times in whole seconds.
EDGE_SECONDS = 0.5

# By so much annotations may go beyond features, which are of the whole sound.
SLACK_SECONDS = 10.0


class Junctions(NamedTuple):
    """The junctions of a clip of which J can be scored.

    x: float32 [J, 2 D]. seconds: float64 [J], when they are. targets: bool [J], which
    are boundaries. true: annotated boundaries in seconds, wherever they lie. reach: half
    a segment, in seconds.
    """

    x: np.ndarray
    seconds: np.ndarray
    targets: np.ndarray
    true: np.ndarray
    reach: float

    def peaks(self, values: np.ndarray) -> np.ndarray:
        """Which of scores float [J] are the highest within reach, bool [J]."""
        near = np.abs(self.seconds[:, None] - self.seconds) <= self.reach + 1e-4
        return values >= np.where(near, values, -np.inf).max(axis=1, initial=-np.inf)


def peaks(clips: Sequence[Junctions], values: np.ndarray) -> np.ndarray:
    """Which scores, of all clips one after the other, are peaks of their clip."""
    ends = np.cumsum([len(own.seconds) for own in clips])[:-1]
    rows = zip(clips, np.split(values, ends), strict=True)
    return np.concatenate([own.peaks(part) for own, part in rows])


def sections_of(
    source: "Source", clip: int, duration_seconds: float
) -> list[tuple[float, float, str]]:
    """Begin and end in seconds and the name of each section of a clip: what the source
    knows, or the first of its captions that says when; [] for neither."""
    if hasattr(source, "sections"):
        return source.sections(clip)
    found = (
        sections_lib.timed(text, duration_seconds) for text in source.captions(clip)
    )
    return next(filter(None, found), [])


def check_heard(
    kind: str,
    name: str,
    sections: Sequence[tuple[float, float, str]],
    seconds: np.ndarray,
    slack_seconds: float = EDGE_SECONDS,
) -> None:
    """Raise ValueError for a clip of which a part is heard: its times are others.

    kind: of the evaluator; name: of the clip; seconds: [S, 2] of its segments, of which
    the last holds the end of a clip that is heard whole; slack_seconds: by so much
    sections may go beyond.
    """
    heard = seconds[-1, 1]
    end = max((section[1] for section in sections), default=0.0)
    if end > heard + slack_seconds:
        raise ValueError(
            f"{kind}: clip {name} has sections up to {end:g} s, and its segments end "
            f"at {heard:g} s: a model hears the middle of clips above its longest_seconds, "
            "features hold all of a clip"
        )


def boundaries(
    sections: Sequence[tuple[float, float, str]], duration_seconds: float
) -> np.ndarray:
    """Where sections begin and end inside of a clip, float64 [m], sorted."""
    edges = sorted({edge for begin, end, _ in sections for edge in (begin, end)})
    found: list[float] = []
    for edge in edges:
        inside = EDGE_SECONDS < edge < duration_seconds - EDGE_SECONDS
        if inside and (not found or edge - found[-1] > EDGE_SECONDS):
            found.append(edge)
    return np.array(found)


def of_clip(clip: Features, true: np.ndarray) -> Junctions:
    """The junctions of a clip of S segments. true: its boundaries, see `boundaries`."""
    begin, end = clip.seconds.astype(np.float64).T
    # The first that begins where another ends; float32 rounds off times.
    second = np.searchsorted(begin, end - 1e-3)
    first = np.flatnonzero(second < len(begin))
    second = second[first]
    when = (end[first] + begin[second]) / 2
    targets = np.zeros(len(when), bool)
    hops = np.diff(begin)
    for edge in true if len(when) else ():
        nearest = np.abs(when - edge).argmin()
        targets[nearest] |= abs(when[nearest] - edge) <= hops[first[nearest]] / 2 + 1e-4
    heard = clip.features[clip.heard if clip.heard.any() else slice(None)]
    deviation = heard.std(axis=0, dtype=np.float64)
    rows = clip.features - heard.mean(axis=0, dtype=np.float64)
    rows = np.divide(rows, deviation, out=np.zeros_like(rows), where=deviation > 1e-6)
    one, other = rows[first], rows[second]
    x = np.concatenate([np.abs(one - other), one * other], axis=1, dtype=np.float32)
    both = clip.heard[first] & clip.heard[second]
    return Junctions(
        *(x[both], when[both], targets[both], np.asarray(true, np.float64)),
        reach=float(end[0] - begin[0]) / 2,
    )
