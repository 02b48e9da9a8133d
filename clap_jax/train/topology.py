"""Devices that a step is compiled for, and that need not be there: `--topology=...`.

    v5e:16x16   a TPU slice, as libtpu describes it (pip install 'clap_jax[tpu]')
    cpu:8       virtual devices of this processor
    local       the devices of this machine

Nothing runs on them.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from clap_jax import chips

EXAMPLES = "v5e:2x2, v5e:16x16, v6e:8x8, v5p:4x4x4, v4:2x2x1, tpu7x:2x2x1, cpu:8, local"

# Chips of one host, by how many of them it has; libtpu's own choice is 4.
_HOST_BOUNDS = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}

# A slice is described and not looked for: without these libtpu asks a metadata server,
# and takes the lock of a TPU that another process may have.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """Devices to compile for, and the hosts that they hang on."""

    name: str
    devices: tuple[Any, ...]
    hosts: int

    @property
    def device_kind(self) -> str:
        return self.devices[0].device_kind

    @property
    def chip(self) -> chips.Chip | None:
        """Its rates, if the table has them; of a CPU nothing is known."""
        return chips.find(self.device_kind)


def find(name: str, hosts: int = 0) -> Topology:
    """The devices that `--topology` names, over `--hosts` (0: as many as it has).

    Has to be called before anything runs on a device. Raises ValueError for a name that
    cannot be, and for hosts that the devices do not divide over; ImportError where
    libtpu is missing.
    """
    if name == "local":
        return _checked(name, jax.devices(), hosts, jax.process_count())
    virtual = re.fullmatch(r"cpu:(\d+)", name)
    if virtual:
        return _checked(name, _virtual(int(virtual[1])), hosts, hosts or 1)
    slice_of = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", name)
    if not slice_of or slice_of[1] == "cpu":
        raise ValueError(f"--topology={name} is none; examples: {EXAMPLES}")
    return _tpu(name, math.prod(map(int, slice_of[2].split("x"))), hosts)


def _checked(name: str, devices: list, hosts: int, own: int) -> Topology:
    hosts = hosts or own
    if len(devices) % hosts or hosts != own:
        raise ValueError(
            f"--hosts={hosts} does not fit --topology={name}: {len(devices)} device(s) "
            f"on {own} host(s)"
        )
    return Topology(name, tuple(devices), hosts)


def _virtual(count: int) -> list:
    """So many devices of this processor."""
    if count < 1:
        raise ValueError(f"--topology=cpu:{count} has no device")
    try:
        jax.config.update("jax_num_cpu_devices", max(count, _asked_for()))
    except RuntimeError:
        pass  # Devices are there already: see whether they are enough.
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"--topology=cpu:{count} needs {count} virtual devices, this process began "
            f"with {len(devices)}"
        )
    return devices[:count]


def _asked_for() -> int:
    return max(jax.config.jax_num_cpu_devices, 1)


def _tpu(name: str, count: int, hosts: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"--topology={name} is described by libtpu, which is not installed: "
            "pip install 'clap_jax[tpu]' (no TPU is needed)"
        )
    for variable, value in _QUIET.items():
        # jax writes a warning into these when it finds no TPU.
        if "could not determine" in os.environ.get(variable, "could not determine"):
            os.environ[variable] = value
    # The program is made on this processor, whatever else the machine has.
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {}
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as training has
    if hosts:
        options["chips_per_host_bounds"] = _host_bounds(name, count, hosts)
    elif count < 4:
        options["chips_per_host_bounds"] = (count, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise ValueError(
            f"--topology={name} is no slice that libtpu knows ({reason}); examples: "
            f"{EXAMPLES}"
        ) from None
    devices = tuple(found.devices)
    own = len({device.process_index for device in devices})
    return _checked(name, list(devices), hosts, own)


def _host_bounds(name: str, count: int, hosts: int) -> tuple[int, int, int]:
    if count % hosts or count // hosts not in _HOST_BOUNDS:
        possible = [str(count // n) for n in _HOST_BOUNDS if count % n == 0]
        raise ValueError(
            f"--hosts={hosts} does not fit --topology={name}: its {count} chips hang on "
            f"hosts of 1, 4 or 8, which are {', '.join(possible)} host(s)"
        )
    return _HOST_BOUNDS[count // hosts]


@contextlib.contextmanager
def compiling(topology: Topology) -> Iterator[None]:
    """Compile for `topology` in here: not into jax's persistent cache, if there is one.

    Programs for devices that are not there can be written into it, but not read back.
    """
    key = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, key)
    if topology.devices[0].platform == "tpu":
        jax.config.update(key, math.inf)
    try:
        yield
    finally:
        jax.config.update(key, before)
