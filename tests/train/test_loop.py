"""Runs: resuming is bit-exact, bad input stops with a sentence, full disks lose nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from clap_jax import checkpoint, metrics
from clap_jax import config as config_lib
from clap_jax.train import examine, loop, throughput
from clap_jax.train import state as state_lib

REPOSITORY = Path(__file__).resolve().parents[2]
SHALLOW = {"options": {"depth": 1}}


def small_config(**changes):
    """A tiny model on a few synthetic scenes; `changes` are dotted keys."""
    config = config_lib.default()
    config.model = "small_transformer"
    config.model_overrides = {"audio": SHALLOW, "text": SHALLOW}
    config.train.batch_size = 8
    config.train.total_steps = 6
    config.train.log_steps = 1
    config.train.ema_decay = 0.9
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 32},)
    config.data.mel = "host"
    config.evals.kinds = {
        "kind": "zeroshot",
        "source": {"kind": "synthetic", "split": "kinds", "examples": 24},
        "every_steps": 2,
        "batch_size": 8,
    }
    config.checkpoint.every_steps = 2
    config.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in changes.items()}
    )
    return config


def lines(workdir):
    return [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def losses(workdir):
    return {
        line["step"]: line["train/loss"]
        for line in lines(workdir)
        if "train/loss" in line
    }


def scores(workdir):
    key = "eval/kinds/zeroshot_acc"
    return {line["step"]: line[key] for line in lines(workdir) if key in line}


def everything(folder):
    """All arrays of a workdir's newest checkpoint: model, average, optimizer, totals."""
    step = checkpoint.find_step(folder)
    items = ("model", "average", "training")
    return {
        item: checkpoint.restore_numpy(step / item)
        for item in items
        if (step / item).is_dir()
    }


