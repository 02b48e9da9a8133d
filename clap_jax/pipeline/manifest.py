"""Clips listed in a table (CSV, JSON, JSON lines, Parquet) or lying in a folder.

Columns are found by their names, whatever their case, the first that is there:

    audio      path, audio, file, filename, file_name, audio_path, wav
    captions   caption, captions, text; or caption_1, caption_2, ...; or output, or
               conversations (what the model says, one answer after the other)
    label      label_text, label, class, category, tags
    id         id (without it, the audio path is the id)
    split      split, subset
    fold       fold

Tables, folders and audio files may be URLs (gs://, s3://); what such files hold is read
when a clip is asked for. `captions` and `tags` may hold lists. In a folder with
sub-folders the sub-folder's name is the label; in one without, the words of the file
name are the caption.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clap_jax import remote
from clap_jax.audio import io
from clap_jax.pipeline import order, tables
from clap_jax.pipeline.tables import ManifestError, Problem, Table
from clap_jax.text import prompts

__all__ = ["ManifestError", "ManifestSource", "inspect_manifest"]

AUDIO_COLUMNS = ("path", "audio", "file", "filename", "file_name", "audio_path", "wav")
CAPTION_COLUMNS = ("caption", "captions", "text")
# Of files that teach language models about music, where there is none of those.
ANSWER_COLUMNS = ("output", "conversations")
NUMBERED_CAPTION = re.compile(r"captions?_?\d+")
LABEL_COLUMNS = ("label_text", "label", "class", "category", "tags")
ID_COLUMNS = ("id",)
SPLIT_COLUMNS = ("split", "subset")
FOLD_COLUMNS = ("fold",)

GROUPS = ("clip", "label")

# From so many files in one folder on, listing it is quicker than asking for each.
LISTED_FROM = 32

# What to do about a problem.
FILL_IN = "fill it in, or remove the row"
MERGE = "merge_rows=True makes one clip of such rows, or remove the row"


class Columns(NamedTuple):
    """Which columns hold what; "" or () where there is none."""

    audio: str
    captions: tuple[str, ...]
    label: str
    id: str


class ManifestSource:
    """Clips of a table or folder; checks every row before the first is used.

    path: a table, or a folder of sounds; or a `Table` that has been read.
    audio_column, caption_columns, label_column, id_column: names, where those that are
        found by themselves (see the module) are not meant. A `label_column` without
        `caption_columns` makes captions from labels even where there is a caption column.
    templates: sentences with one {} for the label, when captions are made from labels.
    audio_name: how other columns make the files' names, "{ytid}.wav" for MusicCaps;
        instead of audio_column.
    audio_folder: what relative audio paths are relative to; else the table's own folder.
    where: keep rows by value, {"fold": ["1", "2"], "split": "train"}.
    group_by: "clip", or "label": clips of one label are positives of each other.
    separator: between the labels of a cell, for example ",".
    merge_rows: rows of one audio file are one clip with all their captions and labels
        (AudioCaps lists test captions so); without it they are an error.
    check_files: look for every audio file now.
    exclude: a file with an id a line: clips that are left out, as `data.overlap` finds
        them.

    Raises ManifestError that lists (the first of) all problems with line and column.
    """

    def __init__(
        self,
        path: str | os.PathLike | Table,
        name: str = "manifest",
        audio_column: str = "",
        caption_columns: Sequence[str] = (),
        label_column: str = "",
        id_column: str = "",
        templates: Sequence[str] = ("{}",),
        audio_folder: str = "",
        where: Mapping[str, Any] | None = None,
        group_by: str = "clip",
        separator: str = "",
        merge_rows: bool = False,
        check_files: bool = True,
        exclude: str = "",
        audio_name: str = "",
    ):
        if group_by not in GROUPS:
            raise ValueError(f"group_by is {group_by!r}, expected one of {GROUPS}")
        self.name = name
        table = path if isinstance(path, Table) else tables.read(path)
        if audio_name:
            table, audio_column = tables.named(table, audio_name), tables.NAMED
        self._path, self._where = table.path, dict(where or {})
        templates = prompts.checked_templates(templates)
        if isinstance(caption_columns, str):
            caption_columns = (caption_columns,)
        chosen = Columns(audio_column, tuple(caption_columns), label_column, id_column)
        columns = _columns(table, chosen)
        kept = tables.kept_rows(table, self._where)
        ids = table.columns[columns.id or columns.audio]
        if exclude:
            clips = table.columns[columns.audio] if merge_rows else ids
            kept = tables.without(table, kept, ids, clips, exclude)
        if not remote.is_remote(audio_folder):
            audio_folder = os.path.expanduser(audio_folder)
        folder = audio_folder or table.folder
        self._origin = _origin(columns)

        problems: list[Problem] = []
        audio = _audio_paths(table, columns, kept, folder, problems)
        if check_files:
            problems += _missing_files(table, columns, kept, audio)
        self._tags = _tags(table, columns, kept, separator, group_by, problems)
        self._captions = (
            _captions(table, columns, kept, problems) if columns.captions else None
        )
        self._ids = [tables.text(ids[row]) for row in kept]
        self._audio = audio
        if merge_rows:
            self._merge()
        else:
            problems += _duplicates(table, columns, kept, self._ids, audio)
        if problems:
            raise table.error(*problems)
        self._by_label = group_by == "label"
        labels = sorted({tag for own in self._tags for tag in own})
        names = [prompts.class_name(label) for label in labels]
        self._rendered = dict(zip(labels, prompts.expand(templates, names)))

    def _merge(self) -> None:
        """Make one clip of all rows with one audio file, in order of first appearance."""
        rows = defaultdict(list)
        for row, file in enumerate(self._audio):
            rows[file].append(row)
        merged = list(rows.values())

        def union(values: list) -> list:
            return [
                tuple(dict.fromkeys(item for row in group for item in values[row]))
                for group in merged
            ]

        self._tags = union(self._tags)
        self._captions = None if self._captions is None else union(self._captions)
        self._ids = [self._ids[group[0]] for group in merged]
        self._audio = [self._audio[group[0]] for group in merged]

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip: its path, or the bytes behind its URL (AudioError if it has none,
        RemoteError if its store does not give it)."""
        return {
            "audio": _sound(self._audio[index]),
            "captions": self.captions(index),
            "tags": self.tags(index),
            "id": self.id(index),
            "group": self.group(index),
        }

    def audio_path(self, index: int) -> str:
        """Where a clip's audio is: a path or URL."""
        return self._audio[index]

    def audio_files(self) -> list[str]:
        """Where the audio of all clips is: a path or URL each."""
        return list(self._audio)

    def captions(self, index: int) -> list[str]:
        """Captions of a clip: those of the table, or every template with every label."""
        if self._captions is not None:
            return list(self._captions[index])
        return [line for tag in self._tags[index] for line in self._rendered[tag]]

    def tags(self, index: int) -> list[str]:
        """Labels of a clip as the table writes them."""
        return list(self._tags[index])

    def group(self, index: int) -> str:
        """The clip's labels with group_by="label", else its id."""
        return "|".join(self._tags[index]) if self._by_label else self._ids[index]

    def id(self, index: int) -> str:
        """The id column, or the audio path as the table writes it."""
        return self._ids[index]

    def description(self) -> str:
        """One line: how many clips, which rows, captions from where, how many labels."""
        rows = [
            f"{key} {', '.join(tables.values(want))}"
            for key, want in self._where.items()
        ]
        labels = len(self._rendered)
        return (
            f"{self.name}: {len(self)} clips of {os.path.basename(self._path)}"
            + (f" ({'; '.join(rows)})" if rows else "")
            + f", captions from {self._origin}"
            + (f", {labels} labels" if labels else "")
        )

    def digest(self) -> str:
        """Short hex of the filter and of all ids, captions, labels and groups."""
        rows = (
            (self.id(i), self.captions(i), self.tags(i), self.group(i))
            for i in range(len(self))
        )
        where = [
            (key, sorted(tables.values(want))) for key, want in self._where.items()
        ]
        return order.digest([sorted(where), *rows])


