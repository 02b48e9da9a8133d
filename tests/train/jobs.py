"""Real processes on this machine, started as the engines of clusters start them."""

import contextlib
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("tiny.py")
STEPS = 8

# What differs between equal runs.
_CLOCKS = (
    "clips_per_s",
    "pairs_per_s",
    "step_ms",
    "data_wait_fraction",
    "mfu",
    "device_memory_gib",
)
_ENGINES = ("SLURM_", "TPU_", "MEGASCALE_", "JOB", "CLAP_JAX_", "JAX_COORDINATOR_")


def free_port() -> int:
    """A free port among those that Slurm jobs take, so that none is picked twice."""
    for port in random.sample(range(2**16 - 2**12, 2**16), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise AssertionError("no free port")


def slurm(index: int, port: int) -> dict[str, str]:
    """`srun --ntasks=2` on one node."""
    return {
        "SLURM_JOB_ID": str(port - 2**16 + 2**12),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def jobset(index: int, port: int) -> dict[str, str]:
    """A JobSet of two pods; their names mean something in its cluster only."""
    return {
        "JOBSET_NAME": "clap",
        "REPLICATED_JOB_NAME": "worker",
        "JOB_INDEX": "0",
        "JOB_COMPLETION_INDEX": str(index),
        "CLAP_JAX_PROCESS_COUNT": "2",
        "CLAP_JAX_COORDINATOR": f"localhost:{port}",
    }


def gke_tpu(index: int, port: int) -> dict[str, str]:
    """A slice of two hosts on GKE."""
    return {
        "TPU_WORKER_ID": str(index),
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "JAX_COORDINATOR_PORT": str(port),
    }


def cloud_tpu(index: int, port: int) -> dict[str, str]:
    """A slice of two TPU VMs: a metadata server each."""
    attributes = {
        "agent-worker-number": str(index),
        "worker-network-endpoints": "unknown:0:127.0.0.1,unknown:1:127.0.0.1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\n",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    SERVERS.append(server)
    address = f"127.0.0.1:{server.server_port}"
    return {"GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": str(port)}


SERVERS: list[http.server.ThreadingHTTPServer] = []


class Process:
    """One process of a run; its stderr is in a file beside the workdir."""

    def __init__(self, workdir: Path, variables: dict, devices: int, *flags: str):
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_ENGINES)
        }
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        # Small programs as well, since every process needs them.
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        number = len(list(workdir.parent.glob("*.log")))
        self.log = workdir.parent / f"{workdir.name}-{number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "clap_jax.main", f"--config={CONFIG}"),
                    *(f"--workdir={workdir}", *flags),
                ],
                cwd=REPOSITORY,
                env=environment | variables,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=300)

    def send(self, number: int) -> None:
        self.process.send_signal(number)


def pair(engine, workdir: Path, *flags: str, devices: int = 4) -> list[Process]:
    """Two processes, started as `engine` does."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return [
        Process(workdir, engine(index, port), devices, *flags) for index in range(2)
    ]


def finish(processes: list[Process], *statuses: int) -> None:
    """Wait for the end; `statuses` are those expected, 0 where none are given."""
    found = [process.wait() for process in processes]
    said = "\n".join(process.said() for process in processes)
    assert found == list(statuses or [0] * len(processes)), said


def wait_for_lines(workdir: Path, count: int, processes: list[Process]) -> None:
    """Until metrics.jsonl has so many lines."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        for process in processes:
            assert process.process.poll() is None, process.said()
        time.sleep(0.005)


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl, less what clocks said."""
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.endswith(_CLOCKS)
        }
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
