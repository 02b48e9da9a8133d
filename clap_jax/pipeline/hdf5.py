"""Clips in HDF5 files as BLAT packs them: waves by id, captions beside them in JSON.

A file holds one dataset for each clip, named by its id: a mono wave in float16 (other
numbers are read too). Several files come with a table of two columns, `audio_id` and
`hdf5_path`. Captions are JSON:

    {"audios": [{"audio_id": "Y1.wav", "captions": [{"caption": "A dog barks"}]}]}

Where a caption has `tokens` alone, as captions made by a machine have, they are it.
Source of the layout: wsntxxn/BLAT, `pack_waveform.py` and its annotation files. It does
not say at which rate the waves are.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import order

SUFFIXES = (".h5", ".hdf5")
TABLE_COLUMNS = ("audio_id", "hdf5_path")

BLAT_RATE_HZ = 32_000

SHOWN_PROBLEMS = 5


class Hdf5Error(ValueError):
    """Files that hold no such clips; says which and why."""


class Hdf5Source:
    """Clips of HDF5 files that a JSON file has captions for, in the order of the JSON.

    path: the table waveform.csv, an HDF5 file, a folder (all .h5 and .hdf5 files in it
        and below), or a pattern (hdf5/{0..12}.h5). Local, or a URL.
    captions: the JSON file. Clips that it does not have are not used; an AudioSet id
        `abc` is found where the wave is called `Yabc.wav`.
    rate_hz: of all waves, which the layout does not tell.

    What is broken (no wave of this id, no caption, an id twice, a file that is missing or
    damaged) is left out, counted, and named in `problems` and the log. Raises Hdf5Error
    when nothing is left, and for a table or JSON that cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        captions: str | os.PathLike,
        rate_hz: float = BLAT_RATE_HZ,
        name: str = "hdf5",
    ):
        if isinstance(rate_hz, bool) or not rate_hz > 0:
            raise Hdf5Error(f"rate_hz is {rate_hz!r}, expected a positive number of Hz")
        self.name, self._rate_hz = name, rate_hz
        self._path, self._annotations = _home(path), _home(captions)
        self.problems: list[tuple[str, str, str]] = []
        self._opened: tuple[int, dict[str, Any]] = (0, {})
        places = self._places()
        self._clips: list[tuple[str, str, str, tuple[str, ...]]] = []
        seen: set[str] = set()
        for clip, texts in _annotated(self._annotations, self.problems):
            dataset = next((n for n in _spellings(clip) if n in places), "")
            reason = ""
            if clip in seen:
                reason = "this id is there a second time"
            elif not texts:
                reason = "has no caption"
            elif not dataset:
                reason = f"{self._path} has no wave of this id"
            if reason:
                self.problems.append((self._annotations, clip, reason))
            else:
                self._clips.append((clip, places[dataset], dataset, texts))
            seen.add(clip)
        self._unused = len(places) - len(self._clips)
        self._report()

    def _places(self) -> dict[str, str]:
        """Which file has a clip, by the name of its dataset."""
        listed = _table(self._path) if self._path.endswith((".csv", ".tsv")) else None
        if listed is None:
            files = [f for s in SUFFIXES for f in remote.expand(self._path, s)]
            files = sorted(set(files))
        else:
            files = list(dict.fromkeys(listed.values()))
        if not files:
            raise Hdf5Error(
                f"{self._path}: no {' or '.join(SUFFIXES)} file there (expected a table "
                "with audio_id and hdf5_path, a file, a folder or a pattern)"
            )
        places: dict[str, str] = {}
        datasets: dict[str, set[str]] = {}
        for path in files:
            try:
                names = set(self._file(path))
            except remote.StoreError:
                raise
            except OSError as error:
                self.problems.append((path, "", _reason(error, path)))
                names = set()
            datasets[path] = names
            places |= {name: path for name in sorted(names - places.keys())}
        if listed is None:
            return places
        for clip, path in listed.items():
            if datasets[path] and clip not in datasets[path]:
                self.problems.append((path, clip, "has no dataset of this name"))
        return {clip: p for clip, p in listed.items() if clip in datasets[p]}

    def _file(self, path: str) -> Any:
        """A file, opened once in each process: handles do not survive a fork."""
        import h5py

        process, opened = self._opened
        if process != os.getpid():
            opened = {}
            self._opened = (os.getpid(), opened)
        if path not in opened:
            source = remote.opened(path) if remote.is_remote(path) else path
            opened[path] = h5py.File(source, "r")
        return opened[path]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": (0, {})}

    def _report(self) -> None:
        """Log what is left out; raise when nothing is left."""
        first = [
            f"{file}: {clip}: {reason}".replace(": : ", ": ")
            for file, clip, reason in self.problems[:SHOWN_PROBLEMS]
        ]
        hidden = len(self.problems) - len(first)
        text = "\n  ".join(first + ([f"... and {hidden} more"] if hidden else []))
        if not self._clips:
            raise Hdf5Error(
                f"{self._path}: none of its waves has a caption in {self._annotations}:"
                f"\n  {text or 'there are none'}"
            )
        if self.problems:
            logging.warning(
                "%s: %d problems, what they are about is left out:\n  %s",
                *(self.name, len(self.problems), text),
            )

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip, its audio as (wave [t], rate_hz). Raises AudioError for what is no
        wave, or is damaged."""
        clip, path, dataset, texts = self._clips[index]
        try:
            node = self._file(path)[dataset]
            wave = node[()] if hasattr(node, "dtype") else None
        except remote.StoreError:
            raise
        except (OSError, KeyError, RuntimeError) as error:
            reason = _reason(error, path)
            raise audio_io.AudioError(f"{path}, clip {clip}: {reason}") from None
        if wave is None:
            found = "a group"
        else:
            found = f"{wave.dtype} of shape {np.shape(wave)}"
        if wave is None or wave.dtype.kind not in "fiu" or np.ndim(wave) != 1:
            raise audio_io.AudioError(
                f"{path}, clip {clip}: holds {found}, expected numbers of shape [t]"
            )
        return {
            "audio": (wave, self._rate_hz),
            "captions": list(texts),
            "tags": [],
            "id": clip,
            "group": clip,
        }

    def audio_files(self) -> list[str]:
        """The HDF5 files that clips are in: paths or URLs."""
        return sorted({path for _, path, _, _ in self._clips})

    def captions(self, index: int) -> list[str]:
        """Captions of a clip."""
        return list(self._clips[index][3])

    def tags(self, index: int) -> list[str]:
        """None: the layout has no labels."""
        return []

    def group(self, index: int) -> str:
        """Every clip is a group of its own."""
        return self.id(index)

    def id(self, index: int) -> str:
        """JSON's audio_id."""
        return self._clips[index][0]

    def description(self) -> str:
        """One line: how many clips, and what is not used."""
        files = len({path for _, path, _, _ in self._clips})
        unused = f", {self._unused} waves without captions" if self._unused else ""
        return (
            f"{self.name}: {len(self)} clips of {files} HDF5 file{'s' * (files > 1)}"
            f"{unused} ({self._path})"
        )

    def digest(self) -> str:
        """Short hex of all ids and captions, and of the rate, wherever the files are."""
        rows = ([clip, texts] for clip, _, _, texts in self._clips)
        return order.digest([self._rate_hz, *rows])


