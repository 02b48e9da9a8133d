"""The launch scripts, without installing anything."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = ["local.sh", "test.sh"]


def dry_run(script, *arguments, cwd, **environment):
    return subprocess.run(
        [cwd / "launch" / script, "--dry-run", *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd="/",
        env=os.environ | environment,
    )


@pytest.fixture
def clone(tmp_path):
    """The launch scripts in a repository that has no .venv yet."""
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    shutil.copy(REPOSITORY / "setup.cfg", tmp_path)
    return tmp_path


def test_local_shows_every_command(clone):
    done = dry_run("local.sh", "--config=configs/quickstart.py", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert "-m venv" in done.stderr
    assert "-c" in done.stderr and "launch/constraints.txt" in done.stderr
    assert "python -m clap_jax.main --config=configs/quickstart.py" in done.stderr
    assert not (clone / ".venv").exists()


def test_accelerator_picks_the_extra(clone):
    done = dry_run("local.sh", "--accelerator=cuda", cwd=clone)
    assert f"-e {clone}[cuda]" in done.stderr
    wrong = dry_run("local.sh", "--accelerator=gpu", cwd=clone)
    assert wrong.returncode == 2
    assert "cpu, cuda or tpu" in wrong.stderr


def test_test_script_passes_arguments_on(clone):
    done = dry_run("test.sh", "tests/audio", cwd=clone)
    assert "python -m pytest tests/audio" in done.stderr
    assert "[test]" in done.stderr


def test_without_a_new_python_says_so(clone, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "cut", "env"):
        os.symlink(shutil.which(tool), empty / tool)
    done = dry_run("local.sh", cwd=clone, PATH=str(empty), PYTHON="")
    assert done.returncode == 1
    assert "No Python of 3.11 or newer" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script):
    path = REPOSITORY / "launch" / script
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", path], check=True)


def test_every_pin_is_exact():
    pins = (REPOSITORY / "launch" / "constraints.txt").read_text().splitlines()
    pins = [pin for pin in pins if pin and not pin.startswith("#")]
    assert len(pins) > 20
    assert all(pin.count("==") == 1 for pin in pins)
