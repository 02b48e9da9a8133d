"""Files of tag probabilities: what a tagger thinks of clips, by their ids.

Two kinds:

* JSON lines, `{"id": "a.wav", "probabilities": {"dog": 0.9, "rain": 0.1}}`, of which
  `path` may stand for `id`: what `clap-jax classify --json` prints.
* .npz: `id` str [n], `names` str [C], `probabilities` float [n, C].
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_KEYS = ("id", "path")


class TagTable(NamedTuple):
    """names: C tags. rows: clip id -> row. probabilities: float32 [n, C]."""

    names: tuple[str, ...]
    rows: dict[str, int]
    probabilities: np.ndarray

    def of(self, clip: str) -> np.ndarray | None:
        """The probabilities of a clip, float32 [C]; None where it is not in the file."""
        row = self.rows.get(clip)
        return None if row is None else self.probabilities[row]


def read(paths: str | Path | Sequence[str | Path]) -> TagTable:
    """All files as one table; of a clip that comes twice the last.

    Raises ValueError that names file and line: one that is not there, is no such file,
    has other tags than the first, or what is no probability.
    """
    paths = (paths,) if isinstance(paths, str | Path) else tuple(paths)
    tables = [_read(Path(path)) for path in paths]
    names = tables[0].names
    parts, rows = [], {}
    for path, table in zip(paths, tables, strict=True):
        if sorted(table.names) != sorted(names):
            strange = sorted(set(table.names) ^ set(names))
            raise ValueError(
                f"{path} has other tags than {paths[0]}: {', '.join(strange[:3])}"
            )
        order = [table.names.index(name) for name in names]
        first = sum(map(len, parts))
        parts.append(table.probabilities[:, order])
        rows |= {clip: first + row for clip, row in table.rows.items()}
    return TagTable(names, rows, np.concatenate(parts))


def _read(path: Path) -> TagTable:
    if not path.is_file():
        raise ValueError(
            f"there is no file of tag probabilities {path}: expected JSON lines or .npz"
        )
    names, clips, found = (_npz if path.suffix == ".npz" else _lines)(path)
    if not clips:
        raise ValueError(f"{path} has no clip in it")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has a tag twice")
    bad = np.flatnonzero(~((found >= 0) & (found <= 1)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}: clip {clips[bad[0]]} has {found[bad[0]].min():g} to "
            f"{found[bad[0]].max():g}, expected probabilities"
        )
    return TagTable(names, {clip: row for row, clip in enumerate(clips)}, found)


_Parts = tuple[tuple[str, ...], list[str], np.ndarray]


def _npz(path: Path) -> _Parts:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key = next((key for key in _KEYS if key in arrays), "id")
            clips, names = arrays[key], arrays["names"]
            found = arrays["probabilities"].astype(np.float32)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no file of tag probabilities, expected the arrays id, names "
            f"and probabilities: {error}"
        ) from error
    if found.shape != (len(clips), len(names)):
        raise ValueError(
            f"{path}: probabilities has the shape {found.shape}, expected "
            f"({len(clips)}, {len(names)}): clips and names"
        )
    return tuple(map(str, names)), [str(clip) for clip in clips], found


def _lines(path: Path) -> _Parts:
    clips, rows, columns = [], [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        clip, probabilities = _line(f"{path}:{number}", line)
        if not columns:
            columns = {name: column for column, name in enumerate(probabilities)}
        row = np.zeros(len(columns), np.float32)
        for name, value in probabilities.items():
            if name not in columns:
                raise ValueError(
                    f"{path}:{number} has the tag {name!r}, which the first line lacks"
                )
            row[columns[name]] = value
        clips.append(clip)
        rows.append(row)
    return tuple(columns), clips, np.array(rows, np.float32)


def _line(where: str, line: str) -> tuple[str, dict[str, Any]]:
    try:
        found = json.loads(line)
        clip = next(found[key] for key in _KEYS if key in found)
        probabilities = found["probabilities"]
        if not probabilities or not all(
            isinstance(value, int | float) for value in probabilities.values()
        ):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise ValueError(
            f"{where} is {line:.60}, expected "
            '{"id": ..., "probabilities": {"dog": 0.9, ...}}'
        ) from None
    return str(clip), probabilities
