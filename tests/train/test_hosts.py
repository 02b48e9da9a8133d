"""Several processes: the same numbers as one, and an end together, whatever happens."""

import json
import random
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest

from clap_jax import checkpoint, hosts
from clap_jax.train import loop
from tests.train import jobs, tiny
from tests.train.jobs import STEPS, finish, lines, pair, wait_for_lines

RELATIVE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def servers():
    yield
    while jobs.SERVERS:
        server = jobs.SERVERS.pop()
        server.shutdown()
        server.server_close()


def arrays(workdir):
    """Every array of the newest checkpoint, by its path."""
    step = checkpoint.find_step(workdir)
    return {
        f"{item}{jax.tree_util.keystr(path)}": leaf
        for item in ("model", "average", "training")
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            checkpoint.restore_numpy(step / item)
        )
    }


def assert_same_run(first, second):
    """To the last bit: every number of metrics.jsonl and of the last checkpoint."""
    assert lines(first) == lines(second)
    first, second = arrays(first), arrays(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


def assert_same_curve(found, expected):
    """All numbers of metrics.jsonl, to `RELATIVE`."""
    found, expected = lines(found), lines(expected)
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for a, b in zip(found, expected, strict=True):
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=RELATIVE), (a["step"], name)


def assert_same_parameters(found, expected):
    """Each to `RELATIVE` of its own size, or of the smallest step of the optimizer."""
    found, expected = arrays(found), arrays(expected)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        if path.startswith(("model", "average")):
            scale = np.abs(expected[path]).max()
            np.testing.assert_allclose(
                value,
                expected[path],
                rtol=0,
                atol=RELATIVE * scale + 1e-8,
                err_msg=path,
            )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two processes of 4 devices that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    processes = pair(jobs.jobset, workdir)
    finish(processes)
    # Only the first process writes and says what goes well.
    first, second = (process.said() for process in processes)
    assert "process 0 of 2 (jobset), coordinator localhost:" in first
    assert "process 1 of 2 (jobset), coordinator localhost:" in second
    assert f"step {STEPS}/{STEPS}" in first
    assert "step" not in second
    assert "Zero-shot" not in second
    return workdir


def test_two_processes_are_one(whole, tmp_path):
    """The same devices, in this process alone."""
    loop.train(tiny.get_config(), tmp_path)
    assert_same_curve(whole, tmp_path)
    assert_same_parameters(whole, tmp_path)


def test_what_is_kept_is_written_once(whole):
    step = checkpoint.find_step(whole)
    assert step.name == str(STEPS)
    assert [path.name for path in (step / "data").glob("*meta*")] == ["metadata"]
    assert (
        json.loads((step / "data" / "metadata").read_text())["next_draw"] == 16 * STEPS
    )
    written = [(line["step"], "train/loss" in line) for line in lines(whole)]
    assert sorted(written) == sorted(set(written))
    assert (whole / "report.html").exists()
    assert not list(whole.glob(".*"))


