"""Jobs through Beam: what fails, and who is killed, ends the run with a sentence."""

import functools
import os
import signal
from pathlib import Path

import pytest

from data import jobs


def leave(folder: Path, number: int) -> None:
    (folder / str(number)).write_text(str(os.getpid()))


def refuse(folder: Path, number: int) -> None:
    if number == 2:
        raise ValueError(f"{number} is not wanted")
    leave(folder, number)


def die(folder: Path, number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    leave(folder, number)


@pytest.mark.parametrize("flags", [[], ["--runner=DirectRunner"]])
def test_all_numbers_are_done(tmp_path, flags):
    jobs.run(functools.partial(leave, tmp_path), range(5), flags=flags)
    assert {path.name for path in tmp_path.iterdir()} == set("01234")
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_what_fails_is_said_and_begins_nothing_new(tmp_path):
    with pytest.raises(jobs.JobError, match="^2 is not wanted$") as error:
        jobs.run(functools.partial(refuse, tmp_path), [2, 2, 2])
    assert isinstance(error.value.__cause__, ValueError)
    jobs.run(functools.partial(leave, tmp_path), [7])  # the next run is not affected
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_a_killed_worker_ends_the_run(tmp_path):
    with pytest.raises(jobs.JobError, match="a worker process was killed"):
        jobs.run(functools.partial(die, tmp_path), [2, 2, 2, 2], workers=2)


def test_nothing_to_do():
    jobs.run(leave, [])


def test_flags():
    jobs.check_flags([])
    jobs.check_flags(["--runner=DataflowRunner", "--project=p", "--of_its_own=1"])
    for runner in ([], ["--runner=DirectRunner"]):
        with pytest.raises(ValueError, match="unknown option --of_its_own=1"):
            jobs.check_flags([*runner, "--of_its_own=1"])


def test_progress(capsys):
    done = [0]
    with jobs.progress(lambda: done[0], 4, "shards", every_seconds=0.01):
        done[0] = 1
        while "shards" not in (said := capsys.readouterr().err):
            pass
    assert said.startswith("1 of 4 shards, about ")


def test_durations():
    assert jobs._duration(3) == "3 s" and jobs._duration(600) == "10 min"
    assert jobs._duration(9000) == "2.5 h"
