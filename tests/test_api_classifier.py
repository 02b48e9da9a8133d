"""A finetuned classifier from Python and from the command line."""

import json

import numpy as np
import pytest

import clap_jax
from clap_jax import cli, convert, sharding
from clap_jax.convert import inspect, trees
from clap_jax.models import classifier
from clap_jax.models.classifier import HeadSpec
from tests import small_models
from tests.models.test_classifier import PAIR

HEADS = {"sounds": HeadSpec(("cat", "dog", "rain")), "tags": HeadSpec(("calm",), "bce")}


def save(folder, *heads):
    """A classifier with random weights."""
    spec = classifier.of(PAIR, {name: HEADS[name] for name in heads})
    rng = np.random.default_rng(0)

    def make(path, leaf):
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    variables = sharding.map_with_path(make, trees.shapes(spec))
    convert.write(convert.Converted(spec, variables), folder)
    return str(folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return save(tmp_path_factory.mktemp("one") / "model", "sounds")


@pytest.fixture(scope="module")
def clap(one):
    return clap_jax.load(one, batch_size=2)


@pytest.fixture(scope="module")
def sounds():
    return [
        small_models.sound(seconds, 16_000, seed=i) for i, seconds in enumerate((1, 9))
    ]


def test_it_names_its_own_classes(clap, sounds, tmp_path):
    found = clap.classify(sounds)
    assert clap.labels() == ("cat", "dog", "rain")
    assert found.shape == (2, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(clap.classify(sounds[1]), found[1:], rtol=1e-5)
    clap.save(tmp_path / "again")
    assert not (tmp_path / "again" / "tokenizer").exists()
    again = clap_jax.load(tmp_path / "again", batch_size=2)
    np.testing.assert_array_equal(again.classify(sounds), found)


def test_scores_of_a_long_clip_are_means_over_its_windows(clap):
    """By the seconds of each; they are no vectors of length one."""
    wave, rate_hz = small_models.sound(8, 22_050)
    window = round(clap.spec.frontend.clip_seconds * rate_hz)
    parts = [(wave[:window], rate_hz), (wave[window:], rate_hz)]
    whole, first, last = (clap._vectors([x])[0] for x in ((wave, rate_hz), *parts))
    share = window / len(wave)
    np.testing.assert_allclose(whole, share * first + (1 - share) * last, rtol=1e-4)


def test_what_a_classifier_does_not_do(clap, sounds):
    for ask in (
        lambda: clap.embed_audio(sounds),
        lambda: clap.embed_text("a cat"),
        lambda: clap.similarity(sounds, "a cat"),
        lambda: clap.export("nowhere"),
    ):
        with pytest.raises(ValueError, match="small_conv here is a classifier"):
            ask()
    with pytest.raises(ValueError, match="classes of its own .cat, dog, rain"):
        clap.classify(sounds, ["cat"])
    with pytest.raises(ValueError, match="did you mean 'sounds'"):
        clap.labels("sound")
    with pytest.raises(ValueError, match="can be written as clap_jax, not laion"):
        model = convert.Converted(clap.spec, clap.variables)
        convert.write(model, "nowhere", to="laion")


def test_several_heads_are_asked_by_name(tmp_path):
    two = clap_jax.load(save(tmp_path / "two", "sounds", "tags"), batch_size=2)
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 1.0, 1.0]], np.float32)
    tags = two.head_probabilities(scores, "tags")
    np.testing.assert_allclose(tags, [[0.952574], [0.731059]], rtol=1e-5)
    assert two.labels("tags") == ("calm",)
    with pytest.raises(ValueError, match="unknown head ''"):
        two.labels()


def test_from_the_command_line(one, clap, sounds, tmp_path, capsys):
    import soundfile

    for i, (wave, rate_hz) in enumerate(sounds):
        soundfile.write(tmp_path / f"{i}.wav", wave, rate_hz)
    assert cli.main(["classify", f"--model={one}", "--json", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row["probabilities"]) for row in rows] == [{"cat", "dog", "rain"}] * 2
    for arguments, message in (
        (["classify", f"--model={one}", "--labels=a,b", str(tmp_path)], "leave out"),
        (["embed", f"--model={one}", "--out=x.npz", str(tmp_path)], "is a classifier"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_it_is_inspected(one):
    facts = inspect.inspect(one).facts
    assert facts["classes"] == "sounds: 3 (ce)"
    assert "vocabulary" not in facts
