"""What the engine that started this process says about its job.

Each engine sets environment variables of its own (or answers on a metadata server);
`detect` reads them and touches nothing else. Whatever engine it is, these say the same
outright, and fill in what an engine does not tell (the names after the first are those
that other launchers of JAX set):

    CLAP_JAX_COORDINATOR     JAX_COORDINATOR_ADDRESS            host[:port] of process 0
    CLAP_JAX_PROCESS_COUNT   JAX_NUM_PROCESSES, JAX_PROCESS_COUNT
    CLAP_JAX_PROCESS_INDEX   JAX_PROCESS_ID
    JAX_COORDINATOR_PORT     where the port is not part of the address
    JAX_LOCAL_DEVICE_IDS     numbers of this host's GPUs that the process takes
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# The port that JAX takes on Cloud TPU; it is none of the TPU runtime's own.
DEFAULT_PORT = 8482

_COORDINATOR = ("CLAP_JAX_COORDINATOR", "JAX_COORDINATOR_ADDRESS")
_COUNT = ("CLAP_JAX_PROCESS_COUNT", "JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT")
_INDEX = ("CLAP_JAX_PROCESS_INDEX", "JAX_PROCESS_ID")

Environ = Mapping[str, str]
Metadata = Callable[[str], str | None]


class HostsError(RuntimeError):
    """A job whose processes cannot work together; the message says what to do."""


class Job(NamedTuple):
    """This process's place in a job of several."""

    engine: str
    coordinator: str  # host:port of process 0
    process_count: int
    process_index: int
    # GPUs that this process takes of its host's; None: all that it sees.
    local_device_ids: tuple[int, ...] | None = None


class _Known(NamedTuple):
    """What an engine tells; None where it does not. `source` names its variables."""

    engine: str
    source: str
    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None
    local_device_ids: tuple[int, ...] | None = None


def detect(environ: Environ, metadata: Metadata | None = None) -> Job | None:
    """The job that this process is part of; None when it is alone.

    metadata: attribute -> text, or None where there is no such attribute; asked on
        Cloud TPU machines, and only after every other engine.
    Raises HostsError naming the variable: what was found, what was expected.
    """
    outright = all(_first(environ, names) for names in (_COORDINATOR, _COUNT, _INDEX))
    known = None if outright else _ask(environ, metadata)
    if known is None:
        known = _Known("variables", "the variables")
    count = _agreed(environ, _COUNT, known, known.process_count, lowest=1)
    index = _agreed(environ, _INDEX, known, known.process_index, lowest=0)
    coordinator = _first(environ, _COORDINATOR)
    address = environ[coordinator] if coordinator else known.coordinator
    alone = count == 1 and not index
    if alone or (count is None and index is None and address is None):
        return None
    told = {_COUNT[0]: count, _INDEX[0]: index, _COORDINATOR[0]: address}
    missing = [name for name, value in told.items() if value is None]
    if missing:
        raise HostsError(
            f"{' and '.join(missing)} not set, expected beside "
            f"{', '.join(_given(environ, known))}: a process of a job must know the "
            "coordinator's host:port, the number of processes and its own number"
        )
    if index >= count:
        raise HostsError(
            f"process {index} of a job of {count}, by "
            f"{', '.join(_given(environ, known))}: expected 0 to {count - 1}"
        )
    devices = _local_devices(environ) or known.local_device_ids
    return Job(known.engine, _with_port(environ, address), count, index, devices)


def _ask(environ: Environ, metadata: Metadata | None) -> _Known | None:
    """What the first engine that is there says."""
    for engine in (_slurm, _gke_tpu, _jobset):
        if known := engine(environ):
            return known
    return _tpu_vm(environ, metadata) if metadata else None


def _given(environ: Environ, known: _Known) -> list[str]:
    """The variables that were found, as name=value."""
    names = [n for group in (_COUNT, _INDEX, _COORDINATOR) for n in group]
    given = [f"{name}={environ[name]}" for name in names if environ.get(name)]
    return given + ([known.source] if known.engine != "variables" else [])


def _first(environ: Environ, names: tuple[str, ...]) -> str | None:
    """The first of these variables that is set and not empty."""
    return next((name for name in names if environ.get(name)), None)


def _agreed(
    environ: Environ,
    names: tuple[str, ...],
    known: _Known,
    told: int | None,
    lowest: int,
) -> int | None:
    """One number, of which no two sources may say different things."""
    found = {n: _whole(environ, n, lowest) for n in names if environ.get(n)}
    if told is not None:
        found[known.source] = told
    if len(set(found.values())) > 1:
        said = " but ".join(f"{name} says {value}" for name, value in found.items())
        raise HostsError(f"{said}: expected the same number from both")
    return next(iter(found.values()), None)


