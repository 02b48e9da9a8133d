"""Scores of boundaries between sections, in plain numpy.

Hit rates are those of MIREX's task "structural segmentation", after Turnbull et al., "A
supervised approach for detecting boundaries in music using difference features and
boosting" (ISMIR 2007), without the beginning and the end of a clip, which anybody knows
(`trim` of mir_eval's `segment.detection`).
"""

from collections.abc import Sequence

import numpy as np


def hits(true: Sequence[float], found: Sequence[float], tolerance: float) -> int:
    """How many pairs of a true and a found boundary are at most `tolerance` apart, each
    in one pair, at most. Seconds, in any order."""
    # On a line, and with one tolerance for all, no matching beats that in order.
    true, found = sorted(true), sorted(found)
    i = j = count = 0
    while i < len(true) and j < len(found):
        # Times in floating point: 10.5 is no further from 10 than 0.5.
        if abs(true[i] - found[j]) <= tolerance + 1e-6:
            i, j, count = i + 1, j + 1, count + 1
        elif true[i] < found[j]:
            i += 1
        else:
            j += 1
    return count


def hit_rates(
    true: Sequence[float], found: Sequence[float], tolerance: float
) -> tuple[float, float, float]:
    """Precision, recall and F of the found boundaries of one clip; zeros where there are
    none of either."""
    if not (len(true) and len(found)):
        return 0.0, 0.0, 0.0
    right = hits(true, found, tolerance)
    return (
        right / len(found),
        right / len(true),
        2 * right / (len(found) + len(true)),
    )


def best_threshold(scores: np.ndarray, targets: np.ndarray) -> float:
    """The score from which on to say yes, so that F1 is best; of equals the highest.

    It lies in the middle between the scores that get a yes and the others, since those
    of another head, or of other clips, are not quite the same. scores: float [n].
    targets: bool [n], at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    right = np.cumsum(targets[order])
    # Equal scores are said yes to together.
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    f1 = 2 * right[ends] / (ends + 1 + right[-1])
    last = ends[f1.argmax()]
    return float(ranked[last : last + 2].astype(np.float64).mean())
