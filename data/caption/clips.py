"""The clips that are to get captions: their ids, labels and, where known, lengths."""

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import soundfile

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import manifest, sources, tables
from clap_jax.pipeline.sources import Source
from clap_jax.text import prompts

SECONDS_COLUMNS = (
    *("seconds", "duration", "duration_s", "duration_seconds"),
    *("length_seconds", "length_s"),
)
"""Columns with a clip's length in seconds, whatever their case; the first counts."""

LENGTHS = ("auto", "audio", "none")

# What a section of a config may say besides options of the source itself.
_OF_TRAINING = ("weight", "generated", "captions", "annotations", "twins")


class ClipsError(ValueError):
    """Data that no captions can be made for; says why."""


class Clip(NamedTuple):
    """A clip and its labels, as its source writes them."""

    id: str
    tags: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The labels as people write them: "Dog_bark" is dog bark."""
        return [prompts.class_name(tag) or tag for tag in self.tags]


class Clips(NamedTuple):
    """The clips to be captioned, and how many are not.

    short: shorter than wanted. without_tags: there is nothing to make a caption of.
    unknown: clips to be captioned whose length nobody knows. source: holds them;
    places: where in it, by their ids.
    """

    clips: list[Clip]
    without_tags: int
    short: int
    unknown: int
    description: str
    source: Source
    places: dict[str, int]

    def sound(self, clip_id: str) -> Any:
        """A clip's audio, as its source gives it."""
        return self.source[self.places[clip_id]]["audio"]


def read(
    data: str,
    options: Mapping[str, Any] | None = None,
    min_seconds: float = 0.0,
    lengths: str = "auto",
    untagged: bool = False,
) -> Clips:
    """Find the clips of a table, a folder or shards, in their order.

    data: a path; or an entry of a config's `data.sources`, as JSON. options: of the
        source, besides. Audio files need not be there.
    min_seconds: shorter clips are left out, those of unknown length are not.
    lengths: "auto" takes them from a column (see SECONDS_COLUMNS), else from the headers
        of local sound files; "audio" opens every clip's audio, in shards and stores as
        well; "none" leaves them unknown.
    untagged: clips without labels are taken too, even a table of nothing but sounds.

    Raises ClipsError for data without labels, and what the source finds wrong.
    """
    section = sources.entry(data) | dict(options or {})
    kind = section.pop("kind")
    name = section.pop("name", kind)  # which some ids begin with
    section = {key: section[key] for key in section if key not in _OF_TRAINING}
    if kind == "manifest":
        section.setdefault("check_files", False)
        if untagged and not {"caption_columns", "label_column"} & set(section):
            alone = manifest.audio_alone(section["path"])
            if alone:
                section["caption_columns"] = (alone,)
    source = sources.build_source(kind, name, section)
    seconds = _Seconds(source, kind, section, lengths if min_seconds else "none")
    clips, without_tags, short, unknown = [], 0, 0, 0
    places: dict[str, int] = {}
    for index in range(len(source)):
        tags = tuple(source.tags(index))
        if not tags and not untagged:
            without_tags += 1
            continue
        length = seconds(index)
        if length is not None and length < min_seconds:
            short += 1
            continue
        unknown += length is None
        clips.append(Clip(source.id(index), tags))
        places[source.id(index)] = index
    counts = (without_tags, short, unknown)
    found = Clips(clips, *counts, source.description(), source, places)
    if not clips:
        reason = f"{without_tags} have no labels, {short} are too short"
        raise ClipsError(f"{found.description}: no clips to caption: {reason}")
    return found


class _Seconds:
    """The length of each clip of a source in seconds, None where it is not known."""

    def __init__(
        self, source: Source, kind: str, section: Mapping[str, Any], lengths: str
    ):
        if lengths not in LENGTHS:
            raise ClipsError(f"lengths is {lengths!r}, expected one of {LENGTHS}")
        self._source, self._lengths = source, lengths
        self._column: dict[str, float] | None = None
        if lengths == "auto" and kind == "manifest":
            self._column = _column(section)

    def __call__(self, index: int) -> float | None:
        if self._lengths == "none":
            return None
        if self._column is not None:
            return self._column.get(self._source.id(index))
        try:
            return self._of_audio(index)
        except (soundfile.SoundFileError, audio_io.AudioError, OSError):
            return None  # training counts such clips

    def _of_audio(self, index: int) -> float | None:
        if self._lengths == "auto" and hasattr(self._source, "read"):
            return None  # shards: the whole clip would be read
        audio = self._source[index]["audio"]
        if isinstance(audio, tuple):
            wave, rate_hz = audio
            return len(wave) / rate_hz
        info = soundfile.info(io.BytesIO(audio) if isinstance(audio, bytes) else audio)
        return info.frames / info.samplerate


def _column(section: Mapping[str, Any]) -> dict[str, float] | None:
    """Lengths in a table by the clips' ids; None where sound files can say them.

    That is where it has no such column, and the sounds are not behind URLs.
    """
    table = tables.read(section["path"])
    names = {name.lower(): name for name in table.columns}
    column = next((names[name] for name in SECONDS_COLUMNS if name in names), "")
    audio = section.get("audio_column")
    audio = audio or manifest.inspect_manifest(section["path"])["audio_column"]
    if not column:
        folder = section.get("audio_folder") or table.folder
        paths = (remote.join(folder, tables.text(v)) for v in table.columns[audio])
        return {} if any(map(remote.is_remote, paths)) else None
    ids = section.get("id_column") or names.get("id") or audio
    found: dict[str, float] = {}
    for name, value in zip(table.columns[ids], table.columns[column], strict=True):
        try:
            seconds = float(tables.text(value))
        except ValueError:
            continue
        if math.isfinite(seconds):
            found.setdefault(tables.text(name), seconds)
    return found
