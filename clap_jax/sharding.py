"""The device mesh, which array lives where, and moving batches onto it.

Two axes: the batch is split over both, parameters over `fsdp` only. The mesh is built
once, with Auto axes (Explicit ones, today's default of `jax.make_mesh`, break linen's
convolution gradient and `A @ T.T`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence | None = None) -> Mesh:
    """A `data` x `fsdp` mesh; -1 for `data` takes every device that `fsdp` leaves.

    Raises ValueError when the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or data == 0 or data < -1:
        raise ValueError(
            f"mesh.data={data} must be positive or -1, mesh.fsdp={fsdp} positive"
        )
    if data == -1:
        data = len(devices) // fsdp
    if data * fsdp != len(devices) or data < 1:
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={fsdp} needs {data * fsdp} devices, "
            f"found {len(devices)}"
        )
    return jax.make_mesh(
        (data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise a sentence when the global batch does not divide over devices and hosts."""
    devices, hosts = mesh.size, jax.process_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        fitting = f"{below} or {below + devices}" if below else f"{devices}"
        raise ValueError(
            f"train.batch_size={batch_size} is not divisible by {devices} devices "
            f"({hosts} host(s)); use {fitting}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def path_of(key_path: tuple) -> str:
    """`/`-joined path of a leaf, e.g. `params/audio/stage0/block1/attention/kernel`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
        for key in key_path
    )


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`jax.tree.map` with the leaf's `/`-joined path as the first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_of(path), leaf), tree
    )


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Nested dicts to one dict with joined paths; empty dicts are left out."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{name}{separator}{path}": leaf for path, leaf in inner.items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, for `/` (empty dicts do not come back)."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def match(rules: Sequence[tuple[str, Any]], tree: Any, what: str) -> Any:
    """The value of the first rule whose regex matches each leaf's path, as a tree.

    The one mechanism for freezing, rate multipliers, decay and partial loading. A
    rule's regex must match the whole path. Raises ValueError listing leaves that no
    rule covers, and rules that cover no leaf.
    """
    used, uncovered = set(), []

    def value(path: str, leaf: Any) -> Any:
        del leaf
        for number, (pattern, result) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(number)
                return result
        uncovered.append(path)
        return None

    values = map_with_path(value, tree)
    if uncovered:
        shown = ", ".join(uncovered[:5])
        raise ValueError(
            f"{what}: {len(uncovered)} parameter(s) match no rule, e.g. {shown}; "
            "end the rules with ('.*', ...)"
        )
    # A pattern with a slip would otherwise freeze or spare nothing, silently.
    idle = [
        pattern
        for number, (pattern, _) in enumerate(rules)
        if number not in used and pattern != ".*"
    ]
    if idle:
        raise ValueError(f"{what}: no parameter matches {', '.join(map(repr, idle))}")
    return values


def fsdp_sharding(tree: Any, mesh: Mesh, minimum_size: int = 2**16) -> Any:
    """Shard each large leaf's longest divisible axis over `fsdp`, replicate the rest.

    Works for parameters, optimizer state and averages alike, since it looks at shapes
    only; leaves below `minimum_size` values are not worth the traffic.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        axes = sorted(range(len(shape)), key=lambda axis: (-shape[axis], axis))
        axis = next((axis for axis in axes if shape[axis] % parts == 0), None)
        if parts == 1 or axis is None or np.prod(shape) < minimum_size:
            return replicated(mesh)
        spec = [None] * len(shape)
        spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch as global arrays `[B, ...]` split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }
