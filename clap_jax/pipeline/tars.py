"""Clips in tar shards as LAION and webdataset write them, by random access.

A shard holds `name.flac` (or wav, mp3, ogg, opus ...) and beside it `name.json` with
`text` (a caption, or a list of them) and, where there are labels, `tag`; or `name.txt`
with a caption a line. Source of the layout: LAION-AI/CLAP, `training/data.py`.
"""

import json
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import order, tar_index
from clap_jax.pipeline.tar_index import TarError

__all__ = ["LaionTarSource", "TarError"]

SUFFIX = ".tar"
SIZES = "sizes.json"
"""LAION's list of the shards of a folder, with the clips in each."""

GAP_BYTES = 1 << 17
"""Clips that lie closer than this are read by one request: a clip's JSON and two headers
are far smaller, and a request for them costs more than their bytes."""

SHOWN_PROBLEMS = 5

TEXT_AUGMENT = ("none", "all", "augment_only")

# How the JSON of an `Entry` without augmented captions ends.
NO_AUGMENTS = b", [], []]"


class LaionTarSource:
    """Clips of tar shards, each read as a range of bytes.

    path: a .tar file; a folder (all .tar files in it and below; where a folder has a
        sizes.json, the shards that it lists); a pattern (shards/*.tar,
        shards/{000..123}.tar); or a list of these. Local, or a URL (gs://, s3://).
    text_augment: which captions, as LAION's --text-augment-selection: "none" (`text`),
        "all" (`text_augment_all`, else `text`), "augment_only" (`text_augment_t5`, else
        `text`). For a choice by probabilities, `captions` of a config's section (see
        `GeneratedSource`): its kinds are "t5" and, for what only `text_augment_all`
        has, "augment".
    cache_folder: where the index of each shard is kept, so that its headers are read
        once: a local folder, or a URL that all hosts share. "": ~/.cache/clap_jax/tars.

    What is broken (audio without text, text without audio, empty audio, the end of a
    truncated shard) is left out, counted, and named in `problems` and the log. Raises
    TarError when nothing is left, for files that are no tar files, for shards that are
    missing, and for two shards that would give clips the same names.

    Every process holds 24 bytes a clip besides its name, captions and labels as JSON:
    some 130 bytes for a clip with one short caption, 13 GB for 100 million clips, and
    each of `data.workers` has a copy of its own. Threads (workers=0) share one.
    """

    origins = ("t5", "augment")
    """Kinds of captions in the shards besides `text`."""

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str],
        name: str = "laion_tar",
        text_augment: str = "none",
        cache_folder: str = "",
    ):
        if text_augment not in TEXT_AUGMENT:
            raise ValueError(
                f"text_augment is {text_augment!r}, expected one of {TEXT_AUGMENT}"
            )
        self.name, self._path = name, _shown(path)
        self._augment = TEXT_AUGMENT.index(text_augment)
        shards, sizes = _listed(remote.expand(path, SUFFIX), path)
        if not shards:
            raise TarError(
                f"{self._path}: no {SUFFIX} file there (expected a file, a folder, a "
                "pattern or a list of them)"
            )
        self._shards, self._names = shards, _names(shards)
        folder = _home(cache_folder) or remote.cache_folder("tars")
        indices = tar_index.read_all(shards, folder)
        self._gather(indices)
        self.problems = [
            (shard, member, reason)
            for shard, index in zip(shards, indices, strict=True)
            for member, reason in index.problems
        ]
        self.problems += _miscounted(shards, indices, sizes)
        self._report()

    def _gather(self, indices: list[tar_index.Index]) -> None:
        """All shards' clips in arrays: millions of them, and workers get a copy."""
        counts = [len(index) for index in indices]
        self._first = np.cumsum([0, *counts])
        self._offset = np.concatenate([index.offset for index in indices])
        self._size = np.concatenate([index.size for index in indices])
        starts = np.cumsum([0, *(len(index.text) for index in indices[:-1])])
        ends = [
            index.text_end + start for index, start in zip(indices, starts, strict=True)
        ]
        self._text_end = np.concatenate([[0], *ends]).astype(np.int64)
        self._text = b"".join(index.text for index in indices)

    def _report(self) -> None:
        """Log what is left out; raise when nothing is left."""
        first = [
            f"{shard}: {member}: {reason}".replace(": : ", ": ")
            for shard, member, reason in self.problems[:SHOWN_PROBLEMS]
        ]
        hidden = len(self.problems) - len(first)
        text = "\n  ".join(first + ([f"... and {hidden} more"] if hidden else []))
        if not len(self):
            raise TarError(
                f"{self._path}: no clip in {len(self._shards)} shards has both audio "
                f"and a caption:\n  {text or 'they are empty'}"
            )
        if self.problems:
            logging.warning(
                "%s: %d problems in %d shards, what they are about is left out:\n  %s",
                *(self.name, len(self.problems), len(self._shards), text),
            )

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip, its audio as bytes. Raises AudioError when they are not there."""
        (example,) = self.read([index])
        if isinstance(example, audio_io.AudioError):
            raise example
        return example

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Several clips, neighbours by one request; an AudioError in place of a clip
        whose bytes are not there. Raises RemoteError when a store does not give them."""
        places = [self._place(index) for index in indices]
        runs = _runs(places)
        ranges = [(self._shards[shard], start, end) for (shard, start, end), _ in runs]
        examples: list[Any] = [None] * len(indices)
        for content, ((_, first, _), members) in zip(
            remote.read_ranges(ranges), runs, strict=True
        ):
            for number in members:
                _, start, end = places[number]
                examples[number] = self._example(
                    indices[number], content, start - first, end - first
                )
        return examples

    def _example(
        self, index: int, content: bytes | OSError, start: int, end: int
    ) -> dict[str, Any] | audio_io.AudioError:
        number, entry = self._shard(index), self._entry(index)
        shard, name = self._shards[number], f"{self._names[number]}/{entry.key}"
        if isinstance(content, OSError):
            reason = content.strerror or str(content)
            return audio_io.AudioError(f"{shard}, clip {entry.key}: {reason}")
        if len(content) < end:
            return audio_io.AudioError(
                f"{shard}, clip {entry.key}: the shard is shorter than when it was "
                "indexed: was it written again?"
            )
        return {
            "audio": content[start:end],
            "captions": self._chosen(entry),
            "tags": entry.tags,
            "id": name,
            "group": name,  # as `group` says
        }

    def audio_bytes(self, index: int) -> int:
        """How large a clip's audio is."""
        return int(self._size[index])

    def audio_files(self) -> list[str]:
        """The shards: paths or URLs."""
        return list(self._shards)

    def captions(self, index: int) -> list[str]:
        """Captions of a clip, those that `text_augment` chooses."""
        return self._chosen(self._entry(index))

    def _chosen(self, entry: tar_index.Entry) -> list[str]:
        chosen = ([], entry.augment_all, entry.augment_t5)[self._augment]
        return chosen or entry.text or entry.augment_all or entry.augment_t5

    def generated(self, index: int) -> list[tuple[str, str]]:
        """(kind, caption) of those that were made, each once; kinds as in `origins`."""
        entry = self._entry(index)
        t5, known = entry.augment_t5, {*entry.text, *entry.augment_t5}
        more = [caption for caption in entry.augment_all if caption not in known]
        return [("t5", one) for one in t5] + [("augment", one) for one in more]

    def generated_clips(self) -> int:
        """How many clips have captions of these kinds."""
        # `Entry` ends with the two lists of them, so that no JSON needs to be read.
        ends, text = self._text_end[1:], np.frombuffer(self._text, np.uint8)
        none = np.ones(len(self), bool)
        for place, letter in enumerate(NO_AUGMENTS):
            none &= text[ends - len(NO_AUGMENTS) + place] == letter
        return len(self) - int(np.count_nonzero(none))

    def tags(self, index: int) -> list[str]:
        """Labels of a clip: JSON's `tag`."""
        return self._entry(index).tags

    def group(self, index: int) -> str:
        """Every clip is a group of its own."""
        return self.id(index)

    def id(self, index: int) -> str:
        """Shard and name in it; the same wherever the shards are."""
        return f"{self._names[self._shard(index)]}/{self._entry(index).key}"

    def description(self) -> str:
        """One line: how many clips in how many shards, and what is left out."""
        plural = "s" if len(self._shards) > 1 else ""
        out = f", {len(self.problems)} problems" if self.problems else ""
        return (
            f"{self.name}: {len(self)} clips in {len(self._shards)} shard{plural}{out} "
            f"({self._path})"
        )

    def digest(self) -> str:
        """Short hex of names, captions, labels and sizes, wherever the shards are."""
        parts = [self._names, self._first.tolist(), self._augment]
        arrays = (memoryview(self._size), memoryview(self._text_end), self._text)
        return order.digest([*parts, *arrays])

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _place(self, index: int) -> tuple[int, int, int]:
        """(shard, first byte, end) of a clip's audio."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} clips, no {index}")
        start = int(self._offset[index])
        return self._shard(index), start, start + int(self._size[index])

    def _entry(self, index: int) -> tar_index.Entry:
        start, end = self._text_end[index], self._text_end[index + 1]
        return tar_index.entry(self._text[start:end])


def _runs(
    places: Sequence[tuple[int, int, int]],
) -> list[tuple[tuple[int, int, int], list[int]]]:
    """Ranges that cover all places, neighbours joined, and the places in each."""
    runs: list[tuple[tuple[int, int, int], list[int]]] = []
    for number in sorted(range(len(places)), key=places.__getitem__):
        shard, start, end = places[number]
        if runs:
            (last, first, until), members = runs[-1]
            if last == shard and start - until <= GAP_BYTES:
                runs[-1] = (shard, first, max(until, end)), [*members, number]
                continue
        runs.append(((shard, start, end), [number]))
    return runs


def _shown(path: Any) -> str:
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)
    paths = list(map(str, path))
    return ", ".join(paths[:3]) + (" ..." if len(paths) > 3 else "")


def _names(shards: list[str]) -> list[str]:
    """Shards as ids name them: their paths below the folder that all are in."""
    parts = [shard.removesuffix(SUFFIX).split("/") for shard in shards]
    common = len(os.path.commonprefix([part[:-1] for part in parts]))
    names = ["/".join(part[common:]) for part in parts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TarError(f"{twice}{SUFFIX} is named twice: name each shard once")
    return names


def _listed(shards: list[str], path: Any) -> tuple[list[str], dict[str, int]]:
    """Shards that their folder's sizes.json lists, and the clips it promises.

    A folder without one keeps all of its shards. Raises TarError when all of a folder
    is wanted, and a shard that is listed is not there.
    """
    kept, promised, known = [], {}, {}
    for shard in shards:
        folder = posixpath.dirname(shard)
        if folder not in known:
            known[folder] = _sizes(remote.join(folder, SIZES))
        sizes, name = known[folder], posixpath.basename(shard)
        if sizes is None or name in sizes:
            kept.append(shard)
            promised |= {} if sizes is None else {shard: sizes[name]}
    if isinstance(path, str | os.PathLike) and remote.is_folder(_home(path)):
        for folder, sizes in known.items():
            for name in sizes or {}:
                if remote.join(folder, name) not in promised:
                    raise TarError(f"{folder}: {SIZES} lists {name}, which is missing")
    unlisted = len(shards) - len(kept)
    if unlisted:
        logging.warning(
            "%d of %d shards are not used: the %s beside them does not list them",
            *(unlisted, len(shards), SIZES),
        )
    return kept, promised


def _home(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    return path if remote.is_remote(path) else os.path.expanduser(path)


def _sizes(path: str) -> dict[str, int] | None:
    try:
        sizes = json.loads(remote.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise TarError(f"{path}: is not JSON: {error}") from None
    if not isinstance(sizes, dict) or not all(
        isinstance(n, int) for n in sizes.values()
    ):
        raise TarError(f"{path}: expected an object with the number of clips by shard")
    return sizes


def _miscounted(
    shards: list[str], indices: list[tar_index.Index], sizes: dict[str, int]
) -> list[tuple[str, str, str]]:
    """Shards with another number of clips than sizes.json says, for no known reason."""
    return [
        (shard, "", f"{len(index)} clips found, {SIZES} promises {sizes[shard]}")
        for shard, index in zip(shards, indices, strict=True)
        if shard in sizes and sizes[shard] != len(index) + len(index.problems)
    ]
