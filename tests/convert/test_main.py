"""The command line: convert, inspect, compare; one sentence for every mistake."""

import json
import os

import numpy as np
import pytest

from clap_jax import convert
from clap_jax.convert import __main__ as command
from clap_jax.convert import compare, files, inspect
from tests.convert import hf, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LAION file, as float32 and as float16, and a folder of ours made of it."""
    folder = tmp_path_factory.mktemp("files")
    state = small.state_dict("laion")
    small.save(folder / "laion.pt", state, prefix="module.", epoch=7, name="run")
    small.save(folder / "half.pt", small.cast(state, "float16"))
    assert command.main([str(folder / "laion.pt"), str(folder / "ours")]) == 0
    return folder


def run(capsys, *words):
    """Exit status, what was printed, and the error."""
    status = command.main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_what_a_folder_of_ours_holds(folder):
    assert sorted(x.name for x in (folder / "ours").iterdir()) == [
        "extra.safetensors",
        "model.safetensors",
        "origin.json",
        "spec.json",
    ]
    origin = json.loads((folder / "ours" / "origin.json").read_text())
    assert (origin["layout"], origin["prefix"]) == ("laion", "module.")
    assert origin["beside"] == {"epoch": 7, "name": "run"}


def test_last_words(folder, tmp_path, capsys):
    out = tmp_path / "out"
    status, printed, _ = run(capsys, folder / "laion.pt", out, "--no-check")
    assert status == 0
    *notes, last = printed.splitlines()
    assert last.startswith(f"laion_htsat_8_roberta as clap_jax: {out} (")
    assert all(note.startswith("note: ") for note in notes)
    assert not any("made sounds" in note for note in notes)
    assert "no tokenizer" in printed
    assert "--tokenizer=FOLDER gives it one" in printed


def test_the_model_is_tried(folder, tmp_path, capsys):
    status, printed, _ = run(capsys, folder / "ours", tmp_path / "b.pt", "--to=laion")
    assert status == 0
    assert "embeddings of 8 made sounds" in printed
    assert "embeddings of 8 made texts of random tokens" in printed
    got = files.read(tmp_path / "b.pt").tensors
    want = {f"module.{k}": x for k, x in small.state_dict("laion").items()}
    small.same(got, want)


def test_a_folder_as_the_place_for_a_file(folder, tmp_path, capsys):
    words = (folder / "ours", tmp_path / "d", "--to=laion", "--no-check", "--prefix=")
    status, printed, _ = run(capsys, *words)
    assert status == 0
    assert f"{tmp_path / 'd' / 'model.pt'} (" in printed
    tensors = files.read(tmp_path / "d" / "model.pt").tensors
    assert not any(key.startswith("module.") for key in tensors)


def test_tokenizer(folder, tmp_path, capsys):
    hf.tokenizer().save(tmp_path / "tokens")
    words = (f"--tokenizer={tmp_path / 'tokens'}", "--no-check")
    status, printed, _ = run(capsys, folder / "laion.pt", tmp_path / "a", *words)
    assert status == 0
    assert "no tokenizer" not in printed
    assert (tmp_path / "a" / "tokenizer" / "tokenizer.json").is_file()
    assert convert.load(tmp_path / "a").tokenizer == tmp_path / "a" / "tokenizer"
    words = (tmp_path / "a", tmp_path / "hf", "--to=hf", "--no-check")
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    (tmp_path / "none").mkdir()
    status, _, error = run(
        capsys, folder / "laion.pt", tmp_path / "x", f"--tokenizer={tmp_path / 'none'}"
    )
    assert status == 1
    assert "is not a folder with a tokenizer in it" in error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(dtype, folder, tmp_path, capsys):
    words = (folder / "laion.pt", tmp_path / "a", f"--dtype={dtype}", "--no-check")
    assert run(capsys, *words)[0] == 0
    tensors = files.read(tmp_path / "a" / "model.safetensors").tensors
    assert {x.dtype.name for x in tensors.values()} == {dtype}
    # Extras are what they were.
    extra = files.read(tmp_path / "a" / "extra.safetensors").tensors
    assert extra["logit_scale_t"].dtype == np.float32


def test_what_exists_is_not_replaced(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is no obstacle
    source = folder / "ours"
    assert run(capsys, source, out, "--no-check")[0] == 0
    status, _, error = run(capsys, source, out, "--no-check")
    assert (status, error) == (
        1,
        f"error: {out} exists already: --overwrite replaces it\n",
    )
    # Before anything is read.
    assert "exists already" in run(capsys, tmp_path / "no.pt", out)[2]
    (out / "spec.json").write_text("old")
    assert run(capsys, source, out, "--no-check", "--overwrite")[0] == 0
    assert convert.load(out).spec == convert.load(source).spec
    (out / "thesis.tex").write_text("mine")
    status, _, error = run(capsys, source, out, "--no-check", "--overwrite")
    assert status == 1
    assert "holds more than a model (thesis.tex)" in error
    assert (out / "thesis.tex").read_text() == "mine"
    assert [x.name for x in tmp_path.iterdir()] == ["out"]


def test_overwriting_the_source_itself(folder, tmp_path, capsys):
    assert run(capsys, folder / "laion.pt", tmp_path / "a", "--no-check")[0] == 0
    words = (tmp_path / "a", tmp_path / "a", "--overwrite", "--no-check")
    assert run(capsys, *words)[0] == 0
    small.equal_trees(
        convert.load(tmp_path / "a").variables, small.variables(small.spec("laion"))
    )


def test_a_full_disk_leaves_nothing(folder, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    monkeypatch.setattr(os, "replace", full)
    for to in ("clap_jax", "laion"):
        words = (folder / "laion.pt", tmp_path / "a.pt", f"--to={to}", "--no-check")
        status, _, error = run(capsys, *words)
        assert status == 1
        assert "No space left on device" in error
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, error",
    [
        (["missing.pt", "out"], "missing.pt does not exist"),
        (["{}/laion.pt"], "expected SRC DST, inspect SRC or compare A B, got 1 words"),
        (["inspect"], "inspect takes SRC, and nothing else"),
        (["compare", "a"], "compare takes A B, and nothing else"),
        (["{}/laion.pt", "out", "--to=msclap"], "cannot be an MS-CLAP model"),
        (["{}/laion.pt", "out", "--to=blat"], "its head is laion_mlp, BLAT has linear"),
        (["inspect", "{}"], "holds none of model.safetensors"),
    ],
)
def test_mistakes(words, error, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, printed = run(capsys, *(word.format(folder) for word in words))
    assert status == 1
    assert printed.startswith("error: ")
    assert error in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["a", "b", "--to=onnx"], ["a", "--x"]])
def test_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    printed = capsys.readouterr()
    assert caught.value.code == (0 if words == ["--help"] else 2)
    assert "inspect SRC" in printed.out + printed.err


def test_the_traceback_is_for_developers(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAP_JAX_TRACEBACK", "1")
    with pytest.raises(convert.FileError):
        command.main([str(tmp_path / "a.pt"), str(tmp_path / "b")])


def test_inspect(folder, capsys):
    status, printed, _ = run(capsys, "inspect", folder / "laion.pt")
    assert status == 0
    text = " ".join(printed.split())
    for words in (
        "layout laion, every key begins with 'module.'",
        "epoch 7",
        "dtypes float32, int64",
        "htsat: width 8, depths (2, 1), heads (2, 4), fusion none, AudioSet head of 5",
        "bert: width 64, depth 1, heads 1, mlp 32",
        "laion_mlp to 6",
        "48000 Hz, 10 s, window 1024, hop 480, 64 mels, slaney bank for 48000 Hz, 50",
        "params/audio/stage0_block1 17",
        "note: mel filter bank: the file's is slaney, 48 kHz",
        "nothing odd",
    ):
        assert words in text
    _, printed, _ = run(capsys, "inspect", folder / "half.pt")
    assert "dtypes float16, int64" in " ".join(printed.split())
    _, printed, _ = run(capsys, "inspect", folder / "ours")
    text = " ".join(printed.split())
    assert "clap_jax, made of a checkpoint of layout laion" in text


@pytest.mark.parametrize("name", ["msclap2023", "blat", small.CAPTIONER])
def test_inspect_other_families(name, tmp_path):
    path = small.save(tmp_path / "a.pth", small.state_dict(name), wrapper="model")
    found = inspect.inspect(path)
    assert found.facts["layout"] == small.layout(name)
    assert found.odd == []
    count = sum(group.values for group in found.groups if "params" in group.path)
    assert found.facts["parameters"].startswith(f"{count:,}, and")


def test_inspect_a_start(tmp_path):
    state = {
        k.removeprefix("audio_branch."): x
        for k, x in small.state_dict("laion").items()
        if k.startswith("audio_branch.")
    }
    found = inspect.inspect(small.save(tmp_path / "a.ckpt", state, prefix="sed_model."))
    assert found.facts["audio"].startswith("htsat: width 8")
    assert found.facts["layout"] == "start"


def test_what_is_odd(tmp_path):
    state = {key: np.array(x) for key, x in small.state_dict("laion").items()}
    state["audio_branch.norm.weight"][3] = np.nan
    state["text_branch.pooler.dense.weight"][:] = 0
    state["text_projection.2.weight"][2] = 0
    state["audio_branch.patch_embed.proj.weight"][:] = 0.5
    state["logit_scale_a"] = np.array(9, np.float32)
    found = inspect.inspect(small.save(tmp_path / "a.pt", state))
    assert found.odd == [
        "1 tensors hold NaN or infinity: params/audio/norm/scale",
        "1 tensors are all zero: params/text/pooler/kernel",
        "1 tensors have one value everywhere: params/audio/patch/kernel",
        "params/text_projection/linear2/kernel: 1 of 6 outputs are dead",
        "params/logit_scale_a is 9.000, expected 0 to 4.605 (ln 100)",
    ]


def test_compare_with_itself(folder, capsys):
    status, printed, _ = run(capsys, "compare", folder / "laion.pt", folder / "ours")
    assert status == 0
    assert printed.splitlines()[-1] == "the two are the same model"
    for side in ("audio", "text"):
        assert f"{side} embeddings of the probes: smallest cosine 1.000" in printed


def test_compare(folder, tmp_path):
    state = {key: np.array(x) for key, x in small.state_dict("laion").items()}
    state["audio_branch.norm.weight"] *= np.float32(1.01)
    state["text_projection.0.bias"][0] += np.float32(1)
    del state["audio_branch.tscam_conv.weight"], state["audio_branch.tscam_conv.bias"]
    other = small.save(tmp_path / "a.pt", state)
    found = compare.compare(folder / "ours", other)
    assert found.specs == ["audio.options.classes: 5 and 0"]
    assert sorted(found.alone) == [
        "params/audio/tag/bias: only in the first",
        "params/audio/tag/kernel: only in the first",
    ]
    assert [row.path for row in found.tensors] == [
        "params/text_projection/linear1/bias",
        "params/audio/norm/scale",
    ]
    assert found.tensors[0].absolute == pytest.approx(1, rel=1e-4)
    assert found.tensors[1].relative == pytest.approx(0.01, rel=1e-3)
    assert not found.equal
    for side in ("audio", "text"):
        apart = found.embeddings[side]
        assert 1e-4 < apart.relative < 2
        assert apart.cosine < 1 - 1e-7


def test_compare_different_families(folder, tmp_path, capsys):
    path = tmp_path / "a.pth"
    small.save(path, small.state_dict("msclap2022"), wrapper="model")
    status, printed, _ = run(capsys, "compare", folder / "ours", path)
    assert status == 0
    assert "head: 'laion_mlp' and 'msclap'" in printed
    assert "params/audio/conv_block1/bn1/bias: only in the second" in printed
