"""Class scores of clips in numbers: metrics, intervals, and what every clip adds.

Whatever makes the scores (cosines, heads, log-likelihoods), this is how they are
measured. Clips may come in parts, each scored by a head of its own: then a metric is the
mean over the parts, and clips are drawn within theirs. `n` clips, `C` classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clap_jax.evals import bootstrap, scores

TOP_DEPTH = 5


class Measured(NamedTuple):
    """What class scores come to; fields as those of `Result`.

    of_parts: part -> its metrics, without prefix; {} where there are no parts.
    """

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    intervals: dict[str, tuple[float, float]]
    per_clip: dict[str, np.ndarray]
    of_parts: dict[str, dict[str, float]]


def metrics(
    values: np.ndarray,
    targets: np.ndarray,
    multi_label: bool,
    predicted: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics of class scores.

    With one class a clip `acc` and `top5` (best min(5, C) of C); with several `mAP` and
    `AUC`, macro over the classes that occur (AUC: that not every clip has).

    Args:
        values: scores, float [n, C].
        targets: bool [n, C].
        multi_label: whether clips may have several classes.
        predicted: bool [n, C], for `F1_micro` and `F1_macro` beside mAP.
    """
    if not multi_label:
        hits = _hits(values, targets)
        return {name: float(np.mean(own)) for name, own in hits.items()}
    found = {"mAP": scores.mean_average_precision(values, targets)}
    if (targets.any(axis=0) & ~targets.all(axis=0)).any():
        found["AUC"] = scores.mean_roc_auc(values, targets)
    if predicted is not None:
        names = ("F1_micro", "F1_macro")
        found |= dict(zip(names, scores.f1(predicted, targets), strict=True))
    return found


def headline(multi_label: bool) -> str:
    """The metric that stands for all."""
    return "mAP" if multi_label else "acc"


def measure(
    values: np.ndarray,
    targets: np.ndarray,
    prefix: str,
    multi_label: bool,
    draws: int,
    predicted: np.ndarray | None = None,
    part_of: np.ndarray | None = None,
) -> Measured:
    """Metrics, named `<prefix>_acc` and so on, their intervals, and arrays for plots.

    Arrays: `confusion`, int64 [C, C] over all clips or, multi-label,
    `average_precision`, float64 [C], the mean over the parts that have the class, NaN
    where none has. What a clip adds is known of means over clips: acc and top5.

    Args:
        values, targets, multi_label, predicted: as in `metrics`.
        draws: of the bootstrap; 0 for no intervals.
        part_of: str [n], the part of every clip; None where there is one for all.
    """
    if not multi_label:
        found = shares(_hits(values, targets), prefix, draws, part_of)
        truth = targets.argmax(axis=1)
        best = scores.predictions(values, truth)
        counts = scores.confusion_matrix(truth, best, targets.shape[1])
        return found._replace(arrays={"confusion": counts})
    parts = _parts(len(values), part_of)
    each = {
        name: metrics(
            values[own],
            targets[own],
            True,
            None if predicted is None else predicted[own],
        )
        for name, own in parts.items()
    }

    def statistic(own: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        areas = bootstrap.areas(values[own], targets[own], weights)
        drawn = dict(zip(("mAP", "AUC"), areas, strict=True))
        if predicted is not None:
            both = bootstrap.f1(predicted[own], targets[own], weights)
            drawn |= dict(zip(("F1_micro", "F1_macro"), both, strict=True))
        return drawn

    precisions = [
        scores.class_average_precisions(values[own], targets[own])
        for own in parts.values()
    ]
    return Measured(
        _means(each, prefix),
        {"average_precision": _mean(precisions)},
        _intervals(statistic, parts, prefix, draws, part_of),
        {},
        each if part_of is not None else {},
    )


def shares(
    hits: Mapping[str, np.ndarray],
    prefix: str,
    draws: int,
    part_of: np.ndarray | None = None,
) -> Measured:
    """Shares of clips, with intervals and what each clip adds; no arrays.

    Args:
        hits: name -> bool [n], the clips that count.
        prefix: names become `<prefix>_<name>`; "" leaves them.
        draws, part_of: as in `measure`.
    """
    clips = len(next(iter(hits.values())))
    parts = _parts(clips, part_of)
    # A clip of a small part weighs more, so that all parts weigh the same.
    weight = np.empty(clips)
    for own in parts.values():
        weight[own] = clips / (len(parts) * len(own))
    each = {
        part: {name: float(np.mean(hit[own])) for name, hit in hits.items()}
        for part, own in parts.items()
    }

    def statistic(own: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        return {n: bootstrap.means(hit[own], weights) for n, hit in hits.items()}

    return Measured(
        _means(each, prefix),
        {},
        _intervals(statistic, parts, prefix, draws, part_of),
        {
            _named(prefix, name): np.stack([weight * hit, weight], axis=1)
            for name, hit in hits.items()
        },
        each if part_of is not None else {},
    )


def joined(one: Measured, other: Measured) -> Measured:
    """What was measured of the same clips in two ways."""
    return Measured(*({**own, **more} for own, more in zip(one, other, strict=True)))


def _hits(values: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Which clips, of one class each, have it first, and among the first; bool [n]."""
    ranks = scores.class_ranks(values, targets.argmax(axis=1))
    depth = min(TOP_DEPTH, values.shape[1])
    return {"acc": ranks <= 1, f"top{TOP_DEPTH}": ranks <= depth}


def _parts(clips: int, part_of: np.ndarray | None) -> dict[str, np.ndarray]:
    """The clips of every part, int64, in order of first appearance."""
    if part_of is None:
        return {"": np.arange(clips)}
    names = dict.fromkeys(np.asarray(part_of).tolist())
    return {name: np.flatnonzero(part_of == name) for name in names}


def _intervals(
    statistic: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
    parts: Mapping[str, np.ndarray],
    prefix: str,
    draws: int,
    part_of: np.ndarray | None,
) -> dict[str, tuple[float, float]]:
    """Intervals of the means over parts of what `statistic(clips, weights)` gives."""

    def of_all(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = [statistic(own, weights[own]) for own in parts.values()]
        return {
            _named(prefix, name): _mean([own[name] for own in drawn])
            for name in drawn[0]
        }

    clips = sum(map(len, parts.values()))
    return bootstrap.intervals(clips, of_all, draws, part_of=part_of)


def _means(each: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    """Means over the parts that have a metric."""
    names = {name: None for own in each.values() for name in own}
    return {
        _named(prefix, name): float(
            np.mean([m[name] for m in each.values() if name in m])
        )
        for name in names
    }


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over arrays, of the values that are numbers; NaN where none is."""
    stacked = np.stack(arrays)
    known = ~np.isnan(stacked)
    counts = known.sum(axis=0)
    totals = np.where(known, stacked, 0).sum(axis=0)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _named(prefix: str, name: str) -> str:
    return f"{prefix}_{name}" if prefix else name
