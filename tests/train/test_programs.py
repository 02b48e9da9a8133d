"""A program for each length of batch: how many, that they agree, and what they cost."""

import contextlib
import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from clap_jax import checkpoint, sharding
from clap_jax import config as config_lib
from clap_jax.audio.mel import FRONTENDS
from clap_jax.models import zoo
from clap_jax.pipeline import buckets
from clap_jax.train import experiment, loop, plan, programs, throughput, topology
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests.train.test_accumulate import assert_close, gradient, mesh_of, small_batch
from tests.train.test_loop import assert_same_checkpoint, losses
from tests.train.test_step import SPEC
from tests.whole_mel_models import WHOLE, with_options

TINY = {"options": {"depth": 1, "width": 32, "heads": 1}}


def tiny_config(**changes):
    """Scenes whose captions have 8 to 17 tokens, 13 at most in half of the batches."""
    config = config_lib.default()
    config.model = "small_transformer"
    config.model_overrides = {"audio": TINY, "text": TINY, "embed_dim": 16}
    config.train.batch_size = 8
    config.train.total_steps = 8
    config.train.log_steps = 1
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 32},)
    config.data.mel = "host"
    config.data.text_buckets = (13, 16)
    config.checkpoint.every_steps = 100
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def watched(patch):
    """A run's programs, model FLOPs a clip and lines of the log; on one device."""
    found = {"batches": [], "flops": [], "said": []}
    make_mesh = sharding.make_mesh
    patch.setattr(
        sharding, "make_mesh", lambda *_, **__: make_mesh(devices=jax.devices()[:1])
    )
    record(patch, step_lib, "compile_step", found["batches"], 2)
    record(patch, throughput.Meter, "count", found["flops"], 1)
    log = types.SimpleNamespace(info=lambda text, *a: found["said"].append(text % a))
    patch.setattr(loop, "logging", log)
    return found


def record(patch, owner, name, found, place):
    """Keep the argument at `place` of every call."""
    original = getattr(owner, name)

    def called(*arguments):
        found.append(arguments[place])
        return original(*arguments)

    patch.setattr(owner, name, called)


@contextlib.contextmanager
def counted():
    """How often XLA compiles a step."""
    found = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(update)":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


# --- which lengths there are ---


@pytest.mark.parametrize(
    ("model", "tokens", "frames", "most"),
    [
        ("laion_htsat_tiny_roberta", (16, 32, 77), (), 3),
        ("msclap2022", (16, 32, 100), (), 3),
        ("blat", (16, 30), (251, 501, 1001), 6),
        ("small_conv", (16, 24), (), 2),
    ],
)
def test_lengths_of_models(model, tokens, frames, most):
    assert config_lib.default().data.text_buckets == buckets.TEXT_TOKENS
    found = programs.choose(config_lib.default(), zoo.SPECS[model])
    assert found == (tokens, frames, ())
    assert found.programs == most


def test_models_that_hear_padding_have_one_length():
    config = config_lib.default()
    bart = zoo.get_spec("laion_pann14_bart", {"text.options.pool": "mean_all"})
    assert programs.choose(config, bart).tokens == (77,)
    pool = with_options(zoo.SPECS["blat"], length_mask="pool")
    assert programs.choose(config, pool) == ((16, 30), (1001,), ())
    whole = dataclasses.replace(FRONTENDS["small_22k"], whole_clip=True)
    net = dataclasses.replace(zoo.SPECS["small_conv"], frontend=whole)
    assert programs.choose(config, net).frames == (whole.clip_frames,)
    config.data.text_buckets, config.data.audio_buckets = (), ()
    assert programs.choose(config, zoo.SPECS["blat"]) == ((30,), (1001,), ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_buckets", (0,)),
        ("text_buckets", (16, 1.5)),
        ("text_buckets", (True,)),
        ("audio_buckets", (-1.0,)),
        ("audio_buckets", ("5 s",)),
    ],
)
def test_lengths_that_cannot_be(key, value):
    config = config_lib.default()
    config.data[key] = value
    with pytest.raises(config_lib.ConfigError, match=rf"data.{key} is .*, expected"):
        experiment.check(config)


