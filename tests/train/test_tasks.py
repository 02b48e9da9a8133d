"""Classification as a task: same numbers on any mesh, masked heads, frozen towers, runs
that go on bit for bit, encoders that go from one task to the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import checkpoint, convert, sharding
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.convert import trees
from clap_jax.evals import runs
from clap_jax.models import classifier
from clap_jax.models.classifier import HeadSpec
from clap_jax.train import device_data, examine, experiment, heads, loop, starts
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests import small_models
from tests.models.test_classifier import PAIR, TEXT
from tests.train.test_loop import assert_same_checkpoint, lines, losses
from tests.train.test_step import DESCENT

ONE = sharding.make_mesh(devices=jax.devices()[:1])
SPEC = classifier.of(
    PAIR,
    {"a": HeadSpec(("x", "y", "z")), "b": HeadSpec(("u", "v"), "bce")},
)
BATCH = 16


def settings(**changes):
    config = config_lib.default()
    config.task.name = "classify"
    config.task.heads = {
        "a": {"weight": 2.0, "sources": "one"},
        "b": {"sources": "two"},
    }
    config.train.batch_size = BATCH
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


@pytest.fixture(scope="module")
def variables():
    return classifier.build(SPEC).init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    """Rows of head a and of head b in turn."""
    rng = np.random.default_rng(0)
    head = np.arange(BATCH, dtype=np.int32) % 2
    target = np.zeros((BATCH, 5), np.float32)
    target[head == 0, rng.integers(0, 3, BATCH // 2)] = 1
    target[head == 1, rng.integers(3, 5, BATCH // 2)] = 1
    mel = rng.normal(-40, 15, (BATCH, 16, SPEC.frontend.mels)).astype(np.float32)
    rest = {"group": np.zeros(BATCH, np.int32), "bad": np.zeros(BATCH, bool)}
    return {"mel": mel, "target": target, "head": head} | rest


PLAIN = Augment()


def gradient(variables, batch, mesh=ONE, augment=PLAIN, key=0, **changes):
    model = classifier.build(SPEC)
    function = step_lib.make_gradient(settings(**changes), SPEC, model, mesh, augment)
    placed = sharding.put(variables, sharding.state_sharding(variables, mesh))
    found = jax.jit(function)(
        placed["params"],
        placed["state"],
        sharding.to_global(batch, mesh),
        jax.random.key(key),
    )
    return jax.device_get(found)


def assert_close(first, second):
    for one, other in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


def test_eight_devices_equal_one(variables, batch):
    augment = Augment(gain_db=6.0, mixup_alpha=0.4)
    one = gradient(variables, batch, augment=augment)
    assert_close(one, gradient(variables, batch, sharding.make_mesh(), augment))


def test_parts_of_a_batch_add_up(variables, batch, monkeypatch):
    """Without dropout, which draws anew for each part."""
    options = SPEC.audio.options | {"dropout": 0.0}
    spec = dataclasses.replace(SPEC, audio=type(SPEC.audio)("convnet", options))
    monkeypatch.setattr(f"{__name__}.SPEC", spec)
    once = gradient(variables, batch)
    assert_close(once, gradient(variables, batch, train__accumulate=2))


def test_the_loss_is_the_mean_over_clips_by_the_weight_of_their_head(variables, batch):
    (value, (found, _)), _ = gradient(variables, batch)
    a, b = found["loss_a"], found["loss_b"]
    assert a.count == b.count == BATCH // 2
    assert value == pytest.approx((2 * a.sum + b.sum) / (2 * a.count + b.count))
    assert found["loss"].compute() == pytest.approx(float(value))
    assert found["accuracy"].count == BATCH


def test_clips_of_one_head_teach_the_other_nothing(variables, batch):
    only = batch | {
        "head": np.zeros(BATCH, np.int32),
        "target": np.eye(5, dtype=np.float32)[np.zeros(BATCH, int)],
    }
    (_, (found, _)), gradients = gradient(variables, only)
    assert found["loss_b"].count == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["heads"]["b"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["heads"]["a"]))


def test_towers_that_are_frozen_run_as_in_evaluation(variables, batch):
    """Nothing is dropped there, and nothing of them gets a gradient."""
    frozen = {"optim__lr_multipliers": (("heads/.*", 1.0), (".*", 0.0))}
    (first, _), gradients = gradient(variables, batch, key=1, **frozen)
    (second, _), _ = gradient(variables, batch, key=2, **frozen)
    assert first == second
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["audio"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["heads"]))
    (third, _), _ = gradient(variables, batch, key=1)
    assert third != first


def test_noise_has_labels_too():
    targets = heads.Targets([], 5)
    abstract = {
        name: jax.ShapeDtypeStruct(
            (4, *shape), dtype, sharding=sharding.batch_sharding(ONE)
        )
        for name, (shape, dtype) in targets.fields.items()
    }
    found = device_data.noise(abstract, 0)
    np.testing.assert_array_equal(found["target"].sum(1), 1)
    assert found["head"].dtype == jnp.int32


def test_a_step_changes_towers_and_heads(variables, batch):
    config, model = settings(), classifier.build(SPEC)
    copied = jax.tree.map(jnp.copy, variables)
    state = state_lib.fresh_state(copied, DESCENT, config, ONE)
    update = step_lib.make_update(config, SPEC, model, DESCENT, ONE, PLAIN)
    arrays = sharding.to_global(batch, ONE)
    after = step_lib.compile_step(update, state, arrays, ONE)(state, arrays)
    before = sharding.flatten(variables["params"])
    assert all(
        (leaf != before[path]).any()
        for path, leaf in sharding.flatten(after.params).items()
    )
    assert set(after.totals) == {
        *("loss", "grad_norm", "param_norm", "accuracy", "loss_a", "loss_b")
    }


# --- runs ---


def small(**changes):
    """Two heads for two corpora of scenes, a tiny tower, four steps."""
    config = config_lib.default()
    config.model = "small_conv"
    config.model_overrides = {
        "frontend": "small_16k",
        "audio": {"options": {"widths": (8,)}},
        "text": {"options": TEXT},
        "embed_dim": 16,
    }
    config.task.name = "classify"
    config.task.heads = {"one": {"sources": "kinds"}, "many": {"sources": "scenes"}}
    config.train.batch_size = 8
    config.train.total_steps = 4
    config.train.log_steps = 1
    config.train.ema_decay = 0.9
    config.optim.layer_decay = 0.8
    kinds = {"kind": "synthetic", "split": "kinds", "examples": 26}
    config.data.sources = (
        {**kinds, "name": "kinds"},
        {"kind": "synthetic", "split": "train", "examples": 32, "name": "scenes"},
    )
    config.data.mel = "host"
    config.augment = {"mixup_alpha": 0.4}
    config.evals.heads = {
        "kind": "classifier",
        "source": {**kinds, "seed": 1},
        "head": "one",
        "batch_size": 8,
    }
    config.checkpoint.every_steps = 2
    config.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in changes.items()}
    )
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted, without evaluations on the way."""
    workdir = tmp_path_factory.mktemp("classify") / "whole"
    loop.train(small(), workdir)
    return workdir


