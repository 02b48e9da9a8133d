"""Probes: who learns, who chooses, who is tested; vectors kept on disk."""

import dataclasses
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from clap_jax.evals import (
    bootstrap,
    build_evaluator,
    class_metrics,
    fitting,
    recipes,
    report,
    runs,
    scores,
    vectors,
)
from clap_jax.evals.classify import HeadScores
from clap_jax.evals.probe import Probe
from clap_jax.models import classifier
from clap_jax.models.classifier import HeadSpec
from clap_jax.pipeline import array_record
from clap_jax.pipeline.array_record import ArrayRecordSource
from clap_jax.pipeline.manifest import ManifestSource
from tests.evals.pages import Page
from tests.evals.some_results import SoundSource
from tests.models.test_classifier import PAIR
from tests.pipeline.clips import write_table

CLASSES = ("cat", "dog", "rain")


class Source(SoundSource):
    """Clips with ids, which can be heard."""

    def __init__(self, tags, name):
        super().__init__([["x"] for _ in tags], tags=tags, name=name)

    def id(self, index):
        return f"{self.name}/{index}"

    def digest(self):
        return self.name

    def description(self):
        return f"{self.name}: {len(self)} clips"


class Encoder:
    """Vectors around a centre for each class; counts what it is asked for."""

    width = 4

    def __init__(self, noise=0.3, bad=()):
        self.asked, self._noise, self._bad = [], noise, bad

    def digest(self):
        return "weights"

    def audio(self, source):
        self.asked.append(source.name)
        rng = np.random.default_rng(len(source.name))
        rows = np.zeros((len(source), 4), np.float32)
        for clip in range(len(source)):
            for tag in source.tags(clip):
                rows[clip, CLASSES.index(tag)] += 3
        rows += rng.normal(0, self._noise, rows.shape)
        kept = np.ones(len(source), bool)
        kept[list(self._bad)] = False
        return rows.astype(np.float32), kept


def parts(*names, clips=12):
    return {
        name: Source([[CLASSES[i % 3]] for i in range(clips)], name) for name in names
    }


def test_cross_validation_tests_every_part_with_a_head_of_the_others():
    result = Probe(parts("a", "b", "c")).run(Encoder())
    assert result.metrics["probe_acc"] == 1
    assert result.metrics["probe_acc_deviation"] == 0
    assert result.arrays["confusion"].sum() == 36
    tested = result.protocol["tested"]
    assert {k: v["validation"] for k, v in tested.items()} == {
        **{"a": "part b", "b": "part c", "c": "part a"}
    }
    assert all(v["train_clips"] == 24 for v in tested.values())


def test_who_learns_chooses_and_is_tested(monkeypatch):
    """Fits on the way to a fixed test part: none ever sees a clip of it."""
    seen, original = [], fitting.fit

    def fit(recipe, x, targets, train, *rest):
        seen.append(train)
        return original(recipe, x, targets, train, *rest)

    monkeypatch.setattr(fitting, "fit", fit)
    probe = Probe(
        parts("train", "validation", "test"), test=("test",), validation="validation"
    )
    result = probe.run(Encoder())
    of_part = probe.division.part_of
    for train in seen[:-1]:
        assert set(of_part[train]) == {"train"}
    assert set(of_part[seen[-1]]) == {"train", "validation"}
    assert len(seen) == len(probe.recipe.strengths) + 1
    assert result.protocol["tested"]["test"]["test_clips"] == 12


def test_test_labels_change_nothing_that_is_chosen():
    honest = parts("a", "b")
    spoilt = honest | {"b": Source([["rain"]] * 12, "b")}
    said = [
        Probe(given, test=("b",)).run(Encoder(noise=3.0)).protocol
        for given in (honest, spoilt)
    ]
    # The sounds of b differ with its labels, too; those of a, and its labels, do not.
    chosen = [own["of_each_part"]["b"]["strength"] for own in said]
    assert chosen[0] == chosen[1]
    assert said[0]["tested"]["b"]["validation"] == "one in 5 training clips"


def test_of_equally_good_strengths_the_strongest_is_taken():
    options = {"strengths": (1e-4, 1e-2)}
    probe = Probe(parts("a", "b", "c"), test=("c",), options=options)
    found = probe.run(Encoder(0.0)).protocol["of_each_part"]
    assert found["c"]["strength"] == 1e-2


