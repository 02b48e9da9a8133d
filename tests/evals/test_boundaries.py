"""Boundaries of sections: scores by hand; those that are there are found, noise is not."""

import json
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from clap_jax.evals import (
    boundaries,
    boundary_scores,
    build_evaluator,
    junctions,
    report,
)
from clap_jax.evals.boundaries import Boundaries
from clap_jax.pipeline.features import Features
from tests.evals.pages import Page
from tests.evals.test_songs import Songs, encoder

HOP = 2.0
ONE = {"strengths": (0.1,)}


class Source:
    """Clips of 20 segments of `HOP` seconds, in three sections.

    apart: how far sections are from each other, against noise of deviation 1.
    """

    features_width = 6

    def __init__(self, name="made", clips=20, apart=6.0, sections=True):
        self.name, self._clips, self._apart = name, clips, apart
        if sections:
            self.sections = self._sections

    def __len__(self):
        return self._clips

    def _rng(self, clip, what):
        return np.random.default_rng([len(self.name), clip, what])

    def _sections(self, clip):
        cuts = sorted(self._rng(clip, 0).choice(np.arange(2, 19), 2, replace=False))
        edges = [0, *(HOP * cut + 0.3 for cut in cuts), 20 * HOP]
        return [(*pair, "part") for pair in pairwise(edges)]

    def __getitem__(self, clip):
        begin = HOP * np.arange(20, dtype=np.float32)
        rng = self._rng(clip, 1)
        centres = self._apart * rng.normal(size=(3, 6))
        starts = np.array([own[0] for own in self._sections(clip)])
        which = np.searchsorted(starts, begin + HOP / 2, side="right") - 1
        rows = (centres[which] + rng.normal(size=(20, 6))).astype(np.float32)
        seconds = np.stack([begin, begin + HOP], axis=1)
        return {"audio": Features(rows, seconds, np.ones(20, bool))}

    def captions(self, clip):
        return []

    def id(self, clip):
        return f"{self.name}/{clip}"

    def digest(self):
        return self.name

    def description(self):
        return f"{self.name}: {len(self)} clips"


# --- scores ---


@pytest.mark.parametrize(
    ("true", "found", "tolerance", "expected"),
    [
        ([10, 20, 30], [10.4, 20.6, 50], 0.5, (1 / 3, 1 / 3, 1 / 3)),
        ([10, 20, 30], [10.5, 27, 33, 50], 3, (3 / 4 - 1 / 4, 2 / 3, 4 / 7)),
        # One found boundary is a hit of one true one.
        ([10, 11], [10.5], 3, (1, 1 / 2, 2 / 3)),
        ([10.5], [10, 11], 3, (1 / 2, 1, 2 / 3)),
        # The nearest pair (12, 12.5) would leave 10 and 15 alone.
        ([10, 12.5], [12, 15], 2.5, (1, 1, 1)),
        ([], [10], 3, (0, 0, 0)),
        ([10], [], 3, (0, 0, 0)),
    ],
)
def test_hit_rates_by_hand(true, found, tolerance, expected):
    rates = boundary_scores.hit_rates(true, found, tolerance)
    assert rates == pytest.approx(expected)
    shuffled = boundary_scores.hit_rates(true[::-1], found[::-1], tolerance)
    assert shuffled == rates


def test_no_matching_has_more_hits():
    """Against the largest matching, found by trying all."""
    rng = np.random.default_rng(0)

    def most(true, found):
        if not true:
            return 0
        first, rest = true[0], true[1:]
        tried = [most(rest, found)]
        for i, other in enumerate(found):
            if abs(other - first) <= 3:
                tried.append(1 + most(rest, found[:i] + found[i + 1 :]))
        return max(tried)

    for _ in range(200):
        true, found = (
            rng.uniform(0, 20, rng.integers(0, 6)).tolist() for _ in range(2)
        )
        assert boundary_scores.hits(true, found, 3) == most(true, found)


def test_the_threshold_of_the_best_f1():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1])
    targets = np.array([1, 0, 1, 1, 0, 0], bool)
    # F1 from each on: 2/4, 2/5, 4/6, 6/8 (two at once), 6/9.
    assert boundary_scores.best_threshold(scores, targets) == pytest.approx(0.35)
    assert boundary_scores.best_threshold(scores[:1], targets[:1]) == 0.9
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, targets = rng.normal(size=30), rng.random(30) < 0.3
        targets[0] = True
        best = max(f1_score(targets, scores >= s) for s in scores)
        found = boundary_scores.best_threshold(scores, targets)
        assert f1_score(targets, scores >= found) == pytest.approx(best)


