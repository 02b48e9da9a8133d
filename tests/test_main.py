"""The command line: help, errors in a sentence, default workdir."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from clap_jax.main import default_workdir, has_virtual_devices, out_of_memory

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


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optim.learning_rat=1e-3", "learning_rat"),
        ("--config.train.batch_size=many", "many"),
        ("--mode=tran", "tran"),
        ("--workdri=x", "workdri"),
    ],
)
def test_bad_flags_are_a_sentence(tmp_path, flag, message):
    done = run("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}", flag)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/manifest.py:nowhere.csv", "nowhere.csv"),
        ("configs/quickstart.py:smok", "did you mean 'smoke'"),
        ("configs/quickstrt.py", "quickstrt.py"),
    ],
)
def test_a_bad_config_argument_is_a_sentence(tmp_path, config, message):
    done = run(f"--config={config}", f"--workdir={tmp_path}")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_error_is_a_sentence_not_a_traceback(tmp_path):
    done = run(
        "--config=configs/quickstart.py:smoke",
        f"--workdir={tmp_path}",
        "--config.train.total_epochs=1.0",
    )
    assert done.returncode == 1
    assert "exactly one of train.total_steps and train.total_epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workdir_is_a_folder():
    done = run("--config=configs/quickstart.py:smoke", "--workdir=gs://bucket/run")
    assert done.returncode == 2
    assert "--workdir=gs://bucket/run is a URL, expected a folder" in done.stderr


def test_stray_arguments_are_refused(tmp_path):
    done = run("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}", "x")
    assert done.returncode != 0
    assert "unexpected argument(s): x" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/quickstart.py", "runs/quickstart"),
        ("configs/quickstart.py:smoke", "runs/quickstart-smoke"),
        ("configs/manifest.py:../esc10/all.csv", "runs/manifest-esc10_all_csv"),
        ("configs/manifest.py:a.csv,test=4", "runs/manifest-a_csv_test_4"),
    ],
)
def test_each_experiment_has_its_own_default_workdir(config, expected):
    assert default_workdir(config) == expected


@pytest.mark.parametrize(
    ("number", "xla_flags", "expected"),
    [
        (-1, "", False),
        (1, "--xla_cpu_use_thunk_runtime=true", False),
        (8, "", True),
        (-1, "--a=b --xla_force_host_platform_device_count=4 --c=8", True),
        (-1, "--xla_force_host_platform_device_count=1", False),
    ],
)
def test_virtual_devices_are_noticed(number, xla_flags, expected):
    assert has_virtual_devices(number, xla_flags) is expected


def test_a_full_device_is_a_sentence():
    full = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.\nlines"
    )
    wrapped = RuntimeError("in a step")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        sentence = out_of_memory(error)
        assert "a device is out of memory (RESOURCE_EXHAUSTED: Out of" in sentence
        assert "--mode=plan --topology=local" in sentence
        assert "train.accumulate" in sentence and "remat" in sentence
        assert "lines" not in sentence
    assert out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: x")) == ""
    assert out_of_memory(ValueError("RESOURCE_EXHAUSTED")) == ""


def test_a_full_device_ends_the_run_with_a_sentence(tmp_path):
    code = (
        "import sys, jax\n"
        "from clap_jax import main\n"
        "from clap_jax.train import loop\n"
        "def train(config, workdir):\n"
        "    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')\n"
        "loop.train = train\n"
        "main.entry()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config=configs/quickstart.py:smoke"]
        + [f"--workdir={tmp_path}"],
        capture_output=True,
        check=False,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: a device is out of memory" in done.stderr
    assert "Traceback" not in done.stderr
