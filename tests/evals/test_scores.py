"""Metric maths against brute force, scikit-learn and numbers done by hand."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from clap_jax.evals import scores


def unit(rng, rows, width=16):
    x = rng.normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def brute_force_ranks(similarity, query_group, key_group):
    """The rule read out: walk down the row, at a tie meet wrong keys first."""
    found = []
    for row, group in zip(similarity, query_group):
        right = key_group == group
        order = sorted(range(len(row)), key=lambda k: (-row[k], right[k]))
        found.append([place for place, k in enumerate(order, 1) if right[k]])
    return found


def laion_five_captions(similarity, captions=5):
    """LAION-CLAP's audio-to-text numbers for clips with 5 captions: R@1, R@5, mAP@10.

    Written after its evaluation script; `similarity` is [N, 5 N], ties do not occur.
    """
    firsts, precisions = [], []
    for clip, row in enumerate(similarity):
        order = np.argsort(-row)
        places = np.sort(np.flatnonzero(order // captions == clip))
        firsts.append(places[0])
        inside = places[places < 10]
        precisions.append(np.sum(np.arange(1, len(inside) + 1) / (inside + 1)) / 5)
    firsts = np.array(firsts)
    return np.mean(firsts < 1), np.mean(firsts < 5), np.mean(precisions)


@pytest.mark.parametrize("chunk_rows", [1, 7, 512])
def test_ranks_equal_brute_force_with_ties_and_groups(chunk_rows):
    rng = np.random.default_rng(0)
    # Small whole numbers: products are exact, and many of them tie.
    queries = rng.integers(-1, 2, (40, 3)).astype(np.float32)
    keys = rng.integers(-1, 2, (25, 3)).astype(np.float32)
    query_group, key_group = np.arange(40) % 8, rng.permutation(np.arange(25) % 8)
    found = scores.ranks(queries, keys, query_group, key_group, chunk_rows)
    expected = brute_force_ranks(queries @ keys.T, query_group, key_group)
    assert [list(row) for row in found] == expected


def test_ranks_do_not_depend_on_the_order_of_the_data_or_the_chunks():
    rng = np.random.default_rng(1)
    clips, texts = unit(rng, 30), unit(rng, 30)
    texts[10:20] = texts[0]  # the same sentence for eleven clips: exact ties
    reference = scores.ranks(texts, clips, np.arange(30), np.arange(30))
    order = rng.permutation(30)
    shuffled = scores.ranks(texts[order], clips, order, np.arange(30), chunk_rows=4)
    assert [list(reference[i]) for i in order] == [list(row) for row in shuffled]
    back = scores.ranks(clips, texts, np.arange(30), np.arange(30), chunk_rows=3)
    tied = {row[0] for row in back[10:20]}
    assert min(tied) >= 11  # ten others with the same score stand before


def test_collapsed_model_gets_the_worst_rank():
    same = np.ones((6, 4), np.float32) / 2
    found = scores.ranks(same, same, np.arange(6), np.arange(6))
    assert scores.best_ranks(found).tolist() == [6] * 6
    metrics = scores.retrieval_metrics(found, "t2a")
    assert metrics["t2a_R@1"] == 0 and metrics["t2a_median_rank"] == 6


def test_audio_to_text_equals_laion_with_five_captions():
    rng = np.random.default_rng(2)
    clips = unit(rng, 40)
    texts = np.repeat(clips, 5, axis=0) + 0.35 * rng.normal(size=(200, 16))
    found = scores.ranks(clips, texts, np.arange(40), np.arange(200) // 5)
    expected = laion_five_captions(clips.astype(float) @ texts.T)
    metrics = scores.retrieval_metrics(found, "a2t")
    actual = [metrics[f"a2t_{name}"] for name in ("R@1", "R@5", "mAP@10")]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert 0.1 < actual[2] < 0.9


def test_numbers_by_hand():
    found = [np.array([1]), np.array([4]), np.array([11]), np.array([2, 3, 20])]
    metrics = scores.retrieval_metrics(found, "t2a")
    assert metrics == {
        "t2a_R@1": 0.25,
        "t2a_R@5": 0.75,
        "t2a_R@10": 0.75,
        "t2a_mAP@10": pytest.approx((1 + 1 / 4 + 0 + (1 / 2 + 2 / 3) / 3) / 4),
        "t2a_median_rank": 3.0,
    }
    curve = scores.recall_curve(np.array([1, 4, 11, 2]), 5)
    assert curve.tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]


def test_median_rank_is_laions():
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 8):
        best = rng.integers(1, 20, count)
        assert scores.median_rank(best) == math.floor(np.median(best - 1)) + 1


def test_map_reaches_one_with_more_right_keys_than_its_depth():
    assert scores.mean_average_precision_at([np.arange(1, 31)]) == pytest.approx(1)


def test_query_without_a_right_key_is_an_error():
    x = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="query 1 has no right key"):
        scores.ranks(x, x, np.array([0, 5]), np.array([0, 1]))


def test_accuracy_and_confusion_equal_scikit_learn():
    rng = np.random.default_rng(4)
    table, truth = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    table[np.arange(200), truth] += 1
    for depth in (1, 5):
        expected = sklearn_metrics.top_k_accuracy_score(truth, table, k=depth)
        assert scores.top_accuracy(table, truth, depth) == pytest.approx(expected)
    predicted = scores.predictions(table, truth)
    expected = sklearn_metrics.confusion_matrix(truth, predicted)
    assert (scores.confusion_matrix(truth, predicted, 7) == expected).all()


def test_top_five_of_three_classes_is_all_of_them():
    table = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert scores.top_accuracy(table, np.array([2, 1]), 5) == 1


def test_ties_in_classification_are_misses_in_every_metric():
    table, truth = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])
    table[3, 0] = 1
    predicted = scores.predictions(table, truth)
    assert (predicted != truth).tolist() == [True, True, True, False]
    assert scores.top_accuracy(table, truth, 1) == 0.25
    assert np.trace(scores.confusion_matrix(truth, predicted, 3)) == 1
    assert (table[:3] == 0).all()  # the input is left as it was


@pytest.mark.parametrize("levels", [3, 1000])
def test_mean_average_precision_equals_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    table = rng.integers(0, levels, (120, 9)) / levels  # few levels: ties
    targets = rng.random((120, 9)) < 0.2
    actual = scores.mean_average_precision(table, targets)
    expected = sklearn_metrics.average_precision_score(targets, table, average="macro")
    assert actual == pytest.approx(expected, abs=1e-12)


def test_classes_that_never_occur_are_left_out_of_map():
    rng = np.random.default_rng(5)
    table, targets = rng.random((30, 4)), rng.random((30, 4)) < 0.3
    targets[:, 2] = False
    kept = [0, 1, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn_metrics.average_precision_score(
            targets[:, kept], table[:, kept], average="macro"
        )
    assert scores.mean_average_precision(table, targets) == pytest.approx(expected)
    assert np.isnan(scores.class_average_precisions(table, targets)[2])
    with pytest.raises(ValueError, match="at least one clip with a label"):
        scores.mean_average_precision(table, np.zeros((30, 4), bool))