def audio_alone(path: str | os.PathLike) -> str:
    """The column of sounds of a table that has neither captions nor labels, "" of any
    other. Raises ManifestError for what is no table."""
    table = tables.read(path, [])
    texts = (*CAPTION_COLUMNS, *ANSWER_COLUMNS, *LABEL_COLUMNS)
    numbered = any(NUMBERED_CAPTION.fullmatch(n.lower()) for n in table.columns)
    return "" if numbered or _find(table, texts) else _find(table, AUDIO_COLUMNS)


def inspect_manifest(path: str | os.PathLike, separator: str = "") -> dict[str, Any]:
    """What a table or folder holds, by its columns alone: `ManifestSource` checks rows.

    separator: between the labels of a cell.
    Returns path, kind ("csv", "jsonl", "parquet", "folder"), rows (how many), columns;
    audio_column, caption_columns, label_column, split_column, fold_column ("" or () for
    none); labels (distinct, sorted), multi_label (whether a cell has several), values
    {split or fold column: distinct values, sorted}. Raises ManifestError for what is no
    table, or lacks columns.
    """
    table = tables.read(path)
    columns = _columns(table, Columns("", (), "", ""))
    tags = _tags(table, columns, range(len(table.lines)), separator, "clip", [])
    split, fold = _find(table, SPLIT_COLUMNS), _find(table, FOLD_COLUMNS)
    return {
        "path": table.path,
        "kind": table.kind,
        "rows": len(table.lines),
        "columns": list(table.columns),
        "audio_column": columns.audio,
        "caption_columns": columns.captions,
        "label_column": columns.label,
        "split_column": split,
        "fold_column": fold,
        "labels": sorted({tag for own in tags for tag in own}),
        "multi_label": any(len(own) > 1 for own in tags),
        "values": {
            name: tables.distinct(table, name) for name in (split, fold) if name
        },
    }