# --- a run over mixed lengths ---


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run over texts of three lengths, and what was seen of it."""
    workdir = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch, counted() as compiled:
        found = watched(patch)
        loop.train(tiny_config(), workdir)
    return workdir, found | {"compiled": len(compiled)}


@pytest.fixture
def seen(monkeypatch):
    return watched(monkeypatch)


def test_no_more_programs_than_lengths(mixed):
    """The full length first, the others when a batch needs them, none twice."""
    _, found = mixed
    lengths = [programs.of_batch(batch).tokens for batch in found["batches"]]
    assert lengths[0] == 24
    assert sorted(lengths) == [13, 16, 24]
    assert found["compiled"] == 3
    told = [line for line in found["said"] if "compiled in" in line]
    assert len(told) == 3
    assert told[0].endswith("for 24 tokens: program 1 of 3 at most")
    assert told[2].endswith("tokens: program 3 of 3 at most")


def test_one_length_gives_the_same_run(mixed, seen, tmp_path):
    """Losses and parameters, to rounding: this model has no dropout."""
    workdir, _ = mixed
    loop.train(tiny_config(data__text_buckets=()), tmp_path)
    expected = losses(tmp_path)
    assert len(set(expected.values())) == 8
    assert losses(workdir) == pytest.approx(expected, rel=2e-5)


def test_flops_are_those_of_the_lengths(mixed):
    workdir, found = mixed
    spec = zoo.read_spec(workdir / "spec.json")
    known = [
        throughput.model_flops(zoo.build(spec), spec, 8, tokens)
        for tokens in (13, 16, 24)
    ]
    assert known == sorted(known) and len(set(known)) == 3
    assert set(found["flops"]) <= set(known)
    assert len(found["flops"]) == 8 and len(set(found["flops"])) >= 2


def test_a_run_goes_on_at_any_length(mixed, seen, tmp_path):
    """Saved between batches of different lengths: bit for bit."""
    workdir, _ = mixed
    config = tiny_config(train__total_steps=8, checkpoint__every_steps=3)
    loop.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert checkpoint.find_step(tmp_path / "run").name == "6"
    loop.train(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(workdir)
    assert_same_checkpoint(tmp_path / "run", workdir)


def test_parts_and_shards_of_a_short_batch():
    """Accumulation and fsdp split rows, of any length: the gradient of the full one."""
    batch = small_batch()  # texts of 24, of which 19 at most are tokens
    variables = zoo.build(SPEC).init(jax.random.key(0))
    once = gradient(SPEC, variables, batch, mesh_of(1), loss__name="softmax")
    cut = batch | {name: batch[name][:, :19] for name in ("ids", "mask")}
    parts = gradient(SPEC, variables, cut, mesh_of(4, fsdp=2), train__accumulate=2)
    assert float(parts[0]) == pytest.approx(float(once[0]), rel=1e-5)
    assert_close(parts[2], once[2])


def test_every_stage_has_its_programs(tmp_path, seen, monkeypatch):
    """One that drops words, and the last one, which does not."""
    monkeypatch.setattr(step_lib, "compile_step", lambda *_: lambda state, batch: state)
    config = tiny_config(
        train__token_drop=0.25, train__undropped_percent=50.0, data__text_buckets=(14,)
    )
    made = experiment.build(config, tmp_path)
    full = made.abstract_batch()
    short = {
        name: jax.ShapeDtypeStruct((leaf.shape[0], 14), leaf.dtype)
        for name, leaf in full.items()
        if name in ("ids", "mask")
    }
    empty = state_lib.TrainState({}, {}, {}, (), {}, {}, ())
    update_at = loop._compiled(made, None, empty, (0, 8))
    for step in range(8):
        for batch in (full, full | short, full):
            if not update_at(step).ready(batch):
                update_at(step).prepare(batch)
            assert update_at(step)("state", batch) == "state"
    told = [line.partition("program ")[2] for line in seen["said"] if "program" in line]
    assert told == ["1 of 2 at most", "1 of 2 at most", "2 of 2 at most"] + told[3:]
    assert told[3:] == ["2 of 2 at most"]
    # A text of 14 keeps 14 of its tokens where one of 24 keeps 18.
    dropped, whole = (update_at(step) for step in (0, 7))
    assert dropped.clip_flops(full) < whole.clip_flops(full)
    assert dropped.clip_flops(full | short) == pytest.approx(
        whole.clip_flops(full | short), rel=0.01
    )


def test_plans_and_noise_are_of_full_length(tmp_path):
    config = tiny_config(data__source="synthetic_device")
    made = experiment.build(config, tmp_path)
    assert made.lengths() == ((24,), (), ()) and made.lengths().programs == 1
    assert next(iter(made.train_dataset()))["ids"].shape == (8, 24)
    planned = plan.experiment(tiny_config(), topology.find("cpu:8"))
    assert programs.of_batch(planned.abstract_batch()) == (24, 0, 0)


# --- whole clips ---


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A table of 24 sounds, every third of them long, with captions of two lengths."""
    folder = tmp_path_factory.mktemp("sounds")
    rng, rows = np.random.default_rng(0), ["path,caption"]
    for number in range(24):
        seconds = 0.9 if number % 12 == 5 else 0.2
        wave = rng.normal(0, 0.1, round(8000 * seconds))
        soundfile.write(folder / f"{number}.wav", wave, 8000)
        words = "a much longer text of" if number % 12 == 7 else "number"
        rows.append(f"{number}.wav,{words} {number}")
    (folder / "sounds.csv").write_text("\n".join(rows) + "\n")
    return folder / "sounds.csv"