def test_where_boundaries_are():
    sections = [(0.0, 10.0, "a"), (10.2, 20.0, "b"), (25.0, 39.8, "c")]
    # 10 and 10.2 are one; there is a gap from 20 to 25; the end is no boundary.
    assert junctions.boundaries(sections, 40.0).tolist() == [10.0, 20.0, 25.0]
    assert junctions.boundaries([(0.3, 40.0, "a")], 40.0).tolist() == []


def test_junctions_of_a_clip():
    begin = np.arange(6, dtype=np.float32) * 2
    features = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    clip = Features(features, np.stack([begin, begin + 2], 1), np.ones(6, bool))
    found = junctions.of_clip(clip, np.array([1.9, 6.1, 8.1]))
    assert found.seconds.tolist() == [2, 4, 6, 8, 10] and found.reach == 1
    assert found.targets.tolist() == [True, False, True, True, False]
    rows = (features - features.mean(0)) / features.std(0)
    expected = np.c_[np.abs(rows[1:] - rows[:-1]), rows[1:] * rows[:-1]]
    np.testing.assert_allclose(found.x, expected, rtol=1e-5)
    # Half a hop, and no further.
    far = junctions.of_clip(clip, np.array([0.9, 5.0, 11.1]))
    assert far.targets.tolist() == [False, True, False, False, False]
    silent = clip._replace(heard=np.array([1, 1, 0, 1, 1, 1], bool))
    found = junctions.of_clip(silent, np.array([4.4, 8.6]))
    assert found.seconds.tolist() == [2, 8, 10] and len(found.true) == 2
    assert found.targets.tolist() == [False, True, False]
    one = Features(*(array[:1] for array in clip))
    found = junctions.of_clip(one, np.array([1.0]))
    assert found.x.shape == (0, 4) and found.peaks(np.zeros(0)).shape == (0,)


def test_junctions_where_segments_overlap():
    """Of 3 s every second: those that touch, and a last one that is shorter."""
    begin = np.arange(6, dtype=np.float32)
    seconds = np.stack([begin, np.minimum(begin + 3, 7.5)], 1)
    rows = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    found = junctions.of_clip(
        Features(rows, seconds, np.ones(6, bool)), np.array([3.2, 4.8])
    )
    assert found.seconds.tolist() == [3, 4, 5]
    assert found.targets.tolist() == [True, False, True]
    z = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(found.x[:, 2:], z[:3] * z[3:], rtol=1e-4)
    # Within 1.5 s of each other, one of them.
    assert found.peaks(np.array([1.0, 3.0, 2.0])).tolist() == [False, True, False]
    assert found.peaks(np.array([3.0, 1.0, 2.0])).tolist() == [True, False, True]


# --- the probe ---


def test_easy_boundaries_are_found(tmp_path):
    parts = {name: Source(name) for name in ("train", "test part")}
    result = Boundaries(parts, ("test part",), options=ONE, draws=200).run(None)
    metrics = result.metrics
    assert metrics["boundary_AP"] > 0.9 and metrics["boundary_F1"] > 0.85
    assert metrics["boundary_hit_F@3"] > 0.85
    assert metrics["boundary_hit_F@0.5"] > 0.85  # annotated 0.3 s behind junctions
    for name in ("boundary_AP", "boundary_F1", "boundary_hit_F@3"):
        low, high = result.intervals[name]
        assert low <= metrics[name] <= high and low < high
    assert result.clips.tolist() == list(range(20, 40))
    each = result.per_clip["boundary_hit_F@3"]
    assert each[:, 0].sum() / each[:, 1].sum() == pytest.approx(
        metrics["boundary_hit_F@3"]
    )
    said = result.protocol
    chance = said["chance"]
    assert chance["every junction"]["AP"] == pytest.approx(2 / 19, abs=1e-4)
    assert chance["every junction"]["F1"] == pytest.approx(2 * 2 / (19 + 2), abs=1e-4)
    assert chance["as many by chance"]["hit_F@0.5"] < 0.25
    assert chance["the right junctions"] == {"F1": 1, "hit_F@0.5": 1, "hit_F@3": 1}
    assert said["boundaries"] == 40 and said["junctions"] == 20 * 19
    results = {"sections": result}
    report.write_results(tmp_path, results, {})
    page = Page(report.write_report(tmp_path, results).read_text())
    assert "hits 3 s F" in page.text and "every junction" in page.text
    assert f"{100 * metrics['boundary_AP']:.1f} %" in page.text
    json.loads((tmp_path / "results.json").read_text())


