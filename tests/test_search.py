"""Searching sounds for a text, and where in them it is heard."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import api, cli
from clap_jax.audio import io
from clap_jax.models import zoo
from tests import small_models
from tests.evals.test_songs import SPEC, TEXTS
from tests.models.test_long import weights
from tests.pipeline.clips import make_tokenizer

QUERY = TEXTS[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that hears segments of half a second."""
    tokenizer = make_tokenizer(SPEC.text_length)
    spec = dataclasses.replace(SPEC, vocab_size=tokenizer.vocab_size)
    variables = weights(zoo.build(spec))
    variables["params"]["logit_scale_a"] = np.float32(3)
    folder = tmp_path_factory.mktemp("long") / "model"
    api.Clap(spec, variables, tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def clap(model):
    return clap_jax.load(model)


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    for number, seconds in enumerate((7.3, 0.4, 2.0)):
        wave, rate_hz = small_models.sound(seconds, 16_000, seed=number)
        soundfile.write(f"sounds/{number}.wav", wave, rate_hz)
    (tmp_path / "sounds" / "broken.wav").write_text("not a sound")
    return [f"sounds/{number}.wav" for number in range(3)]


def test_alignment(clap, sounds):
    found = clap.align(sounds[0], QUERY)
    # What is beyond the tokens of a text is not compared.
    assert found.sentences == ["clip one.", "Then more.", "Tiny clip"]
    # Longer than `longest_seconds`, and heard whole.
    assert found.seconds[:, 0].tolist() == [0.5 * i for i in range(15)]
    assert found.seconds[-1, 1] == pytest.approx(7.3)
    assert found.by_sentence.shape == (3, 15)
    np.testing.assert_allclose(found.by_sentence.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found.weights, found.by_sentence.mean(0), atol=1e-6)
    assert ((0 < found.centres()) & (found.centres() < 7.3)).all()
    (begin, end) = found.strongest()[1]
    row = found.by_sentence[1]
    assert begin == found.seconds[row.argmax(), 0] and end == begin + 0.5
    one = clap.align(sounds[1], "a text. With two sentences")
    np.testing.assert_allclose(one.weights, [1])


def test_scores_are_the_same_alone_and_among_others(clap, sounds):
    scores = clap.similarity(sounds, TEXTS)
    assert scores.shape == (3, 3)
    alone = np.concatenate([clap.similarity(sound, TEXTS) for sound in sounds])
    np.testing.assert_allclose(scores, alone, atol=1e-4)
    found = list(clap.search([*sounds, "sounds/broken.wav"], QUERY))
    np.testing.assert_allclose(
        [row.score for row in found[:3]], scores[:, 0], atol=1e-4
    )
    np.testing.assert_allclose(
        found[2].alignment.by_sentence,
        clap.align(sounds[2], QUERY).by_sentence,
        atol=1e-5,
    )
    assert found[3].error.startswith("not decodable") and np.isnan(found[3].score)
    # One segment: nothing to attend to.
    plain = clap.score(clap.embed_audio(sounds), clap.embed_text(TEXTS))
    np.testing.assert_allclose(scores[1], plain[1], atol=1e-5)
    assert clap.similarity([], TEXTS).shape == (0, 3)
    with pytest.raises(io.AudioError, match="broken.wav"):
        clap.similarity(["sounds/broken.wav"], TEXTS)


def test_the_command_says_which_and_where(model, clap, sounds, capsys):
    command = ["search", f"--model={model}", f"--query={QUERY}", "sounds"]
    assert cli.main([*command, "--plot=when.png"]) == 0
    out, err = capsys.readouterr()
    best = max(clap.search(sounds, QUERY), key=lambda row: row.score)
    lines = out.splitlines()
    assert lines[0].split() == [f"{best.score:.3f}", str(best.item)]
    assert "broken.wav" in err and "3 sounds were searched" in err
    assert any(line.endswith("  Then more.") for line in lines)
    with open("when.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
    assert cli.main([*command, "--json", "--top=1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == best.item and len(row["sentences"]) == 3


def test_a_plain_model_says_which(sounds, tmp_path, capsys):
    small_models.save("small_conv", tmp_path / "plain")
    (tmp_path / "query.txt").write_text("a dog barks\n")
    command = ["search", f"--model={tmp_path / 'plain'}", "sounds"]
    assert cli.main([*command, "--query=@query.txt", "--top=2"]) == 0
    plain = clap_jax.load(tmp_path / "plain")
    scores = plain.similarity(sounds, ["a dog barks"])[:, 0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        sounds[i] for i in np.argsort(-scores)[:2]
    ]
    with pytest.raises(ValueError, match="align needs a model that hears segments"):
        plain.align(sounds[0], "a dog")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--query= ", "--query holds no words"),
        ("--query=@nowhere.txt", "nowhere.txt: No such file"),
        ("--top=0", "--top is 0, expected 1 or more"),
        ("--plot=when.gif", "--plot is when.gif, expected a .png"),
    ],
)
def test_wrong_usage(sounds, capsys, option, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["search", "--model=none", "--query=a dog", option, *sounds])
    assert ended.value.code == 2 and message in capsys.readouterr().err