def test_folds_made_by_chance_have_their_share_of_every_class():
    probe = Probe(parts("all", clips=30), folds=5)
    for fold in probe.division.names:
        own = probe.targets[probe.division.part_of == fold]
        np.testing.assert_array_equal(own.sum(0), [2, 2, 2])
    again = Probe(parts("all", clips=30), folds=5)
    np.testing.assert_array_equal(probe.division.part_of, again.division.part_of)
    tested = probe.run(Encoder()).protocol["tested"]
    assert list(tested) == ["1", "2", "3", "4", "5"]


def test_several_labels_a_clip():
    tags = [["cat"], ["dog", "rain"], ["rain"], ["cat", "dog"]] * 4
    given = {name: Source(tags, name) for name in ("a", "b", "c")}
    result = Probe(given).run(Encoder(bad=(1,)))
    assert result.protocol["multi_label"]
    assert result.metrics["probe_mAP"] > 0.95
    assert result.metrics["probe_AUC"] > 0.95
    assert result.metrics["bad_clips"] == 3
    assert result.arrays["average_precision"].shape == (3,)


def test_normalised_vectors_forget_their_length():
    class Loud(Encoder):
        def audio(self, source):
            rows, kept = super().audio(source)
            return rows * (100.0 if source.name == "c" else 1.0), kept

    options = {"standardise": False}
    given = parts("a", "b", "c")
    one, other = (
        Probe(given, test=("c",), features="normalised", options=options).run(encoder)
        for encoder in (Encoder(), Loud())
    )
    assert one.metrics == other.metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": ("z",)}, "unknown part 'z'"),
        ({"test": ("a", "b")}, "nothing is left to learn from"),
        ({"test": ("a",), "validation": "a"}, "for testing and for validation"),
        ({"recipe": "laion"}, "did you mean .*laion_"),
        ({"options": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"features": "tower"}, "unknown features 'tower'"),
        ({"folds": 5}, "folds=5 is for data of one part"),
        ({"labels": ("cat", "dog")}, "unknown label 'rain'"),
    ],
)
def test_probes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Probe(parts("a", "b"), **arguments)


def test_a_clip_in_two_parts_is_an_error():
    given = parts("a", "b")
    given["b"].id = given["a"].id
    with pytest.raises(ValueError, match="clip a/0 is in the parts a and b"):
        Probe(given)


def test_vectors_are_kept(tmp_path):
    encoder, source = Encoder(bad=(2,)), parts("a")["a"]
    first = vectors.cached(encoder, source, tmp_path)
    second = vectors.cached(encoder, source, tmp_path)
    assert encoder.asked == ["a"]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    encoder.digest = lambda: "other weights"
    vectors.cached(encoder, source, tmp_path)
    source.digest = lambda: "other clips"
    vectors.cached(encoder, source, tmp_path)
    assert encoder.asked == ["a"] * 3
    source.description = lambda: "the same clips at another rate"
    vectors.cached(encoder, source, tmp_path)
    assert encoder.asked == ["a"] * 4
    for damage in (b"", b"PK no archive"):
        for file in tmp_path.iterdir():
            file.write_bytes(damage)
        vectors.cached(encoder, source, tmp_path)
    assert encoder.asked == ["a"] * 6


def test_other_sounds_behind_the_same_names_are_encoded_anew(tmp_path):
    """Files are looked at, not read; where they lie is no difference."""
    table = write_table(tmp_path / "sounds", 3)
    source, kept = ManifestSource(table), tmp_path / "kept"
    encoder = Encoder()
    encoder.audio = lambda source: (np.ones((3, 4), np.float32), np.ones(3, bool))
    vectors.cached(encoder, source, kept)
    moved = ManifestSource(
        shutil.copytree(table.parent, tmp_path / "moved") / "clips.csv"
    )
    assert moved.digest() == source.digest()
    assert vectors.sounds(moved) == vectors.sounds(source)
    files = array_record.pack(source, tmp_path / "packed")
    packed = ArrayRecordSource(files[0])
    known, known_packed = vectors.sounds(source), vectors.sounds(packed)
    file = Path(source.audio_path(1))
    status = file.stat()
    file.write_bytes(bytes(status.st_size))  # as long as before
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert source.digest() == ManifestSource(table).digest()
    vectors.cached(encoder, source, kept)
    assert vectors.sounds(source) != known and len(list(kept.iterdir())) == 2
    os.utime(files[0], ns=(1, 1))
    assert vectors.sounds(packed) != known_packed
    file.unlink()
    assert vectors.sounds(source) not in (known, vectors.sounds(moved))