def _whole(environ: Environ, name: str, lowest: int = 0) -> int:
    """A variable that is a whole number. Raises HostsError."""
    text = environ.get(name, "")
    if not re.fullmatch(r"\s*\d+\s*", text) or int(text) < lowest:
        found = f"{name}={text!r}" if text else f"{name} is not set"
        raise HostsError(f"{found}, expected a whole number, {lowest} or more")
    return int(text)


def _with_port(environ: Environ, address: str) -> str:
    """host:port. A port in the address comes first, then the variable, then ours."""
    port = environ.get("JAX_COORDINATOR_PORT") or str(DEFAULT_PORT)
    if re.search(r"[^:]:\d+$", address) or re.search(r"\]:\d+$", address):
        return address
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16:
        raise HostsError(
            f"JAX_COORDINATOR_PORT={port!r}, expected a number from 1 to {2**16 - 1}"
        )
    return f"{address}:{port}"


def _local_devices(environ: Environ) -> tuple[int, ...] | None:
    text = environ.get("JAX_LOCAL_DEVICE_IDS", "")
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise HostsError(
            f"JAX_LOCAL_DEVICE_IDS={text!r}, expected numbers of devices, as 0,1"
        )
    return tuple(int(number) for number in text.split(",")) if text else None


# --- Slurm -----------------------------------------------------------------------


