"""launch/gpu.sh: one box, one process, runs again when it was stopped and saved."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.machine import HARD_ARGUMENTS, Machine, main_arguments

GPUS = "0, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB\n"


@pytest.fixture
def box(machine: Machine):
    machine.add("nvidia-smi", ("--query-gpu", GPUS))
    machine.add_python(0)
    return machine


def test_dry_run_is_exact_and_touches_nothing(machine):
    before = machine.files()
    done = machine.run(
        "gpu.sh", "--dry-run", "--", "--config=a b.py", XLA_FLAGS="--x=1"
    )
    assert done.returncode == 0, done.stderr
    fields = "--query-gpu=index,name,driver_version,memory.total"
    flags = "--xla_gpu_enable_latency_hiding_scheduler=true --x=1"
    last = (
        f"env -u XLA_PYTHON_CLIENT_MEM_FRACTION 'XLA_FLAGS={flags}' "
        f"XLA_CLIENT_MEM_FRACTION=0.92 '{machine.clone}/.venv/bin/python' "
        "-m clap_jax.main '--config=a b.py'"
    )
    assert done.stdout.splitlines() == [
        f"nvidia-smi {fields} --format=csv,noheader",
        *machine.installation("[cuda]"),
        "# again while this ends with status 75 (saved), at most 100 times:",
        last,
    ]
    assert done.stderr == ""
    assert machine.files() == before


def test_arguments_arrive_as_they_were(box):
    done = box.run("gpu.sh", "--no-install", "--", *HARD_ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert main_arguments(box.calls("python")) == [HARD_ARGUMENTS]


def test_runs_again_after_75_and_only_then(box):
    box.add_python(75, 75, 0)
    done = box.run("gpu.sh", "--no-install", "--", "--config=a")
    assert done.returncode == 0
    assert len(box.calls("python")) == 3
    box.forget()
    box.add_python(75, 1)
    assert box.run("gpu.sh", "--no-install", "--", "--config=a").returncode == 1
    assert len(box.calls("python")) == 2


def test_what_was_killed_is_not_run_again(box):
    """There is no other host that could have taken it along."""
    box.add_python(137, 0)
    assert box.run("gpu.sh", "--no-install", "--", "--config=a").returncode == 137
    assert len(box.calls("python")) == 1


def test_restarts_have_an_end(box):
    box.add_python(75)
    done = box.run("gpu.sh", "--no-install", "--max-restarts=2", "--", "--config=a")
    assert done.returncode == 75
    assert len(box.calls("python")) == 3
    assert "--max-restarts is 2" in done.stderr


def test_a_signal_saves_and_ends(box):
    """The process is told, its status is the script's, and it is not started again."""
    python = box.clone / ".venv" / "bin" / "python"
    ready = box.folder / "ready"
    python.write_text(
        f"#!{sys.executable} -IS\nimport pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), sys.exit(75)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\nwhile True: time.sleep(0.05)\n"
    )
    script = box.clone / "launch" / "gpu.sh"
    process = subprocess.Popen(
        [script, "--no-install", "--", "--config=a"],
        env=os.environ | {"PATH": str(box.bin)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not ready.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "again" not in told


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (GPUS.replace("580.65", "550.12"), "CUDA 13 needs 580"),
        ("No devices were found\n", "sees no GPU"),
        (9, "sees no GPU"),
    ],
)
def test_bad_drivers_are_named(box, answer, sentence):
    box.add("nvidia-smi", ("", answer))
    done = box.run("gpu.sh", "--no-install", "--", "--config=a")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert box.calls("python") == []


def test_wrong_use_is_a_sentence(box):
    missing = box.run("gpu.sh", "--no-install")
    assert (missing.returncode, "after --" in missing.stderr) == (2, True)
    for value in ("90", "0.0", ".0", "0", "1.5"):
        share = box.run("gpu.sh", f"--memory-fraction={value}", "--", "--config=a")
        assert (share.returncode, f"found '{value}'" in share.stderr) == (2, True)
    assert box.calls() == []
    (box.bin / "nvidia-smi").unlink()
    driver = box.run("gpu.sh", "--", "--config=a")
    assert (driver.returncode, "nvidia-smi was not found" in driver.stderr) == (1, True)


def test_the_flags_are_known_to_this_jax():
    """An unknown one in XLA_FLAGS ends the process."""
    flags = "--xla_gpu_enable_latency_hiding_scheduler=true"
    subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
