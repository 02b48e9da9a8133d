"""Bootstrap intervals against draws that are made one by one, and against theory."""

import numpy as np
import pytest

from clap_jax.evals import bootstrap, scores


def one_by_one(clips, statistic, count=40):
    """The statistic of each draw, told which clips are in it, as often as they are."""
    (weights,) = bootstrap.draws(clips, count)
    return [
        statistic(np.repeat(np.arange(clips), column.astype(int)))
        for column in weights.T
    ]


def test_draws_have_as_many_clips_as_there_are_and_repeat_by_seed():
    first, again = (np.hstack(list(bootstrap.draws(50, 30))) for _ in range(2))
    assert first.shape == (50, 30) and first.dtype == np.float32
    assert (first.sum(axis=0) == 50).all()
    assert (first == again).all()
    other = np.hstack(list(bootstrap.draws(50, 30, seed=1)))
    assert (first != other).any()


def test_parts_make_the_same_draws(monkeypatch):
    whole = np.hstack(list(bootstrap.draws(11, 30)))
    monkeypatch.setattr(bootstrap, "_WEIGHTS", 11 * 4)
    parts = list(bootstrap.draws(11, 30))
    assert len(parts) == 8
    assert (np.hstack(parts) == whole).all()


def test_clips_are_drawn_within_their_parts(monkeypatch):
    part_of = np.array(["b", "a", "c", "a", "b", "a", "a", "b", "a"])
    (whole,) = bootstrap.draws(9, 300, part_of=part_of)
    for part in "abc":
        own = whole[part_of == part]
        assert (own.sum(axis=0) == len(own)).all()
        # Each clip of a part is as likely as another.
        np.testing.assert_allclose(own.mean(axis=1), 1, atol=0.2)
    assert len({tuple(column) for column in whole.T}) > 200
    monkeypatch.setattr(bootstrap, "_WEIGHTS", 9 * 7)
    parts = list(bootstrap.draws(9, 300, part_of=part_of))
    assert len(parts) == 43 and (np.hstack(parts) == whole).all()


@pytest.mark.parametrize("levels", [3, 10_000])
def test_areas_are_those_of_the_drawn_clips(levels):
    rng = np.random.default_rng(levels)
    table = rng.integers(0, levels, (30, 4)) / levels
    targets = rng.random((30, 4)) < 0.15
    targets[:, 3] = False  # never occurs

    def mean_area(which):
        found = scores.class_roc_aucs(table[which], targets[which])
        return np.nanmean(found)

    (weights,) = bootstrap.draws(30, 40)
    precisions, curves = bootstrap.areas(table, targets, weights)
    expected = one_by_one(
        30, lambda which: scores.mean_average_precision(table[which], targets[which])
    )
    np.testing.assert_allclose(precisions, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(curves, one_by_one(30, mean_area), rtol=0, atol=1e-9)


def test_a_draw_without_any_label_tells_nothing():
    table, targets = np.arange(4.0)[:, None], np.array([[True], [0], [0], [0]])
    (weights,) = bootstrap.draws(4, 100)
    precisions, curves = bootstrap.areas(table, targets.astype(bool), weights)
    drawn = weights[0] > 0
    assert 0 < drawn.sum() < 100
    assert (np.isnan(precisions) == ~drawn).all()
    assert (np.isnan(curves) == (~drawn | (weights[0] == 4))).all()
    precisions, _ = bootstrap.areas(table, np.zeros((4, 1), bool), weights)
    assert np.isnan(precisions).all()
    found = bootstrap.intervals(4, lambda w: {"never": np.full(w.shape[1], np.nan)})
    assert found == {}


@pytest.mark.parametrize("captions", [1, 5])
def test_means_and_medians_of_captions_go_with_their_clip(captions):
    rng = np.random.default_rng(captions)
    clip_of = np.repeat(np.arange(15), captions)
    best = rng.integers(1, 9, 15 * captions)
    (weights,) = bootstrap.draws(15, 40)

    def taken(which):
        return np.concatenate([best[clip_of == clip] for clip in which])

    found = bootstrap.means(best <= 3, weights, clip_of)
    expected = one_by_one(15, lambda which: np.mean(taken(which) <= 3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    found = bootstrap.median_ranks(best, weights, clip_of)
    expected = one_by_one(15, lambda which: scores.median_rank(taken(which)))
    assert found.tolist() == expected
    if captions == 1:
        found = bootstrap.means(best <= 3, weights)
        np.testing.assert_allclose(found, bootstrap.means(best <= 3, weights, clip_of))


def test_a_draw_without_any_caption_tells_nothing():
    """Clips whose captions are others' too have none of their own."""
    (weights,) = bootstrap.draws(3, 60)
    clip_of = np.array([1])
    none = weights[1] == 0
    assert 0 < none.sum() < 60
    for found in (
        bootstrap.means(np.array([0.5]), weights, clip_of),
        bootstrap.median_ranks(np.array([7]), weights, clip_of),
    ):
        assert (np.isnan(found) == none).all()


def test_intervals_cover_as_often_as_they_say():
    """Of the share of right answers among 200 clips, for 200 sets of clips."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for seed in range(200):
        right = (rng.random(200) < 0.7).astype(float)
        found = bootstrap.intervals(
            200, lambda w, x=right: {"acc": bootstrap.means(x, w)}, 200, seed
        )
        low, high = found["acc"]
        covered += low <= 0.7 <= high
        widths.append(high - low)
    assert 180 <= covered <= 199
    # The normal approximation: 2 * 1.96 * sqrt(0.7 * 0.3 / 200).
    assert np.mean(widths) == pytest.approx(0.127, rel=0.05)


def test_captions_of_one_clip_are_no_independent_observations():
    """Five captions that always agree tell no more than one."""
    right = np.random.default_rng(0).random(100) < 0.5
    clip_of = np.repeat(np.arange(100), 5)
    one, five, apart = (
        bootstrap.intervals(
            clips, lambda w, x=values, of=of: {"R": bootstrap.means(x, w, of)}
        )["R"]
        for clips, values, of in (
            (100, right, None),
            (100, np.repeat(right, 5), clip_of),
            (500, np.repeat(right, 5), None),
        )
    )
    assert one == pytest.approx(five)
    assert apart[1] - apart[0] < 0.6 * (five[1] - five[0])


def test_one_clip_and_no_draws():
    def mean(weights):
        return {"acc": bootstrap.means(np.array([1.0]), weights)}

    assert bootstrap.intervals(1, mean) == {"acc": (1, 1)}
    assert bootstrap.intervals(1, mean, count=0) == {}
    assert bootstrap.describe(0) == "none"
    assert bootstrap.describe(500, 7) == (
        "95% percentile bootstrap over clips, 500 draws, seed 7"
    )
    assert bootstrap.describe(9, more="of one day").endswith("seed 0; of one day")
