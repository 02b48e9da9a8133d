"""The device mesh, which array lives where, and moving batches onto it.

Two axes: the batch is split over both, parameters over `fsdp` only. The mesh is built
once, with Auto axes (Explicit ones, today's default of `jax.make_mesh`, break linen's
convolution gradient and `A @ T.T`).
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
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


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise a sentence when the global batch does not divide over devices and parts."""
    if accumulate < 1:
        raise ValueError(f"train.accumulate={accumulate}, expected 1 or more parts")
    devices = mesh.size
    hosts = len({device.process_index for device in mesh.devices.flat})
    unit = devices * accumulate
    if batch_size % unit or batch_size < 1:
        below = batch_size // unit * unit
        fitting = f"{below} or {below + unit}" if below > 0 else f"{unit}"
        parts = f" x train.accumulate={accumulate}" if accumulate > 1 else ""
        raise ValueError(
            f"train.batch_size={batch_size} is not divisible by {devices} devices"
            f"{parts} ({hosts} host(s)); use {fitting}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def host_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that live on this host's devices, ascending.

    On a TPU slice the mesh goes along the torus, so that they are no single block.
    Raises ValueError when hosts do not have equal shares.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = {
        row for (part,) in parts.values() for row in range(*part.indices(batch_size))
    }
    if len(rows) * jax.process_count() != batch_size:
        raise ValueError(
            f"{jax.local_device_count()} of {mesh.size} devices belong to process "
            f"{jax.process_index()} of {jax.process_count()}, expected as many for each"
        )
    return sorted(rows)


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


def digest(tree: Mapping[str, Any]) -> str:
    """Short hex of all leaves and their paths, on one device or over several hosts."""
    found = hashlib.blake2b(digest_size=8)
    for path, leaf in sorted(flatten(tree).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        found.update(path.encode())
        found.update(np.asarray(leaf, order="C").reshape(-1).view(np.uint8))
    return found.hexdigest()


def check_pattern(pattern: Any, what: str) -> None:
    """Raise ValueError where `what`, a key of the config, has no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{what}: {pattern!r} is no regular expression ({error})"
        ) from None


def match(rules: Sequence[tuple[str, Any]], tree: Any, what: str) -> Any:
    """The value of the first rule whose regex matches each leaf's path, as a tree.

    The one mechanism for freezing, rate multipliers, decay and partial loading. A
    rule's regex must match the whole path. Raises ValueError listing leaves that no
    rule covers, and rules that cover no leaf, and for what is no rule.
    """
    for rule in rules:
        if not isinstance(rule, list | tuple) or len(rule) != 2:
            raise ValueError(f"{what}: {rule!r} is no rule, expected [regex, value]")
        check_pattern(rule[0], what)
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

    Looks at shapes only; leaves below `minimum_size` values are not worth the traffic.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        axes = sorted(range(len(shape)), key=lambda axis: (-shape[axis], axis))
        axis = next((axis for axis in axes if shape[axis] % parts == 0), None)
        if axis is None or np.prod(shape) < minimum_size:
            return replicated(mesh)
        return _split(mesh, len(shape), axis)

    return jax.tree.map(rule, tree)


def state_sharding(
    tree: Any, mesh: Mesh, rules: Sequence[tuple[str, int | str]] = ()
) -> Any:
    """Where every leaf of a training state, or of variables, lives: NamedShardings.

    tree: leaves with a shape, of which those under `params/` are parameters. rules:
    `config.mesh.rules`, see there. What has the shape of a parameter and a path that
    ends in its path (an optimizer's moments, the moving average) lives where the
    parameter lives, and all else where `fsdp_sharding` puts it.
    Raises ValueError for a rule that matches no parameter, for an axis that a parameter
    does not have, and for one that `fsdp` does not divide.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    map_with_path(
        lambda path, leaf: shapes.__setitem__(path, np.shape(leaf)),
        _below(tree, "params"),
    )
    rules = [*rules, (".*", "auto")]
    choices = match(rules, dict.fromkeys(shapes, 0), "mesh.rules") if shapes else {}

    def place(path: str, leaf: Any, default: NamedSharding) -> NamedSharding:
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        owner = next((end for end in ends if end in shapes), None)
        if owner is None or shapes[owner] != np.shape(leaf):
            return default
        choice = choices[owner]
        if choice == "auto":
            return default
        if choice == "none":
            return replicated(mesh)
        return _split(mesh, *_checked(owner, shapes[owner], choice, mesh))

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, default: place(path_of(path), leaf, default),
        tree,
        fsdp_sharding(tree, mesh),
    )


def _below(tree: Any, name: str) -> Any:
    """The part of a dict or NamedTuple that has this name; {} where there is none."""
    if isinstance(tree, Mapping):
        return tree.get(name, {})
    return getattr(tree, name, {})


def _checked(
    path: str, shape: tuple[int, ...], axis: Any, mesh: Mesh
) -> tuple[int, int]:
    """The number of axes of a parameter, and the one that a rule splits."""
    if type(axis) is not int:
        raise ValueError(
            f"mesh.rules: {axis!r} for {path} is no number of an axis, nor 'none' or "
            "'auto'"
        )
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"mesh.rules: {path} has no axis {axis}, its shape is {tuple(shape)}"
        )
    if shape[axis] % mesh.shape["fsdp"]:
        raise ValueError(
            f"mesh.rules: axis {axis} of {path} has size {shape[axis]}, which "
            f"mesh.fsdp={mesh.shape['fsdp']} does not divide"
        )
    return len(shape), axis


def _split(mesh: Mesh, dimensions: int, axis: int) -> NamedSharding:
    """One axis over `fsdp`."""
    if mesh.shape["fsdp"] == 1:
        return replicated(mesh)
    spec = [None] * dimensions
    spec[axis] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))


def put(tree: Any, shardings: Any) -> Any:
    """Every leaf as a global array that lives where `shardings` says.

    Values of numpy, which every host has whole, are cut by each host for its own
    devices. Arrays of jax are moved if they live elsewhere.
    """

    def move(leaf: Any, target: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, target)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, target, leaf.__getitem__)

    return jax.tree.map(move, tree, shardings)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch as global arrays `[B, ...]` split over the mesh.

    What is on the devices already stays as it is.
    """
    sharding = batch_sharding(mesh)
    return {
        key: value
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }
