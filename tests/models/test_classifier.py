"""Classifiers: specs as JSON, what heads hear, and bits shared with a pair of towers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.models import classifier, zoo
from clap_jax.models.classifier import ClassifierSpec, HeadSpec

TEXT = {"depth": 1, "width": 8, "heads": 1, "mlp": 8}
PAIR = zoo.get_spec(
    "small_conv",
    {"audio.options.widths": (8,), "text.options": TEXT, "embed_dim": 16},
)
HEADS = {
    "sounds": HeadSpec(("cat", "dog", "rain")),
    "moods": HeadSpec(("calm",), "bce"),
}


def spec(**changes):
    return dataclasses.replace(classifier.of(PAIR, HEADS), **changes)


@pytest.fixture(scope="module")
def sound():
    frontend = PAIR.frontend
    shape = (2, frontend.clip_frames // 16, frontend.mels)
    return np.random.default_rng(0).normal(-40, 10, shape).astype(np.float32)


def test_a_spec_goes_to_json_and_back():
    made = spec(hidden=(8,), features="embedding")
    assert ClassifierSpec.from_json(made.to_json()) == made
    assert list(made.heads) == ["moods", "sounds"]
    assert made.columns == {"moods": slice(0, 1), "sounds": slice(1, 4)}
    assert made.classes == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": {}}, "at least one head"),
        ({"heads": {"a/b": HEADS["sounds"]}}, "'a/b' is no name for a head"),
        ({"features": "projections"}, "did you mean 'projection'"),
        ({"hidden": (0,)}, "a width must be a positive integer, got 0"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 to less than 1"),
    ],
)
def test_what_no_classifier_can_be(change, message):
    with pytest.raises(ValueError, match=message):
        spec(**change)


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        (("cat",), "ce", "needs 2 or more classes, got cat"),
        ((), "bce", "needs 1 or more classes, got none"),
        (("cat", "cat"), "ce", "labels repeat: cat"),
        (("cat", ""), "ce", "labels must be texts"),
        (("cat", "dog"), "mse", "unknown loss of a head 'mse'"),
    ],
)
def test_what_no_head_can_be(labels, loss, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(labels, loss)


def test_unknown_keys_of_a_head_are_named():
    tree = json.loads(spec().to_json())
    tree["heads"]["moods"]["label"] = ["calm"]
    with pytest.raises(ValueError, match="did you mean 'labels'"):
        ClassifierSpec.from_json(json.dumps(tree))


def test_the_tower_begins_with_the_bits_of_a_pair():
    pair = sharding.flatten(zoo.build(PAIR).init(jax.random.key(0)))
    made = sharding.flatten(classifier.build(spec()).init(jax.random.key(0)))
    assert {path.split("/")[1] for path in made} == {
        *("audio", "audio_projection", "heads")
    }
    for path in made:
        if not path.startswith("params/heads"):
            np.testing.assert_array_equal(made[path], pair[path])


def test_heads_hear_the_projection_before_it_is_normalised(sound):
    """LAION's probe does, and the vector of a pair is its direction."""
    key = jax.random.key(0)
    pair = zoo.build(PAIR)
    (za, aux), _ = jax.jit(pair.encode_audio)(pair.init(key), sound)
    found = {}
    for features in classifier.FEATURES:
        model = classifier.build(spec(features=features))
        own = model.init(key)
        (found[features], _), _ = jax.jit(model.features)(own, sound)
        scores = model.scores(own["params"], found[features])
        assert scores.shape == (2, 4) and scores.dtype == jnp.float32
        weights = own["params"]["heads"]["sounds"]["linear1"]
        expected = found[features] @ weights["kernel"] + weights["bias"]
        np.testing.assert_allclose(scores[:, 1:], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["projection"], aux["projection"], rtol=1e-6)
    np.testing.assert_allclose(found["normalised"], za, rtol=1e-6)
    np.testing.assert_allclose(found["embedding"], aux["embedding"], rtol=1e-6)


def test_hidden_layers_have_relu_and_dropout_in_training_alone():
    model = classifier.build(spec(hidden=(32,), dropout=0.5))
    params = model.init(jax.random.key(0))["params"]
    x = jax.random.normal(jax.random.key(1), (3, 16))
    still = model.scores(params, x)
    first, last = (params["heads"]["moods"][f"linear{i}"] for i in (1, 2))
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    expected = hidden @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(still[:, :1], expected, rtol=1e-5, atol=1e-6)
    moving = [
        model.scores(params, x, train=True, key=jax.random.key(k)) for k in (0, 1)
    ]
    assert not np.allclose(moving[0], still) and not np.allclose(*moving)
