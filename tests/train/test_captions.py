"""The task `caption`: its batches and loss, and captioners that learn."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio.augment import Augment
from clap_jax.convert import read_any_spec
from clap_jax.models import captioner
from clap_jax.models.guided import Heard
from clap_jax.train import experiment, loop, plan, tasks, topology
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests import small_models
from tests.train.test_loop import lines

BATCH, LENGTH = 8, 12
SPEC = small_models.captioner_spec("guided", 40)
OVERRIDES = {
    "frontend": "small_16k",
    "audio": {"kind": "conv_transformer", "options": {"depth": 1}},
    "mapper": {"width": 32},
    "embed_dim": 64,
    "decoder": {"options": {"width": 64, "depth": 1, "mlp": 128, "dropout": 0.0}},
    "text_length": 24,
}
KINDS = {"kind": "synthetic", "split": "kinds", "examples": 104}


def settings(**changes):
    config = config_lib.default()
    config.task.name = "caption"
    config.train.batch_size = BATCH
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def run_config(**changes):
    """Single sounds of all kinds, and their names as tags."""
    config = settings(**changes)
    config.model = "small_captioner"
    config.model_overrides = OVERRIDES
    config.train.total_steps = 2
    config.train.log_steps = 1
    config.data.mel = "host"
    config.data.cache_gib = 0.1
    config.data.vocab_size = 300
    config.data.text_buckets = ()
    config.data.sources = (KINDS,)
    return config


# --- the loss -------------------------------------------------------------------------


@functools.cache
def built():
    return captioner.build(SPEC)


@pytest.fixture(scope="module")
def variables():
    return small_models.captioner_variables(SPEC)


@pytest.fixture(scope="module")
def batch():
    rng, frontend = np.random.default_rng(0), SPEC.frontend
    ends = rng.integers(3, LENGTH, (BATCH, 1))
    own = np.arange(LENGTH) < ends
    size = (BATCH, frontend.clip_frames, frontend.mels)
    return {
        "mel": rng.normal(-40, 20, size).astype(np.float16),
        "ids": rng.integers(5, 40, (BATCH, LENGTH)).astype(np.int32),
        "mask": own,
        "answer": own,
        "tags": (rng.random((BATCH, 3)) < 0.5).astype(np.float32),
        "group": np.arange(BATCH, dtype=np.int32),
        "bad": np.zeros(BATCH, bool),
    }


FROZEN = (("mapper/.*", 1.0), (".*", 0.0))


@pytest.fixture(scope="module")
def losses(variables, batch):
    """Losses by the share of the run that is done. Only the mapper, which has one layer
    and no dropout, learns, so that there is no chance but that of scheduled sampling."""
    config = settings(
        optim__lr_multipliers=FROZEN,
        loss__label_smoothing=0.1,
        task__scheduled_sampling=1.0,
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    gradient = step_lib.make_gradient(config, SPEC, built(), mesh, Augment())

    @jax.jit
    def run(batch, done):
        key = jax.random.key(0)
        batch = tasks.timed(config, batch, jnp.int32(done), 100)
        (value, _), gradients = gradient(
            variables["params"], variables["state"], batch, key
        )
        return value, gradients

    return lambda done, **changes: jax.device_get(run(batch | changes, done))


def written(variables, batch, ids):
    """Logits after `ids`, in evaluation."""

    @jax.jit
    def run(variables, mel, tags, ids):
        model = built()
        (heard, _), _ = model.encode_audio(variables, mel, tags=tags)
        assert isinstance(heard, Heard)
        return model.token_logits(variables, heard, ids)

    mel = batch["mel"].astype(np.float32)
    return np.asarray(run(variables, mel, batch["tags"], ids), np.float64)


def mean_loss(logits, batch, smoothing=0.1):
    total = np.log(np.exp(logits).sum(-1))
    own = np.take_along_axis(logits, batch["ids"][..., None], 2)[..., 0]
    each = total - (1 - smoothing) * own - smoothing * logits.mean(-1)
    return each[batch["answer"]].mean()


def test_the_loss_is_that_of_the_captions_tokens(variables, batch, losses):
    want = mean_loss(written(variables, batch, batch["ids"]), batch)
    value, gradients = losses(0)
    assert value == pytest.approx(want, rel=1e-4)
    moved = {
        path.split("/")[0]
        for path, leaf in sharding.flatten(gradients).items()
        if np.abs(leaf).max() > 0
    }
    assert moved == {"mapper"}


def test_scheduled_sampling_rises_step_by_step(variables, batch, losses):
    """At the end all words that it hears are its own, at first none, halfway some."""
    logits = written(variables, batch, batch["ids"])
    own = np.where(batch["answer"], logits.argmax(-1), batch["ids"]).astype(np.int32)
    last = mean_loss(written(variables, batch, own), batch)
    first, half = losses(0)[0], losses(50)[0]
    assert losses(100)[0] == pytest.approx(last, rel=1e-4)
    assert len({round(float(x), 4) for x in (first, half, last)}) == 3


def test_tags_are_heard(batch, losses):
    other = losses(0, tags=1 - batch["tags"])[0]
    assert abs(other - losses(0)[0]) > 1e-3


# --- parts of a run -------------------------------------------------------------------


def test_batches_have_tags(tmp_path):
    config = run_config(task__untagged=0.5, train__batch_size=64)
    config.model_overrides.text_length = 40
    made = experiment.build(config, tmp_path)
    assert made.spec.tag_names == tuple(sorted(made.spec.tag_names))
    assert len(made.spec.tag_names) == made.spec.decoder.options["tags"] == 26
    iterator = iter(made.train_dataset())
    batch = next(iterator)
    iterator.close()
    assert batch["tags"].shape == (64, 26)
    counts = batch["tags"].sum(1)
    assert set(counts) == {0, 1} and 0.25 < counts.mean() < 0.75
    # Nothing stands before a caption, and its ending is learnt.
    np.testing.assert_array_equal(batch["answer"], batch["mask"])
    assert (batch["ids"][batch["mask"]] == 2).sum() == 64
    words = made.tokenizer
    source = made.sources[0][0]
    for ids, mask, tags in zip(batch["ids"], batch["mask"], batch["tags"]):
        text = words.text(ids[mask][:-1]).strip()
        own = [made.spec.tag_names[i] for i in np.flatnonzero(tags)]
        clips = [i for i in range(len(source)) if text in source.captions(i)]
        assert clips and (not own or own in [source.tags(i) for i in clips])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task__tags": "none"}, "task.tags is 'none', but tags guide small_captioner"),
        ({"task__tags": "no.npz"}, "there is no file of tag probabilities no.npz"),
        ({"task__tag_rule": "many"}, "tags are to be chosen by 'many'"),
        ({"task__tag_drop": 1.5}, "task.tag_drop is 1.5, expected 0 to 1"),
        ({"augment": {"mixup_alpha": 0.5}}, "expected 0 with task.name=caption"),
        (
            {"train__ema_decay": 0.9, "train__swa_percent": 20.0},
            "only one of train.ema_decay and train.swa_percent",
        ),
        ({"model": "small_conv"}, "unknown captioner 'small_conv'"),
    ],
)
def test_errors(tmp_path, changes, sentence):
    augment = changes.pop("augment", {})
    model = changes.pop("model", "small_captioner")
    config = run_config(**changes)
    config.augment, config.model = augment, model
    with pytest.raises(ValueError, match=sentence):
        made = experiment.build(config, tmp_path)
        state_lib.averages(config)
        tasks.make(config, made.spec, made.dual, made.mesh, made.augment)


def test_tags_of_a_file(tmp_path):
    """Of clips that are not in it, none."""
    path = tmp_path / "tags.jsonl"
    names = ("rain", "dog")
    rows = [
        {"id": f"synthetic-0-{i}", "probabilities": dict(zip(names, (0.9, 0.1)))}
        for i in range(0, 104, 2)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    made = experiment.build(run_config(task__tags=str(path)), tmp_path / "run")
    assert made.spec.tag_names == names
    iterator = iter(made.train_dataset())
    tags = np.concatenate([next(iterator)["tags"] for _ in range(8)])
    iterator.close()
    assert not tags[:, 1].any() and 0.25 < tags[:, 0].mean() < 0.75


def test_the_plan_of_a_guided_captioner():
    config = run_config()
    found = plan.experiment(config, topology.find("cpu:1"))
    assert found.abstract_batch()["tags"].shape == (BATCH, 527)


# --- runs -----------------------------------------------------------------------------


SOUNDS = {"dog": "a dog barks", "rain": "rain falls down"}
BEHIND = {"a tone": 0.0, "noise": 1.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Eight clips. What is in front only tags tell, what is behind it only the sound."""
    folder = tmp_path_factory.mktemp("sounds")
    rng, rows = np.random.default_rng(0), ["path,label,caption"]
    for number in range(8):
        tag, behind = list(SOUNDS)[number % 2], list(BEHIND)[number // 2 % 2]
        wave, rate_hz = small_models.sound(2.5, 16_000, seed=number)
        noise = rng.normal(0, 0.2, len(wave))
        wave = (1 - BEHIND[behind]) * wave + BEHIND[behind] * noise
        soundfile.write(folder / f"{number}.wav", wave, rate_hz)
        rows.append(f"{number}.wav,{tag},{SOUNDS[tag]} and there is {behind}")
    (folder / "clips.csv").write_text("\n".join(rows))
    columns = {"caption_columns": ("caption",), "label_column": "label"}
    return {"kind": "manifest", "path": str(folder / "clips.csv")} | columns


def examined(table, tags):
    return {
        "kind": "captions",
        "source": table,
        "tags": tags,
        "decoding": {"method": "greedy"},
        "tokenizer": "words",
        "draws": 0,
        "batch_size": 8,
    }


@pytest.fixture(scope="module")
def learnt(table, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("captions")
    config = run_config(
        train__total_steps=120,
        train__log_steps=40,
        train__swa_percent=10.0,
        optim__learning_rate=3e-3,
        optim__warmup_percent=10.0,
        task__scheduled_sampling=0.1,
    )
    config.data.sources = (table,)
    config.evals.told = examined(table, "source")
    config.evals.untold = examined(table, "none")
    return workdir, loop.train(config, workdir)


def test_it_learns_to_say_what_it_hears_and_is_told(learnt):
    workdir, results = learnt
    found = [line for line in lines(workdir) if "train/loss" in line]
    assert found[-1]["train/loss"] < 0.1 * found[0]["train/loss"]
    told, untold = (results[name].metrics for name in ("told", "untold"))
    assert told["BLEU_4"] > 0.99 and told["loss"] < 0.2
    assert untold["BLEU_4"] < 0.9 and untold["loss"] > 3 * told["loss"]
    protocol = results["told"].protocol
    assert protocol["decoding"] == "greedy, at most 24 tokens"
    assert protocol["tags"] == "source" and results["untold"].protocol["tags"] == "none"


def test_a_run_is_loaded_and_writes(learnt, table):
    workdir, _ = learnt
    writer = clap_jax.load(workdir)
    assert writer.spec == read_any_spec(workdir / "spec.json")
    assert writer.spec.tag_names == ("dog", "rain")
    clip = f"{table['path'].removesuffix('clips.csv')}0.wav"
    told = [writer.caption(clip, tags=[[tag]])[0][0].text for tag in SOUNDS]
    assert told == [f"{front} and there is a tone" for front in SOUNDS.values()]


def test_it_is_examined_again_from_its_workdir(learnt):
    """`--mode=eval` takes the tags of the checkpoint, whatever clips it is given."""
    workdir, _ = learnt
    config = run_config()
    config.evals.kinds = examined(KINDS, "source")
    made = experiment.build(config, workdir, training=False)
    assert made.spec == read_any_spec(workdir / "spec.json")
