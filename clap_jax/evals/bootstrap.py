"""Confidence intervals of metrics: the percentile bootstrap over clips.

The clips are drawn with replacement, as many as there are, again and again; of each draw
the metric is computed; the interval holds the middle 95 % of the values (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993). A clip is drawn with all that belongs
to it: its captions are no independent observations. What is searched in stays as it is,
so intervals of retrieval are about the queries and not about the gallery. Where clips
come in parts, each part keeps its number of clips: they are drawn within it.

Draws are weights: how often each clip is in. `n` clips, `D` draws of a part, `C` classes.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import sparse

DRAWS = 1000
LEVEL = 0.95

# Weights in memory at a time.
_WEIGHTS = 4_000_000


def draws(
    clips: int, count: int = DRAWS, seed: int = 0, part_of: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """How often every clip is in each of `count` draws, in parts float32 [n, D].

    part_of: [n], numbers or names of parts that clips are drawn within.
    """
    generator = np.random.default_rng(seed)
    place, first, sizes = np.arange(clips), 0, clips
    if part_of is not None:
        _, number, counts = np.unique(part_of, return_inverse=True, return_counts=True)
        place = np.argsort(number, kind="stable")
        first = (np.cumsum(counts) - counts)[number[place]]
        sizes = counts[number[place]]
    part = max(1, _WEIGHTS // clips)
    for start in range(0, count, part):
        size = min(part, count - start)
        drawn = place[first + generator.integers(0, sizes, (size, clips))]
        cells = drawn + clips * np.arange(size)[:, None]
        weights = np.bincount(cells.ravel(), minlength=size * clips)
        yield np.ascontiguousarray(weights.reshape(size, clips).T, np.float32)


def intervals(
    clips: int,
    statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    count: int = DRAWS,
    seed: int = 0,
    part_of: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """The interval of every metric.

    Args:
        clips: how many there are.
        statistic: weights float32 [n, D] -> metric -> its value in each draw, float [D];
            NaN where a draw cannot tell.
        count: draws; 0 gives no intervals.
        seed: the same seed, the same intervals.
        part_of: as in `draws`.

    Returns:
        metric -> (low, high); without those that no draw can tell.
    """
    values: dict[str, list[np.ndarray]] = {}
    for weights in draws(clips, count, seed, part_of) if count else ():
        for name, part in statistic(weights).items():
            values.setdefault(name, []).append(np.asarray(part, np.float64))
    found = {}
    edges = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    for name, parts in values.items():
        drawn = np.concatenate(parts)
        if not np.isnan(drawn).all():
            low, high = np.nanquantile(drawn, edges)
            found[name] = (float(low), float(high))
    return found


def describe(count: int = DRAWS, seed: int = 0, more: str = "") -> str:
    """What the intervals are, for a result's protocol; more: what else is to be said."""
    if not count:
        return "none"
    said = f"{LEVEL:.0%} percentile bootstrap over clips, {count} draws, seed {seed}"
    return f"{said}; {more}" if more else said


def means(
    values: np.ndarray, weights: np.ndarray, clip_of: np.ndarray | None = None
) -> np.ndarray:
    """The weighted mean of values in every draw, float [D]; NaN in one without any.

    Args:
        values: float [m], of clips, or of what belongs to them.
        weights: float32 [n, D].
        clip_of: int [m], the clip of every value; by default they are those of clips.
    """
    values = np.asarray(values, np.float64)
    if clip_of is None:
        return values @ weights / weights.sum(axis=0)
    clips = len(weights)
    sums = np.bincount(clip_of, values, clips)
    counts = np.bincount(clip_of, minlength=clips)
    with np.errstate(invalid="ignore"):
        return (sums @ weights) / (counts @ weights)


def median_ranks(
    best: np.ndarray, weights: np.ndarray, clip_of: np.ndarray | None = None
) -> np.ndarray:
    """`scores.median_rank` of every draw, float [D]; arguments as for `means`."""
    order = np.argsort(best, kind="stable")
    clips = order if clip_of is None else clip_of[order]
    reached = np.cumsum(weights[clips], axis=0, dtype=np.float64)
    total, ranked = reached[-1], np.asarray(best)[order]
    # The values at the two middle places, which are one where the total is odd. A draw
    # without any value has none.
    last = len(ranked) - 1
    middle = [
        ranked[np.minimum((reached <= place).sum(axis=0), last)]
        for place in ((total - 1) // 2, total // 2)
    ]
    return np.where(total > 0, np.floor((middle[0] + middle[1]) / 2), np.nan)


def f1(
    predicted: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Micro and macro F1 of every draw, float [D] each, as `scores.f1`.

    Args:
        predicted, targets: bool [n, C].
        weights: float32 [n, D].
    """
    hits, total = (
        np.asarray(counts, np.float32).T @ weights
        for counts in (predicted & targets, predicted.astype(int) + targets)
    )
    with np.errstate(invalid="ignore"):
        micro = 2 * hits.sum(axis=0) / total.sum(axis=0)
        macro = np.where(total > 0, 2 * hits / total, 0).sum(axis=0)
        return micro, macro / (total > 0).sum(axis=0)


def areas(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Macro average precision and macro ROC AUC of every draw, float [D] each.

    As `scores.mean_average_precision` and `scores.mean_roc_auc`: over the classes that
    occur in the draw; NaN where none does.

    Args:
        scores: float [n, C].
        targets: bool [n, C].
        weights: float32 [n, D].
    """
    found = [
        _class_areas(scores[:, column], targets[:, column], weights)
        for column in range(scores.shape[1])
        if targets[:, column].any()
    ]
    if not found:
        nothing = np.full(weights.shape[1], np.nan)
        return nothing, nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any label
        precisions, curves = np.nanmean(np.array(found), axis=0)
    return precisions, curves


def _class_areas(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and ROC AUC of one class in every draw, float [D] each.

    Only scores that some clip with the label has are looked at: what lies between two
    of them is summed at once.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], targets[order]
    levels = np.unique(ranked[hits])[::-1]
    # Where each level's clips begin and end among the clips, best first.
    begin = np.searchsorted(-ranked, -levels, "left")
    end = np.searchsorted(-ranked, -levels, "right")
    sums = _sums(weights, order, np.stack([begin, end], axis=1).ravel())
    total_of, until = sums[1::2], np.cumsum(sums, axis=0)[1::2]
    ends = np.searchsorted(-ranked[hits], -levels, "right")
    right_of = _sums(weights, order[hits], ends)
    right_until = np.cumsum(right_of, axis=0)
    right = right_until[-1]
    wrong = weights.sum(axis=0, dtype=np.float64) - right
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(until > 0, right_until / until, 0)
        area = (right_of * precision).sum(axis=0) / right
        below = wrong - (until - right_until) + (total_of - right_of) / 2
        curve = (right_of * below).sum(axis=0) / (right * wrong)
    return area, curve


def _sums(weights: np.ndarray, clips: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Weights of clips [0, e_0), [e_0, e_1), ... summed, float64 [edges, D].

    Whole numbers far below 2^24 are exact in float32.
    """
    starts = np.concatenate([[0], edges])
    ones = np.ones(edges[-1], np.float32)
    shape = (len(edges), len(weights))
    selection = sparse.csr_array((ones, clips[: edges[-1]], starts), shape)
    return (selection @ weights).astype(np.float64)
