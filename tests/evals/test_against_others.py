"""Every metric equals outside code and its definition read out, to 1e-9 (torchmetrics,
which computes in float32, to 2e-6).

scikit-learn and torchmetrics on random and on tied scores; recall, mAP and ranks of
retrieval by brute force, for one and for five captions; edges of all of them.

Rules for ties differ. Average precision and ROC AUC have scikit-learn's: clips of one
score pass a threshold together, a tied pair is half a pair. Ranks, and so recall, mAP@k
of retrieval and accuracy, count a tie against the model, which no library does: there
the outside code is given scores in which ties are broken so.
"""

import numpy as np
import pytest
import torch
import torchmetrics.functional as torchmetrics
import torchmetrics.functional.retrieval as torchmetrics_retrieval
from sklearn import metrics as sklearn_metrics

from clap_jax.evals import scores

EXACT = {"rel": 0, "abs": 1e-9}

# Few levels: most scores tie.
LEVELS = pytest.mark.parametrize("levels", [2, 5, 10**6])


def table(levels, rows=97, columns=6, seed=0):
    rng = np.random.default_rng(seed + levels)
    return rng.integers(0, levels, (rows, columns)) / levels


def broken_ties(values, is_right, step=1e-9):
    """Tied scores in an order that puts what is right last, by less than they differ."""
    return values - step * is_right


# --- labels ---


@LEVELS
def test_average_precision_and_auc(levels):
    values = table(levels)
    targets = np.random.default_rng(1).random(values.shape) < 0.3
    for column in range(values.shape[1]):
        own = values[:, column], targets[:, column]
        theirs = sklearn_metrics.average_precision_score(own[1], own[0])
        assert scores.average_precision(*own) == pytest.approx(theirs, **EXACT)
    theirs = sklearn_metrics.average_precision_score(targets, values)
    assert scores.mean_average_precision(values, targets) == pytest.approx(
        theirs, **EXACT
    )
    theirs = sklearn_metrics.roc_auc_score(targets, values)
    assert scores.mean_roc_auc(values, targets) == pytest.approx(theirs, **EXACT)
    found = scores.class_roc_aucs(values, targets)
    theirs = sklearn_metrics.roc_auc_score(targets, values, average=None)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-9)


@LEVELS
def test_average_precision_and_auc_are_torchmetrics(levels):
    """It computes in float32."""
    values = table(levels)
    targets = np.random.default_rng(1).random(values.shape) < 0.3
    arguments = torch.tensor(values), torch.tensor(targets.astype(int))
    for ours, theirs in (
        (scores.class_average_precisions, torchmetrics.average_precision),
        (scores.class_roc_aucs, torchmetrics.auroc),
    ):
        found = theirs(
            *arguments, task="multilabel", num_labels=values.shape[1], average=None
        )
        np.testing.assert_allclose(ours(values, targets), found, rtol=0, atol=2e-6)


@LEVELS
def test_f1(levels):
    predicted = table(levels) >= 0.5
    targets = np.random.default_rng(1).random(predicted.shape) < 0.3
    for ours, average in zip(scores.f1(predicted, targets), ("micro", "macro")):
        theirs = sklearn_metrics.f1_score(targets, predicted, average=average)
        assert ours == pytest.approx(theirs, **EXACT)
        theirs = torchmetrics.f1_score(
            torch.tensor(predicted.astype(int)),
            torch.tensor(targets.astype(int)),
            task="multilabel",
            num_labels=predicted.shape[1],
            average=average,
        )
        assert ours == pytest.approx(float(theirs), abs=1e-6)


@LEVELS
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_accuracy(levels, depth):
    values = table(levels)
    truth = np.random.default_rng(1).integers(0, values.shape[1], len(values))
    is_right = np.eye(values.shape[1], dtype=bool)[truth]
    untied = broken_ties(values, is_right)
    theirs = sklearn_metrics.top_k_accuracy_score(truth, untied, k=depth)
    assert scores.top_accuracy(values, truth, depth) == pytest.approx(theirs, **EXACT)
    theirs = torchmetrics.accuracy(
        torch.tensor(untied),
        torch.tensor(truth),
        task="multiclass",
        num_classes=values.shape[1],
        top_k=depth,
        average="micro",
    )
    assert scores.top_accuracy(values, truth, depth) == pytest.approx(
        float(theirs), abs=1e-6
    )
    if depth == 1:
        predicted = scores.predictions(values, truth)
        theirs = sklearn_metrics.accuracy_score(truth, untied.argmax(axis=1))
        assert np.mean(predicted == truth) == pytest.approx(theirs, **EXACT)
        found = scores.confusion_matrix(truth, predicted, values.shape[1])
        theirs = sklearn_metrics.confusion_matrix(truth, predicted)
        assert (found == theirs).all()


def test_classes_that_never_occur():
    """Left out of means; scikit-learn's mean of those that do is the same."""
    values = table(50)
    targets = np.random.default_rng(1).random(values.shape) < 0.3
    targets[:, 1], targets[:, 4] = False, True  # never, and always
    kept = [0, 2, 3, 5]
    theirs = sklearn_metrics.average_precision_score(
        targets[:, [*kept, 4]], values[:, [*kept, 4]]
    )
    found = scores.mean_average_precision(values, targets)
    assert found == pytest.approx(theirs, **EXACT)
    assert scores.class_average_precisions(values, targets)[4] == 1
    theirs = sklearn_metrics.roc_auc_score(targets[:, kept], values[:, kept])
    assert scores.mean_roc_auc(values, targets) == pytest.approx(theirs, **EXACT)
    assert np.isnan(scores.class_roc_aucs(values, targets)[[1, 4]]).all()
    predicted = values > 0.5
    predicted[:, 1] = False
    theirs = sklearn_metrics.f1_score(
        targets[:, [*kept, 4]], predicted[:, [*kept, 4]], average="macro"
    )
    assert scores.f1(predicted, targets)[1] == pytest.approx(theirs, **EXACT)


