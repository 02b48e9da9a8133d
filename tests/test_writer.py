"""metrics.jsonl and its sinks."""

import json
import sys

import pytest

from clap_jax.writer import Writer, clock


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resume_drops_later_and_broken_lines(tmp_path):
    writer = Writer(tmp_path, total_steps=30)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": 1.0 / step})
    writer.close()
    with writer.path.open("a") as file:
        file.write('{"step": 3')  # cut off by a kill

    writer = Writer(tmp_path, total_steps=30, start_step=20)
    writer.write(30, {"train/loss": 0.5})
    writer.close()
    assert [line["step"] for line in lines(writer.path)] == [10, 20, 30]
    assert lines(writer.path)[-1]["train/loss"] == 0.5


def test_values_that_are_not_finite_become_null(tmp_path):
    writer = Writer(tmp_path, total_steps=1)
    writer.write(1, {"train/loss": float("nan"), "x": 2.0})
    writer.close()
    assert lines(writer.path) == [{"step": 1, "train/loss": None, "x": 2.0}]


def test_tensorboard_events(tmp_path):
    writer = Writer(tmp_path, total_steps=1, tensorboard=True)
    writer.write(1, {"train/loss": 1.0})
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_wandb_gets_every_line(tmp_path, monkeypatch):
    logged, identities = [], []

    class Run:
        def log(self, scalars, step):
            logged.append((step, scalars))

        def finish(self):
            logged.append("finished")

    class Wandb:
        @staticmethod
        def init(**options):
            assert options["project"] == "sounds"
            assert options["resume"] == "allow"
            identities.append(options["id"])
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    for _ in range(2):
        writer = Writer(tmp_path, total_steps=1, wandb_project="sounds")
        writer.write(1, {"train/loss": 1.0})
        writer.close()
    assert logged[:2] == [(1, {"train/loss": 1.0}), "finished"]
    assert identities[0] == identities[1]  # one run of W&B for one workdir


def test_a_missing_extra_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"clap_jax\[wandb\]"):
        Writer(tmp_path, total_steps=1, wandb_project="sounds")


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    writer = Writer(tmp_path, total_steps=2)
    writer.write(1, {"train/loss": 1.25, "train/clips_per_s": 64.0})
    writer.close()
    assert "loss 1.250" in capsys.readouterr().err


def test_clock():
    assert clock(3725.4) == "1:02:05"