def _home(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    return path if remote.is_remote(path) else os.path.expanduser(path)


def _spellings(clip: str) -> tuple[str, str]:
    """Names that a clip's wave may have: AudioSet's ids got a letter and a suffix."""
    return clip, f"Y{clip}.wav"


def _table(path: str) -> dict[str, str]:
    """The file of each clip. Raises Hdf5Error."""
    try:
        text = remote.read(path).decode("utf-8-sig")
    except remote.StoreError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise Hdf5Error(f"{path}: {_reason(error, path)}") from None
    delimiter = max("\t,", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    if not set(TABLE_COLUMNS) <= set(rows.fieldnames or ()):
        raise Hdf5Error(
            f"{path}: has the columns {', '.join(rows.fieldnames or ()) or 'none'}, "
            f"expected {' and '.join(TABLE_COLUMNS)}"
        )
    folder = os.path.dirname(path)
    return {
        row["audio_id"]: remote.join(folder, row["hdf5_path"])
        for row in rows
        if row["audio_id"] and row["hdf5_path"]
    }


def _annotated(
    path: str, problems: list[tuple[str, str, str]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids and captions of a JSON file. Raises Hdf5Error."""
    try:
        content = json.loads(remote.read(path).decode("utf-8-sig"))
    except remote.StoreError:
        raise
    except (OSError, ValueError) as error:
        raise Hdf5Error(f"{path}: {_reason(error, path)}") from None
    audios = content.get("audios") if isinstance(content, Mapping) else None
    if not isinstance(audios, list):
        raise Hdf5Error(f'{path}: expected an object {{"audios": [...]}} of clips')
    for number, item in enumerate(audios, start=1):
        name = item.get("audio_id") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not name:
            problems.append((path, "", f"clip {number} of the list has no audio_id"))
            continue
        found = item.get("captions")
        rows = found if isinstance(found, list) else []
        texts = [_caption(row) for row in rows]
        yield name, tuple(filter(None, texts))


def _caption(row: Any) -> str:
    """The words of one entry of `captions`."""
    if not isinstance(row, Mapping):
        return ""
    text = row.get("caption") or row.get("tokens") or ""
    return text.strip() if isinstance(text, str) else ""


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error}"
    return getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
