"""Metrics of retrieval and classification, in plain numpy.

Letters: `Q` queries, `K` keys, `E` joint dimension, `n` clips, `C` classes. Ranks
start at 1.

One rule for ties, everywhere an order is asked for: **a tie counts against the
model**. A wrong item with the same score as the right one stands before it, so the
numbers do not depend on the order of the data, and a collapsed model, for which every
pair scores the same, gets the worst rank and not a perfect one.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata

RECALL_AT = (1, 5, 10)
PRECISION_DEPTH = 10


def similarity_rows(
    queries: np.ndarray, keys: np.ndarray, chunk_rows: int = 512
) -> Iterator[np.ndarray]:
    """Dot products of queries with keys, a few rows at a time.

    The sums are made in float64 and rounded once to float32: the last bits of a
    float32 matrix product depend on where a row lies in its block, which would turn
    exact ties into accidents of the chunk size.

    Args:
        queries: float [Q, E].
        keys: float [K, E].
        chunk_rows: queries a block; memory is about 12 * chunk_rows * K bytes.

    Yields:
        float32 [at most chunk_rows, K], in the order of the queries.
    """
    columns = np.asarray(keys, np.float64).T
    for start in range(0, len(queries), chunk_rows):
        rows = np.asarray(queries[start : start + chunk_rows], np.float64)
        yield (rows @ columns).astype(np.float32)


def ranks(
    queries: np.ndarray,
    keys: np.ndarray,
    query_group: np.ndarray,
    key_group: np.ndarray,
    chunk_rows: int = 512,
) -> list[np.ndarray]:
    """Ranks of the right keys of every query.

    A key is right for a query when their groups are equal. With `clip_of[m]` the clip
    of caption m, text to audio is `ranks(zt, za, clip_of, arange(N))` and audio to text
    is `ranks(za, zt, arange(N), clip_of)`; clips that share a group are right for each
    other's captions when group numbers are given in place of clip numbers.

    A right key's rank is the number of wrong keys that score as high or higher, plus
    its place among the right ones.

    Args:
        queries: float [Q, E].
        keys: float [K, E].
        query_group: int [Q].
        key_group: int [K].
        chunk_rows: queries a block; the [Q, K] matrix is never held whole.

    Returns:
        Q arrays int64, each ascending, one entry for every right key, starting at 1.

    Raises:
        ValueError: a query has no right key.
    """
    query_group, key_group = np.asarray(query_group), np.asarray(key_group)
    found: list[np.ndarray] = []
    for block in similarity_rows(queries, keys, chunk_rows):
        for row in block:
            right = key_group == query_group[len(found)]
            positives = np.sort(row[right])[::-1]
            if not len(positives):
                raise ValueError(f"query {len(found)} has no right key to be found")
            negatives = np.sort(row[~right])
            before = len(negatives) - np.searchsorted(negatives, positives, "left")
            found.append(before + np.arange(1, len(positives) + 1))
    return found


def best_ranks(all_ranks: list[np.ndarray]) -> np.ndarray:
    """The rank of the best right key of every query, int64 [Q]."""
    return np.array([row[0] for row in all_ranks], np.int64)


def recall_at(best: np.ndarray, depth: int) -> float:
    """The share of queries with a right key among the first `depth`."""
    return float(np.mean(best <= depth))


def recall_curve(best: np.ndarray, longest: int) -> np.ndarray:
    """Recall at 1, 2, ... `longest`, float64 [longest]."""
    return np.array([recall_at(best, depth) for depth in range(1, longest + 1)])


def median_rank(best: np.ndarray) -> float:
    """Median of the ranks, rounded down to a whole rank.

    LAION-CLAP reports `floor(median(zero-based ranks)) + 1`, which is the same number:
    the median of ranks 1 and 2 is reported as 1.
    """
    return float(math.floor(np.median(best)))


def mean_average_precision_at(
    all_ranks: list[np.ndarray], depth: int = PRECISION_DEPTH
) -> float:
    """mAP@depth after LAION-CLAP.

    For a query with R right keys, of which the i-th has rank r_i: the sum of i / r_i
    over r_i <= depth, divided by min(R, depth). One right key (text to audio): 1 / r.
    Five captions a clip (audio to text): LAION's sum divided by 5. The minimum matters
    only beyond `depth` right keys, where a perfect model would not reach 1 without it.

    Args:
        all_ranks: from `ranks`.
        depth: ranks beyond it count as not found.
    """
    total = 0.0
    for row in all_ranks:
        precisions = np.arange(1, len(row) + 1) / row
        total += precisions[row <= depth].sum() / min(len(row), depth)
    return float(total / len(all_ranks))


def retrieval_metrics(all_ranks: list[np.ndarray], prefix: str) -> dict[str, float]:
    """R@1, R@5, R@10, mAP@10 and median rank, named `<prefix>_R@1` and so on.

    R@k and the median are taken of the best-ranked right key of a query.
    """
    best = best_ranks(all_ranks)
    metrics = {f"{prefix}_R@{depth}": recall_at(best, depth) for depth in RECALL_AT}
    metrics[f"{prefix}_mAP@{PRECISION_DEPTH}"] = mean_average_precision_at(all_ranks)
    metrics[f"{prefix}_median_rank"] = median_rank(best)
    return metrics


def top_accuracy(scores: np.ndarray, truth: np.ndarray, depth: int) -> float:
    """The share of clips whose class is among the `depth` best; ties are misses.

    Args:
        scores: float [n, C].
        truth: int [n], the class of every clip.
        depth: at least 1; a depth beyond C is C, which finds every class.
    """
    of_truth = scores[np.arange(len(truth)), truth]
    # The true class itself is among those that reach its score, so this is its rank.
    rank = (scores >= of_truth[:, None]).sum(axis=1)
    return float(np.mean(rank <= min(depth, scores.shape[1])))


def predictions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best class of every clip, int64 [n]; a tie goes to a wrong class.

    So the share of right predictions equals `top_accuracy(scores, truth, 1)`. Among
    wrong classes the lowest index is taken.
    """
    lowered = np.array(scores, np.float64)
    rows = np.arange(len(truth))
    lowered[rows, truth] = np.nextafter(lowered[rows, truth], -np.inf)
    return lowered.argmax(axis=1)


