"""Searching sounds for a text, and where in them it, or a class, is heard."""

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


LABELS = ["clip", "tiny sound", "more"]


def softmax(scores):
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def test_classes_go_by_the_fused_score(model, clap, sounds, capsys):
    templates = ["{}. Then more.", "a {}"]
    texts = [t.replace("{}", label) for label in LABELS for t in templates]
    scores = clap.similarity(sounds, texts).reshape(3, 3, 2).mean(2)
    found = clap.classify(sounds, LABELS, templates)
    np.testing.assert_allclose(found, softmax(scores), atol=1e-5)
    plain = clap.probabilities(
        clap.embed_audio(sounds), clap.embed_labels(LABELS, templates)
    )
    assert np.abs(found - plain)[[0, 2]].max() > 1e-3
    each = list(clap.classify_each([*sounds, "sounds/broken.wav"], LABELS, templates))
    np.testing.assert_allclose(
        [row.probabilities for row in each[:3]], found, atol=1e-5
    )
    assert each[3].probabilities is None and each[3].error.startswith("not decodable")
    assert clap.classify([], LABELS).shape == (0, 3)
    command = ["classify", f"--model={model}", f"--labels={','.join(LABELS)}"]
    assert cli.main([*command, "--template={}. Then more.", "--json", "sounds"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    wanted = clap.classify(sounds, LABELS, templates[0])
    for row, own in zip(rows, wanted, strict=True):
        said = [row["probabilities"][label] for label in LABELS]
        np.testing.assert_allclose(said, own, atol=2e-5)
    assert "broken.wav" in err


def test_classes_over_time(model, clap, sounds, capsys):
    found = clap.classify_over_time(sounds[0], LABELS, "a {}")
    assert found.seconds[:, 0].tolist() == [0.5 * i for i in range(15)]
    assert found.seconds[-1, 1] == pytest.approx(7.3)
    assert found.probabilities.shape == (15, 3)
    assert found.probabilities.dtype == found.seconds.dtype == np.float32
    wave, rate_hz = io.load(sounds[0], 8000), 8000
    # Each segment is what a clip of nothing else is.
    pieces = [(wave[4000 * i : 4000 * (i + 1)], rate_hz) for i in (0, 6)]
    alone = clap.probabilities(
        clap.embed_audio(pieces), clap.embed_labels(LABELS, "a {}")
    )
    np.testing.assert_allclose(found.probabilities[[0, 6]], alone, atol=1e-4)
    command = ["classify", f"--model={model}", f"--labels={','.join(LABELS)}"]
    command += ["--template=a {}", "--over-time"]
    assert cli.main([*command, "--json", "sounds"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [sounds[0]] * 15 + [sounds[1]] + [
        sounds[2]
    ] * 4
    assert (rows[1]["begin"], rows[1]["end"]) == (0.5, 1.0)
    said = [[row["probabilities"][label] for label in LABELS] for row in rows[:15]]
    np.testing.assert_allclose(said, found.probabilities, atol=2e-6)
    assert "broken.wav: " in err
    assert cli.main([*command, "--top=1", sounds[2]]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith(f"{sounds[2]} 0:01-0:02: ")


def test_windows_of_a_plain_model_over_time(sounds, tmp_path):
    small_models.save("small_conv", tmp_path / "plain")
    plain = clap_jax.load(tmp_path / "plain")
    seconds = plain.spec.frontend.clip_seconds
    vectors, times = plain.embed_over_time(sounds[0])
    whole, held = np.divmod(7.3, seconds)
    assert len(vectors) == len(times) == whole + 1
    np.testing.assert_allclose(times[:, 0], seconds * np.arange(whole + 1), atol=1e-5)
    np.testing.assert_allclose(times[-1], [7.3 - held, 7.3], atol=1e-4)
    mean = (vectors * np.diff(times)).sum(0)
    np.testing.assert_allclose(
        plain.embed_audio(sounds[0])[0], mean / np.linalg.norm(mean), atol=2e-6
    )
    found = plain.classify_over_time(sounds[0], LABELS)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.seconds, times)
    with pytest.raises(ValueError, match="labels is missing"):
        plain.classify_over_time(sounds[0])
    with pytest.raises(io.AudioError, match="broken.wav"):
        plain.classify_over_time("sounds/broken.wav", LABELS)
