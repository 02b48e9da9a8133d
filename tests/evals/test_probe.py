"""Probes: who learns, who chooses, who is tested; vectors kept on disk."""

import dataclasses
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from clap_jax.evals import build_evaluator, fitting, recipes, vectors
from clap_jax.evals.classify import HeadScores
from clap_jax.evals.probe import Probe
from clap_jax.models import classifier
from clap_jax.models.classifier import HeadSpec
from clap_jax.pipeline import array_record
from clap_jax.pipeline.array_record import ArrayRecordSource
from clap_jax.pipeline.manifest import ManifestSource
from tests.evals.fakes import FakeSource
from tests.models.test_classifier import PAIR
from tests.pipeline.clips import write_table

CLASSES = ("cat", "dog", "rain")


class Source(FakeSource):
    """Clips with ids."""

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
    of_part = probe.part_of
    for train in seen[:-1]:
        assert set(of_part[train]) == {"train"}
    assert set(of_part[seen[-1]]) == {"train", "validation"}
    assert len(seen) == len(probe.recipe.strengths) + 1
    assert result.protocol["tested"]["test"]["test_clips"] == 12


def test_test_labels_change_nothing_that_is_chosen():
    honest = parts("a", "b")
    spoilt = honest | {"b": Source([["rain"]] * 12, "b")}
    chosen = [
        Probe(given, test=("b",)).run(Encoder(noise=3.0)).protocol["tested"]["b"]
        for given in (honest, spoilt)
    ]
    # The sounds of b differ with its labels, too; those of a, and its labels, do not.
    assert chosen[0]["strength"] == chosen[1]["strength"]
    assert chosen[0]["validation"] == "one in 5 training clips"


def test_of_equally_good_strengths_the_strongest_is_taken():
    options = {"strengths": (1e-4, 1e-2)}
    probe = Probe(parts("a", "b", "c"), test=("c",), options=options)
    assert probe.run(Encoder(0.0)).protocol["tested"]["c"]["strength"] == 1e-2


def test_folds_made_by_chance_have_their_share_of_every_class():
    probe = Probe(parts("all", clips=30), folds=5)
    for fold in probe.names:
        own = probe.targets[probe.part_of == fold]
        np.testing.assert_array_equal(own.sum(0), [2, 2, 2])
    again = Probe(parts("all", clips=30), folds=5)
    np.testing.assert_array_equal(probe.part_of, again.part_of)
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
