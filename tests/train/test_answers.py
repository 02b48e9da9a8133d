"""The task `answer`: its loss, what is frozen, whole runs, and what starts from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import checkpoint, convert, sharding
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.convert.starts import TowerStart
from clap_jax.metrics import Mean
from clap_jax.models import captioner
from clap_jax.text import tokenize
from clap_jax.train import (
    answers,
    experiment,
    loop,
    optim,
    plan,
    tasks,
    throughput,
    topology,
)
from clap_jax.train import starts as starts_lib
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests.train.test_loop import assert_same_checkpoint, lines, losses

BATCH, LENGTH, VOCABULARY, SMOOTHING = 8, 12, 40, 0.1
PLAIN = Augment()
KEY = jax.random.key(7)
FROZEN = (("decoder/.*", 0.0), (".*", 1.0))
OVERRIDES = {
    "frontend": "small_16k",
    "audio": {"kind": "conv_transformer", "options": {"depth": 1}},
    "mapper": {"width": 32, "length": 2, "clip_length": 2},
    "decoder": {"options": {"width": 32, "depth": 1, "mlp": 64}},
}
SPEC = captioner.get_spec(
    "small_answers",
    OVERRIDES | {"vocab_size": VOCABULARY, "text_length": LENGTH},
)


def settings(**changes):
    config = config_lib.default()
    config.task.name = "answer"
    config.train.batch_size = BATCH
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


@functools.cache
def built(**compute):
    return captioner.build(SPEC, **compute)


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(built().init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    """Prompts of 2 to 4 tokens, answers of 3 to 6, padding."""
    rng, frontend = np.random.default_rng(0), SPEC.frontend
    begin = rng.integers(2, 5, (BATCH, 1))
    end = begin + rng.integers(3, 7, (BATCH, 1))
    place, size = np.arange(LENGTH), (BATCH, frontend.clip_frames, frontend.mels)
    return {
        "mel": rng.normal(-40, 20, size).astype(np.float16),
        "ids": rng.integers(5, VOCABULARY, (BATCH, LENGTH)).astype(np.int32),
        "mask": place < end,
        "answer": (begin <= place) & (place < end),
        "group": np.arange(BATCH, dtype=np.int32),
        "bad": np.arange(BATCH) == 3,
    }


@functools.cache
def compiled(devices=1, fsdp=1, precision="float32", remat="none", accumulate=1):
    """The loss and its gradient, with label smoothing."""
    config = settings(
        train__accumulate=accumulate,
        loss__label_smoothing=SMOOTHING,
        precision=precision,
    )
    mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    model = built(dtype=precision, remat=remat)
    return mesh, jax.jit(step_lib.make_gradient(config, SPEC, model, mesh, PLAIN))


def gradient(variables, batch, **how):
    """Loss, metrics, new model state and gradient."""
    mesh, function = compiled(**how)
    placed = sharding.put(variables, sharding.state_sharding(variables, mesh, ()))
    arguments = placed["params"], placed["state"], sharding.to_global(batch, mesh), KEY
    (value, (found, state)), gradients = function(*arguments)
    return jax.device_get((value, found, state, gradients))


@pytest.fixture(scope="module")
def plain(variables, batch):
    return gradient(variables, batch)


def assert_close(found, expected, relative=2e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        limit = relative * max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


# --- the loss -------------------------------------------------------------------------


def test_the_loss_is_that_of_the_answers_tokens(variables, batch, plain):
    """Clip by clip and token by token, in float64."""
    model = built()
    z = jax.jit(model.prefix)(variables, batch["mel"].astype(np.float32))
    logits = jax.jit(model.logits)(variables, z, batch["ids"])
    logits = np.asarray(logits, np.float64)
    first = SPEC.mapper["length"] - 1
    own, right = [], []
    for row, place in zip(*np.nonzero(batch["answer"])):
        scores, token = logits[row, first + place], batch["ids"][row, place]
        target = (1 - SMOOTHING) * scores[token] + SMOOTHING * scores.mean()
        own.append(np.log(np.exp(scores).sum()) - target)
        right.append(scores.argmax() == token)
    value, found, _, _ = plain
    assert value == pytest.approx(np.mean(own), rel=1e-5)
    assert found["loss"].count == len(own) and found["loss"].compute() == (
        pytest.approx(float(value))
    )
    assert found["token_accuracy"].compute() == pytest.approx(np.mean(right))


def test_prompts_are_read_and_padding_is_not(variables, batch, plain):
    asked = batch["mask"] & ~batch["answer"]
    other = {
        name: np.where(places, 5 + (batch["ids"] - 4) % 35, batch["ids"])
        for name, places in (("prompt", asked), ("padding", ~batch["mask"]))
    }
    padding = gradient(variables, batch | {"ids": other["padding"]})
    np.testing.assert_array_equal(padding[0], plain[0])
    prompt = gradient(variables, batch | {"ids": other["prompt"]})
    assert abs(prompt[0] - plain[0]) > 1e-4


def test_less_padding_gives_the_same(variables, batch, plain):
    """Answers are cut to a bucket; values and gradients are those of full length."""
    length = int(batch["mask"].sum(1).max())
    assert length < LENGTH
    texts = ("ids", "mask", "answer")
    cut = batch | {name: batch[name][:, :length] for name in texts}
    value, found, _, gradients = gradient(variables, cut)
    assert value == pytest.approx(float(plain[0]), rel=1e-5)
    assert found["loss"].count == plain[1]["loss"].count
    assert_close(gradients, plain[3])


def test_any_mesh_and_any_parts_give_the_same(variables, batch, plain):
    how = {"devices": 4, "fsdp": 2, "accumulate": 2, "remat": "blocks"}
    value, found, _, gradients = gradient(variables, batch, **how)
    assert value == pytest.approx(float(plain[0]), rel=1e-5)
    assert found["token_accuracy"] == plain[1]["token_accuracy"]
    assert_close(gradients, plain[3])


def test_losses_are_float32_in_bfloat16(variables, batch):
    """Traced only; how close scores stay is tested with the model."""
    mesh, function = compiled(precision="bfloat16")
    given = variables["params"], variables["state"], batch, KEY
    (value, (found, _)), gradients = jax.eval_shape(function, *given)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((value, found, gradients))}
    assert kinds == {np.dtype(np.float32)}


# --- what is frozen -------------------------------------------------------------------


def steps(variables, batch, count=2, **changes):
    """The state after some steps, on one device."""
    config, mesh = settings(**changes), sharding.make_mesh(devices=jax.devices()[:1])
    model = built()
    optimizer = optim.make_optimizer(
        config.optim, variables["params"], lambda step: 1e-2
    )
    copied = jax.tree.map(jnp.array, variables)
    state = state_lib.fresh_state(copied, optimizer, config, mesh)
    rows = sharding.to_global(batch, mesh)
    update = step_lib.make_update(config, SPEC, model, optimizer, mesh, PLAIN)
    compiled = step_lib.compile_step(update, state, rows, mesh)
    for _ in range(count):
        state = compiled(state, rows)
    return jax.device_get(state)


def test_a_frozen_decoder_keeps_every_bit(variables, batch):
    state = steps(variables, batch, optim__lr_multipliers=FROZEN)
    before = sharding.flatten(variables["params"])
    for path, leaf in sharding.flatten(state.params).items():
        same = np.array_equal(leaf, before[path])
        # The keys' biases have no gradient in theory.
        assert same == path.startswith("decoder/") or "key/bias" in path, path
    # Neither moments nor gradients: two moments of what is trained, and a count.
    trained = sum(
        leaf.size for path, leaf in before.items() if not path.startswith("decoder/")
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert 0 <= sum(sizes) - 2 * trained < 10
    assert state.totals["loss"].compute() > 0
    assert isinstance(state.totals["token_accuracy"], Mean)


@pytest.mark.parametrize(
    ("rules", "by_chance"),
    [
        (((".*", 1.0),), 2),
        (FROZEN, 1),
        ((("decoder/.*", 1.0), (".*", 0.0)), 1),
        ((("mapper/.*", 1.0), (".*", 0.0)), 0),  # as MS-CLAP trains clapcap
    ],
)
def test_frozen_parts_run_as_in_evaluation(batch, rules, by_chance):
    """Tower and decoder have dropout, unless they are frozen whole; traced only."""
    mesh, model = sharding.make_mesh(devices=jax.devices()[:1]), built()
    heard, written = [], []

    def encode_audio(*arguments, train, frozen, **options):
        heard.append(train and not frozen)
        return model.encode_audio(*arguments, train=train, frozen=frozen, **options)

    def token_logits(*arguments, train, key):
        written.append(train)
        return model.token_logits(*arguments, train=train, key=key)

    watched = model._replace(encode_audio=encode_audio, token_logits=token_logits)
    config = settings(optim__lr_multipliers=rules)
    task = tasks.write(config, SPEC, watched, mesh, PLAIN)
    variables = jax.eval_shape(model.init, KEY)
    given = variables["params"], variables["state"], task.rows(batch), KEY
    jax.eval_shape(task.encode, *given)
    assert sum(heard + written) == by_chance


# --- runs -----------------------------------------------------------------------------

SOUNDS = {"kind": "synthetic", "split": "train", "examples": 24}


def run_config(**changes):
    """A mixture of two tasks, twice as many captions as events."""
    config = settings(**changes)
    config.model = "small_answers"
    config.model_overrides = OVERRIDES
    config.train.total_steps = 4
    config.train.log_steps = 1
    config.train.ema_decay = 0.9
    config.optim.epsilon = 1e-4
    config.data.mel = "host"
    config.data.vocab_size = 300
    config.data.sources = (
        SOUNDS | {"name": "events", "task": "sound_event", "weight": 1.0},
        SOUNDS | {"name": "captions", "task": "caption", "weight": 2.0},
    )
    kinds = {"kind": "synthetic", "split": "kinds", "examples": 8}
    asked = {"kind": "answers", "source": kinds, "batch_size": 8}
    config.evals.events = asked | {"task": "sound_event", "every_steps": 2}
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("answers")
    return workdir, loop.train(run_config(), workdir)


def test_a_run_reports_its_answers(whole):
    workdir, results = whole
    found = lines(workdir)
    assert sorted(losses(workdir)) == [1, 2, 3, 4]
    assert all(0 <= x["train/token_accuracy"] <= 1 for x in found if "train/loss" in x)
    assert [x["step"] for x in found if "eval/events/exact" in x] == [2, 4]
    assert all("train/pairs_per_s" not in line for line in found)
    assert found[0]["train/mfu"] > 0
    assert set(results["events"].metrics) == {
        *("exact", "label_acc", "label_top5", "bad_clips")
    }
    spec = convert.read_any_spec(workdir / "spec.json")
    assert isinstance(spec, captioner.CaptionerSpec) and spec.vocab_size <= 300


def test_a_run_has_a_program_for_each_length(tmp_path):
    config = run_config(data__text_buckets=(16, 24, 28))
    config.data.sources = config.data.sources[:1]  # captions of scenes are long
    built = experiment.build(config, tmp_path)
    assert built.lengths().tokens == (16, 24, 28, 32)
    iterator = iter(built.train_dataset())
    lengths = {next(iterator)["answer"].shape[1] for _ in range(20)}
    iterator.close()
    assert len(lengths) > 1 and min(lengths) < 32


def test_resume_is_bit_exact(whole, tmp_path, monkeypatch):
    original, calls = loop._fetch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(run_config(), tmp_path)
    monkeypatch.setattr(loop, "_fetch", original)
    assert checkpoint.find_step(tmp_path).name == "2"
    loop.train(run_config(), tmp_path)
    assert losses(tmp_path) == losses(whole[0])
    assert_same_checkpoint(tmp_path, whole[0])


def filled(built):
    """Flat variables that were zeros before; nothing is compiled for it."""
    shapes = jax.eval_shape(built.dual.init, KEY)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    pattern = built.config.init_pattern
    return sharding.flatten(starts_lib.fill(zeros, built.starts, built.spec, pattern))


def test_its_encoder_starts_a_contrastive_run(whole, tmp_path):
    """Audio tower, projection and statistics arrive bit for bit; the words do not."""
    config = config_lib.default()
    config.model = "small_transformer"
    small = {"options": {"depth": 1}}
    config.model_overrides = {"audio": small, "text": small}
    config.init_from = str(whole[0])
    config.train.batch_size, config.train.total_steps = 8, 1
    config.data.sources = (SOUNDS,)
    config.data.mel, config.data.vocab_size = "host", 280
    built = experiment.build(config, tmp_path)
    found, given = filled(built), sharding.flatten(checkpoint.load_variables(whole[0]))
    both = {path for path in found if path in given}
    parts = {"/".join(path.split("/")[:2]) for path in both}
    assert parts >= {"params/audio", "params/audio_projection"}
    assert both == {path for path in given if path.split("/")[1].startswith("audio")}
    for path in both:
        np.testing.assert_array_equal(found[path], given[path], err_msg=path)
    assert built.tokenizer.vocab_size == 280  # not that of the answers
    loop.train(config, tmp_path)
    assert sorted(losses(tmp_path)) == [1]
    after = sharding.flatten(checkpoint.load_variables(tmp_path))
    assert any(np.any(after[path] != given[path]) for path in both)


def test_a_captioner_goes_on_as_it_is(whole, tmp_path):
    """`model=init_from`: its spec, its words, and every weight."""
    config = run_config(init_from=str(whole[0]))
    config.model, config.model_overrides = "init_from", {}
    config.optim.lr_multipliers = FROZEN  # it is filled, and may be frozen
    built = experiment.build(config, tmp_path)
    assert built.spec == convert.read_any_spec(whole[0] / "spec.json")
    found, given = filled(built), sharding.flatten(checkpoint.load_variables(whole[0]))
    assert found.keys() == given.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, given[path], err_msg=path)
    kept = tokenize.load(str(whole[0] / "tokenizer"), built.spec.text_length)
    assert built.tokenizer.to_json() == kept.to_json()
    with pytest.raises(config_lib.ConfigError, match="a checkpoint with both towers"):
        starts_lib.spec_of(built.starts)


def test_noise_on_the_device_is_a_batch(tmp_path):
    """Nothing is read, and the decoder may be frozen as chance has made it."""
    config = run_config(data__source=experiment.NOISE)
    config.optim.lr_multipliers = FROZEN
    built = experiment.build(config, tmp_path)
    batch = next(iter(built.train_dataset()))
    for name, leaf in built.abstract_batch().items():
        assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype)
    assert batch["answer"].any() and not batch["answer"].all()


def test_it_can_be_planned():
    """As far as the compiler, which gets the same program as in training."""
    config = run_config()
    parts = plan.experiment(config, topology.find("cpu:2"))
    assert tasks.loss_facts(config, parts.spec, parts.mesh)["name"] == "tokens"
    state = state_lib.abstract_state(parts.dual, config, parts.mesh)
    optimizer = optim.make_optimizer(config.optim, state.params, lambda step: 0.1)
    update = step_lib.make_update(
        config, parts.spec, parts.dual, optimizer, parts.mesh, parts.augment
    )
    after = jax.eval_shape(update, state, parts.abstract_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_flops_of_the_language_model_are_counted():
    """Of a position the output layer alone takes D * C multiply-adds."""
    count = functools.partial(throughput.model_flops, batch_size=1)
    wide = dataclasses.replace(SPEC, vocab_size=VOCABULARY + 100)
    found = [count(captioner.build(spec), spec) for spec in (SPEC, wide)]
    expected = 3 * 2 * LENGTH * 32 * 100
    assert found[1] - found[0] == pytest.approx(expected, rel=0.1)


# --- starts ---------------------------------------------------------------------------


def test_a_gpt2_becomes_the_decoder():
    """One alone does; the text tower of a whole model has learnt to compare."""
    gpt2 = TowerStart("text", "gpt2", dict(SPEC.decoder.options), VOCABULARY)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(built().init, KEY)
    decoder = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        shapes["params"]["decoder"],
    )
    variables = {"params": {"text": decoder}, "state": {}}
    start = starts_lib.Start("a", convert.Converted(gpt2, variables))
    found = starts_lib.for_decoder([start])
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    tree = starts_lib.fill(fresh, found, SPEC, ".*")
    for path, leaf in sharding.flatten(tree["params"]).items():
        expected = sharding.flatten({"decoder": decoder}).get(path, 0)
        np.testing.assert_array_equal(leaf, np.broadcast_to(expected, leaf.shape))
    config = settings(optim__lr_multipliers=FROZEN)
    answers.check_frozen(config, built(), found)
    with pytest.raises(config_lib.ConfigError, match="that init_from does not fill"):
        answers.check_frozen(config, built(), [start])
    with pytest.raises(config_lib.ConfigError, match="no tokenizer"):
        starts_lib.check_tokenizer(found, ".*", SPEC)


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": None}, r"data.sources\[0\].task is missing"),
        ({"task": "sound"}, "unknown task of a source 'sound'.*'sound_event'"),
        ({"task": "question"}, "clip 0 .* of source 'events' has the caption"),
    ],
)
def test_a_source_that_cannot_be_asked(tmp_path, changes, sentence):
    config = run_config()
    source = {**config_lib.plain(config.data.sources[0]), **changes}
    source = {name: value for name, value in source.items() if value is not None}
    config.data.sources = (source,)
    with pytest.raises((ValueError, config_lib.ConfigError), match=sentence):
        experiment.build(config, tmp_path)


def test_a_task_is_no_key_of_other_runs(tmp_path):
    config = run_config()
    config.task.name = "contrastive"
    with pytest.raises(ValueError, match="unknown key of synthetic source.*'task'"):
        experiment.build(config, tmp_path)


def test_a_fresh_decoder_cannot_be_frozen(tmp_path):
    config = run_config(optim__lr_multipliers=FROZEN)
    with pytest.raises(config_lib.ConfigError, match="let the decoder learn"):
        experiment.build(config, tmp_path)


def test_what_does_not_go_together():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(config_lib.ConfigError, match="mixup_alpha is 0.4, expected 0"):
        tasks.write(settings(), SPEC, built(), mesh, Augment(mixup_alpha=0.4))
    with pytest.raises(ValueError, match="train.token_drop: .* has no text tower"):
        experiment.duals(settings(train__token_drop=0.5), SPEC)
