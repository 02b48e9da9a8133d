"""The command line: help, errors in a sentence, default workdir."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*arguments, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "clap_jax.main", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
    )


def test_help_names_every_flag():
    output = run("--help").stdout
    for flag in ("--config", "--workdir", "--mode"):
        assert flag in output


def test_config_is_required():
    done = run()
    assert done.returncode != 0
    assert "config" in done.stderr


def test_unknown_override_names_the_key(tmp_path):
    done = run(
        "--config=configs/quickstart.py:smoke",
        f"--workdir={tmp_path}",
        "--config.optim.learning_rat=1e-3",
    )
    assert done.returncode != 0
    assert "learning_rat" in done.stderr


def test_a_config_error_is_a_sentence_not_a_traceback(tmp_path):
    done = run(
        "--config=configs/quickstart.py:smoke",
        f"--workdir={tmp_path}",
        "--config.train.total_epochs=1.0",
    )
    assert done.returncode == 1
    assert "exactly one of train.total_steps and train.total_epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_stray_arguments_are_refused(tmp_path):
    done = run("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}", "x")
    assert done.returncode != 0
    assert "unexpected argument(s): x" in done.stdout + done.stderr