def confusion_matrix(
    truth: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Counts, int64 [C, C]: row = true class, column = predicted class."""
    cells = np.asarray(truth, np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under the precision-recall steps of one class.

    The definition of scikit-learn's `average_precision_score`: the sum over thresholds
    of (gain in recall) * precision, no interpolation; clips with equal scores pass a
    threshold together.

    Args:
        scores: float [n].
        targets: bool [n], at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(np.asarray(targets, bool)[order])
    sorted_scores = scores[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)
    gains = np.diff(hits[ends], prepend=0) / hits[-1]
    return float(np.sum(gains * hits[ends] / (ends + 1)))


def class_average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of every class, float64 [C]; NaN for one that never occurs.

    Args:
        scores: float [n, C].
        targets: bool [n, C].
    """
    return np.array(
        [
            average_precision(scores[:, column], targets[:, column])
            if targets[:, column].any()
            else np.nan
            for column in range(scores.shape[1])
        ]
    )


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro mAP: the mean over the classes that occur in `targets`.

    Args:
        scores: float [n, C].
        targets: bool [n, C].

    Raises:
        ValueError: no class occurs.
    """
    if not np.any(targets):
        raise ValueError("mAP needs at least one clip with a label, found none")
    return float(np.nanmean(class_average_precisions(scores, targets)))


def class_roc_aucs(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every class, float64 [C].

    The definition of scikit-learn's `roc_auc_score`: the share of pairs of a clip with
    the label and one without it in which the former scores higher, a tie being half a
    pair (the usual rule, and not that of ranks here). NaN for a class that all clips
    have, or none.

    Args:
        scores: float [n, C].
        targets: bool [n, C].
    """
    targets = np.asarray(targets, bool)
    positives, negatives = targets.sum(axis=0), (~targets).sum(axis=0)
    # Mann and Whitney: ranks from the lowest score on, ties share their mean.
    ranks_up = rankdata(scores, axis=0)
    sums = np.where(targets, ranks_up, 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums - positives * (positives + 1) / 2) / (positives * negatives)


def mean_roc_auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro ROC AUC: the mean over the classes that some clips have and others lack.

    Raises ValueError where there is no such class.
    """
    areas = class_roc_aucs(scores, targets)
    if np.isnan(areas).all():
        raise ValueError(
            "AUC needs a class that some clips have and others lack, found none"
        )
    return float(np.nanmean(areas))
