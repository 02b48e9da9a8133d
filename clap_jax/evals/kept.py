"""Results on disk, one file each, so that an examination goes on where it was stopped."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clap_jax.evals.base import Miss, Result, Written

# Of a file: `_REST` is JSON of what is no array.
_REST = "rest"
# Fields that hold such objects.
_PARTS = {"misses": Miss, "written": Written}


def write(path: Path, result: Result) -> None:
    """Write a result; the file is there whole, or not at all."""
    arrays, rest = {}, {}
    for name, value in _fields(result).items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, dict) and any(
            isinstance(entry, np.ndarray) for entry in value.values()
        ):
            arrays |= {f"{name}/{key}": entry for key, entry in value.items()}
        else:
            rest[name] = value
    for name in _PARTS:
        rest[name] = [dataclasses.asdict(part) for part in rest[name]]
    text = json.dumps(rest, default=lambda number: number.item())
    rest_of_it = np.frombuffer(text.encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays, **{_REST: rest_of_it})
    partial.replace(path)


def read(path: Path) -> Result | None:
    """The result of a file; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        rest: dict[str, Any] = json.loads(arrays.pop(_REST).tobytes())
        for name, kind in _PARTS.items():
            rest[name] = tuple(kind(**_tuples(part)) for part in rest[name])
        rest["intervals"] = {
            name: tuple(ends) for name, ends in rest["intervals"].items()
        }
        for name, array in arrays.items():
            field, _, key = name.partition("/")
            if key:
                rest.setdefault(field, {})[key] = array
            else:
                rest[field] = array
        return Result(**rest)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read and is made anew: %s", path, error)
        return None


def _tuples(part: dict[str, Any]) -> dict[str, Any]:
    """Tuples, which JSON has as lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in part.items()
    }


def _fields(result: Result) -> dict[str, Any]:
    return {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result)
    }
