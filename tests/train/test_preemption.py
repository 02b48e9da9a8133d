"""SIGTERM to a run of one process, at every kind of moment."""

import os
import signal

import pytest

from clap_jax import checkpoint, hosts
from clap_jax.evals.encode import ModelEncoder
from clap_jax.train import examine, loop, step
from tests.train.jobs import lines
from tests.train.test_loop import assert_same_checkpoint, small_config


def config():
    return small_config(
        train__total_steps=4,
        checkpoint__keep=1,
        checkpoint__best_metric="eval/kinds/zeroshot_acc",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(config(), workdir)
    return workdir


@pytest.fixture
def told(monkeypatch):
    """Tell the run to end in the n-th call of a function."""

    def at(owner, name, number):
        original, calls = getattr(owner, name), []

        def wrapped(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    yield at
    monkeypatch.undo()


# The steps are logged, evaluated and saved at 2 and 4.
@pytest.mark.parametrize(
    ("owner", "name", "number", "saved"),
    [
        (loop, "_check_clips", 2, 2),  # in a step after which an evaluation is due
        (ModelEncoder, "_encode", 2, 2),  # in that evaluation
        (loop.Checkpoints, "save", 1, 3),  # while step 2 is saved
    ],
)
def test_the_same_command_goes_on(
    whole, tmp_path, told, monkeypatch, owner, name, number, saved
):
    told(owner, name, number)
    with pytest.raises(hosts.Preempted, match=f"step {saved} of 4 is saved"):
        loop.train(config(), tmp_path)
    monkeypatch.undo()
    assert int(checkpoint.find_step(tmp_path).name) == saved
    loop.train(config(), tmp_path)
    assert lines(tmp_path) == lines(whole)
    assert_same_checkpoint(tmp_path, whole)
    # The best checkpoint is known by its score, wherever that came from.
    kept = [
        sorted(p.name for p in (w / "checkpoints").iterdir()) for w in (tmp_path, whole)
    ]
    assert kept[0] == kept[1]


def test_nothing_is_saved_before_the_first_step(tmp_path, told):
    told(step, "compile_step", 1)
    # Compiling comes before the run takes the signal for its own.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    told(examine, "interruptible", 1)
    try:
        with pytest.raises(
            hosts.Preempted, match="before the first of 4 steps: nothing"
        ):
            loop.train(config(), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not checkpoint.has_steps(tmp_path)


def test_an_evaluation_alone_ends_too(whole, told):
    report = (whole / "results.json").read_text()
    told(ModelEncoder, "_encode", 1)
    with pytest.raises(hosts.Preempted):
        examine.evaluate(config(), whole)
    assert (whole / "results.json").read_text() == report


def test_a_checkpoint_of_a_former_version_resumes(whole, tmp_path):
    """Grain wrote the iterator's place, a file for each process."""
    loop.train(config(), tmp_path)
    folder = checkpoint.find_step(tmp_path) / "data"
    state = (folder / "metadata").read_text()
    (folder / "metadata").unlink()
    (folder / "process_0-of-1.json").write_text(state)
    loop.train(config(), tmp_path)
    assert lines(tmp_path) == lines(whole)
    (folder / "process_0-of-1.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="where in the data"):
        loop.train(config(), tmp_path)