def _slurm(environ: Environ) -> _Known | None:
    """A step that `srun` started (a batch script by itself is no step)."""
    if not environ.get("SLURM_JOB_ID") or not environ.get("SLURM_STEP_NODELIST"):
        return None
    tasks = _first(environ, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")) or "SLURM_NTASKS"
    nodes = expand_nodes(environ["SLURM_STEP_NODELIST"])
    # Above the ports that Linux hands out, and another one for another job.
    port = 2**16 - 2**12 + _whole(environ, "SLURM_JOB_ID") % 2**12
    return _Known(
        "slurm",
        f"{tasks} and SLURM_PROCID",
        f"{nodes[0]}:{environ.get('JAX_COORDINATOR_PORT') or port}",
        _whole(environ, tasks, 1),
        _whole(environ, "SLURM_PROCID"),
        _slurm_devices(environ, _whole(environ, tasks, 1), len(nodes)),
    )


def expand_nodes(text: str) -> list[str]:
    """The hosts of a Slurm list: `a,n[1,07-09]x` is a, n1x, n07x, n08x, n09x.

    Raises HostsError.
    """
    hosts: list[str] = []
    items = re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", text)
    if ",".join(items) != text or not items:
        raise HostsError(
            f"SLURM_STEP_NODELIST={text!r}, expected hosts like a1,a2 or a[1,07-09]"
        )
    for item in items:
        parts = re.split(r"\[([^\]]*)\]", item)  # odd ones stood in brackets
        choices = [
            _numbers(part, text) if place % 2 else [part]
            for place, part in enumerate(parts)
        ]
        hosts += ["".join(choice) for choice in itertools.product(*choices)]
    return hosts


def _numbers(text: str, whole: str) -> list[str]:
    """`1,07-09` as 1, 07, 08, 09."""
    numbers: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise HostsError(
                f"SLURM_STEP_NODELIST={whole!r} has [{text}], expected numbers and "
                "ranges in brackets, as [1,07-09]"
            )
        first, last = found[1], found[2] or found[1]
        width = len(first)
        numbers += [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    return numbers


def _slurm_devices(environ: Environ, tasks: int, nodes: int) -> tuple[int, ...] | None:
    """This task's share of the node's GPUs; None where it sees only its own.

    With one task a node that is all of them; with one for each GPU, that of its number.
    """
    local = _whole(environ, "SLURM_LOCALID")
    if environ.get("SLURM_STEP_NUM_NODES"):
        nodes = _whole(environ, "SLURM_STEP_NUM_NODES", 1)
    per_node = -(-tasks // nodes)
    if environ.get("SLURM_NTASKS_PER_NODE"):
        per_node = min(_whole(environ, "SLURM_NTASKS_PER_NODE", 1), per_node)
    if per_node == 1 and local == 0:
        return None
    seen = list(filter(None, environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    if not seen:
        return (local,)
    # Where Slurm binds GPUs to tasks, each sees its own, numbered from 0.
    bound = re.search(r"(\d+)$", environ.get("SLURM_GPUS_PER_TASK", ""))
    if len(seen) == (int(bound[1]) if bound and per_node > 1 else 1):
        return None
    if local >= len(seen):
        raise HostsError(
            f"SLURM_LOCALID={local} with CUDA_VISIBLE_DEVICES={','.join(seen)}: "
            f"{per_node} tasks on a node share {len(seen)} GPUs, expected one task for "
            "each GPU, or one for the node"
        )
    share = len(seen) // per_node
    return tuple(range(local * share, (local + 1) * share))


# --- Kubernetes ------------------------------------------------------------------


def _jobset(environ: Environ) -> _Known | None:
    """A pod of a JobSet (its names come through the downward API, as XPK sets them).

    JobSet does not tell how many pods there are: CLAP_JAX_PROCESS_COUNT does. Where
    its jobs are several, PROCESSES_IN_JOB says how many pods each has.
    """
    jobset = environ.get("JOBSET_NAME")
    if not jobset:
        return None
    job, replicas = _whole_or(environ, "JOB_INDEX", 0), "REPLICATED_JOB_NAME"
    if not environ.get(replicas):
        raise HostsError(f"{replicas} is not set, expected beside JOBSET_NAME={jobset}")
    pod = _whole(environ, "JOB_COMPLETION_INDEX")
    if job and not environ.get("PROCESSES_IN_JOB"):
        raise HostsError(
            f"PROCESSES_IN_JOB is not set, expected beside JOB_INDEX={job}: the number "
            "of pods of each of the JobSet's jobs"
        )
    if _first(environ, _COUNT) is None:
        raise HostsError(
            f"{_COUNT[0]} is not set, expected beside JOBSET_NAME={jobset}: the number "
            "of pods of the JobSet"
        )
    return _Known(
        "jobset",
        "JOB_INDEX and JOB_COMPLETION_INDEX",
        f"{jobset}-{environ[replicas]}-0-0.{jobset}",
        None,
        pod + (job * _whole(environ, "PROCESSES_IN_JOB", 1) if job else 0),
    )


def _whole_or(environ: Environ, name: str, default: int) -> int:
    return _whole(environ, name) if environ.get(name) else default


# --- Cloud TPU -------------------------------------------------------------------


def _gke_tpu(environ: Environ) -> _Known | None:
    """A pod on a TPU slice: GKE names the slice's hosts."""
    name = _first(environ, ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    if name is None:
        return None
    hosts = environ[name].split(",")
    slices = _whole_or(environ, "MEGASCALE_NUM_SLICES", 1)
    if len(hosts) == slices == 1:
        return None
    worker = _whole(environ, "TPU_WORKER_ID")
    return _tpu(environ, "gke tpu", f"TPU_WORKER_ID and {name}", hosts, worker)


def _tpu_vm(environ: Environ, metadata: Metadata) -> _Known | None:
    """A TPU machine: the metadata server names the slice's hosts."""
    worker = metadata("agent-worker-number")
    if worker is None:
        return None
    endpoints = metadata("worker-network-endpoints") or ""
    # Either addresses alone, or name:id:address.
    hosts = [item.split(":")[-1] for item in endpoints.split(",")]
    tpu_env = metadata("tpu-env") or ""
    found = re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*(.*?)\s*$", tpu_env, re.MULTILINE)
    values: dict[str, Any] = {name: value.strip("'\"") for name, value in found}
    values = {**values, **environ, "agent-worker-number": worker}
    if not endpoints:
        raise HostsError(
            f"the metadata server says agent-worker-number {worker}, but no "
            "worker-network-endpoints: expected the addresses of the slice's workers"
        )
    worker_index = _whole(values, "agent-worker-number")
    source = "the metadata server's worker-network-endpoints"
    return _tpu(values, "cloud tpu", source, hosts, worker_index)


def _tpu(
    values: Environ, engine: str, source: str, hosts: list[str], worker: int
) -> _Known:
    """Process `worker` of a slice; of several slices (MEGASCALE_*), slice by slice."""
    slices = _whole_or(values, "MEGASCALE_NUM_SLICES", 1)
    number, coordinator = 0, hosts[0]
    if slices > 1:
        number = _whole(values, "MEGASCALE_SLICE_ID")
        coordinator = values.get("MEGASCALE_COORDINATOR_ADDRESS", "")
        if not coordinator or number >= slices:
            raise HostsError(
                f"MEGASCALE_NUM_SLICES={slices} with MEGASCALE_SLICE_ID={number} and "
                f"MEGASCALE_COORDINATOR_ADDRESS={coordinator!r}, expected a number "
                f"below {slices} and the address of the first slice's first host"
            )
    if worker >= len(hosts):
        raise HostsError(
            f"worker {worker} of a slice whose hosts are {','.join(hosts)} ({source}): "
            f"expected 0 to {len(hosts) - 1}"
        )
    # The ports there are those of other services.
    host = re.sub(r":\d+$", "", coordinator)
    count, index = slices * len(hosts), number * len(hosts) + worker
    return _Known(engine, source, host, count, index)
