"""Exported towers: what is read back computes what the live model computes."""

import json

import jax
import numpy as np
import pytest

import clap_jax
from clap_jax import export, sharding
from clap_jax.models import zoo
from tests import small_models

# One row of the zoo for each kind of input.
INPUTS = {
    "small_conv": ["wave"],
    "laion_htsat_tiny_fusion_roberta": ["mel", "longer"],
    "blat": ["mel", "frames"],
}


@pytest.fixture(scope="module", params=INPUTS)
def exported(request, tmp_path_factory):
    """Name, model, and the folder that it is exported to, for batches of two."""
    root = tmp_path_factory.mktemp(request.param)
    small_models.save(request.param, root / "model")
    clap = clap_jax.load(root / "model", batch_size=2)
    clap.export(root / "served", batch_size=2)
    return request.param, clap, root / "served"


def heard(clap, names):
    """Three clips as the model takes them, as inputs of the program."""
    clips = [
        small_models.sound(seconds, 16_000, seed)
        for seed, seconds in enumerate((0.7, 2.0, 1.4))
    ]
    parts = [clap._encoder.hear(clip).pieces for clip in clips]
    longest = max(part[names[0]].shape[1] for part in parts)
    if "frames" in names:  # silence, as clap_jax pads
        for part in parts:
            missing = longest - part["mel"].shape[1]
            width = ((0, 0), (0, missing), (0, 0))
            part["mel"] = np.pad(part["mel"], width, constant_values=-100)
    return clips, [np.concatenate([part[name] for part in parts]) for name in names]


def test_read_back_it_is_the_live_model(exported):
    name, clap, folder = exported
    towers = export.load_export(folder)
    assert list(towers.described["audio"]) == INPUTS[name]
    clips, inputs = heard(clap, INPUTS[name])
    za, zt = clap.embed_audio(clips), clap.embed_text(small_models.TEXTS)
    assert np.abs(towers.audio(*inputs) - za).max() <= 1e-6
    ids, mask = clap.tokenizer(small_models.TEXTS)
    assert np.abs(towers.text(ids, mask) - zt).max() <= 1e-6
    scores = towers.score(za, zt)
    np.testing.assert_allclose(scores, clap.score(za, zt), rtol=1e-5, atol=1e-5)


def test_the_same_bits_as_the_same_program_in_this_process(exported):
    name, clap, folder = exported
    towers = export.load_export(folder)
    _, inputs = heard(clap, INPUTS[name])
    inputs = [values[:2] for values in inputs]
    program = export.programs(clap.spec, 2)["audio"]
    weights = export.weights_of("audio", sharding.flatten(clap.variables))
    live = jax.jit(program.function)(weights, *inputs)
    np.testing.assert_array_equal(towers.audio(*inputs), live)


def test_the_folder_is_a_saved_model_too(exported):
    _, clap, folder = exported
    again = clap_jax.load(folder)
    jax.tree.map(np.testing.assert_array_equal, again.variables, clap.variables)
    assert again.spec == clap.spec
    assert (folder / "tokenizer").is_dir()


def test_it_says_what_it_is(exported):
    name, clap, folder = exported
    described = json.loads((folder / "export.json").read_text())
    assert described["batch_size"] == 2
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert described["embed_dim"] == clap.spec.embed_dim
    assert described["text"]["ids"] == [[2, clap.spec.text_length], "int32"]
    frontend = clap.spec.frontend
    wanted = {
        "small_conv": [2, frontend.clip_samples],
        "laion_htsat_tiny_fusion_roberta": [2, 4, 1001, 64],
        "blat": [2, "N", 64],
    }
    (shape, dtype), *_ = described["audio"].values()
    assert (shape, dtype) == (wanted[name], "float32")


def test_weights_are_not_in_the_programs(exported):
    """Else the files of the larger models would take gigabytes."""
    _, clap, folder = exported
    weights = export.weights_of("text", sharding.flatten(clap.variables))
    size = sum(leaf.nbytes for leaf in weights.values())
    assert (folder / "text.stablehlo").stat().st_size < size / 8


@pytest.fixture
def served(tmp_path):
    """A small model exported for the CPU alone, in batches of three."""
    words = small_models.tokenizer("plain", 24)
    model = small_models.spec("small_conv", words.vocab_size)
    variables = small_models.variables(model)
    export.write(tmp_path, model, variables, batch_size=3, platforms=("cpu",))
    return tmp_path


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_any_number_of_rows(served, count):
    towers = export.load_export(served)
    ids = np.arange(count * 24).reshape(count, 24) % 200
    mask = np.ones((count, 24), bool)
    rows = towers.text(ids, mask)
    assert rows.shape == (count, 128)
    assert rows.dtype == np.float32
    if count:
        alone = towers.text(ids[-1:], mask[-1:])
        np.testing.assert_array_equal(rows[-1:], alone)


def test_wrong_inputs_are_named(served):
    towers = export.load_export(served)
    with pytest.raises(ValueError, match=r"wave has shape .3, 7., expected .n, 110250"):
        towers.audio(np.zeros((3, 7), np.float32))
    with pytest.raises(ValueError, match="audio takes wave, found 2"):
        towers.audio(np.zeros((3, 7)), np.zeros(3))


def test_another_platform_is_a_sentence(served, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="exported for cpu, but this is cuda"):
        export.load_export(served)


def test_what_is_no_export(tmp_path):
    with pytest.raises(
        ValueError, match="no exported model: there is no .*export.json"
    ):
        export.load_export(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platforms": ("gpu",)}, "platforms are .'gpu'., expected some of cpu, cuda"),
        ({"platforms": ()}, "platforms are"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    spec = zoo.SPECS["small_conv"]
    with pytest.raises(ValueError, match=message):
        export.write(tmp_path, spec, {}, **({"batch_size": 1} | options))
