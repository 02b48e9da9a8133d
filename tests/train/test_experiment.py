"""From a config to the parts of a run: whole mels, losses, drops, parts of a batch."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from absl import logging

from clap_jax import checkpoint, sharding
from clap_jax import config as config_lib
from clap_jax.models import zoo
from clap_jax.train import experiment, loop, starts
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests import small_models
from tests.train.test_loop import everything, lines, small_config
from tests.whole_mel_models import FUSED, WHOLE

MODELS = {"laion_htsat_tiny_fusion_roberta": FUSED, "blat": WHOLE}


def config(name, **changes):
    """`small_config` with the row `name` of the zoo, made small."""
    found = small_config(**{"data__mel": "auto", "train__total_steps": 2} | changes)
    found.model = name
    tree = dataclasses.asdict(MODELS[name])
    del tree["name"]
    found.model_overrides = tree
    found.checkpoint.every_steps = 100
    found.evals.kinds.every_steps = 0
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_run_with_whole_mels(name, tmp_path):
    """Scenes of 2.56 s are longer than the window of 0.64 s."""
    results = loop.train(config(name), tmp_path)
    assert 0 <= results["kinds"].metrics["zeroshot_acc"] <= 1
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line] == [1, 2]


@pytest.mark.parametrize("name", MODELS)
def test_the_device_cannot_make_these_mels(name, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="expected 'host' or 'auto'"):
        experiment.build(config(name, data__mel="device"), tmp_path)


def test_random_crops_at_evaluation_are_an_option_of_it(tmp_path):
    settings = config("laion_htsat_tiny_fusion_roberta")
    settings.evals.again = settings.evals.kinds.copy_and_resolve_references()
    settings.evals.again.crop_seed = 3
    built = experiment.build(settings, tmp_path)
    seeds = {
        name: found.encoder._crop_seed for name, found in built.evaluations.items()
    }
    assert seeds == {"kinds": None, "again": 3}


# --- losses ---


def built(tmp_path, **changes):
    return experiment.build(small_config(**changes), tmp_path / "run")


@pytest.fixture
def said(monkeypatch):
    """Lines of the log."""
    found = []
    monkeypatch.setattr(logging, "info", lambda text, *a: found.append(text % a))
    return found


def test_a_sigmoid_loss_brings_its_bias(tmp_path, said):
    made = built(tmp_path, loss__name="sigmoid")
    assert made.spec.logit_bias_init == -10.0
    assert "sigmoid loss: a learned bias is added, at first -10" in said
    assert built(tmp_path).spec.logit_bias_init is None
    config = small_config(loss__name="sigmoid")
    config.model_overrides.logit_bias_init = -3.0
    assert experiment.build(config, tmp_path).spec.logit_bias_init == -3.0


def test_weights_of_a_softmax_model_start_a_sigmoid_one(tmp_path, said):
    """The one thing that they lack is its bias."""
    made = built(tmp_path, loss__name="sigmoid")
    biased, softmax = (
        small_models.variables(spec)
        for spec in (made.spec, dataclasses.replace(made.spec, logit_bias_init=None))
    )
    biased["params"]["logit_bias"] = np.float32(-10)
    softmax["params"]["logit_scale_a"] = np.float32(1.5)
    stub = types.SimpleNamespace(
        spec=made.spec, variables=softmax, release=lambda: None
    )
    found = starts.fill(biased, [starts.Start("it", stub)], made.spec, ".*")
    assert found["params"]["logit_bias"] == np.float32(-10)
    assert found["params"]["logit_scale_a"] == np.float32(1.5)
    assert "init_from it has no params/logit_bias: fresh ones are kept" in said
    del softmax["params"]["logit_scale_a"]
    with pytest.raises(checkpoint.CheckpointError, match="logit_scale_a is missing"):
        starts.fill(biased, [starts.Start("it", stub)], made.spec, ".*")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss.impl", "rings", r"loss.impl is 'rings'"),
        ("loss.label_smoothing", 1.0, r"loss.label_smoothing is 1.0"),
        ("train.accumulate", 0, r"train.accumulate=0, expected 1 or more"),
        ("train.accumulate", 3, r"8 devices x train.accumulate=3 .* use 24"),
        ("train.undropped_percent", 101.0, r"train.undropped_percent is 101.0"),
        ("train.patch_drop", 1.0, r"train.patch_drop is 1.0"),
        ("train.token_drop", -0.1, r"train.token_drop is -0.1"),
        ("checkpoint.keep", 0, r"checkpoint.keep is 0, expected 1 or more"),
        ("train.ema_decay", 1.5, r"train.ema_decay is 1.5"),
        (
            "data.mixture_temperature",
            -1.0,
            r"temperature is -1.0, expected 0 \(off\), or 0.01 or more",
        ),
        ("init_pattern", "(", r"init_pattern: '\(' is no regular expression"),
    ],
)
def test_what_cannot_be_is_told_early(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        built(tmp_path, **{key.replace(".", "__"): value})


# --- the mixture of sources, and captions that were made for their clips ---


def test_sources_are_mixed_by_temperature_and_bring_generated_captions(tmp_path, said):
    made = tmp_path / "made.jsonl"
    made.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"many-0-{number}",
                    "caption": f"generated {number}",
                    "origin": {"kind": "t5"},
                }
            )
            + "\n"
            for number in range(40)
        )
    )
    few = {"kind": "synthetic", "name": "few", "examples": 16, "seed": 1}
    many = {"kind": "synthetic", "name": "many", "examples": 64, "weight": 0.5}
    many |= {"generated": str(made), "captions": {"original": 0.25, "t5": 0.75}}
    settings = small_config(data__mixture_temperature=2.0)
    settings.data.sources = (few, many)
    settings.evals = {}
    made = experiment.build(settings, tmp_path / "run")
    # 1 * sqrt(16) and 0.5 * sqrt(64) are equal shares.
    assert [weight for _, weight in made.sources] == pytest.approx([0.5, 0.5])
    source = made.sources[1][0]
    assert source.captions(3)[-1] == "generated 3" and len(source.captions(50)) > 1
    assert source.caption_weights(3)[-1] == 0.75
    assert any("generated captions 40 (t5 40) for 40 clips" in line for line in said)
    batches = iter(made.train_dataset())
    next(batches)
    batches.close()
    assert (
        "mixture: few 50.00% (16 clips, each 2.5 times in an epoch), "
        "many 50.00% (64 clips, each 0.625 times in an epoch)"
    ) in said


# --- drops: two stages ---


class Program:
    """In the place of a compiled step: gives its model in place of a state."""

    def __init__(self, dual):
        self.dual = dual

    def __call__(self, state, batch):
        return self.dual


def stages(monkeypatch, made, start, total):
    """Which model makes each step, and how many were compiled."""
    programs = []

    def compile_step(dual, *_):
        programs.append(Program(dual))
        return programs[-1]

    monkeypatch.setattr(step_lib, "make_update", lambda config, spec, dual, *_: dual)
    monkeypatch.setattr(step_lib, "compile_step", compile_step)
    monkeypatch.setattr(loop.throughput, "model_flops", lambda *_: 1.0)
    empty = state_lib.TrainState({}, {}, {}, (), {}, {}, ())
    update_at = loop._compiled(made, None, empty, (start, total))
    batch = made.abstract_batch()
    models = [update_at(step)({}, batch) for step in range(start, total)]
    return ["dropped" if x is made.dual else "whole" for x in models], len(programs)


def test_the_last_steps_drop_nothing(tmp_path, monkeypatch):
    drops = {"train__patch_drop": 0.25, "train__token_drop": 0.5}
    made = built(tmp_path, train__undropped_percent=25.0, **drops)
    assert made.dual is not made.undropped
    expected = ["dropped"] * 6 + ["whole"] * 2
    assert stages(monkeypatch, made, 0, 8) == (expected, 2)
    assert stages(monkeypatch, made, 3, 8) == (expected[3:], 2)  # resumed
    assert stages(monkeypatch, made, 6, 8) == (expected[6:], 1)
    for percent, total in ((0.0, ["dropped"] * 8), (100.0, ["whole"] * 8)):
        made = built(tmp_path, train__undropped_percent=percent, **drops)
        assert stages(monkeypatch, made, 0, 8) == (total, 1)


def test_one_stage_without_drops(tmp_path, monkeypatch):
    made = built(tmp_path)
    assert made.dual is made.undropped
    assert made.undropped_from(100) == 0
    models, compiled = stages(monkeypatch, made, 0, 3)
    assert compiled == 1 and len(models) == 3


@pytest.mark.parametrize(
    ("rules", "still"),
    [
        ([("audio/.*", 0.0)], {"audio"}),
        ([("text/.*", 0.0)], {"text"}),
        ([("(audio|text)(_projection)?/.*", 0.0)], {"audio", "text"}),
        ([("audio/.*(bias|scale)", 0.0)], set()),
        ([], set()),
    ],
)
def test_a_tower_that_is_frozen_whole_runs_as_in_evaluation(rules, still):
    """Dropout by chance, and by the batch's statistics, in all others."""
    small = {
        "audio.options.widths": (8, 8),
        "text.options": {"depth": 1, "dropout": 0.1},
    }
    spec = zoo.get_spec("small_conv", small)
    made = config_lib.default()
    made.optim.lr_multipliers = (*rules, (".*", 1.0))
    dual, undropped = experiment.duals(made, spec)
    variables = undropped.init(jax.random.key(0))
    sound, ids, mask = zoo.examples(spec)
    rng = np.random.default_rng(0)
    mel = rng.normal(-40, 15, (4, *sound.mel.shape[1:])).astype(np.float32)
    rows = np.broadcast_to(np.arange(ids.shape[1]), (4, ids.shape[1]))
    inputs = {"audio": (mel,), "text": (rows, np.ones(rows.shape, bool))}
    for side, given in inputs.items():
        encode = getattr(dual, f"encode_{side}")
        plain, state = encode(variables, *given)
        (z, _), new_state = encode(variables, *given, train=True, key=jax.random.key(1))
        assert np.array_equal(z, plain[0]) == (side in still)
        if side in still:
            jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_a_run_with_all_of_it(tmp_path):
    """Sigmoid ring loss, two parts, fsdp with rules, bfloat16, drops; goes on alike."""
    config = small_config(
        train__batch_size=16,
        train__accumulate=2,
        train__total_steps=4,
        train__patch_drop=0.5,
        train__token_drop=0.25,
        train__undropped_percent=50.0,
        loss__name="sigmoid",
        loss__impl="ring",
        mesh__fsdp=4,
        mesh__rules=((".*/mlp/.*/kernel", -1),),
        optim__momentum_dtype="bfloat16",
        precision="bfloat16",
        remat="blocks",
        checkpoint__every_steps=3,
    )
    config.evals = {}
    loop.train(config, tmp_path)
    found = [line for line in lines(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert found[0]["train/logit_bias"] == pytest.approx(-10, abs=0.01)
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert spec["logit_bias_init"] == -10.0
    dtypes = {}
    sharding.map_with_path(
        lambda path, leaf: dtypes.__setitem__(path, leaf.dtype.name),
        everything(tmp_path)["training"],
    )
    assert {dtypes[path] for path in dtypes if "/mu/" in path} == {"bfloat16"}
    assert {dtypes[path] for path in dtypes if "/nu/" in path} == {"float32"}
    # Killed after step 3, in the second stage: the last step comes out again.
    whole = everything(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    loop.train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, everything(tmp_path), whole)
