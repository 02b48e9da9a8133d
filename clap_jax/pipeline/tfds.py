"""Data sets that TFDS prepared: ArrayRecord files in TFDS's own layout, no TensorFlow.

`python -m data.prepare` writes them. Beside TFDS's files there is an index for each
split, INDEX: a line of JSON for each clip, in the order of the records, with what is
known about it besides its audio, so that captions need no pass over the audio.
"""

import contextlib
import gzip
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import order
from clap_jax.text import prompts

INDEX = "clips-{}.jsonl.gz"
"""Name of the index of a split."""

INDEX_KEYS = ("id", "captions", "tags", "group", "fold")

INFO = "dataset_info.json"
"""TFDS writes it last: a folder that has it is a whole data set."""

LISTED = "listed_clips"
"""Among a set's metadata: how many clips its own list names of each split, of which some
may not have been there."""

CAPTIONS_FROM = ("auto", "captions", "tags")

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsError(ValueError):
    """A data set that is not prepared, or not as this needs it; says what to do."""


class TfdsSource:
    """Clips of a prepared data set by index.

    dataset: its name (esc50), name and config (nsynth/pitch), with or without a version
        (esc50/1.0.0: else the newest), or the folder that holds its files.
    split: as TFDS writes them: train, train+validation, train[:10%], test[100:200]; all
        is every split.
    data_dir: where prepared data sets are; "": TFDS_DATA_DIR, or ~/tensorflow_datasets.
    templates: sentences with one {} for the label, for captions made from labels.
    captions_from: "captions" (those of the data set), "tags" (templates with labels),
        or "auto": its captions where a clip has some, else its tags.

    Raises TfdsError for what is not there, with the command that prepares it.
    """

    def __init__(
        self,
        dataset: str | os.PathLike,
        split: str = "train",
        data_dir: str | os.PathLike = "",
        templates: Sequence[str] = ("{}",),
        captions_from: str = "auto",
        name: str = "tfds",
    ):
        if captions_from not in CAPTIONS_FROM:
            raise ValueError(
                f"captions_from is {captions_from!r}, expected one of {CAPTIONS_FROM}"
            )
        self.name, self._split, self._captions_from = name, split, captions_from
        self._templates = prompts.checked_templates(templates)
        self._folder = find(dataset, data_dir)
        self._records, places = _open(self._folder, split)
        splits = dict.fromkeys(name for name, _, _ in places)
        lines = {name: read_index(self._folder, name) for name in splits}
        kept = [line for name, start, end in places for line in lines[name][start:end]]
        if len(kept) != len(self._records):
            raise TfdsError(
                f"{self._folder}: the index of {' and '.join(splits)} has {len(kept)} "
                f"clips where the records are {len(self._records)}"
            )
        self._index = b"".join(kept)
        self._ends = np.cumsum([0, *map(len, kept)])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_records"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._records, _ = _open(self._folder, self._split)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip, its audio as bytes. Raises AudioError for a damaged record."""
        (example,) = self.read([index])
        if isinstance(example, audio_io.AudioError):
            raise example
        return example

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Several clips by one request; an AudioError in place of a damaged one."""
        try:
            records = self._records.__getitems__([int(index) for index in indices])
        except (RuntimeError, ValueError, KeyError, DecodeError) as error:
            if len(indices) == 1:
                return [self._damaged(indices[0], str(error) or repr(error))]
            return [example for index in indices for example in self.read([index])]
        return [
            self._example(index, record)
            for index, record in zip(indices, records, strict=True)
        ]

    def _example(self, index: int, record: Mapping[str, Any]) -> Any:
        found = record["id"].decode(errors="replace")
        if found != self.id(index):
            reason = f"the clip {found!r} is in its place: {self._folder} was changed"
            return self._damaged(index, reason)
        return {
            "audio": record["audio"],
            "captions": self.captions(index),
            "tags": self.tags(index),
            "id": self.id(index),
            "group": self.group(index),
        }

    def _damaged(self, index: int, reason: str) -> audio_io.AudioError:
        clip = f"{self._folder}, clip {self.id(index)}"
        return audio_io.AudioError(f"{clip}: damaged record: {reason}")

    def audio_files(self) -> list[str]:
        """The files of records of all splits."""
        files = Path(self._folder).iterdir()
        return sorted(str(file) for file in files if ".array_record" in file.name)

    def captions(self, index: int) -> list[str]:
        """Captions of a clip, as `captions_from` says; [""] if nothing is known."""
        header = self._header(index)
        if header["captions"] and self._captions_from != "tags":
            return header["captions"]
        if self._captions_from == "captions":
            return [""]
        names = map(prompts.class_name, header["tags"])
        rendered = prompts.expand(self._templates, names)
        return [line for own in rendered for line in own] or [""]

    def tags(self, index: int) -> list[str]:
        """Labels of a clip as the data set names them."""
        return self._header(index)["tags"]

    def group(self, index: int) -> str:
        """The clip's labels where its captions come from them, else as the data set has
        it: the id of a clip with captions of its own."""
        labels = "|".join(self.tags(index)) if self._captions_from == "tags" else ""
        return labels or self._header(index)["group"]

    def fold(self, index: int) -> str:
        """The fold of the data set that a clip is in; "" where it has none."""
        return self._header(index)["fold"]

    def id(self, index: int) -> str:
        """What the data set calls the clip; unique in the split."""
        return self._header(index)["id"]

    def description(self) -> str:
        """One line: how many clips of which split of which data set."""
        return f"{self.name}: {len(self)} clips, {self._split} of {self._folder}"

    def digest(self) -> str:
        """Short hex of what the index says of the clips, wherever they are."""
        return order.digest([self._captions_from, self._templates, self._index])

    def _header(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} clips, no {index}")
        return json.loads(self._index[self._ends[index] : self._ends[index + 1]])


def default_data_dir() -> str:
    """Where TFDS keeps data sets unless it is told another place."""
    folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(folder)


def find(dataset: str | os.PathLike, data_dir: str | os.PathLike = "") -> str:
    """The folder of a prepared data set; arguments and errors as `TfdsSource` has."""
    for place in map(os.fspath, (dataset, data_dir)):
        if remote.is_remote(place):
            raise TfdsError(
                f"{place} is a URL: prepared data sets are read from folders; mount it, or "
                "copy it to the local disk"
            )
    dataset = os.fspath(dataset).rstrip("/")
    own = Path(dataset).expanduser()
    root = Path(data_dir).expanduser() if data_dir else Path(default_data_dir())
    for folder in (own, root / dataset):
        found = _newest(folder)
        if found:
            return str(found)
    folder = root / dataset
    default = folder / ".config" / "metadata.json"
    if default.is_file():
        config = json.loads(default.read_text())["default_config_name"]
        if _newest(folder / config):
            return str(_newest(folder / config))
    there = sorted(path.name for path in folder.glob("*") if _newest(path))
    if there:
        names = ", ".join(f"{dataset}/{name}" for name in there)
        raise TfdsError(f"{dataset} is prepared as {names} in {root}: name one of them")
    raise TfdsError(
        f"{dataset} is not prepared in {root}: run `python -m data.prepare {dataset} "
        f"--data_dir={root}` from the repository (`--help` says what it needs), or set "
        "data_dir"
    )


def _newest(folder: Path) -> Path | None:
    """The folder itself, or its newest version, that holds a whole data set."""
    if (folder / INFO).is_file():
        return folder
    versions = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if _VERSION.fullmatch(path.name) and (path / INFO).is_file()
    ]
    return max(versions, key=_number, default=None)


def _number(version: Path) -> tuple[int, ...]:
    return tuple(map(int, version.name.split(".")))


def listed_clips(folder: str | os.PathLike) -> dict[str, int]:
    """How many clips of each split the list of a prepared data set names; {} where that
    was not written down."""
    path = Path(folder) / "metadata.json"
    return json.loads(path.read_text()).get(LISTED, {}) if path.is_file() else {}


def _open(folder: str, split: str) -> tuple[Any, list[tuple[str, int, int]]]:
    """The records of `split`, and where they are: (split, first clip, end) in order."""
    # Not above: half a second, which nothing but this needs.
    import tensorflow_datasets as tfds

    with quiet():
        builder = tfds.builder_from_directory(folder)
    infos = builder.info.splits
    if not infos:
        raise TfdsError(f"{folder}: there are no splits in {INFO}")
    wanted = "+".join(infos) if split == "all" else split
    try:
        instructions = infos[wanted].file_instructions
        records = builder.as_data_source(split=wanted)
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        there = ", ".join(f"{name} {info.num_examples}" for name, info in infos.items())
        raise TfdsError(
            f"{folder}: cannot read the split {split!r} (there: {there}): {error}"
        ) from None
    starts: dict[str, tuple[str, int]] = {}
    for name, info in infos.items():
        edges = np.cumsum([0, *info.shard_lengths])
        for path, start in zip(info.filepaths, edges[:-1], strict=True):
            starts[os.fspath(path)] = name, int(start)
    places = []
    for part in instructions:
        if not os.path.isfile(part.filename):
            raise TfdsError(f"{part.filename} is missing: prepare the data set again")
        name, start = starts[os.fspath(part.filename)]
        first = start + part.skip
        places.append((name, first, first + part.take))
    return records, places


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around TFDS opening a data set: protobuf warns of how TFDS asks it for fields."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


# --- the index ---


def write_index(folder: str, split: str, headers: Iterable[Mapping[str, Any]]) -> None:
    """Write the index of a split; headers in the order of records, with INDEX_KEYS."""
    with (
        open(os.path.join(folder, INDEX.format(split)), "wb") as file,
        # Without the time, so that the same clips give the same file.
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed,
    ):
        for header in headers:
            own = {key: header[key] for key in INDEX_KEYS}
            packed.write(json.dumps(own, ensure_ascii=False).encode() + b"\n")


def read_index(folder: str, split: str) -> list[bytes]:
    """The lines of a split's index. Raises TfdsError."""
    path = os.path.join(folder, INDEX.format(split))
    try:
        with gzip.open(path, "rb") as file:
            return file.read().splitlines(keepends=True)
    except FileNotFoundError:
        raise TfdsError(
            f"{path} is missing: {folder} was not written by data.prepare"
        ) from None
    except (OSError, EOFError) as error:
        raise TfdsError(f"{path} is damaged: {error}") from None