def test_evaluation_of_two_processes(whole, tmp_path):
    """Each does its share, and both come to the numbers of the run."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    finish(pair(jobs.gke_tpu, tmp_path / "run", "--mode=eval"))
    found, expected = (
        json.loads((folder / "results.json").read_text())
        for folder in (tmp_path / "run", whole)
    )
    assert found == expected
    assert "(gke tpu)" in (tmp_path / "run-0.log").read_text()


def interrupted(engine, workdir, told):
    """A pair, of which one is told to end at a random step; the step that it saved."""
    processes = pair(engine, workdir)
    wait_for_lines(workdir, random.Random(told).randint(1, STEPS // 2), processes)
    # The other one waits meanwhile: a signal takes a second to be noticed, in which so
    # small a run would end.
    processes[1 - told].send(signal.SIGSTOP)
    processes[told].send(signal.SIGTERM)
    time.sleep(1.5)
    processes[1 - told].send(signal.SIGCONT)
    finish(processes, hosts.EXIT_RESTART, hosts.EXIT_RESTART)
    step = int(checkpoint.find_step(workdir).name)
    assert 0 < step < STEPS
    for process in processes:
        assert f"step {step} of {STEPS} is saved" in process.said()
    # Within one step: none was made that is not saved.
    assert lines(workdir)[-1]["step"] == step
    return step


def test_sigterm_to_one_saves_and_ends_all(whole, tmp_path):
    """The same command then goes on as if nothing had been."""
    workdir = tmp_path / "run"
    step = interrupted(jobs.slurm, workdir, told=1)
    processes = pair(jobs.slurm, workdir)
    finish(processes)
    assert f"resumed from step {step}" in processes[0].said()
    assert_same_run(workdir, whole)


def test_a_run_goes_on_with_other_devices_and_processes(whole, tmp_path):
    """8 devices in two processes, then 4 in one, then 2: one curve."""
    workdir = tmp_path / "run"
    step = interrupted(jobs.gke_tpu, workdir, told=0)
    for devices in (4, 2):
        process = jobs.Process(workdir, {}, devices)
        finish([process])
        assert f"resumed from step {step}" in process.said()
        assert f"batch 16 on {devices} device(s)" in process.said()
        assert_same_curve(workdir, whole)
        assert_same_parameters(workdir, whole)
        # As if it had been killed soon after step 6.
        step = 6
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))


@pytest.mark.parametrize(("engine", "killed"), [(jobs.cloud_tpu, 1), (jobs.slurm, 0)])
def test_a_dead_process_ends_the_other(tmp_path, engine, killed):
    """Process 0 runs the service through which the others would hear of a death."""
    workdir = tmp_path / "run"
    processes = pair(engine, workdir, "--config.train.total_steps=10000")
    wait_for_lines(workdir, 2, processes)
    processes[killed].send(signal.SIGKILL)
    killed_at, other = time.monotonic(), processes[1 - killed]
    status = other.process.wait(timeout=60)
    processes[killed].wait()
    print(f"ended after {time.monotonic() - killed_at:.1f} s", file=sys.stderr)
    assert status in (hosts.EXIT_RESTART, -signal.SIGABRT), other.said()
    assert f"error: process {1 - killed} of 2" in other.said()
    assert "Run the same command again on all hosts" in other.said()


def test_a_process_that_hangs_ends_the_other(tmp_path):
    """No connection is closed: the heartbeat is what tells."""
    workdir = tmp_path / "run"
    flags = ("--config.train.total_steps=10000", "--config.mesh.heartbeat_seconds=5")
    processes = pair(jobs.slurm, workdir, *flags)
    wait_for_lines(workdir, 2, processes)
    processes[1].send(signal.SIGSTOP)
    try:
        assert processes[0].process.wait(timeout=60) == -signal.SIGABRT
        said = processes[0].said()
        assert "stopped sending heartbeats" in said
        assert "error: process 0 of 2 (slurm) was ended" in said
    finally:
        processes[1].send(signal.SIGKILL)
        processes[1].wait()


def test_processes_that_differ_are_told(tmp_path):
    """Another seed on one of them."""
    port = jobs.free_port()
    processes = [
        jobs.Process(
            tmp_path / "run", jobs.slurm(index, port), 1, f"--config.train.seed={index}"
        )
        for index in range(2)
    ]
    finish(processes, 1, 1)
    for process in processes:
        assert "error: process 1 and process 0 differ in the config" in process.said()


def test_processes_that_never_come_are_told(tmp_path):
    variables = jobs.slurm(0, jobs.free_port()) | {"CLAP_JAX_START_SECONDS": "3"}
    process = jobs.Process(tmp_path / "run", variables, 1)
    finish([process], hosts.EXIT_RESTART)
    assert "error: process 0 of 2 (slurm) waited 3 s" in process.said()
    assert "not all 2 processes came" in process.said()
