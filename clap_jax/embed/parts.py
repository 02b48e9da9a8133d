"""What an embedding job has done so far: a folder of small files, each whole or absent.

A part holds some hundred items in the order in which they were done: their vectors, and
the reasons of those that have none. A kill loses at most the part being made.
"""

import fcntl
import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from clap_jax import config as config_lib
from clap_jax.embed.ahead import Embedded

# Items of a part.
ITEMS = 256

# Parts held in memory while the result is put together.
_HELD = 4


class PartsError(RuntimeError):
    """Parts that cannot be gone on with; one sentence that says what to do."""


class Place(NamedTuple):
    """Where an item is: the part's number, and the row of its vector there.

    row: -1 for an item without a vector; `error` says why. seconds: of the sound.
    """

    part: int
    row: int
    seconds: float = 0.0
    error: str = ""


class Parts:
    """The parts of one job, in `folder`, which is made.

    settings: what all parts must agree in. Raises PartsError where another process is
    at work in the folder, or parts were made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self._held: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder, settings)

    def done(self, stamps: Mapping[str, str]) -> dict[str, Place]:
        """Where those items are that are done.

        stamps: item -> a text that changes when the item's content does ("" for what
            cannot change); an item whose stamp is another one now is not done.
        """
        found: dict[str, Place] = {}
        for number in self._numbers():
            part = self._load(number)
            if part is None:
                continue
            rows = zip(part["item"], part["stamp"], part["seconds"], strict=True)
            for row, (item, stamp, seconds) in enumerate(rows):
                if stamps.get(str(item)) == stamp:
                    found[str(item)] = Place(number, row, float(seconds))
            bad = (part["bad_item"], part["bad_stamp"], part["bad_error"])
            for item, stamp, error in zip(*bad, strict=True):
                if stamps.get(str(item)) == stamp:
                    found[str(item)] = Place(number, -1, error=str(error))
        return found

    def add(self, rows: Sequence[Embedded], stamps: Mapping[str, str]) -> None:
        """Write one part."""
        good = [row for row in rows if row.vector is not None]
        bad = [row for row in rows if row.vector is None]
        numbers = self._numbers()
        path = self._path(numbers[-1] + 1 if numbers else 0)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(
                file,
                item=_texts(row.item for row in good),
                stamp=_texts(stamps[row.item] for row in good),
                seconds=np.array([row.seconds for row in good], np.float64),
                embedding=np.array([row.vector for row in good], np.float32),
                bad_item=_texts(row.item for row in bad),
                bad_stamp=_texts(stamps[row.item] for row in bad),
                bad_error=_texts(row.error for row in bad),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def vector(self, place: Place) -> np.ndarray:
        """The vector float32 [E] at a place."""
        return self._load(place.part)["embedding"][place.row]

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder)
        self.close()

    def close(self) -> None:
        """Let another process go on."""
        self._lock.close()

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.npz"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _load(self, number: int) -> dict[str, np.ndarray] | None:
        """A part; None, and it is removed, when it is damaged."""
        if number not in self._held:
            try:
                # Opened here, since numpy does not close what it cannot read.
                with self._path(number).open("rb") as file, np.load(file) as part:
                    self._held[number] = dict(part)
            except (ValueError, EOFError, zipfile.BadZipFile):
                self._path(number).unlink()
                return None
        self._held.move_to_end(number)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return self._held[number]


def lock(folder: Path, settings: Mapping[str, Any]) -> TextIO:
    """Take a folder for one job; what is returned is closed when that has ended.

    settings: kept there, and compared with what is kept. Raises PartsError as `Parts`.
    """
    # Held until this process ends, however it ends.
    held = (folder / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise PartsError(f"another process is writing to {folder}") from None
    kept = folder / "settings.json"
    if kept.is_file():
        try:
            _check(folder, json.loads(kept.read_text()), settings)
        except PartsError:
            held.close()
            raise
    else:
        config_lib.write_text(kept, json.dumps(settings, indent=2) + "\n")
    return held


def _texts(values: Any) -> np.ndarray:
    return np.array(list(values), np.str_)


def _check(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"{key} {found.get(key)!r} there, {value!r} now"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise PartsError(
            f"{folder} was begun with other settings ({'; '.join(differing)}): remove "
            "it to begin anew, or write to another file"
        )
