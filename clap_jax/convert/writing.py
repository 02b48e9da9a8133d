"""Writing checkpoints: whole or not at all, one tensor in memory at a time."""

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clap_jax import config as config_lib
from clap_jax.convert import files, pickles
from clap_jax.convert.rules import ConversionError, back_cast, is_float

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,
}
"""Dtypes of weights by name."""

# What a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)

# Key -> how to make the tensor.
Makers = dict[str, Callable[[], np.ndarray]]

# Bytes of source tensors after which the memory of mapped pages is given back.
_RELEASE_BYTES = 64 * 2**20


@dataclasses.dataclass
class Lazy:
    """A tensor that is made when it is asked for, by `np.asarray`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # always a new one
        return np.asarray(self.make(), dtype)


def dtype_of(name: str) -> np.dtype:
    """A dtype for weights. Errors: ValueError on others."""
    if name not in DTYPES:
        raise ValueError(config_lib.unknown("dtype", name, DTYPES))
    return np.dtype(DTYPES[name])


def casts(makers: Makers, dtypes: Mapping[str, str], dtype: str | None) -> Makers:
    """`makers` followed by a cast: to `dtype` by rounding, else to `dtypes` exactly."""

    def cast(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        array = np.asarray(make())
        if not is_float(array.dtype):
            return array
        if dtype is not None:
            with np.errstate(over="ignore"):  # found by the comparison
                cast = np.asarray(array, dtype_of(dtype), order="C")
            if not np.array_equal(np.isfinite(cast), np.isfinite(array)):
                raise ValueError(f"{key}: values too large for {dtype}")
            return cast
        if key in dtypes:
            return back_cast(key, array, dtype_of(dtypes[key]))
        return array

    return {
        key: lambda key=key, make=make: cast(key, make) for key, make in makers.items()
    }


def tensors(
    makers: Makers, release: Callable[[], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in turn. Errors: ConversionError that lists all that cannot be.

    `release` is called now and then, before a tensor is made, for mapped sources.
    """
    errors, seen = [], 0
    for key, make in makers.items():
        if seen > _RELEASE_BYTES:
            release()
            seen = 0
        try:
            array = make()
        except ValueError as error:
            errors.append(str(error))
            continue
        seen += array.nbytes
        yield key, array
    release()
    if errors:
        hint = "tensors are not exact in the dtype of the file that they came from"
        raise ConversionError(errors, f"{hint}; choose one with --dtype")


def lazy(makers: Makers, release: Callable[[], None]) -> dict[str, Lazy]:
    """Each tensor made once, to know its shape and that it can be made, and forgotten.

    Errors: as `tensors`.
    """
    seen = 0

    def again(make: Callable[[], np.ndarray]) -> np.ndarray:
        nonlocal seen
        if seen > _RELEASE_BYTES:
            release()
            seen = 0
        array = make()
        seen += array.nbytes
        return array

    return {
        key: Lazy(array.shape, array.dtype, lambda key=key: again(makers[key]))
        for key, array in tensors(makers, release)
    }


def write_torch(
    path: Path,
    makers: Makers,
    tied: Mapping[str, str],
    release: Callable[[], None],
    container: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """A PyTorch file. tied: key -> key whose tensor it shares."""
    torch = pickles.import_torch()
    state = {
        key: files.to_torch(array)
        for key, array in tensors(
            {key: make for key, make in makers.items() if key not in tied}, release
        )
    }
    whole = {key: state[tied.get(key, key)] for key in makers}
    torch.save(container(whole), path)


def check_destination(path: Path, overwrite: bool, known: tuple[str, ...]) -> None:
    """ValueError where something is in the way at `path`.

    known: names of everything that a folder of this kind may hold; one that holds
    anything else is never replaced.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{path} exists already: --overwrite replaces it")
    names = [x.name for x in path.iterdir()] if path.is_dir() else []
    others = set(names) - set(known)
    if others:
        raise ValueError(
            f"{path} holds more than a model ({min(others)}), and is not replaced: "
            "choose another folder"
        )


@contextlib.contextmanager
def destination(path: Path, overwrite: bool, known: tuple[str, ...]) -> Iterator[Path]:
    """A place beside `path` to write to, which becomes `path` when all went well.

    Errors: as `check_destination`.
    """
    check_destination(path, overwrite, known)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield fresh
        if path.is_dir():
            old = fresh.with_suffix(".old")
            os.rename(path, old)
            try:
                os.rename(fresh, path)
            except OSError:
                os.rename(old, path)
                raise
            shutil.rmtree(old)
        else:
            os.replace(fresh, path)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)
        else:
            fresh.unlink(missing_ok=True)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
    )
