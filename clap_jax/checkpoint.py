"""Orbax checkpoints of a run, and the parameters-only export.

A step folder holds separate items, so that using a model never reads its optimizer:

    model      {"params", "state"} of the towers
    average    {"params"}: the moving average, when the run keeps one
    training   optimizer state, step and metric totals
    data       position of the data iterator (JSON), the same for every process

An export is a folder with `spec.json`, `model.safetensors` and the tokenizer.
"""

import contextlib
import errno
import functools
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from clap_jax import sharding

WEIGHTS_FILE = "model.safetensors"

# Of a leaf at least so large, each device that has it writes a part.
SHARED_WRITING_BYTES = 2**20

# The format's names of numpy's dtypes.
_SAFETENSORS_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says what to do."""


class Checkpoints:
    """The checkpoints of one workdir: asynchronous saves, newest and best are kept."""

    def __init__(self, folder: Path, keep: int = 2, best_metric: str = ""):
        self.folder = folder
        self._best_metric = best_metric
        policies = [ocp.checkpoint_managers.LatestN(n=keep)]
        if best_metric:
            policies.append(
                ocp.checkpoint_managers.BestN(
                    n=1,
                    get_metric_fn=self._score,
                    keep_checkpoints_without_metrics=False,
                )
            )
        _share_writing()
        self._manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
                    policies
                ),
                # Without it Orbax does not write metrics, and forgets them on resume.
                best_fn=self._score if best_metric else None,
                # A killed save leaves a temporary folder, which nobody else will clean.
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def _score(self, metrics: dict[str, float]) -> float:
        return metrics.get(self._best_metric, -math.inf)

    def save(
        self, step: int, items: dict[str, Any], iterator: Any, metrics: dict[str, float]
    ) -> None:
        """Begin to save `items` and the iterator's position as `step`.

        Returns when the values are copied; writing goes on in the background, and an
        error there is raised by the next save or by `wait`. Of a step that is there
        already, only metrics are added.
        """
        self.wait()  # an error of the save before this one is told as its own
        composite = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        name = self._best_metric
        # What was not evaluated is never the best; Orbax wants metrics of every step.
        best = {name: metrics.get(name, -math.inf)} if name else None
        with self._explained(step):
            if step == self.latest_step():
                if name in metrics:
                    self._add_metrics(step, best)
                return
            data = ocp.args.JsonSave(iterator.get_state())
            self._manager.save(
                step,
                args=ocp.args.Composite(**composite, data=data),
                metrics=best,
            )

    def wait(self) -> None:
        """Block until every save is complete; raise CheckpointError if one failed."""
        with self._explained(None):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, step: int, templates: dict[str, Any], iterator: Any) -> dict:
        """The items of `step`, shaped, typed and sharded like `templates`.

        The iterator is moved to where it stood. Raises CheckpointError where the state
        does not fit, and what the iterator raises for a place in other data.
        """
        composite = {
            name: ocp.args.StandardRestore(_abstract(tree))
            for name, tree in templates.items()
        }
        # First, and outside: where the data differ, the iterator says so itself.
        iterator.set_state(self._iterator_state(step))
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**composite))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{self.folder / str(step)} does not fit this config, or is damaged: "
                f"{str(error).strip()[:500]}. Go on with the config that began the run "
                "(optimizer, average and frozen parameters must be the same), or begin "
                "another --workdir with init_from"
            ) from error
        return {name: restored[name] for name in templates}

    def _iterator_state(self, step: int) -> dict[str, Any]:
        """What `get_state` said when `step` was saved, by however many processes."""
        folder = self.folder / str(step) / "data"
        # Before there were several hosts, Grain wrote it, a file for each process.
        former = sorted(folder.glob("process_*.json"))
        if former:
            return json.loads(former[0].read_text())
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(data=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{folder} does not say where in the data the run stood: "
                f"{str(error).strip()[:300]}. Go on from another step, or begin another "
                "--workdir with init_from"
            ) from error
        return restored["data"]

    def _add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics for a step that was saved without, as Orbax would have written them.

        Such is a step of a run that was told to end when an evaluation was due.
        """
        path = self.folder / str(step) / "metrics" / "metrics"
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(metrics))
            temporary.replace(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("metrics")
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()

    def _explained(self, step: int | None) -> "_Explain":
        return _Explain(self, step)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to the loop to look for the end of a run.

    It would ask JAX with other numbers, and from other threads, than the loop does, who
    might then miss its point to stop (see `clap_jax.hosts.Preemption`).
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@functools.cache
def _share_writing() -> None:
    """Let the devices that have a copy of a large leaf each write a part of it.

    By Orbax's default they do so with every leaf, in slices that each take a program to
    cut: seconds in which a small run stands still.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns that something was there before
    try:
        ocp.type_handlers.register_type_handler(
            jax.Array,
            ocp.type_handlers.ArrayHandler(
                min_slice_bytes_for_replica_parallel=SHARED_WRITING_BYTES
            ),
            override=True,
        )
    finally:
        logging.set_verbosity(verbosity)


class _Explain:
    """Turns any failure to write into a sentence that says what is safe."""

    def __init__(self, checkpoints: Checkpoints, step: int | None):
        self._checkpoints, self._step = checkpoints, step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or not isinstance(error, Exception):
            return
        folder = self._checkpoints.folder
        what = "a checkpoint" if self._step is None else f"step {self._step}"
        free_mib = shutil.disk_usage(folder).free / 2**20
        complete = _complete_steps(folder)
        raise CheckpointError(
            f"could not save {what} in {folder} ({free_mib:,.0f} MiB free there): "
            f"{_reason(error)}. Complete checkpoints: {complete or 'none'}. Make "
            "room and run the same command again; it goes on from the newest one."
        ) from error


def _reason(error: Exception) -> str:
    """The operating system's own words where they are in there, else the first line."""
    text = str(error).strip() or type(error).__name__
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text.splitlines()[0][:300]


def _complete_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def has_steps(workdir: Path) -> bool:
    """Whether a workdir holds a complete checkpoint."""
    return bool(_complete_steps(workdir / "checkpoints"))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        tree,
    )


