"""A job of several processes: finding each other, agreeing, ending together.

`start` comes before the first use of a device. From then on JAX's coordination service,
which runs in process 0, watches every process: one that falls silent, or whose machine
does, ends all others. `Preemption` tells a run to save and end, on all hosts at the
same point. A process that is alone needs none of this, and gets none.
"""

import atexit
import itertools
import logging as python_logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import numpy as np
from absl import logging
from jax._src import distributed
from jax.experimental import multihost_utils

from clap_jax import remote
from clap_jax.engines import HostsError, Job, detect

EXIT_RESTART = 75
"""Exit status that asks for the same command again: the run saved because it was told
to end (SIGTERM), or it lost contact with the other processes, or never had any.
sysexits.h calls it a temporary failure. A process that JAX aborts, since another one is
dead, ends by SIGABRT (134 in a shell), which asks for the same."""

# How long processes wait for each other at the start.
START_SECONDS = 300

# How long `largest` waits. Of a process that died the heartbeat knows much sooner.
AGREE_SECONDS = 24 * 3600

_agreements = itertools.count()

# What a failed collective says when the process at its other end has gone.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "oordination", "Connection closed", "heartbeat")

_GO_ON = (
    "Run the same command again on all hosts: it goes on from the newest checkpoint."
)


class Preempted(Exception):
    """The run was told to end, and has saved what it needs to go on."""


class Unreached(HostsError):
    """The other processes did not come in time; they may, the next time."""


# --- starting --------------------------------------------------------------------


def start(heartbeat_seconds: float) -> Job | None:
    """Join the job that this process is part of, if there is one.

    heartbeat_seconds: how long a process may be silent before it counts as dead.
    Raises HostsError: variables that make no sense (see `clap_jax.engines`), or a
    coordinator that is not reached in START_SECONDS (CLAP_JAX_START_SECONDS).
    """
    job = detect(os.environ, metadata if _on_cloud_tpu() else None)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end_at_once)
    if job is None:
        return None
    if heartbeat_seconds < 1:
        raise HostsError(
            f"mesh.heartbeat_seconds={heartbeat_seconds}, expected 1 or more"
        )
    logging.info("%s, coordinator %s", _place(job), job.coordinator)
    # Two steps in flight would mix up their messages to other processes.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    deadline = time.monotonic() + _start_seconds()
    _wait_for_coordinator(job, deadline)
    with _Limit(deadline, _nobody_came(job)):
        jax.distributed.initialize(
            job.coordinator,
            job.process_count,
            job.process_index,
            local_device_ids=job.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=round(_start_seconds()) + 60,  # ours comes first
            heartbeat_timeout_seconds=round(heartbeat_seconds),
        )
    _LastWords.begin(job)
    if job.process_index:
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(
            python_logging.Formatter(f"[process {job.process_index}] %(message)s")
        )
    return job