def test_noise_is_at_chance():
    source = Source(apart=0.0, clips=40)
    result = Boundaries({"all": source}, folds=4, options=ONE, draws=0).run(None)
    share = result.protocol["chance"]["every junction"]["AP"]
    assert result.metrics["boundary_AP"] == pytest.approx(share, abs=0.08)
    every = result.protocol["chance"]["every junction"]["F1"]
    assert result.metrics["boundary_F1"] < every + 0.06
    assert result.intervals == {}
    assert len(result.clips) == 40 and set(result.parts.tolist()) == {0, 1, 2, 3}


def test_nothing_of_a_tested_clip_is_learnt():
    """Other sections there change neither the strength nor the threshold."""
    said = []
    for spoilt in (False, True):
        parts = {"train": Source("train"), "test": Source("test")}
        if spoilt:
            parts["test"].sections = lambda clip: [(0, 8.3, ""), (8.3, 40, "")]
        result = Boundaries(parts, test=("test",), draws=0).run(None)
        own = result.protocol["of_each_part"]["test"]
        said.append((own["strength"], own["threshold"]))
    assert said[0] == said[1]


def test_numbers_are_those_of_others():
    """Of one part: as scikit-learn has them."""
    parts = {"train": Source("train", apart=1.5), "test": Source("test", apart=1.5)}
    probe = Boundaries(parts, test=("test",), options=ONE, draws=0)
    seen = {}
    original = boundaries.Outcome.measure

    def measure(self, values, flags, *rest):
        seen.update(values=values, flags=flags, targets=self.targets)
        return original(self, values, flags, *rest)

    boundaries.Outcome.measure = measure
    try:
        metrics = probe.run(None).metrics
    finally:
        boundaries.Outcome.measure = original
    expected = average_precision_score(seen["targets"], seen["values"])
    assert metrics["boundary_AP"] == pytest.approx(expected)
    expected = f1_score(seen["targets"], seen["flags"])
    assert metrics["boundary_F1"] == pytest.approx(expected)


def test_sections_out_of_captions():
    source = Source(sections=False)
    source.captions = lambda clip: [
        "Music.",
        "From 0:00 to 0:12 drums. From 0:12 to 0:40 a flute.",
    ]
    assert [own[:2] for own in junctions.sections_of(source, 0, 40.0)] == [
        (0, 12),
        (12, 40),
    ]
    Boundaries({"all": source}, folds=2)


def test_segments_of_a_model():
    """Where the source has sound."""
    source = Songs(5)
    both = [(0.0, 1.0, "a"), (1.0, 1.6, "b")]
    source.sections = lambda clip: both if clip else [(0.0, 0.3, "a")]
    own, _ = encoder(16)
    song, _ = own.source_songs(source)
    found = Boundaries({"songs": source}, folds=2)._junctions(own)
    assert list(found) == [0, 1, 2, 4]
    assert [len(found[clip].seconds) for clip in found] == [0, 2, 9, 3]
    clip = Features(song.segments[4][:4], song.seconds[4][:4], song.heard[4][:4])
    np.testing.assert_array_equal(
        found[4].x, junctions.of_clip(clip, np.array([1.0])).x
    )


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Source(sections=False), {}, "clip made/0 of source 'made' has no sections"),
        (Source(), {"tolerances": (0,)}, "tolerances are"),
        (Source(), {"recipe": "liner"}, "did you mean 'linear'"),
        (Source(), {"folds": 1}, "folds is 1, expected 2 or more"),
    ],
)
def test_boundaries_that_cannot_be(source, options, message):
    with pytest.raises(ValueError, match=message):
        build_evaluator("boundaries", {"all": source}, {"folds": 2} | options)


def test_what_stops_a_run():
    source = Source()
    source.sections = lambda clip: [(0.0, 20.0, "one"), (20.0, 180.0, "two")]
    with pytest.raises(ValueError, match="sections up to 180 s, .* end at 40 s"):
        Boundaries({"all": source}, folds=2).run(None)
    source.sections = lambda clip: [(0.0, 40.0, "all")]
    with pytest.raises(ValueError, match="none between the segments of 20 clips"):
        Boundaries({"all": source}, folds=2).run(None)
    source.sections = lambda clip: [(0.0, 8.0 if clip == 3 else 40.0, "one")]
    with pytest.raises(ValueError, match="has no boundary to (find|learn from|choose)"):
        Boundaries({"all": source}, folds=2).run(None)
    source = Source()
    source.features_width = 0
    with pytest.raises(ValueError, match="expected a source of kind features"):
        Boundaries({"all": source}, folds=2).run(None)
