"""Heads from a config: classes out of tags, whose labels are whose, what cannot be."""

import numpy as np
import pytest

from clap_jax import config as config_lib
from clap_jax.models.classifier import HeadSpec
from clap_jax.train import heads
from tests.evals.fakes import FakeSource
from tests.models.test_classifier import PAIR


def source(name, *tags):
    return FakeSource(
        [["x"] for _ in tags], tags=[list(own) for own in tags], name=name
    )


SOUNDS = source("sounds", ["dog"], ["cat"], ["dog"])
MOODS = source("moods", ["calm"], ["calm", "sad"])


def config(**given):
    found = config_lib.default()
    found.task.name = "classify"
    found.task.heads = given
    return found


def test_one_head_learns_from_all_sources():
    more = source("more", ["rain"])
    found = heads.read(config(), [SOUNDS, more])
    assert found.specs == {"labels": HeadSpec(("cat", "dog", "rain"), "ce")}
    assert found.of_source == ("labels", "labels")


def test_each_head_has_its_sources_its_classes_and_its_columns():
    settings = config(
        mood={"sources": "moods"},
        kind={"sources": ("sounds",), "labels": ("rain", "dog", "cat"), "weight": 2.0},
    )
    spec, targets = heads.labelled(settings, PAIR, [MOODS, SOUNDS])
    assert spec.heads == {
        "kind": HeadSpec(("rain", "dog", "cat"), "ce"),
        "mood": HeadSpec(("calm", "sad"), "bce"),
    }
    batch = targets.blank(2)
    targets.put(batch, 0, 0, ["calm", "sad"])
    targets.put(batch, 1, 1, ["cat"])
    np.testing.assert_array_equal(batch["head"], [1, 0])
    np.testing.assert_array_equal(batch["target"], [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])


def test_without_clips_the_config_says_everything():
    given = {"labels": ("a", "b"), "loss": "bce"}
    assert heads.read(config(one=given), []).specs["one"] == HeadSpec(("a", "b"), "bce")
    with pytest.raises(
        config_lib.ConfigError, match="task.heads.labels needs `labels`"
    ):
        heads.read(config(), [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"sources": "sound"}}, "did you mean 'sounds'"),
        ({"a": {"sources": "sounds"}}, "no head learns the labels of moods"),
        ({"a": {}, "b": {"sources": "sounds"}}, r"heads\.a\.sources is missing"),
        (
            {"a": {"sources": "sounds"}, "b": {"sources": ("moods", "sounds")}},
            "'sounds' belongs to the head 'a' already",
        ),
        (
            {"a": {"los": "ce"}},
            r"unknown key of task.heads.a 'los' .did you mean 'loss'",
        ),
        ({"a": {"loss": "mse"}}, "auto, ce or bce, not 'mse'"),
        ({"a": {"weight": 0}}, "weight of a head is 0"),
        ({"a": {"loss": "ce"}}, "clip 1 of source 'moods' has the tags calm, sad"),
        ({"a": {"labels": ("dog", "calm", "sad")}}, "unknown label 'cat'"),
    ],
)
def test_heads_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        heads.read(config(**given), [SOUNDS, MOODS])


def test_a_head_of_one_class_that_competes_with_none():
    with pytest.raises(config_lib.ConfigError, match="task.heads.labels: a head with"):
        heads.read(config(), [source("one", ["dog"])])
