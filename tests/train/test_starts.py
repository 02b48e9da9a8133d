"""Training starts from any checkpoint: whole, one tower, ours, of another system."""

import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from absl import logging

from clap_jax import checkpoint, convert, hub, sharding
from clap_jax import config as config_lib
from clap_jax.models import zoo
from clap_jax.train import examine, experiment, starts
from tests import small_models
from tests.train.test_loop import small_config

ROW = "laion_pann14_bert"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model as ours and as LAION's, and towers alone.

    audio.pth is a PANN file, text a folder of Hugging Face's with a tokenizer, bare one
    without pooler and without tokenizer.
    """
    root = tmp_path_factory.mktemp("starts")
    small_models.save(ROW, root / "whole")
    file = convert.write(convert.load(root / "whole"), root / "laion", "laion")
    state = torch.load(file, weights_only=True)["state_dict"]
    audio = {
        key.removeprefix("audio_branch."): 2 * value
        for key, value in state.items()
        if key.startswith("audio_branch.")
    }
    torch.save({"model": audio}, root / "audio.pth")
    words = small_models.tokenizer("plain", 77)
    config = transformers.BertConfig(
        vocab_size=words.vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(root / "text")
    words.save(root / "text")
    bare = transformers.BertModel(config, add_pooling_layer=False)
    bare.save_pretrained(root / "bare")
    return root


def settings(folders, init_from, **changes):
    """The config of a run of the small PANN and BERT model."""
    spec = zoo.read_spec(folders / "whole" / "spec.json")
    config = small_config(**changes)
    config.model = ROW
    config.model_overrides = {
        "audio": {"options": dict(spec.audio.options)},
        "text": {"options": dict(spec.text.options)},
        "tokenizer": "",
    }
    config.init_from = init_from
    config.evals = {}
    return config


def started(config, tmp_path):
    """Flat initial variables, and the tokenizer; nothing is compiled for it."""
    built = experiment.build(config, tmp_path / "run")
    fresh = small_models.variables(built.spec, seed=1)
    found = starts.fill(fresh, built.starts, built.spec, config.init_pattern)
    return sharding.flatten(found), built.tokenizer


def flat(path):
    return sharding.flatten(convert.load(path).variables)


def assert_filled(found, *sources):
    """Where a source has a path, the model has its value; elsewhere fresh ones."""
    for path, leaf in found.items():
        known = [source[path] for source in sources if path in source]
        if known:
            np.testing.assert_array_equal(leaf, known[-1], err_msg=path)


def test_two_towers(folders, tmp_path):
    names = (str(folders / "audio.pth"), str(folders / "text"))
    built = experiment.build(settings(folders, names), tmp_path / "run")
    found, tokenizer = sharding.flatten(built.init_variables()), built.tokenizer
    audio, text = flat(names[0]), flat(names[1])
    assert_filled(found, audio, text)
    sides = {"/".join(path.split("/")[:2]) for path in audio | text}
    assert sides == {"params/audio", "state/audio", "params/text"}
    whole = flat(folders / "whole")
    assert all(
        np.any(found[path] != whole[path])
        for path in found
        if "projection" in path and path.endswith("kernel")
    )
    wanted = small_models.tokenizer("plain", 77)(["a dog barks"])
    np.testing.assert_array_equal(tokenizer(["a dog barks"]), wanted)


@pytest.mark.parametrize("kind", ["ours", "laion"])
def test_a_whole_model(folders, tmp_path, kind):
    """LAION's file has no tokenizer; one that was put beside the run is named."""
    path = folders / "whole"
    config = settings(folders, str(path))
    if kind == "laion":
        (path,) = (folders / "laion").iterdir()
        config = settings(folders, str(path))
        config.model_overrides.tokenizer = str(folders / "whole" / "tokenizer")
    found, _ = started(config, tmp_path)
    source = flat(path)
    assert_filled(found, source)
    assert found.keys() <= source.keys()


def test_a_folder_of_ours_with_one_tower(folders, tmp_path):
    convert.write(convert.load(folders / "text"), tmp_path / "tower")
    assert (tmp_path / "tower" / "tower.json").is_file()
    config = settings(folders, [str(tmp_path / "tower")])
    found, tokenizer = started(config, tmp_path)
    assert_filled(found, flat(folders / "text"))
    assert tokenizer.vocab_size == small_models.tokenizer("plain", 77).vocab_size


def test_a_later_start_is_on_top(folders, tmp_path):
    names = (str(folders / "whole"), str(folders / "audio.pth"))
    found, _ = started(settings(folders, names), tmp_path)
    whole, audio = flat(names[0]), flat(names[1])
    assert_filled(found, whole, audio)
    path = "params/audio/fc/kernel"
    path = path if path in found else next(p for p in audio if p.endswith("kernel"))
    np.testing.assert_array_equal(found[path], 2 * whole[path])


def test_a_tower_without_its_pooler(folders, tmp_path):
    """As roberta-base is on the hub: the pooler starts fresh, all else is there."""
    names = (str(folders / "whole"), str(folders / "bare"))
    found, _ = started(settings(folders, names), tmp_path)
    whole, bare = flat(names[0]), flat(names[1])
    assert not any("pooler" in path for path in bare)
    assert_filled(found, whole, bare)