def test_urls_are_not_asked_for():
    source = types.SimpleNamespace(audio_files=lambda: ["memory://nowhere/a.wav"])
    other = types.SimpleNamespace(audio_files=lambda: ["memory://nowhere/b.wav"])
    assert vectors.sounds(source) != vectors.sounds(other)


# --- intervals, and the clips behind them ---


def unequal(tags=None):
    """Three parts of 9, 30 and 15 clips."""
    return {
        name: Source((tags or [[own] for own in CLASSES]) * repeated, name)
        for name, repeated in (("a", 3), ("bb", 10), ("ccc", 5))
    }


ONE = {"strengths": (1e-2,)}


def probed(given, noise, **options):
    return Probe(given, options=ONE, **options).run(Encoder(noise, bad=(1,)))


def drawn_all(clips, statistic, draws=bootstrap.DRAWS):
    (weights,) = bootstrap.draws(clips, draws)
    each = [np.repeat(np.arange(clips), column.astype(int)) for column in weights.T]
    return np.quantile([statistic(rows) for rows in each], [0.025, 0.975])


def drawn_one_by_one(parts, statistic, draws=bootstrap.DRAWS):
    """The middle 95 % of the mean over parts of `statistic(rows)`; rows of one part are
    drawn among each other."""
    values = []
    (weights,) = bootstrap.draws(len(parts), draws, part_of=parts)
    for column in weights.T:
        rows = np.repeat(np.arange(len(parts)), column.astype(int))
        of_parts = [statistic(rows[parts[rows] == part]) for part in np.unique(parts)]
        values.append(np.nanmean(of_parts))
    return np.quantile(values, [0.025, 0.975])


def test_intervals_of_means_over_parts():
    result = probed(unequal(), 3.0)
    assert set(result.intervals) == set(result.per_clip) == {"probe_acc", "probe_top5"}
    assert result.clips.tolist() == [i for i in range(54) if i not in (1, 10, 40)]
    assert np.bincount(result.parts).tolist() == [8, 29, 14]
    rows = result.per_clip["probe_acc"]
    hits = rows[:, 0] / rows[:, 1]
    assert set(hits) == {0, 1} and hits.sum() == np.trace(result.arrays["confusion"])
    accuracy = result.metrics["probe_acc"]
    of_parts = [hits[result.parts == part].mean() for part in range(3)]
    assert accuracy == pytest.approx(np.mean(of_parts)) != pytest.approx(hits.mean())
    assert rows[:, 0].sum() / rows[:, 1].sum() == pytest.approx(accuracy, abs=1e-12)
    said = result.protocol["of_each_part"]
    assert [own["acc"] for own in said.values()] == pytest.approx(of_parts)
    assert result.metrics["probe_acc_deviation"] == pytest.approx(np.std(of_parts))
    expected = drawn_one_by_one(result.parts, lambda rows: hits[rows].mean())
    np.testing.assert_allclose(result.intervals["probe_acc"], expected, atol=1e-9)
    assert expected[0] < accuracy < expected[1]
    assert "within each tested part" in result.protocol["intervals"]


def test_intervals_of_several_labels(monkeypatch):
    seen, original = {}, class_metrics.measure

    def measure(values, targets, *rest, part_of):
        seen.update(values=values, targets=targets)
        return original(values, targets, *rest, part_of=part_of)

    monkeypatch.setattr(class_metrics, "measure", measure)
    tags = [["cat"], ["dog", "rain"], ["rain"], ["cat", "dog"]]
    result = probed(unequal(tags), 4.0, draws=60)
    values, targets = seen["values"], seen["targets"]

    def area(rows):
        return np.nanmean(scores.class_roc_aucs(values[rows], targets[rows]))

    def precision(rows):
        return scores.mean_average_precision(values[rows], targets[rows])

    for name, statistic in (("probe_mAP", precision), ("probe_AUC", area)):
        expected = drawn_one_by_one(result.parts, statistic, 60)
        np.testing.assert_allclose(result.intervals[name], expected, atol=1e-9)
        assert expected[0] < result.metrics[name] < expected[1]
    assert result.per_clip == {} and len(result.misses) > 3
    assert "probe_mAP_deviation" not in result.intervals
    assert probed(unequal(tags), 4.0, draws=0).intervals == {}