def test_one_class_and_one_clip():
    one = np.array([[0.3]])
    assert scores.mean_average_precision(one, np.array([[True]])) == 1
    assert scores.top_accuracy(one, np.array([0]), 1) == 1
    assert scores.f1(np.array([[True]]), np.array([[True]])) == (1, 1)
    assert scores.f1(np.array([[True]]), np.array([[False]])) == (0, 0)
    values, targets = table(10, columns=1), np.arange(97)[:, None] % 3 == 0
    theirs = sklearn_metrics.average_precision_score(targets, values)
    found = scores.mean_average_precision(values, targets)
    assert found == pytest.approx(theirs, **EXACT)
    theirs = sklearn_metrics.roc_auc_score(targets, values)
    assert scores.mean_roc_auc(values, targets) == pytest.approx(theirs, **EXACT)
    for nothing in (np.array([[True]]), np.array([[False]])):
        with pytest.raises(ValueError, match="AUC needs a class"):
            scores.mean_roc_auc(one, nothing)
    with pytest.raises(ValueError, match="F1 needs at least one label"):
        scores.f1(np.array([[False]]), np.array([[False]]))


# --- retrieval ---


def ranked(values, query_group, key_group):
    """Places of the right keys of every query, from 1; at a tie wrong ones come first."""
    places = []
    for row, group in zip(values, query_group):
        right = key_group == group
        order = sorted(range(len(row)), key=lambda key: (-row[key], right[key], key))
        places.append([place for place, key in enumerate(order, 1) if right[key]])
    return places


def recall(places, depth):
    """The share of queries that have a right key among the first `depth`."""
    return sum(any(place <= depth for place in own) for own in places) / len(places)


def mean_precision(places, depth):
    """Precision at each right key that is found, over those that could be."""
    total = 0.0
    for own in places:
        found = [place for place in own if place <= depth]
        precisions = [sum(other <= place for other in own) / place for place in found]
        total += sum(precisions) / min(len(own), depth)
    return total / len(places)


@pytest.mark.parametrize("values", [(-1, 0, 1), tuple(range(-50, 51))])
@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("clips", [1, 2, 30])
def test_retrieval_is_its_definition(values, captions, clips):
    """Vectors of small whole numbers: exact products, and many of them tie."""
    rng = np.random.default_rng(clips + captions)
    za = rng.choice(values, (clips, 3)).astype(np.float32)
    zt = rng.choice(values, (clips * captions, 3)).astype(np.float32)
    clip, clip_of = np.arange(clips), np.repeat(np.arange(clips), captions)
    for queries, keys, query_group, key_group in (
        (zt, za, clip_of, clip),
        (za, zt, clip, clip_of),
    ):
        places = ranked(queries @ keys.T, query_group, key_group)
        found = scores.ranks(queries, keys, query_group, key_group)
        assert [list(own) for own in found] == places
        metrics = scores.retrieval_metrics(found, "x", (10, 16))
        for depth in (1, 5, 10):
            expected = recall(places, depth)
            assert metrics[f"x_R@{depth}"] == pytest.approx(expected, **EXACT)
        for depth in (10, 16):
            expected = mean_precision(places, depth)
            assert metrics[f"x_mAP@{depth}"] == pytest.approx(expected, **EXACT)
        median = int(np.median([own[0] for own in places]))
        assert metrics["x_median_rank"] == median


@pytest.mark.parametrize("groups", [3, 11])
def test_retrieval_with_many_right_answers(groups):
    """Against torchmetrics and scikit-learn, query by query; ties broken by our rule."""
    rng = np.random.default_rng(groups)
    queries = rng.integers(-2, 3, (20, 4)).astype(np.float32)
    keys = rng.integers(-2, 3, (60, 4)).astype(np.float32)
    query_group, key_group = np.arange(20) % groups, np.arange(60) % groups
    found = scores.ranks(queries, keys, query_group, key_group)
    is_right = query_group[:, None] == key_group
    untied = broken_ties((queries @ keys.T).astype(float), is_right, step=0.25)
    untied -= 0.001 * np.arange(60)  # right keys do not tie either
    for depth in (1, 5, 10):
        theirs = [
            torchmetrics_retrieval.retrieval_hit_rate(
                torch.tensor(row), torch.tensor(right), top_k=depth
            )
            for row, right in zip(untied, is_right)
        ]
        ours = scores.recall_at(scores.best_ranks(found), depth)
        assert ours == pytest.approx(float(np.mean(theirs)), abs=1e-7)
    # mAP over all keys: average precision.
    theirs = [
        sklearn_metrics.average_precision_score(right, row)
        for row, right in zip(untied, is_right)
    ]
    ours = scores.mean_average_precision_at(found, len(keys))
    assert ours == pytest.approx(np.mean(theirs), **EXACT)
    first = torchmetrics_retrieval.retrieval_reciprocal_rank
    theirs = [
        float(first(torch.tensor(row), torch.tensor(right)))
        for row, right in zip(untied, is_right)
    ]
    ours = 1 / scores.best_ranks(found)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
