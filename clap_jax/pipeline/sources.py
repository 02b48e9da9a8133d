"""What a source of clips is, and the table of the kinds there are."""

import inspect
import json
import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

from clap_jax import config as config_lib
from clap_jax import remote
from clap_jax.pipeline.annotations import AnnotatedSource
from clap_jax.pipeline.array_record import ArrayRecordSource
from clap_jax.pipeline.exclude import ExcludingSource, PartSource, SomeSource
from clap_jax.pipeline.feature_files import FeaturesSource
from clap_jax.pipeline.generated import GeneratedSource
from clap_jax.pipeline.hdf5 import Hdf5Source
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.pieces import PiecesSource
from clap_jax.pipeline.synthetic import SyntheticSource
from clap_jax.pipeline.tars import LaionTarSource
from clap_jax.pipeline.tfds import INFO, TfdsSource
from clap_jax.pipeline.twins import TwinsSource


class Source(Protocol):
    """Clips by index. A source can be pickled, and read by several threads at a time.

    One that reads neighbours faster together than one by one also has
    `read(indices) -> list`: what `__getitem__` gives for each, and in place of a clip
    that cannot be had the AudioError that it raises. One whose captions are not equally
    likely has `caption_weights(index) -> list | None`, as `GeneratedSource`. One whose
    sounds lie in files has `audio_files() -> list`, their paths or URLs.
    """

    name: str
    """Names the source in logs and errors; unique among the sources of a run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Everything about a clip.

        `audio`: a path, the bytes of an audio file, (array, rate_hz), or
        `features.Features`; `captions`: list of str, at least one; `tags`: list of str; `id` and `group`: str.
        """

    def captions(self, index: int) -> list[str]:
        """Captions of a clip; like the next three, this never touches its audio."""

    def tags(self, index: int) -> list[str]:
        """Labels of a clip, maybe none."""

    def group(self, index: int) -> str:
        """Clips of one group are positives of each other."""

    def id(self, index: int) -> str:
        """What the clip is called; unique in the source."""

    def description(self) -> str:
        """One line on what the source holds."""

    def digest(self) -> str:
        """Short hex that other clips, captions or labels change; audio is not read."""


SOURCES = {
    "manifest": ManifestSource,
    "array_record": ArrayRecordSource,
    "laion_tar": LaionTarSource,
    "tfds": TfdsSource,
    "hdf5": Hdf5Source,
    "synthetic": SyntheticSource,
    "features": FeaturesSource,
    "pieces": PiecesSource,
}
"""Kinds of sources by the name that configs use."""

OF_ALL_KINDS = ("exclude", "part", "generated", "captions", "annotations", "twins")
"""Options that every kind takes besides those of its class."""


def place(kind: str) -> str:
    """The option of a kind that says where its data is."""
    return "dataset" if kind == "tfds" else "path"


def entry(data: str) -> dict[str, Any]:
    """The entry of `data.sources` that commands are given: as JSON, or as a path.

    Raises ValueError for JSON that is no such entry.
    """
    if not is_entry(data):
        return section(data)
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"the source is not JSON: {error}: {data:.60}") from None
    if "kind" not in found:
        raise ValueError(f"the source has no kind: {data:.60}")
    return found


def is_entry(data: str) -> bool:
    """Whether what a command is given is an entry of `data.sources`, and no path."""
    return data.lstrip().startswith("{")


def section(path: str) -> dict[str, Any]:
    """The entry of `data.sources` for data at a path, its kind by the names there."""
    kind = _kind(path)
    return {"kind": kind, place(kind): path}


def _kind(path: str) -> str:
    kinds = {
        ".tar": "laion_tar",
        ".array_record": "array_record",
        ".h5": "hdf5",
        ".hdf5": "hdf5",
    }
    local = path if remote.is_remote(path) else os.path.expanduser(path)
    names = [path]
    if not path.endswith(tuple(kinds)) and remote.is_folder(local):
        names = remote.below(local)
        if INFO in names:
            return "tfds"
    for suffix, kind in kinds.items():
        if any(name.endswith(suffix) for name in names):
            return kind
    return "manifest"


def build_source(kind: str, name: str, options: Mapping[str, Any]) -> Source:
    """Make a source from its kind, its name and the keyword arguments of its class.

    Every kind takes six more: `exclude`, a file with the ids of clips to leave out
    (see `ExcludingSource`; a manifest's own is documented there); `part`, which of
    several parts it is, as "1/2" (see `PartSource`); `generated`, files of
    captions that were made for its clips, and `captions`, which of them are used (see
    `GeneratedSource`); `annotations`, a table of labels or sections, {"table": path,
    "label": column} (see `AnnotatedSource`); `twins`, true for each clip with its sections in another order,
    too, or up to which length in seconds (see `TwinsSource`).
    Raises ValueError for unknown kinds and options, with the names that come close, for
    missing options, and whatever the source finds wrong with its data.
    """
    if kind not in SOURCES:
        raise ValueError(config_lib.unknown("kind of source", kind, SOURCES))
    parameters = inspect.signature(SOURCES[kind]).parameters
    allowed = [parameter for parameter in parameters if parameter != "name"]
    known = dict.fromkeys((*allowed, *OF_ALL_KINDS))
    problems = config_lib.unknown_keys(options, known, f"{kind} source {name!r}")
    if problems:
        raise ValueError("; ".join(problems))
    missing = [
        key
        for key in allowed
        if parameters[key].default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise ValueError(f"{kind} source {name!r}: option {missing[0]!r} is missing")
    own = {key: value for key, value in options.items() if key in allowed}
    more = {key: value for key, value in options.items() if key not in allowed}
    if "captions" in more and own.get("text_augment", "none") != "none":
        raise ValueError(
            f"{kind} source {name!r}: captions and text_augment both choose captions, "
            "give one of them"
        )
    source = SOURCES[kind](**own)
    source.name = name
    if more.get("exclude"):
        source = ExcludingSource(source, more["exclude"])
    if more.get("part"):
        source = PartSource(source, more["part"])
    if {"generated", "captions"} & set(more):
        source = _with_captions(source, more)
    if more.get("annotations"):
        source = _annotated(source, more["annotations"])
    twins = more.get("twins", False)
    if not isinstance(twins, bool | int | float) or twins < 0:
        raise ValueError(
            f"{kind} source {name!r}: twins is {twins!r}, expected true or seconds"
        )
    if not twins:
        return source
    return TwinsSource(source, math.inf if twins is True else float(twins))


def _annotated(source: Source, options: Mapping[str, Any]) -> Source:
    """A source with labels or sections of a table."""
    allowed = [*inspect.signature(AnnotatedSource).parameters][1:]
    problems = config_lib.unknown_keys(options, allowed, "annotations")
    if problems or "table" not in options:
        raise ValueError("; ".join(problems) or "annotations: table is missing")
    return AnnotatedSource(source, **options)


def _with_captions(source: Source, options: Mapping[str, Any]) -> Source:
    """A source with generated captions, of clips that have any where only these count."""
    captions = options.get("captions", "all")
    source = GeneratedSource(source, options.get("generated", ()), captions)
    if captions != "only":
        return source
    kept = source.with_generated()
    return SomeSource(source, kept, f"only the {len(kept):,} that have generated ones")