def test_a_run_is_measured_and_says_what_it_is(whole):
    line = lines(whole)[0]
    assert {"train/accuracy", "train/loss_many", "train/loss_one"} <= set(line)
    assert "train/logit_scale" not in line and "train/pairs_per_s" not in line
    last = [row for row in lines(whole) if "eval/heads/head_acc" in row][-1]
    assert 0 <= last["eval/heads/head_acc"] <= last["eval/heads/head_top5"] <= 1
    spec = convert.read_any_spec(whole / "spec.json")
    assert {name: head.loss for name, head in spec.heads.items()} == {
        **{"many": "bce", "one": "ce"}
    }
    assert not (whole / "tokenizer").exists()
    names = {
        path.split("/")[1] for path in sharding.flatten(convert.load(whole).variables)
    }
    assert names == {"audio", "audio_projection", "heads"}


def test_a_run_that_is_interrupted_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    original, calls = loop._fetch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(small(), tmp_path)
    monkeypatch.setattr(loop, "_fetch", original)
    assert checkpoint.has_steps(tmp_path)
    loop.train(small(), tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert_same_checkpoint(tmp_path, whole)


def test_other_heads_are_another_model(whole):
    config = small(task__hidden=(8,))
    with pytest.raises(config_lib.ConfigError, match="describes another model .hidden"):
        experiment.build(config, whole)


def filled(config, workdir):
    """Variables before and after `init_from`, flat; nothing is compiled for them."""
    built, rng = experiment.build(config, workdir), np.random.default_rng(5)
    shapes = trees.shapes(built.spec)
    fresh = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    found = starts.fill(fresh, built.starts, built.spec, config.init_pattern)
    return built, sharding.flatten(fresh), sharding.flatten(found)


def assert_learnt(fresh, found, whole, *parts):
    """Leaves below `parts` are those of the run, all others fresh."""
    learnt = sharding.flatten(convert.load(whole).variables)
    assert found.keys() == fresh.keys()
    for path, leaf in found.items():
        source = learnt if path.startswith(parts) else fresh
        np.testing.assert_array_equal(leaf, source[path], err_msg=path)


def test_its_encoder_starts_a_contrastive_run(whole, tmp_path):
    """The heads have no place there; the text tower starts fresh."""
    config = small(init_from=str(whole))
    config.task = config_lib.default().task
    config.evals = {}
    built, fresh, found = filled(config, tmp_path)
    assert built.tokenizer is not None
    assert_learnt(fresh, found, whole, "params/audio/", "params/audio_projection/")
    config.init_pattern = "params/audio/.*"
    _, fresh, found = filled(config, tmp_path)
    assert_learnt(fresh, found, whole, "params/audio/")


def test_a_finetune_takes_model_and_towers_and_leaves_the_heads(whole, tmp_path):
    config = small(init_from=str(whole), init_pattern="(?!params/heads/).*")
    config.model, config.model_overrides = "init_from", {}
    config.task.heads = {}
    config.data.sources = config.data.sources[:1]
    config.evals = {}
    built, fresh, found = filled(config, tmp_path)
    assert built.spec.audio == convert.read_any_spec(whole / "spec.json").audio
    assert list(built.spec.heads) == ["labels"]
    assert_learnt(fresh, found, whole, "params/audio/", "params/audio_projection/")


def test_a_finetune_starts_from_a_pair_of_towers(tmp_path):
    """Of which it takes the audio side alone."""
    spec = dataclasses.replace(PAIR, name="pair")
    pair = convert.Converted(spec, small_models.variables(spec))
    convert.write(pair, tmp_path / "pair")
    config = small(init_from=str(tmp_path / "pair"))
    config.model, config.model_overrides = "init_from", {}
    built, fresh, found = filled(config, tmp_path / "run")
    assert (built.spec.audio, built.spec.frontend) == (spec.audio, spec.frontend)
    parts = ("params/audio/", "params/audio_projection/")
    assert_learnt(fresh, found, tmp_path / "pair", *parts)


def test_what_init_from_names_is_probed_as_it_is(whole, tmp_path):
    """No training, no text: and the vectors are kept for the next time."""
    config = config_lib.default()
    config.model, config.init_from = "init_from", str(whole)
    config.evals.kinds = {
        "kind": "probe",
        "source": {"kind": "synthetic", "split": "kinds", "examples": 52},
        "parts": {"train": {"seed": 0}, "test": {"seed": 1}},
        "test": ("test",),
        "options": {"strengths": (0.1,)},
        "batch_size": 16,
    }
    first = examine.evaluate(config, tmp_path)["kinds"]
    assert first.protocol["tested"]["test"]["train_clips"] == 52
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "vectors").iterdir()}
    assert len(kept) == 2
    second = examine.evaluate(config, tmp_path)["kinds"]
    assert second.metrics == first.metrics
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    # Both parts can be heard, though each is a source of its own.
    assert (tmp_path / "report.html").read_text().count("<audio") == 6
    found = runs.read(tmp_path)
    assert len(found.per_clip["kinds/clips"]) == 52
    low, high = found.evals["kinds"]["intervals"]["probe_acc"]
    assert low <= first.metrics["probe_acc"] <= high and low < high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task__name": "clasify"}, "did you mean 'classify'"),
        ({"task__name": "contrastive"}, "task.heads are for task.name=classify"),
        ({"train__token_drop": 0.5}, "has no text tower"),
        ({"optim__layer_decay": 0.0}, "optim.layer_decay is 0.0, expected above 0"),
        ({"evals__heads__head": "none"}, "unknown head 'none'"),
        (
            {"evals__heads__kind": "zeroshot"},
            "unknown key of evaluator zeroshot 'head'",
        ),
        ({"data__sources": ()}, "runs with --mode=eval"),
    ],
)
def test_runs_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment.build(small(**changes), tmp_path)


def test_a_run_on_noise_names_its_classes(tmp_path):
    """As a plan does: nothing is read."""
    config = small(data__source="synthetic_device", data__mel="auto")
    with pytest.raises(config_lib.ConfigError, match="needs `labels` and `loss`"):
        experiment.build(config, tmp_path)
    config.task.heads = {"one": {"labels": ("a", "b", "c"), "loss": "ce"}}
    built = experiment.build(config, tmp_path)
    assert built.abstract_batch()["target"].shape == (8, 3)
    assert built.spec.classes == 3 and built.tokenizer is None


def test_a_config_that_only_evaluates_needs_a_model(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no model"):
        examine.evaluate(config_lib.default(), tmp_path)
