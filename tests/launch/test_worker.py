"""launch/worker.sh, the part of tpu_vm.sh that runs on the workers."""

import subprocess

import pytest

SLOW = """#!/usr/bin/env bash
echo "$@" >>"{folder}/started"
trap 'echo told; exit 75' TERM
echo begins
while [ ! -e "{folder}/end" ]; do sleep 0.05; done
exit 3
"""


@pytest.fixture
def worker(machine):
    program = machine.folder / "train"
    program.write_text(SLOW.format(folder=machine.folder))
    program.chmod(0o755)
    return machine


def background(machine, *arguments):
    return subprocess.Popen(
        [machine.clone / "launch" / "worker.sh", *arguments],
        env={"PATH": f"{machine.bin}", "HOME": f"{machine.folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_lost_connection_does_not_end_the_run(worker):
    """Another connection joins it, and gets its log and status."""
    program = f"{worker.folder}/train"
    first = background(worker, "run", "--", program, "a b")
    assert first.stdout.readline() == "begins\n"
    first.kill()
    second = background(worker, "run", "--", program, "a b")
    assert second.stdout.readline() == "begins\n"
    other = worker.run("worker.sh", "run", "--", program, "c")
    assert (other.returncode, "runs another command" in other.stderr) == (4, True)
    assert f"runs {program} 'a b'" in worker.run("worker.sh", "status").stdout
    (worker.folder / "end").touch()
    second.communicate(timeout=30)
    first.communicate(timeout=30)
    assert second.returncode == 3
    assert (worker.folder / "started").read_text() == "a b\n"
    assert "ended with status 3" in worker.run("worker.sh", "status").stdout


def test_of_many_that_come_at_the_same_time_one_starts(worker):
    program = f"{worker.folder}/train"
    all_of_them = [background(worker, "run", "--", program, "a") for _ in range(4)]
    for process in all_of_them:
        assert process.stdout.readline() == "begins\n"
    (worker.folder / "end").touch()
    for process in all_of_them:
        process.communicate(timeout=30)
        assert process.returncode == 3
    assert (worker.folder / "started").read_text() == "a\n"


def test_a_run_holds_no_lock(worker):
    """Else the next connection would wait for its end."""
    process = background(worker, "run", "--", f"{worker.folder}/train")
    assert process.stdout.readline() == "begins\n"
    lock = worker.clone / ".run" / "lock"
    had = worker.start(["flock", "--wait=10", lock, "hostname"])
    worker.run("worker.sh", "stop")
    process.communicate(timeout=30)
    assert had.returncode == 0


@pytest.mark.parametrize(
    ("ended", "result"), [(0, 0), (75, 0), (128 + 6, 0), (137, 0), (1, 1), (127, 127)]
)
def test_result_tells_failures_from_interruptions(machine, ended, result):
    assert machine.run("worker.sh", "result").returncode == 0
    done = machine.run("worker.sh", "run", "--", "sh", "-c", f"exit {ended}")
    assert done.returncode == ended
    told = machine.run("worker.sh", "result")
    assert told.returncode == result
    assert (f"failed with status {result}" in told.stdout) == (result != 0)


def test_stop_has_the_run_save(worker):
    process = background(worker, "run", "--", f"{worker.folder}/train")
    assert process.stdout.readline() == "begins\n"
    done = worker.run("worker.sh", "stop")
    assert (done.returncode, "stopped, status 75" in done.stderr) == (0, True)
    rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (3, "told\n")
    # The next run is another one.
    (worker.folder / "end").touch()
    program = f"{worker.folder}/train"
    other = worker.run("worker.sh", "run", "--", "sh", "-c", f"{program}; exit 75")
    assert other.returncode == 75
    again = worker.run("worker.sh", "stop")
    assert (again.returncode, "nothing runs" in again.stderr) == (0, True)


@pytest.mark.parametrize(("kind", "status"), [("nfs4", 0), ("ext4", 4)])
def test_the_workdir_must_not_be_on_the_workers_own_disk(machine, kind, status):
    machine.add("findmnt", ("", kind + "\n"))
    shared = f"{machine.folder}/not/yet/there"
    done = machine.run("worker.sh", "run", f"--shared={shared}", "--", "true")
    assert done.returncode == status
    assert ("own disk (ext4)" in done.stderr) == (status == 4)
    assert machine.run("worker.sh", "result").returncode == status
    assert machine.calls("findmnt")[0][-1] == f"{machine.folder}"


MAKES_VENV = """#!/usr/bin/env bash
[ "$1" = -m ] && [ "$2" = venv ] || exit 0
mkdir -p "$3/bin" && cp "{folder}/made/python" "$3/bin/python"
"""


def test_install_brings_a_python_where_there_is_none(machine):
    (machine.bin / "python3").unlink()
    new = machine.folder / "python3.11"
    machine.add("python3", ("-c import sys", 1), ("uv python find", f"{new}\n"))
    machine.add("python", at=machine.folder / "made")
    new.write_text(MAKES_VENV.format(folder=machine.folder))
    new.chmod(0o755)
    done = machine.run("worker.sh", "install")
    assert done.returncode == 0, done.stderr
    brought = [call[:6] for call in machine.calls("python3") if call[0] == "-m"]
    assert [call[1] for call in brought] == ["pip", "uv", "uv"]
    assert brought[1] == ["-m", "uv", "python", "install", "--quiet", "3.11"]
    [installed] = machine.calls("python")
    assert installed[-2:] == ["-e", f"{machine.clone}[tpu]"]
    # The second time there is nothing to do.
    machine.forget()
    assert machine.run("worker.sh", "install").returncode == 0
    assert machine.calls() == []
    # Other pins need no other Python.
    with (machine.clone / "launch" / "constraints.txt").open("a") as file:
        file.write("new==1\n")
    assert machine.run("worker.sh", "install").returncode == 0
    [call] = machine.calls()
    assert call[:4] == ["python", "-m", "pip", "install"]
