"""The command line: results, restarts, errors in a sentence, help that helps."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import cli, commands
from clap_jax import embed as embed_lib
from tests import small_models

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    small_models.save("small_conv", folder)
    return str(folder)


@pytest.fixture(scope="module")
def clap(model):
    return clap_jax.load(model)


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Seven sounds, one of them broken, in the folder `sounds` of the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds" / "deep").mkdir(parents=True)
    for number in range(6):
        wave, rate_hz = small_models.sound(0.3 + number, 16_000, seed=number)
        folder = "sounds/deep" if number % 2 else "sounds"
        soundfile.write(f"{folder}/{number}.wav", wave, rate_hz)
    (tmp_path / "sounds" / "5 broken.wav").write_text("not a sound")
    return tmp_path


GOOD = [f"sounds/{n}.wav" for n in (0, 2, 4)]
GOOD += [f"sounds/deep/{n}.wav" for n in (1, 3, 5)]


def run(capsys, *arguments):
    """Exit status, standard output, standard error of a command in this process."""
    try:
        status = cli.main(list(map(str, arguments)))
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


# --- embed -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.npz", "v.parquet", "v"])
def test_embed_a_folder(sounds, model, clap, capsys, name):
    command = ("embed", f"--model={model}", f"--out={name}", "sounds")
    status, output, error = run(capsys, *command)
    assert status == 0
    assert error == ""
    assert f"{name}: 6 sounds, float32 [6, 128], 0:00:17 of sound" in output
    assert f"{name}.bad.csv: 1 could not be read" in output
    rows, metadata = embed_lib.read(name)
    assert rows.items == GOOD
    assert np.abs(rows.embedding - clap.embed_audio(GOOD)).max() < 1e-6
    np.testing.assert_allclose(rows.seconds, [0.3, 2.3, 4.3, 1.3, 3.3, 5.3])
    assert metadata["model"] == model
    assert metadata["name"] == "small_conv"
    assert metadata["embed_dim"] == 128
    with open(f"{name}.bad.csv") as file:
        (bad,) = list(csv.DictReader(file))
    assert bad["path"] == "sounds/5 broken.wav"
    assert "not decodable" in bad["reason"]
    assert not os.path.exists(f"{name}.parts")

    status, output, _ = run(capsys, *command)
    assert status == 0
    assert "6 sounds" in output
    assert "was complete already" in output


def test_embed_a_table_and_files(sounds, model, capsys):
    (sounds / "list.csv").write_text("path,label\nsounds/2.wav,x\nsounds/gone.wav,y\n")
    arguments = ("list.csv", "sounds/0.wav", "--batch-size=3", "--threads=1")
    status, output, _ = run(
        capsys, "embed", "--out=v.npz", f"--model={model}", *arguments
    )
    assert status == 0
    assert "could not be read" in output
    assert embed_lib.read("v.npz")[0].items == ["sounds/2.wav", "sounds/0.wav"]


def test_embed_texts(sounds, model, clap, capsys):
    texts = ["a dog", "rain", "a dog"]
    (sounds / "texts.txt").write_text("\n\n".join(texts))
    arguments = (f"--model={model}", "--texts=texts.txt", "--out=v.npz")
    status, output, _ = run(capsys, "embed", *arguments)
    assert status == 0
    assert "v.npz: 3 texts, float32 [3, 128], in" in output
    rows, metadata = embed_lib.read("v.npz")
    assert rows.items == texts
    assert metadata["kind"] == "text"
    assert np.abs(rows.embedding - clap.embed_text(texts)).max() < 1e-6


def test_when_nothing_can_be_read(sounds, model, capsys):
    arguments = (f"--model={model}", "--out=v.npz", "sounds/5 broken.wav")
    status, output, error = run(capsys, "embed", *arguments)
    assert status == 1
    assert error == "error: none of the 1 sounds could be read\n"
    assert "v.npz.bad.csv" in output
    assert not os.path.exists("v.npz")


def test_ctrl_c_says_how_to_go_on(sounds, model, capsys, monkeypatch):
    def stream(self, left, **options):
        yield embed_lib.Embedded(left[0], np.ones(128, np.float32), 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(clap_jax.Clap, "stream", stream)
    arguments = (f"--model={model}", "--out=v.npz", "sounds")
    status, _, error = run(capsys, "embed", *arguments)
    assert status == 130
    assert error == "stopped; 0 of 7 are done, the same command goes on\n"


def test_another_model_is_refused(sounds, model, capsys, tmp_path):
    run(capsys, "embed", f"--model={model}", "--out=v.npz", "sounds")
    clap = clap_jax.load(model)
    clap.variables["params"]["logit_scale_a"] = np.float32(1.0)
    clap.save(tmp_path / "other")
    command = ("embed", f"--model={tmp_path / 'other'}", "--out=v.npz", "sounds")
    status, _, error = run(capsys, *command)
    assert status == 1
    assert error.startswith("error: v.npz exists and was made from other weights")


def test_a_killed_command_goes_on(tmp_path, model, capsys):
    """SIGKILL after the first part; the same command ends with the same bytes."""
    many, whole, out = (tmp_path / name for name in ("many", "whole.npz", "v.npz"))
    many.mkdir()
    for number in range(600):
        wave, rate_hz = small_models.sound(0.05, 8_000, seed=number)
        soundfile.write(many / f"{number:03d}.wav", wave, rate_hz)
    command = ("embed", f"--model={model}", str(many))
    assert run(capsys, *command, f"--out={whole}")[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "clap_jax.cli", *command, f"--out={out}"],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    parts = tmp_path / "v.npz.parts"
    deadline = time.monotonic() + 120
    while not (parts / "000000.npz").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert parts.is_dir()
    assert run(capsys, *command, f"--out={out}")[0] == 0
    assert out.read_bytes() == whole.read_bytes()


# --- classify ----------------------------------------------------------------------


def test_classify(sounds, model, clap, capsys):
    labels = ["dog", "rain", "church bells"]
    arguments = (f"--model={model}", "--labels=dog, rain,church bells", "sounds")
    status, output, error = run(capsys, "classify", *arguments)
    assert status == 0
    assert error.startswith("sounds/5 broken.wav: ")
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == GOOD
    chances = clap.classify(GOOD, labels)
    for line, row in zip(lines, chances, strict=True):
        shown = [f"{labels[i]} {row[i]:.3f}" for i in np.argsort(-row)]
        assert line.partition(": ")[2] == ", ".join(shown)

    status, output, _ = run(capsys, "classify", *arguments, "--top=1")
    assert all("," not in line for line in output.splitlines())


def test_classify_as_json(sounds, model, clap, capsys):
    (sounds / "labels.txt").write_text("dog\nrain\n")
    arguments = (f"--model={model}", "--labels=@labels.txt", "--template=a {}")
    status, output, _ = run(capsys, "classify", *arguments, "--json", *GOOD[:2])
    assert status == 0
    found = [json.loads(line) for line in output.splitlines()]
    assert [row["path"] for row in found] == GOOD[:2]
    chances = clap.classify(GOOD[:2], ["dog", "rain"], template="a {}")
    for row, chance in zip(found, chances, strict=True):
        probabilities = row["probabilities"]
        assert row["label"] == max(probabilities, key=probabilities.get)
        assert abs(probabilities["dog"] - chance[0]) < 2e-6
        assert abs(probabilities["rain"] - chance[1]) < 2e-6


def test_classify_nothing_readable(sounds, model, capsys):
    arguments = (f"--model={model}", "--labels=a,b", "sounds/5 broken.wav")
    status, output, error = run(capsys, "classify", *arguments)
    assert status == 1
    assert output == ""
    assert error.endswith("error: none of the 1 sounds could be read\n")


# --- convert -----------------------------------------------------------------------


def test_convert_is_the_converter(sounds, capsys, tmp_path):
    small_models.save("laion_pann14_bert", tmp_path / "ours")
    arguments = (tmp_path / "ours", tmp_path / "there.pt", "--to=laion")
    status, _, _ = run(capsys, "convert", *arguments)
    assert status == 0
    assert (tmp_path / "there.pt").stat().st_size > 100_000


# --- usage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["embde"], "invalid choice: 'embde'"),
        (["embed", "--out=v.npz", "sounds"], "required: --model"),
        (["embed", "--model=m", "sounds"], "required: --out"),
        (["embed", "--mod=m", "--out=v.npz"], "required: --model"),
        (["embed", "--model=m", "--out=v.npz"], "needs sounds, or --texts=FILE"),
        (
            ["embed", "--model=m", "--out=v.npz", "--texts=t", "sounds"],
            "one of the two",
        ),
        (["embed", "--model=m", "--out=v.csv", "sounds"], "v.csv ends in .csv, exp"),
        (["embed", "--model=m", "--out=v.npz", "nowhere"], "no file or folder nowhere"),
        (["embed", "--model=m", "--out=v.npz", "--texts=no"], "there is no file no"),
        (
            ["embed", "--model=m", "--out=v.npz", "sounds", "--batch-size=0"],
            "--batch-size is 0",
        ),
        (["embed", "--model=m", "--out=v.npz", "sounds", "--threads=x"], "'x'"),
        (
            ["embed", "--model=m", "--out=v.npz", "sounds", "--dtype=float32"],
            "--output, --dtype go with --segments",
        ),
        (["classify", "--model=m", "--labels=a,b"], "required: FILE|FOLDER|TABLE"),
        (["classify", "--model=m", "--labels=,", "sounds"], "names no label"),
        (["classify", "--model=m", "--labels=a,a", "sounds"], "has 'a' twice"),
        (["classify", "--model=m", "--labels=@no", "sounds"], "there is no file no"),
    ],
)
def test_wrong_usage_is_a_sentence(sounds, capsys, arguments, message):
    status, output, error = run(capsys, *arguments)
    assert status == 2
    assert output == ""
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("./nowhere", "./nowhere does not exist: expected a workdir"),
        ("sounds/0.wav", "is not a checkpoint by its name"),
    ],
)
def test_a_model_that_is_none(sounds, capsys, where, message):
    status, _, error = run(capsys, "embed", f"--model={where}", "--out=v.npz", "sounds")
    assert status == 1
    assert message in error
    assert error.endswith("(CLAP_JAX_TRACEBACK=1 shows where)\n")
    assert not os.path.exists("v.npz.parts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["embed", "classify", "convert", "COMMAND --help"]),
        (["embed", "--help"], ["--texts", "OUT.parts", "examples:", "--threads"]),
        (["classify", "--help"], ["--labels", "--template", "--json", "examples:"]),
        (["convert", "--help"], ["--to"]),
        (["--version"], [clap_jax.__version__]),
    ],
)
def test_help(capsys, arguments, words):
    status, output, _ = run(capsys, *arguments)
    assert status == 0
    for word in words:
        assert word in output


def test_help_is_quick():
    """Nothing heavy is imported for it."""
    code = (
        "import sys; from clap_jax import cli\n"
        "try: cli.main(['embed', '--help'])\n"
        "finally: assert not {'jax', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with commands.Progress("sounds") as progress:
        progress.show(3, 1, 7)
    error = capsys.readouterr().err
    assert "3/7" in error
    assert "1 could not be read" in error


def test_lines_elsewhere(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with commands.Progress("sounds") as progress:
        progress.show(1, 0, 7)
        progress.show(2, 1, 7)
        progress.show(3, 1, 7)
    assert capsys.readouterr().err == "2 of 7 sounds, 1 could not be read\n"