def _sound(path: str) -> str | bytes:
    if not remote.is_remote(path):
        return path
    try:
        return remote.read(path)
    except FileNotFoundError as error:
        raise io.AudioError(str(error)) from None


# --- columns and rows ---


def _find(table: Table, candidates: Sequence[str]) -> str:
    by_name = {name.lower(): name for name in table.columns}
    return next((by_name[name] for name in candidates if name in by_name), "")


def _columns(table: Table, chosen: Columns) -> Columns:
    """The columns to read: those chosen, else those found by name."""
    problems = [
        Problem(
            0, name, f"there is no such column ({tables.close(name, table.columns)})"
        )
        for name in (chosen.audio, *chosen.captions, chosen.label, chosen.id)
        if name and name not in table.columns
    ]
    if problems:
        raise table.error(*problems)
    audio = chosen.audio or _find(table, AUDIO_COLUMNS)
    if not audio:
        reason = (
            f"no column with audio paths among {', '.join(table.columns)}: name one of "
            f"them {', '.join(AUDIO_COLUMNS)}, or set audio_column"
        )
        raise table.error(Problem(0, "", reason))
    captions = chosen.captions
    if not captions and not chosen.label:
        one = _find(table, CAPTION_COLUMNS)
        numbered = [n for n in table.columns if NUMBERED_CAPTION.fullmatch(n.lower())]
        said = _find(table, ANSWER_COLUMNS)
        captions = (one,) if one else tuple(numbered) or ((said,) if said else ())
    label = chosen.label or _find(table, LABEL_COLUMNS)
    if not captions and not label:
        reason = (
            f"neither captions nor labels among the columns {', '.join(table.columns)}: "
            f"name one {', '.join(CAPTION_COLUMNS)} or {', '.join(LABEL_COLUMNS)}, or "
            "set caption_columns or label_column"
        )
        raise table.error(Problem(0, "", reason))
    return Columns(audio, captions, label, chosen.id or _find(table, ID_COLUMNS))