def load_variables(folder: Path, *, raw: bool = False) -> dict[str, Any]:
    """Variables `{"params", "state"}` as numpy arrays, from any folder of ours.

    `folder` is a workdir (its newest step), a step folder, or an export. The moving
    average stands in for the parameters where the run kept one, unless `raw`.
    Raises CheckpointError when `folder` is none of these.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return load_export(folder)
    step = find_step(folder)
    variables = restore_numpy(step / "model")
    if (step / "average").is_dir() and not raw:
        variables["params"] = restore_numpy(step / "average")["params"]
    return variables


def find_step(folder: Path) -> Path:
    """The step folder that `folder` is, or the newest one that it holds."""
    if (folder / "model").is_dir():
        return folder
    checkpoints = folder / "checkpoints"
    steps = _complete_steps(checkpoints)
    if not steps:
        raise CheckpointError(
            f"{folder} holds no model: expected {WEIGHTS_FILE} (a saved model), "
            "checkpoints/<step> (a workdir) or model/ (one step of a workdir)"
        )
    return checkpoints / str(steps[-1])


def restore_numpy(folder: Path) -> Any:
    """One item without its sharding, as numpy arrays, on whatever devices are here."""
    # The handler alone: the checkpointer around it warns that an item is no checkpoint.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(folder.absolute()).tree
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        return handler.restore(
            folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=arguments)
        )


def save_export(folder: Path, variables: dict[str, Any]) -> None:
    """Write variables as safetensors, keys being the `/`-joined parameter paths."""
    flat: dict[str, Any] = {}
    sharding.map_with_path(flat.__setitem__, variables)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS_FILE, flat, {"format": "clap_jax"})


def write_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, one tensor in memory at a time, whole or not at all.

    tensors: key -> anything with `shape` and `dtype` that `np.asarray` takes. The
    library's own `save_file` first copies all of them. Format: 8 bytes, the length of
    the header; the header, JSON; the values of each tensor, little-endian, C order.
    """
    # Wide values first, so that every tensor starts at a multiple of its width.
    tensors = dict(
        sorted(tensors.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    )
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        start, end = end, end + math.prod(tensor.shape) * dtype.itemsize
        header[key] = {
            "dtype": _SAFETENSORS_DTYPES[dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                values = np.asarray(tensor, order="C")
                file.write(values.reshape(-1).view(np.uint8).data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_export(folder: Path) -> dict[str, Any]:
    """The inverse of `save_export`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} cannot be read: {error}"
        ) from error
    return {"params": {}, "state": {}} | sharding.unflatten(flat)


def fill(target: Any, source: Any, pattern: str, origin: str) -> Any:
    """Replace the leaves of `target` whose path matches `pattern` by those of `source`.

    Every matching leaf must exist in `source` with the same shape; all misfits are
    collected into one CheckpointError.
    """
    available: dict[str, Any] = {}
    sharding.map_with_path(available.__setitem__, source)
    chosen = sharding.match(((pattern, True), (".*", False)), target, "init_pattern")
    problems: list[str] = []

    def pick(path: str, leaf: Any, wanted: bool) -> Any:
        if not wanted:
            return leaf
        if path not in available:
            problems.append(f"{path} is missing")
        elif np.shape(available[path]) != np.shape(leaf):
            found = np.shape(available[path])
            problems.append(f"{path} has shape {found}, expected {np.shape(leaf)}")
        else:
            return np.asarray(available[path], dtype=leaf.dtype)
        return leaf

    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf, wanted: pick(sharding.path_of(path), leaf, wanted),
        target,
        chosen,
    )
    if problems:
        shown = "; ".join(problems[:10])
        raise CheckpointError(f"{origin}: {len(problems)} misfit(s): {shown}")
    count = sum(jax.tree.leaves(chosen))
    logging.info("%d parameters from %s (pattern %r)", count, origin, pattern)
    return filled


def find_home(folder: Path) -> Path:
    """The folder with `spec.json` and the tokenizer: `folder`, or a step's workdir."""
    for home in (folder, folder.parent, folder.parent.parent):
        if (home / "spec.json").is_file():
            return home
    raise CheckpointError(f"no spec.json in {folder} or the two folders above it")
