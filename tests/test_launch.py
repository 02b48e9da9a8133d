"""What all launch scripts have in common, and local.sh and test.sh. Nothing is installed."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.machine import HARD_ARGUMENTS, REPOSITORY, Machine, main_arguments

SHARED = ["environment.sh"]
SCRIPTS = ["circle", "gpu", "local", "slurm", "test", "tpu_gke", "tpu_vm", "worker"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_every_script_is_listed():
    names = {path.name for path in (REPOSITORY / "launch").glob("*.sh")}
    assert names == {f"{name}.sh" for name in SCRIPTS} | set(SHARED)


def test_shellcheck():
    """All warnings; files that are sourced are followed."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("shellcheck", path=places)
    assert program, "shellcheck was not found: install the test extra"
    scripts = sorted((REPOSITORY / "launch").glob("*.sh"))
    done = subprocess.run(
        [program, "--external-sources", *scripts],
        capture_output=True,
        check=False,
        cwd=REPOSITORY,
        text=True,
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_strict_and_have_help(script, machine):
    path = REPOSITORY / "launch" / f"{script}.sh"
    assert path.stat().st_mode & stat.S_IXUSR
    assert "\nset -euo pipefail\n" in path.read_text()
    done = machine.run(path.name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/{path.name}" in done.stdout
    assert machine.calls() == []
    # Each option that the script takes is explained, by its name.
    taken = re.findall(
        r"^(?:options|switches)=\((.*?)\)", path.read_text(), re.MULTILINE | re.DOTALL
    )
    for name in " ".join(taken).split():
        assert "--" + name.lower().replace("_", "-") in done.stdout, name


def test_every_pin_is_exact():
    for name, fewest in (("constraints.txt", 100), ("constraints_cuda.txt", 10)):
        pins = (REPOSITORY / "launch" / name).read_text().splitlines()
        pins = [pin for pin in pins if pin and not pin.startswith("#")]
        assert len(pins) > fewest
        assert all(pin.count("==") == 1 for pin in pins)


# --- words -------------------------------------------------------------------------


def test_shown_commands_read_back_as_they_were(machine):
    """In bash and in the plain shell that ssh may meet on the other side."""
    machine.add("program")
    source = f"source '{machine.clone}/launch/environment.sh'; quoted program \"$@\""
    shown = machine.start(["bash", "-c", source, "bash", *HARD_ARGUMENTS])
    for shell in ("bash", "sh"):
        machine.start([shell, "-c", shown.stdout])
    assert machine.calls("program") == [HARD_ARGUMENTS, HARD_ARGUMENTS]


# --- local.sh and test.sh ----------------------------------------------------------


def test_local_shows_every_command_and_touches_nothing(machine):
    before = machine.files()
    done = machine.run("local.sh", "--dry-run", "--config=a b.py", "--workdir=runs/x")
    assert done.returncode == 0, done.stderr
    main = f"'{machine.clone}/.venv/bin/python' -m clap_jax.main"
    last = f"{main} '--config=a b.py' --workdir=runs/x"
    assert done.stdout.splitlines() == [*machine.installation(""), last]
    assert done.stderr == ""
    assert machine.files() == before


def test_accelerator_picks_the_extra(machine):
    done = machine.run("local.sh", "--dry-run", "--accelerator=tpu", "--config=a")
    assert done.stdout.splitlines()[:2] == machine.installation("[tpu]")
    wrong = machine.run("local.sh", "--dry-run", "--accelerator=gpu")
    assert (wrong.returncode, "cpu, cuda or tpu" in wrong.stderr) == (2, True)


def test_test_script_passes_arguments_on(machine):
    done = machine.run("test.sh", "--dry-run", "tests/audio", "-k", "a or b")
    python = f"'{machine.clone}/.venv/bin/python'"
    assert done.stdout.splitlines() == [
        *machine.installation("[test]"),
        f"cd '{machine.clone}'",
        f"{python} -m pytest tests/audio -k 'a or b'",
    ]
    covered = machine.run("test.sh", "--dry-run")
    assert covered.stdout.endswith(
        "--numprocesses=auto --maxprocesses=4 --dist=loadfile "
        "--cov --cov-report=term --cov-fail-under=85\n"
    )


def test_installs_once_and_hands_arguments_and_status_on(machine):
    machine.add_python(0, 3)
    first = machine.run("local.sh", "--", *HARD_ARGUMENTS)
    assert first.returncode == 0, first.stderr
    pip, main = machine.calls("python")
    assert pip[:3] == ["-m", "pip", "install"]
    assert main_arguments([main]) == [HARD_ARGUMENTS]
    machine.forget()
    second = machine.run("local.sh", "--config=a")
    assert len(machine.calls("python")) == 1
    # Other pins: installed again.
    with (machine.clone / "launch" / "constraints.txt").open("a") as file:
        file.write("new==1\n")
    third = machine.run("local.sh", "--config=a")
    assert (second.returncode, third.returncode) == (0, 3)
    assert machine.calls("python")[1][:3] == ["-m", "pip", "install"]


def test_without_a_new_python_says_so(machine):
    (machine.bin / "python3").unlink()
    done = machine.run("local.sh", "--config=a")
    assert done.returncode == 1
    assert "No Python of 3.11 or newer" in done.stderr


def test_circle_shows_every_step(machine):
    """The captioner hears another part than it learnt from, and so do the tests."""
    done = machine.run("circle.sh", "--dry-run", "--workdir=/runs/x", "--steps=7")
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if " -m " in line][2:]
    names = [re.search(r"--(?:workdir|out)=(\S+)", line)[1] for line in steps]
    assert names == [
        *("/runs/x/judge", "/runs/x/captioner", "/runs/x/tags.jsonl"),
        *("/runs/x/no_tags.jsonl", "/runs/x/clap_true", "/runs/x/clap_tags"),
        *("/runs/x/clap_no_tags", "/runs/x/compare.html"),
    ]
    assert [re.findall(r"part\W+(\d/\d)", line)[:1] for line in steps] == [
        *(["1/2"], ["1/2"], ["2/2"], ["2/2"], ["2/2"], ["2/2"], ["2/2"], [])
    ]
    assert "--no-tags" in steps[3] and "--no-tags" not in steps[2]
    assert "generated=/runs/x/no_tags.jsonl" in steps[6]
    own = machine.run("circle.sh", "--dry-run", "--data=a.csv", "--", "--n=2")
    assert "/a.csv,part=1/3,test_part=3/3," in own.stdout
    assert "--n=2" in own.stdout and "--n=5" not in own.stdout
    assert machine.run("circle.sh", "--dry-run", "--steps=x").returncode == 2