def assert_same_checkpoint(first, second):
    first, second = everything(first), everything(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(small_config(), workdir)
    return workdir


def test_a_run_leaves_everything(whole):
    assert sorted(losses(whole)) == [1, 2, 3, 4, 5, 6]
    assert sorted(scores(whole)) == [2, 4, 6]
    for name in (
        "config.json",
        "spec.json",
        "tokenizer",
        "results.json",
        "per_clip.npz",
        "report.html",
    ):
        assert (whole / name).exists(), name
    assert len(list((whole / "plots").glob("*.png"))) >= 2
    # What went wrong can be heard.
    assert "data:audio/mpeg" in (whole / "report.html").read_text(encoding="utf-8")
    kept = sorted(int(path.name) for path in (whole / "checkpoints").iterdir())
    assert kept == [4, 6]
    line = lines(whole)[0]
    for key in ("train/clips_per_s", "train/step_ms", "train/data_wait_fraction"):
        assert line[key] >= 0


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_in_process_is_bit_exact(whole, tmp_path, monkeypatch, stop):
    """Interrupted between any two operations, the same run comes out."""
    original, calls = loop._fetch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(small_config(), tmp_path)
    monkeypatch.setattr(loop, "_fetch", original)
    loop.train(small_config(), tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert scores(tmp_path) == scores(whole)
    assert_same_checkpoint(tmp_path, whole)


@pytest.mark.parametrize("steps", [3, 65_536, 70_001, 200_000])
def test_clips_are_counted_beyond_32_bits(steps):
    """A month of batches of 65,536: the device's counter begins anew every 65,536."""
    config = small_config(train__batch_size=65_536)
    clips = metrics.Mean(np.uint32(7), np.uint32(steps * 65_536 % 2**32))
    state = state_lib.TrainState(
        np.int32(steps), {}, {}, (), {}, state_lib.zero_totals({}), clips
    )
    line = loop._fetch(state, lambda step: 0.0, config)
    assert line["train/clips"] == steps * 65_536
    assert line["train/bad_clips"] == 7


def test_time_of_training_is_not_paused(monkeypatch, tmp_path):
    """What the loop waits for before it saves are steps, and counts as such."""
    paused = []
    monkeypatch.setattr(loop, "_fetch", _outside_of_pauses(loop._fetch, paused))
    monkeypatch.setattr(throughput.Meter, "paused", lambda meter: _Pause(paused))
    config = small_config(train__total_steps=2, checkpoint__every_steps=1)
    del config.evals.kinds
    loop.train(config, tmp_path)
    assert paused == []


def _outside_of_pauses(function, paused):
    def checked(*arguments):
        assert not paused
        return function(*arguments)

    return checked


class _Pause:
    def __init__(self, paused):
        self._paused = paused

    def __enter__(self):
        self._paused.append(1)

    def __exit__(self, *_):
        self._paused.pop()


def test_kill_9_at_random_moments_is_bit_exact(tmp_path):
    command = [
        *(
            sys.executable,
            "-m",
            "clap_jax.main",
            "--config=configs/quickstart.py:smoke",
        ),
        *("--config.train.total_steps=60", "--config.checkpoint.every_steps=5"),
        "--config.train.log_steps=1",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(workdir):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(process):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    finish(start(tmp_path / "whole"))
    moments = random.Random(0)
    for kill in range(3):
        process = start(tmp_path / "killed")
        path = tmp_path / "killed" / "metrics.jsonl"
        before = len(lines(tmp_path / "killed")) if path.exists() else 0
        # After some steps, or (the last) at any time: compiling, writing, reporting.
        target = before + moments.randint(1, 15) if kill < 2 else 0
        while process.poll() is None:
            if path.exists() and len(path.read_text().splitlines()) >= target:
                time.sleep(moments.uniform(0, 0.05 if kill < 2 else 8))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.communicate(timeout=60)
        assert kill == 2 or process.returncode == -signal.SIGKILL
    finish(start(tmp_path / "killed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert_same_checkpoint(tmp_path / "killed", tmp_path / "whole")


def test_only_process_0_looks_into_metrics(whole, monkeypatch):
    experiment = types.SimpleNamespace(workdir=whole)
    assert loop._unwritten(experiment, 6, ["kinds", "new"]) == ["new"]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(loop, "written_at", pytest.fail)
    monkeypatch.setattr(loop.hosts, "from_first", lambda _: np.array([True, False]))
    assert loop._unwritten(experiment, 6, ["kinds", "new"]) == ["kinds"]


def test_a_finished_run_only_reports_again(whole):
    before = (whole / "metrics.jsonl").read_text()
    results = loop.train(small_config(), whole)
    assert set(results) == {"kinds"}
    assert (whole / "metrics.jsonl").read_text() == before


def test_eval_mode_repeats_the_last_scores(whole):
    (whole / "results.json").unlink()
    results = examine.evaluate(small_config(), whole)
    assert results["kinds"].metrics["zeroshot_acc"] == scores(whole)[6]
    written = json.loads((whole / "results.json").read_text())
    assert written["context"]["step"] == 6


def test_a_workdir_of_another_model_is_refused(whole):
    config = small_config(train__total_steps=8)
    config.model_overrides = {"audio": {"options": {"depth": 2}}, "text": SHALLOW}
    with pytest.raises(
        config_lib.ConfigError, match=r"audio.options.depth: 1 there, 2"
    ):
        loop.train(config, whole)


def test_the_best_checkpoint_is_kept(tmp_path):
    config = small_config(
        checkpoint__keep=1, checkpoint__best_metric="eval/kinds/zeroshot_acc"
    )
    loop.train(config, tmp_path)
    by_step = scores(tmp_path)
    # The newest of the best wins a tie.
    best = max(by_step, key=lambda step: (by_step[step], step))
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 6}


def test_init_from_fills_what_the_pattern_names(whole, tmp_path):
    config = small_config(init_from=str(whole), init_pattern="params/text/.*")
    config.train.total_steps = 1
    config.optim.learning_rate = 0.0
    loop.train(config, tmp_path)
    started, source = (
        checkpoint.load_variables(tmp_path, raw=True),
        checkpoint.load_variables(whole),
    )
    for a, b in zip(
        jax.tree.leaves(started["params"]["text"]),
        jax.tree.leaves(source["params"]["text"]),
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(
        started["params"]["audio_projection"]["kernel"]
        if "kernel" in started["params"]["audio_projection"]
        else jax.tree.leaves(started["params"]["audio_projection"])[-1],
        jax.tree.leaves(source["params"]["audio_projection"])[-1],
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = small_config(optim__learning_rate=1e30, optim__clip_norm=0.0)
    with pytest.raises(loop.TrainingError, match=r"not finite.*learning_rate"):
        loop.train(config, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_size", 9, r"batch_size=9 is not divisible by 8 devices"),
        ("loss.name", "softmx", r"loss.name"),
        ("data.mel", "disk", r"data.mel is auto, host or device"),
        ("data.sources", (), r"data.sources is empty"),
        ("data.sources", ({"kind": "synthetc"},), r"synthetic"),
        ("data.sources", ({"split": "train"},), r"data.sources\[0\].kind is missing"),
        ("model", "small_transformr", r"small_transformer"),
        ("init_from", "/nowhere", r"/nowhere does not exist"),
    ],
)
def test_a_config_that_cannot_run_says_why(tmp_path, key, value, message):
    config = small_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises((ValueError, checkpoint.CheckpointError), match=message):
        loop.train(config, tmp_path)


def test_unknown_keys_of_free_sections_name_the_nearest(tmp_path):
    config = small_config()
    config.augment = {"gain_bd": 3.0}
    with pytest.raises(config_lib.ConfigError, match="did you mean 'gain_db'"):
        loop.train(config, tmp_path)
    config = small_config()
    config.evals.kinds.templtes = ("{}",)
    with pytest.raises(ValueError, match="templates"):
        loop.train(config, tmp_path)


def test_a_full_disk_names_the_folder_and_loses_nothing(tmp_path):
    """A limit on file size stands in for a full disk: writing fails the same way."""
    config = "--config=configs/quickstart.py:smoke"
    command = [sys.executable, "-m", "clap_jax.main", config, f"--workdir={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))\n"
        "runpy.run_module('clap_jax.main', run_name='__main__', alter_sys=True)"
    )

    def run(arguments):
        return subprocess.run(
            arguments,
            capture_output=True,
            check=False,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )

    done = run([sys.executable, "-c", code, *command[3:]])
    assert done.returncode == 1
    assert "could not save" in done.stderr
    assert str(tmp_path) in done.stderr
    assert "File too large" in done.stderr
    assert "run the same command again" in done.stderr
    assert run(command).returncode == 0
    assert checkpoint.find_step(tmp_path).name == "2"


@pytest.fixture
def damaged_folder(tmp_path):
    """Sixteen short sounds of two classes, one of which is text renamed .wav."""
    rng = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / "sounds" / f"class{number % 2}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 1600), 16_000)
    path.write_text("no sound")
    return tmp_path / "sounds"


def damaged_config(folder, max_bad_fraction):
    config = small_config(data__max_bad_fraction=max_bad_fraction)
    config.data.sources = ({"kind": "manifest", "path": str(folder)},)
    config.evals = {}
    return config


def test_a_broken_clip_is_replaced_counted_and_named(damaged_folder, tmp_path, caplog):
    loop.train(damaged_config(damaged_folder, 0.01), tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    assert last["train/clips"] == 48
    assert last["train/bad_clips"] == 3  # once an epoch
    warnings = [r.message for r in caplog.records if "bad clip" in r.message]
    assert len(warnings) == 1
    assert "15.wav" in warnings[0]


def test_too_many_broken_clips_stop_the_run(damaged_folder, tmp_path):
    with pytest.raises(loop.TrainingError, match=r"1 of .*max_bad_fraction=0\.0"):
        loop.train(damaged_config(damaged_folder, 0.0), tmp_path / "run")


def test_the_share_of_broken_clips_counts(damaged_folder, tmp_path, monkeypatch):
    """One in sixteen is more than 5 % and less than 20 %."""
    monkeypatch.setattr(loop, "BAD_CLIPS_OVER_AT_LEAST", 16)
    loop.train(damaged_config(damaged_folder, 0.2), tmp_path / "tolerant")
    with pytest.raises(
        loop.TrainingError, match=r"more than data\.max_bad_fraction=0\.05"
    ):
        loop.train(damaged_config(damaged_folder, 0.05), tmp_path / "strict")


def test_a_run_that_is_past_its_end_is_refused(whole):
    report = (whole / "results.json").read_text()
    with pytest.raises(
        config_lib.ConfigError, match="is at step 6, the config ends at 4"
    ):
        loop.train(small_config(train__total_steps=4), whole)
    assert (whole / "results.json").read_text() == report


def test_a_start_that_failed_leaves_nothing_in_the_way(tmp_path):
    config = small_config(train__total_epochs=1.0)
    with pytest.raises(config_lib.ConfigError, match="exactly one"):
        loop.train(config, tmp_path)
    config = small_config(train__total_steps=1)
    config.model_overrides = {"audio": {"options": {"depth": 2}}}
    loop.train(config, tmp_path)
    assert checkpoint.find_step(tmp_path).name == "1"


def test_another_optimizer_does_not_resume(whole):
    config = small_config(optim__name="lion", train__total_steps=8)
    with pytest.raises(checkpoint.CheckpointError, match="does not fit this config"):
        loop.train(config, whole)


def test_best_metric_must_be_one_that_is_evaluated(tmp_path):
    config = small_config(checkpoint__best_metric="eval/kind/zeroshot_acc")
    with pytest.raises(config_lib.ConfigError, match="with a name from evals: kinds"):
        loop.train(config, tmp_path)


def test_state_that_is_not_finite_is_never_saved(tmp_path):
    config = small_config(
        optim__learning_rate=1e30, optim__clip_norm=0.0, train__log_steps=100
    )
    with pytest.raises(loop.TrainingError, match="not finite by step 2"):
        loop.train(config, tmp_path)
    assert not checkpoint.has_steps(tmp_path)


def test_other_data_do_not_resume(whole):
    config = small_config(train__total_steps=8)
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 40},)
    with pytest.raises(ValueError, match="the checkpoint was trained on other data"):
        loop.train(config, whole)