def _origin(columns: Columns) -> str:
    names = columns.captions or (columns.label,)
    kind = "column" if columns.captions else "labels in column"
    plural = "s" if columns.captions and len(names) > 1 else ""
    return f"{kind}{plural} {', '.join(names)}"


# --- cells ---


def _audio_paths(
    table: Table, columns: Columns, kept: Sequence[int], folder: str, problems: list
) -> list[str]:
    values, paths = table.columns[columns.audio], []
    for row in kept:
        value = values[row]
        if not isinstance(value, str) or not value.strip():
            found = "is empty" if value in (None, "") else f"is {value!r:.60}"
            reason = f"{found}, expected the path of an audio file"
            problems.append(Problem(table.lines[row], columns.audio, reason))
            value = ""
        paths.append(remote.join(folder, value.strip()) if value else "")
    return paths


def _missing_files(
    table: Table, columns: Columns, kept: Sequence[int], paths: list[str]
) -> list[Problem]:
    """Rows whose file is not there; folders with many files are listed once."""
    by_folder = defaultdict(list)
    for row, path in zip(kept, paths, strict=True):
        if path:
            by_folder[os.path.dirname(path)].append((row, path))
    missing = []
    for folder, files in by_folder.items():
        if len(files) < LISTED_FROM:
            missing += [(row, path) for row, path in files if not remote.is_file(path)]
            continue
        names = remote.names(folder)
        missing += [file for file in files if os.path.basename(file[1]) not in names]
    none = len(missing) == len(kept) > 1
    advice = "" if none else "check the path, or set audio_folder"
    problems = [
        Problem(table.lines[row], columns.audio, f"there is no file {path}", advice)
        for row, path in missing
    ]
    if none:
        reason = (
            f"none of the {len(kept)} audio files was found: paths are relative to the "
            "table's own folder, set audio_folder where that is not so"
        )
        problems.append(Problem(0, columns.audio, reason))
    return problems


def _captions(
    table: Table, columns: Columns, kept: Sequence[int], problems: list
) -> list[tuple[str, ...]]:
    """Captions of every row. Of several columns all but one may be empty."""
    result = []
    for row in kept:
        try:
            found = [
                caption
                for name in columns.captions
                for caption in tables.texts(table.columns[name][row])
            ]
        except ValueError as error:
            name = ", ".join(columns.captions)
            problems.append(Problem(table.lines[row], name, str(error)))
            result.append(())
            continue
        captions = tuple(filter(None, found))
        if not captions or (len(columns.captions) == 1 and len(captions) < len(found)):
            name = ", ".join(columns.captions)
            problems.append(Problem(table.lines[row], name, "empty caption", FILL_IN))
        result.append(captions)
    return result


def _tags(
    table: Table,
    columns: Columns,
    kept: Sequence[int],
    separator: str,
    group_by: str,
    problems: list,
) -> list[tuple[str, ...]]:
    """Labels of every row; there must be one where captions or groups come of it."""
    needed = not columns.captions or group_by == "label"
    if not columns.label:
        if needed:
            reason = 'group_by="label" needs a label column: set label_column'
            problems.append(Problem(0, "", reason))
        return [()] * len(kept)
    result = []
    for row in kept:
        found = tables.texts(table.columns[columns.label][row], separator)
        tags = tuple(dict.fromkeys(filter(None, found)))
        if needed and not tags:
            line = table.lines[row]
            problems.append(Problem(line, columns.label, "empty label", FILL_IN))
        result.append(tags)
    return result


def _duplicates(
    table: Table,
    columns: Columns,
    kept: Sequence[int],
    ids: list[str],
    audio: list[str],
) -> list[Problem]:
    """Rows with the id of an earlier row."""
    first: dict[str, tuple[int, str]] = {}
    problems = []
    for row, name, path in zip(kept, ids, audio, strict=True):
        line, known = table.lines[row], first.get(name)
        if name and known:
            reason = f"{name!r} is in {table.unit} {known[0]} already"
            advice = MERGE if path == known[1] else "rename one, or remove the row"
            problems.append(Problem(line, columns.id or columns.audio, reason, advice))
        else:
            first[name] = line, path
    return problems
