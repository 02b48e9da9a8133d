"""Numbered jobs through Apache Beam: on this machine, or on any runner that Beam has.

A job is `function(number)`; it leaves its result in a file, so that nothing has to come
back. Functions must be importable by name: what `python -m` runs is `__main__`, which
other processes do not have.

On this machine each of Beam's workers is a thread that hands its jobs to a process of a
pool. Beam's own mode for processes is not used: when one of them is killed, as for want
of memory, Beam waits for it for ever, and when Beam is killed they stay.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")
"""Those within this process. "DirectRunner" means FnApiRunner here: Beam would first look
for another program, Prism, and fetch it."""

_WATCH_SECONDS = 0.5


class JobError(RuntimeError):
    """Jobs that failed; what the first of them said."""


def run(
    function: Callable[[int], object],
    numbers: Sequence[int],
    workers: int = 1,
    flags: Sequence[str] = (),
) -> None:
    """Do `function(number)` for all numbers, in any order, some maybe more than once.

    workers: processes on this machine; flags: Beam's own, `--runner=DataflowRunner` and
    what that needs; with such a runner, `workers` means nothing. Raises ValueError for
    flags that Beam does not know, and JobError when a job fails.
    """
    if not numbers:
        return
    beam = _beam()
    from apache_beam.options import pipeline_options

    check_flags(flags)
    options = pipeline_options.PipelineOptions(list(flags))
    standard = options.view_as(pipeline_options.StandardOptions)
    local = standard.runner in LOCAL_RUNNERS
    workers = min(workers, len(numbers))
    if local:
        standard.runner = "FnApiRunner"
        direct = options.view_as(pipeline_options.DirectOptions)
        direct.direct_num_workers = workers
        direct.direct_running_mode = "multi_threading" if workers > 1 else "in_memory"
    try:
        with (
            _pool(workers if local else 1),
            _failures() as failures,
            beam.Pipeline(options=options) as pipeline,
        ):
            # Create leaves all in one bundle; Reshuffle lets workers share them.
            _ = (
                pipeline
                | "Numbers" >> beam.Create(list(numbers))
                | "Share" >> beam.Reshuffle()
                | "Work" >> beam.Map(_Here(function) if local else function)
            )
    except Exception as error:
        raise JobError(_words(error)) from error
    if failures:
        raise JobError(_words(failures[0])) from failures[0]


def check_flags(flags: Sequence[str]) -> None:
    """Raise ValueError for flags that Beam would drop without a word."""
    if not flags:
        return
    _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for part in PipelineOptions.__subclasses__():
        part._add_argparse_args(parser)
    known, unknown = parser.parse_known_args(list(flags))
    # Other runners have flags of their own, which a job server adds.
    if unknown and known.runner in LOCAL_RUNNERS:
        raise ValueError(
            f"unknown option {unknown[0]} (nor is it one of Apache Beam's)"
        )


def _beam() -> Any:
    # It warns of optional libraries on import, and logs each error several times over.
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        import apache_beam
    except ImportError:
        raise ValueError("Apache Beam is missing: pip install -e .[pack]") from None
    finally:
        root.setLevel(level)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    return apache_beam


# --- processes on this machine ---

# Of the run that this process is in: Beam pickles what it is given, but not these.
_workers: ProcessPoolExecutor | None = None
_failed: list[Exception] = []


class _Here:
    """A job in the pool, if there is one. What fails is kept, and no other job begun:
    Beam would print the traceback of an error several times."""

    def __init__(self, function: Callable[[int], object]):
        self.function = function

    def __call__(self, number: int) -> None:
        if _failed:
            return
        try:
            if _workers is None:
                self.function(number)
            else:
                _workers.submit(self.function, number).result()
        except Exception as error:  # noqa: BLE001 (`run` raises it)
            _failed.append(error)


@contextmanager
def _failures() -> Iterator[list[Exception]]:
    global _failed
    _failed = []
    yield _failed


@contextmanager
def _pool(workers: int) -> Iterator[None]:
    """Processes for jobs, where there is more than one worker."""
    global _workers
    if workers < 2:
        yield
        return
    # Beam has threads, which do not survive a fork.
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), _begin_worker, (os.getpid(),)
    )
    _workers = pool
    try:
        yield
    finally:
        _workers = None
        pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """End this process when its parent was killed; it would wait for jobs for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _words(error: Exception) -> str:
    """What to tell a person about an error."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed (was there too little memory?)"
    return str(error) or type(error).__name__


# --- progress ---


@contextmanager
def progress(
    count: Callable[[], int], total: int, unit: str, every_seconds: float = 5
) -> Iterator[None]:
    """While it is entered, write how many of `total` units are done and how long the
    rest takes, to standard error."""
    stop = threading.Event()
    begin, done_before = time.monotonic(), count()

    def report() -> None:
        said = done_before
        while not stop.wait(every_seconds):
            done, spent = count(), time.monotonic() - begin
            if done == said:
                continue
            said = done
            left = spent / (done - done_before) * (total - done)
            line = f"{done} of {total} {unit}, about {_duration(left)} left"
            print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
