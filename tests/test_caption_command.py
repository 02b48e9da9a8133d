"""`clap-jax caption`."""

import csv
import json

import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax.pipeline.sources import build_source
from tests import small_models
from tests.test_cli import run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small_models.save_captioner("guided", folder / "guided")
    small_models.save("small_conv", folder / "pair")
    return folder


@pytest.fixture(scope="module")
def writer(models):
    return clap_jax.load(models / "guided")


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Three sounds and a broken one in the folder `sounds` of the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    for number in range(3):
        wave, rate_hz = small_models.sound(1 + number, 16_000, seed=number)
        soundfile.write(f"sounds/{number}.wav", wave, rate_hz)
    (tmp_path / "sounds" / "1 broken.wav").write_text("not a sound")
    return [f"sounds/{number}.wav" for number in range(3)]


def caption(capsys, models, *arguments, model="guided"):
    return run(capsys, "caption", f"--model={models / model}", *arguments)


def test_on_the_terminal(models, writer, sounds, capsys):
    status, output, error = caption(capsys, models, "sounds", "--tags=dog, rain")
    want = writer.caption(sounds, tags=[["dog", "rain"]] * 3)
    lines = [f"{path}: {own[0].text}" for path, own in zip(sounds, want)]
    assert status == 0 and output.splitlines() == lines
    assert error.startswith("sounds/1 broken.wav: not decodable")
    assert "1 could not be captioned" in error


def test_a_file_that_training_reads(models, writer, sounds, capsys):
    """Tags of each sound come from a file, in which one is missing."""
    names, rows = ("rain", "dog", "church bell"), [[0.9, 0.1, 0.5], [0.2, 0.4, 0.0]]
    np.savez("tags.npz", id=sounds[:2], names=names, probabilities=rows)
    status, output, error = caption(
        capsys, models, "sounds", "--n=2", "--out=c.jsonl", "--tags=tags.npz"
    )
    assert status == 0 and "c.jsonl: captions of 3 sounds, in 0:" in output
    # The broken one is in no file either.
    assert "2 are not in tags.npz: without tags" in error
    tags = [["rain", "church bell"], ["dog"], []]
    want = writer.caption(sounds, n=2, tags=tags)
    with open("c.jsonl") as file:
        found = [json.loads(line) for line in file]
    assert [row["path"] for row in found] == sounds
    for row, own in zip(found, want, strict=True):
        assert row["captions"] == [one.text for one in own]
        np.testing.assert_allclose(row["scores"], [one.score for one in own], atol=1e-4)
    source = build_source("manifest", "mine", {"path": "c.jsonl"})
    assert source.captions(1) == found[1]["captions"]


@pytest.mark.parametrize("n", [1, 2])
def test_a_table(models, sounds, capsys, n):
    options = (f"--n={n}", "--method=sample", "--top-p=0.9", "--temperature=2")
    arguments = (*sounds, *options, "--out=c.csv")
    assert caption(capsys, models, *arguments)[0] == 0
    with open("c.csv", newline="") as file:
        first, *rows = csv.reader(file)
    assert len(first) == 1 + 2 * n and [row[0] for row in rows] == sounds
    assert first[:3] == [
        "path",
        *(f"{x}_1" if n > 1 else x for x in ("caption", "score")),
    ]
    assert all(len(row) == len(first) and float(row[2]) <= 0 for row in rows)
    captions = [row[1::2] for row in rows]
    source = build_source("manifest", "mine", {"path": "c.csv"})
    assert [source.captions(i) for i in range(3)] == captions
    again = caption(capsys, models, *arguments[:-1], "--out=again.csv")[0]
    assert again == 0
    with open("c.csv") as one, open("again.csv") as other:
        assert one.read() == other.read()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--out=c.txt"], 2, "--out is c.txt, expected NAME.jsonl or NAME.csv"),
        (["--tags=dgo"], 1, "unknown tag 'dgo' .did you mean 'dog'"),
        (["--tags=none.npz"], 1, "there is no file of tag probabilities none.npz"),
        (["--method=greedy", "--n=2"], 1, "count is 2, expected at most 1"),
        (["--beams=0"], 1, "beams must be an integer >= 1, got 0"),
    ],
)
def test_errors(models, sounds, capsys, arguments, status, sentence):
    found = caption(capsys, models, sounds[0], *arguments)
    assert found[0] == status
    assert found[2].startswith("error: ") and sentence.partition(" .")[0] in found[2]


def test_what_writes_nothing(models, sounds, capsys):
    status, _, error = caption(capsys, models, sounds[0], model="pair")
    assert status == 2 and "writes no captions: expected a captioner" in error
    status, _, error = caption(capsys, models, "sounds/1 broken.wav", "--out=c.jsonl")
    assert status == 1 and "none of the 1 sounds could be captioned" in error


def test_other_commands_of_a_captioner(models, writer, sounds, capsys):
    guided = f"--model={models / 'guided'}"
    status, _, error = run(capsys, "classify", guided, "--labels=a,b", sounds[0])
    assert status == 2 and "writes captions" in error
    status, output, _ = run(capsys, "embed", guided, "--out=v.npz", *sounds)
    assert status == 0 and f"float32 [3, {writer.width}]" in output
    vectors = clap_jax.embed.read("v.npz")[0].embedding
    np.testing.assert_allclose(vectors, writer.embed_audio(sounds), atol=1e-6)