def test_only_tested_clips_are_asked_about():
    given = unequal()
    probe = Probe(given, test=("ccc",), options=ONE)
    result = probe.run(Encoder(4.0, bad=(1,)))
    assert result.clips.tolist() == [39, *range(41, 54)]
    wrong = set(result.clips[result.per_clip["probe_acc"][:, 0] == 0])
    assert len(wrong) > 2 and {miss.clip for miss in result.misses} <= wrong
    assert len(result.misses) == min(len(wrong), 12)
    for miss in result.misses:
        assert probe.source.id(miss.clip) == given["ccc"].id(miss.clip - 39)
        assert [miss.truth] == given["ccc"].tags(miss.clip - 39) != [miss.found]
        assert miss.rank > 1 and miss.found_similarity >= miss.similarity
    heard = probe.source[miss.clip]["audio"][0]
    assert len(heard) == len(given["ccc"][miss.clip - 39]["audio"][0])


def written(folder, noise):
    result = probed(unequal(), noise)
    report.write_results(folder, {"probe": result}, {})
    return result, runs.read(folder)


def test_two_runs_are_paired_by_clip(tmp_path):
    one, first = written(tmp_path / "first", 5.0)
    two, other = written(tmp_path / "other", 1.0)
    assert runs.protocol_differences([first, other], "probe") == []
    assert one.protocol["of_each_part"] != two.protocol["of_each_part"]
    assert runs.is_paired(first, other, "probe")
    found = runs.difference(first, other, "probe", "probe_acc")
    gain = one.metrics["probe_acc"], two.metrics["probe_acc"]
    assert found.value == pytest.approx(gain[1] - gain[0]) and found.is_clear
    rows = [own.per_clip["probe_acc"] for own in (one, two)]
    change = rows[1][:, 0] / rows[1][:, 1] - rows[0][:, 0] / rows[0][:, 1]
    expected = drawn_one_by_one(one.parts, lambda rows: change[rows].mean())
    np.testing.assert_allclose(found.interval, expected, atol=1e-9)
    assert runs.difference(first, first, "probe", "probe_acc") == (0, (0, 0))
    deviation = runs.difference(first, other, "probe", "probe_acc_deviation")
    assert deviation.interval is None
    # The same clips, tested in other parts.
    other.per_clip["probe/parts"] = other.per_clip["probe/parts"][::-1]
    assert not runs.is_paired(first, other, "probe")


def test_the_page_has_intervals_and_worst_answers(tmp_path):
    probe = Probe(unequal(), options=ONE)
    result = probe.run(Encoder(4.0, bad=(1,)))
    head = HeadScores(Source([["cat"], ["dog"], ["rain"]] * 4, "test"), SPEC, "sounds")
    rows = np.random.default_rng(0).normal(size=(12, 3))
    results = {"probe": result, "head": head.run(Scores(rows, rows))}
    sources = {"probe": probe.source, "head": head.source}
    path = report.write_report(tmp_path, results, sources=sources)
    page = Page(path.read_text(encoding="utf-8"))
    for name, found in results.items():
        assert found.misses and found.intervals, name
        for low, high in found.intervals.values():
            assert f"{100 * low:.1f} – {100 * high:.1f}" in page.text
        shown = found.misses[: report.MISSES_SHOWN]
        assert all(sources[name].id(miss.clip) in page.text for miss in shown)
    assert page.tags.count("audio") == sum(
        min(len(found.misses), report.MISSES_SHOWN) for found in results.values()
    )
    assert page.text.count("right class at rank") == page.tags.count("audio")
    assert "score" in page.text and "cosine" not in page.text
    confusions = [t for t in page.tables if t[0][0] == "true class"]
    assert [table[0][1:] for table in confusions] == [list(CLASSES)] * 2