def test_the_pattern_chooses(folders, tmp_path):
    config = settings(
        folders,
        (str(folders / "audio.pth"), str(folders / "text")),
        init_pattern=r".*/(block|conv_block)\w*/.*",
    )
    found, _ = started(config, tmp_path)
    audio = flat(folders / "audio.pth")
    chosen = [path for path in audio if "/block" in path or "/conv_block" in path]
    assert chosen
    assert_filled(found, {path: audio[path] for path in chosen})
    assert np.any(found["state/audio/bn0/mean"] != audio["state/audio/bn0/mean"])


def test_a_start_that_fills_nothing_is_an_error(folders, tmp_path):
    config = settings(
        folders, str(folders / "audio.pth"), init_pattern="params/text/.*"
    )
    with pytest.raises(ValueError, match="no parameter matches"):
        started(config, tmp_path)


def test_what_does_not_fit_is_listed(folders, tmp_path):
    config = settings(folders, (str(folders / "audio.pth"), str(folders / "text")))
    config.model_overrides.text.options.mlp = 128
    message = (
        r"init_from \S*text .init_pattern says .*: 3 misfit.*"
        r"params/text/block0/mlp/up/bias has shape \(64,\), expected \(128,\)"
    )
    with pytest.raises(checkpoint.CheckpointError, match=message):
        started(config, tmp_path)
    config = settings(folders, str(folders / "audio.pth"))
    config.model_overrides.audio.options.fusion = "daf_2d"
    config.model_overrides.frontend = "laion_fused"
    with pytest.raises(checkpoint.CheckpointError, match="fusion.* is missing|misfit"):
        started(config, tmp_path)


def test_token_embeddings_need_their_tokenizer(folders, tmp_path):
    config = settings(folders, str(folders / "bare"))
    message = "bare has token embeddings, but no tokenizer.*model_overrides.tokenizer"
    with pytest.raises(config_lib.ConfigError, match=message):
        started(config, tmp_path)


def test_another_model_is_a_warning(folders, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: said.append(text % a))
    started(settings(folders, str(folders / "whole")), tmp_path)
    assert not said
    config = settings(folders, str(folders / "whole"))
    config.model_overrides.text.options.eps = 1e-5
    config.model_overrides.audio.options.dropout = 0.0
    config.model_overrides.frontend = {"fmax_hz": 12_000.0}
    started(config, tmp_path)
    (line,) = said
    assert "frontend.fmax_hz 14000.0 there, 12000.0 here" in line
    assert "text.options.eps 1e-12 there, 1e-05 here" in line
    assert "dropout" not in line


@pytest.mark.parametrize("value", [3, (1, 2), ("a", 2)])
def test_neither_a_path_nor_paths(value):
    config = small_config(init_from=value)
    with pytest.raises(config_lib.ConfigError, match="expected a path or hub id"):
        starts.load(config)


def test_nothing_to_start_from():
    assert starts.load(small_config()) == []
    assert starts.load(small_config(init_from=("", ""))) == []


def test_a_hub_id(folders, monkeypatch):
    asked = []

    def find(name):
        asked.append(name)
        return folders / "text"

    monkeypatch.setattr(hub, "find", find)
    config = small_config(init_from="FacebookAI/roberta-base")
    (start,) = starts.load(config)
    assert asked == ["FacebookAI/roberta-base"]
    assert start.model.spec.side == "text"


# --- the model of the checkpoint -----------------------------------------------------


def test_the_model_is_that_of_the_checkpoint(folders, tmp_path):
    config = small_config(init_from=str(folders / "whole"), model="init_from")
    config.model_overrides = {}
    built = experiment.build(config, tmp_path)
    assert built.spec == zoo.read_spec(folders / "whole" / "spec.json")
    found = small_models.variables(built.spec, seed=1)
    found = sharding.flatten(starts.fill(found, built.starts, built.spec, ".*"))
    jax.tree.map(np.testing.assert_array_equal, found, flat(folders / "whole"))


@pytest.mark.parametrize(
    ("init_from", "overrides", "message"),
    [
        ("audio.pth", {}, "init_from names no whole model"),
        ("", {}, "init_from names no whole model"),
        ("whole", {"text_length": 30}, "model_overrides change a row of the zoo"),
    ],
)
def test_no_such_model(folders, tmp_path, init_from, overrides, message):
    name = str(folders / init_from) if init_from else ""
    config = small_config(init_from=name, model="init_from")
    config.model_overrides = overrides
    with pytest.raises(config_lib.ConfigError, match=message):
        experiment.build(config, tmp_path)


def test_a_run_goes_on_without_what_it_started_from(folders, tmp_path, monkeypatch):
    shutil.copytree(folders / "whole", tmp_path / "start")
    config = small_config(init_from=str(tmp_path / "start"), model="init_from")
    config.model_overrides = {}
    first = experiment.build(config, tmp_path / "run")
    first.keep()
    shutil.rmtree(tmp_path / "start")
    monkeypatch.setattr(checkpoint, "has_steps", lambda workdir: True)
    again = experiment.build(config, tmp_path / "run")
    assert again.spec == first.spec
    assert again.starts == []


def test_towers_alone_are_not_evaluated(folders, tmp_path):
    """What they lack would be noise."""
    towers = (str(folders / "text"), str(folders / "audio.pth"))
    with pytest.raises(config_lib.ConfigError, match="names no whole model"):
        examine.evaluate(settings(folders, towers), tmp_path / "run")