def metadata(key: str) -> str | None:
    """An attribute of this Google Cloud machine; None where it has no such one."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    for attempt in range(5):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            problem = error
        except OSError as error:
            problem = error
        time.sleep(0.2 * 2**attempt)
    raise HostsError(f"no answer from the metadata server ({url}): {problem}")


def _on_cloud_tpu() -> bool:
    """Whether the metadata server is to be asked for the other hosts of a TPU slice.

    JAX sets TPU_SKIP_MDS_QUERY where it finds no TPU chip; that libtpu is installed
    says nothing. GCE_METADATA_IP names a server, so somebody wants it asked.
    """
    if os.environ.get("GCE_METADATA_IP"):
        return True
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
    return wanted and "TPU_SKIP_MDS_QUERY" not in os.environ


def _start_seconds() -> float:
    text = os.environ.get("CLAP_JAX_START_SECONDS") or str(START_SECONDS)
    try:
        return float(text)
    except ValueError:
        raise HostsError(
            f"CLAP_JAX_START_SECONDS={text!r}, expected a number of seconds"
        ) from None


def _wait_for_coordinator(job: Job, deadline: float) -> None:
    """Until its port is free here (process 0), or answers (all others).

    JAX would abort the process, in words that few understand.
    """
    host, _, port = job.coordinator.rpartition(":")
    problem: OSError | None = None
    while True:
        try:
            if job.process_index:
                socket.create_connection((host.strip("[]"), int(port)), 5).close()
            else:
                socket.create_server(("", int(port))).close()
            return
        except OSError as error:
            problem = error
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if job.process_index == 0:
        raise HostsError(
            f"port {port} of this host, where process 0 is to wait for the others, "
            f"cannot be had ({problem}): end what holds it, or set "
            "JAX_COORDINATOR_PORT to the same free port on all hosts"
        )
    raise Unreached(
        f"{_place(job)} did not reach the coordinator {job.coordinator} in "
        f"{_start_seconds():g} s ({problem}): see that process 0 was started, and "
        "that hosts may connect to each other on that port"
    )


def _place(job: Job) -> str:
    return f"process {job.process_index} of {job.process_count} ({job.engine})"


def _nobody_came(job: Job) -> str:
    return (
        f"{_place(job)} waited {_start_seconds():g} s at {job.coordinator}, and not "
        f"all {job.process_count} processes came: see that each was started, with "
        f"numbers 0 to {job.process_count - 1}, and what their logs say"
    )


class _Limit:
    """Ends the process with a message at a time, unless what is inside is done."""

    def __init__(self, deadline: float, message: str):
        self._message = message
        self._timer = threading.Timer(deadline - time.monotonic(), self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        os.write(2, f"error: {self._message}\n".encode())
        os._exit(EXIT_RESTART)


# --- ending ----------------------------------------------------------------------


class _LastWords:
    """Says in a sentence what happened when JAX aborts this process.

    When another process has died JAX ends this one from within, and no line of Python
    runs any more. A shell, which costs next to nothing, waits for that.
    """

    job: Job | None = None
    _shell: subprocess.Popen | None = None

    @classmethod
    def begin(cls, job: Job) -> None:
        message = (
            f"error: {_place(job)} was ended: it was killed, or another process of the "
            "job died or could not be reached any more (the lines above, or that "
            f"process's own log, say which). {_GO_ON}"
        )
        script = 'trap "" TERM INT HUP; read -r _ || printf "%s\\n" "$1" >&2'
        cls._shell = subprocess.Popen(
            ["sh", "-c", script, "sh", message],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        cls.job = job
        atexit.register(cls.end)

    @classmethod
    def end(cls) -> None:
        """Nothing to say: the process ends by itself."""
        if cls._shell is not None:
            cls._shell.communicate(b"done\n")
            cls._shell = None


def alone() -> bool:
    """Whether this process has joined no job of several."""
    return _LastWords.job is None


def again(error: BaseException) -> str:
    """A sentence for an error that is another process's, network's or store's fault.

    "" where the error is of another kind; else the same command is worth another try.
    """
    if isinstance(error, Unreached):
        return str(error)
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, remote.StoreError):
            return f"{cause}. {_GO_ON}"
    found = [
        str(cause)
        for cause in causes
        if isinstance(cause, jax.errors.JaxRuntimeError)
        and any(word in str(cause) for word in _LOST)
    ]
    if not found or alone():
        return ""
    text = found[0]
    return (
        f"{_place(_LastWords.job)} lost contact with another process, which has died "
        "or cannot be reached any more; that process's own log says why "
        f"({text.splitlines()[0][:300]}). {_GO_ON}"
    )


def leave(status: int) -> NoReturn:
    """End a process that failed, without waiting for the others, who may never come."""
    _LastWords.end()
    sys.stdout.flush()
    sys.stderr.flush()
    if alone():
        sys.exit(status)
    if _LastWords.job.process_index == 0:
        # Who meets the same error says so before the coordinator is gone.
        time.sleep(2)
    os._exit(status)


def _end_at_once(number: int, frame: Any) -> NoReturn:
    """SIGTERM where there is nothing to save."""
    del frame
    os.write(2, b"told to end (SIGTERM) outside of training: nothing to save\n")
    sys.exit(EXIT_RESTART)


class Preemption:
    """Whether the run was told to end (SIGTERM), with the same answer on every host.

    One process looks at a flag. Several agree through JAX's coordination service: any
    host's signal reaches all of them in about a second, and the answer turns to True at
    the same call of `reached`, which all of them make equally often. Later signals
    change nothing; SIGINT (Ctrl-C) still ends a process at once.
    """

    def __init__(self):
        self._told = self._reached = False
        self._calls = 0
        self._previous: Any = None

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and here:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: Any) -> None:
        self._told = True

    def reached(self) -> bool:
        """Whether to save and end now; stays True."""
        if jax.process_count() == 1:
            self._reached = self._told
        elif not self._reached:
            self._calls += 1
            sync_point = multihost_utils.reached_preemption_sync_point
            self._reached = sync_point(self._calls)
        return self._reached

    def check(self) -> None:
        """Raise Preempted when the run is to end: for work that may be dropped."""
        if self.reached():
            raise Preempted("told to end (SIGTERM)")


# --- agreeing --------------------------------------------------------------------


def from_first(values: np.ndarray) -> np.ndarray:
    """The array of process 0, on all; shape and dtype are the same on all."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def largest(value: int) -> int:
    """The largest of the processes' numbers, on all; each calls this equally often.

    Through the coordination service, not the devices: nothing waits for the steps that
    these have under way.
    """
    if jax.process_count() == 1:
        return value
    client, number = distributed.global_state.client, next(_agreements)
    place = f"clap_jax/largest/{number}/"
    client.key_value_set(f"{place}{jax.process_index()}", str(value))
    client.wait_at_barrier(place, AGREE_SECONDS * 1000)
    found = client.key_value_dir_get(place)
    if jax.process_index() == 0 and number:
        # Who came here has read the answer before this one.
        client.key_value_delete(f"clap_jax/largest/{number - 1}/")
    return max(int(text) for _, text in found)


def check_equal(texts: Mapping[str, str]) -> None:
    """Raise HostsError, on all processes, when one has another text than process 0."""
    if jax.process_count() == 1:
        return
    own = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    found = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, len(texts))
    for name, column in zip(texts, found.T, strict=True):
        others = np.flatnonzero(column != column[0])
        if len(others):
            shown = ", ".join(map(str, others[:5]))
            raise HostsError(
                f"process {shown} and process 0 differ in {name}: all hosts must run "
                "the same code with the same command on the same files"
            )


def check_shared(folder: Path) -> None:
    """Raise HostsError, on all processes, when they do not all see this folder."""
    if jax.process_count() == 1:
        return
    token = from_first(np.frombuffer(uuid.uuid4().bytes, np.uint8)).tobytes().hex()
    probe = folder / f".shared-{token[:16]}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    multihost_utils.sync_global_devices("folder")
    # A network disk may show new files late.
    for _ in range(50):
        seen = probe.exists()
        if seen:
            break
        time.sleep(0.1)
    all_seen = np.asarray(multihost_utils.process_allgather(np.array([seen])))
    if jax.process_index() == 0:
        probe.unlink(missing_ok=True)
    blind = np.flatnonzero(~all_seen.reshape(-1))
    if len(blind):
        shown = ", ".join(map(str, blind[:5]))
        raise HostsError(
            f"process {shown} does not see what process 0 writes in {folder}: "
            "--workdir must be a folder that all hosts share"
        )