# --- the heads of a classifier ---

HEADS = {"sounds": HeadSpec(CLASSES), "tags": HeadSpec(CLASSES, "bce")}
SPEC = classifier.of(PAIR, HEADS)


class Scores:
    """Scores of all classes of both heads."""

    def __init__(self, sounds, tags):
        self._rows = np.concatenate([sounds, tags], axis=1).astype(np.float32)

    def audio(self, source):
        return self._rows, np.ones(len(source), bool)


def test_one_head_is_measured_by_its_own_columns():
    source = Source([["cat"], ["dog"], ["rain"], ["dog"]], "test")
    sounds = np.eye(3)[[0, 1, 2, 0]]
    found = HeadScores(source, SPEC, "sounds").run(Scores(sounds, -sounds))
    assert found.metrics["head_acc"] == 0.75
    assert found.arrays["confusion"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    many = build_evaluator("classifier", source, {"spec": SPEC, "head": "tags"})
    found = many.run(Scores(-sounds, np.eye(3)[[0, 1, 2, 1]]))
    assert found.metrics["head_mAP"] == found.metrics["head_AUC"] == 1
    assert found.intervals == {"head_mAP": (1, 1), "head_AUC": (1, 1)}


def test_heads_have_intervals_and_worst_answers():
    source = Source([[CLASSES[i % 3]] for i in range(30)], "test")
    rows = np.eye(3)[np.arange(30) % 3]
    rows = rows + np.random.default_rng(0).normal(0, 0.7, (30, 3))
    found = HeadScores(source, SPEC, "sounds").run(Scores(rows, -rows))
    hits = rows.argmax(1) == np.arange(30) % 3
    assert 0 < found.metrics["head_acc"] == hits.mean() < 1
    expected = drawn_all(30, lambda which: hits[which].mean())
    np.testing.assert_allclose(found.intervals["head_acc"], expected, atol=1e-9)
    np.testing.assert_array_equal(found.per_clip["head_acc"], np.c_[hits, np.ones(30)])
    assert {miss.clip for miss in found.misses} <= set(np.flatnonzero(~hits))
    assert len(found.misses) == min(12, (~hits).sum())
    worst = found.misses[0]
    assert worst.found == CLASSES[rows[worst.clip].argmax()]
    assert worst.similarity == pytest.approx(rows[worst.clip, worst.clip % 3])
    many = HeadScores(source, SPEC, "tags", draws=50).run(Scores(-rows, rows))
    targets = np.eye(3, dtype=bool)[np.arange(30) % 3]
    table = rows.astype(np.float32)
    expected = drawn_all(
        30, lambda w: scores.mean_average_precision(table[w], targets[w]), 50
    )
    np.testing.assert_allclose(many.intervals["head_mAP"], expected, atol=1e-9)
    assert many.per_clip == {} and many.misses[0].score == "score"
    assert (
        HeadScores(source, SPEC, "tags", draws=0).run(Scores(rows, rows)).intervals
        == {}
    )


@pytest.mark.parametrize(
    ("tags", "spec", "head", "message"),
    [
        ([["cat"]], PAIR, "", "small_conv has no heads"),
        ([["cat"]], SPEC, "", "unknown head ''"),
        ([["cow"]], SPEC, "tags", "unknown label 'cow'"),
        ([["cat", "dog"]], SPEC, "sounds", "has the tags cat, dog, expected one"),
        ([], SPEC, "tags", "source 'test' has no clips"),
    ],
)
def test_heads_that_cannot_be_measured(tags, spec, head, message):
    with pytest.raises(ValueError, match=message):
        HeadScores(Source(tags, "test"), spec, head)


def test_a_recipe_is_told_whole():
    result = Probe(parts("a", "b"), recipe="msclap_linear", options={"epochs": 2}).run(
        Encoder()
    )
    recipe = dict(result.protocol["recipe"])
    assert recipe.pop("name") == "msclap_linear"
    expected = dataclasses.replace(recipes.RECIPES["msclap_linear"], epochs=2)
    assert recipe == dataclasses.asdict(expected)