def whole_config(table, **changes):
    config = tiny_config(train__total_steps=6, data__mel="auto", **changes)
    spec = with_options(WHOLE, widths=(8,), dropout=0.0, fc_dropout=0.0)
    config.model = "blat"
    tree = dataclasses.asdict(spec)
    tree["text"]["options"]["dropout"] = 0.0
    del tree["name"]
    config.model_overrides = tree
    config.data.sources = ({"kind": "manifest", "path": str(table)},)
    return config


def test_whole_clips_of_mixed_lengths(sounds, tmp_path, seen):
    """No more programs than lengths; the same run as with one length."""
    with counted() as compiled:
        config = whole_config(
            sounds, data__text_buckets=(), data__audio_buckets=(0.3, 9.0)
        )
        loop.train(config, tmp_path / "few")
    told = [line for line in seen["said"] if "compiled in" in line]
    assert len(told) == len(compiled) == 2
    assert told[0].endswith("for 12 tokens and 65 frames: program 1 of 2 at most")
    assert told[1].endswith("for 12 tokens and 31 frames: program 2 of 2 at most")
    assert len(set(seen["flops"])) == 2 and len(seen["flops"]) == 6
    one = whole_config(sounds, data__text_buckets=(), data__audio_buckets=())
    loop.train(one, tmp_path / "one")
    expected = losses(tmp_path / "one")
    assert losses(tmp_path / "few") == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 6


def test_the_host_waits_for_the_step_before_the_last_two(monkeypatch):
    """After each step, and for a copy: the memory of its state is the next one's."""
    waited = []
    monkeypatch.setattr(programs.jax, "block_until_ready", lambda x: waited.append(x))
    ahead = programs.Ahead()
    for step in range(6):
        number = jnp.int32(step)
        ahead.wait(number)
        number.delete()
        assert len(waited) == max(step + 1 - programs.STEPS_AHEAD, 0)
    assert [int(x) for x in waited] == [0, 1, 2, 3]
