"""Tables of clips from CSV, JSON, JSON lines, Parquet, or a folder of sounds, as columns."""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clap_jax import remote
from clap_jax.text import prompts

SHOWN_PROBLEMS = 20

NOT_TEXT = "is not UTF-8 text"

SOUND_SUFFIXES = (
    *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac"),
    *(".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"),
)
"""Files that count as sounds in a folder (lower case)."""

SPLIT_FOLDERS = (
    *("train", "training", "val", "valid", "validation"),
    *("dev", "eval", "test"),
)
"""Top folders of a folder of sounds that are splits, not labels."""


class Problem(NamedTuple):
    """One thing that is wrong with a table; line 0 is the table as a whole."""

    line: int
    column: str
    reason: str
    advice: str = ""  # what to do, said with the first problem that it is for


class ManifestError(ValueError):
    """A manifest that cannot be used; lists its problems by line and column."""

    def __init__(self, path: str, problems: list[Problem], unit: str = "line"):
        self.path, self.problems, self.unit = path, problems, unit
        super().__init__(path, problems, unit)

    def __str__(self) -> str:
        lines, said = [], {""}
        for line, column, reason, advice in self.problems[:SHOWN_PROBLEMS]:
            place = [f"{self.unit} {line}"] if line else []
            place += [f"column {column!r}"] if column else []
            text = ": ".join(filter(None, (", ".join(place), reason)))
            lines.append(text if advice in said else f"{text} ({advice})")
            said.add(advice)
        if len(self.problems) == 1:
            return f"{self.path}: {lines[0]}"
        hidden = len(self.problems) - len(lines)
        more = [f"... and {hidden} more"] if hidden else []
        found = f"{self.path}: {len(self.problems)} problems"
        return "\n  ".join([found, *lines, *more])


@dataclass
class Table:
    """Columns of equal length, and where each row stands in the file."""

    path: str
    kind: str
    folder: str  # what relative paths are relative to
    columns: dict[str, list] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    unit: str = "line"

    def error(self, *problems: Problem) -> ManifestError:
        """The error about this table's problems, in the order of its lines."""
        return ManifestError(self.path, sorted(problems), self.unit)


def read(path: str | os.PathLike, left_out: list[Problem] | None = None) -> Table:
    """Read a table, or list a folder of sounds.

    Lines are counted from 1 as an editor does (a CSV header is line 1); Parquet has rows,
    counted from 1. Raises ManifestError with every row that cannot be parsed; given a
    list `left_out`, such rows, and those that are not UTF-8, go there and not into the
    table.
    """
    path = os.fspath(path)
    if not remote.is_remote(path):
        path = os.path.expanduser(path)
    try:
        if remote.is_folder(path):
            return _read_folder(path)
    except remote.StoreError:
        raise
    except OSError as error:
        raise _whole(path, error.strerror or str(error)) from None
    table = Table(path, Path(path).suffix.lower().lstrip("."), os.path.dirname(path))
    if table.kind not in READERS:
        known = ", ".join("." + kind for kind in READERS)
        raise _whole(path, f"unknown kind of table, expected {known} or a folder")
    try:
        if remote.find(path).size == 0:
            raise _whole(path, "the file is empty")
        problems = READERS[table.kind](table, left_out is not None)
    except remote.StoreError:
        raise
    except OSError as error:
        raise _whole(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start : error.start + 1]!r}"
        raise _whole(path, f"is not UTF-8 text ({found}): save it as UTF-8") from None
    if left_out is not None and table.lines:
        left_out += problems
    elif problems:
        raise table.error(*problems)
    if not table.lines:
        raise _whole(path, "there are no rows")
    return table


def _whole(path: str, reason: str) -> ManifestError:
    return ManifestError(path, [Problem(0, "", reason)])


def _text(table: Table, tolerant: bool) -> io.TextIOWrapper:
    """The file as text, its line ends as they are; `_is_text` tells bytes that are none.

    utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
    """
    errors = "surrogateescape" if tolerant else "strict"
    file = remote.opened(table.path)
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline="")


def _is_text(text: str) -> bool:
    """Whether what was read with surrogateescape was UTF-8."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def _read_csv(table: Table, tolerant: bool) -> list[Problem]:
    with _text(table, tolerant) as file:
        first = file.readline()
        delimiter = max(",\t;", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        problems, rows, last_line = [], [], 0
        try:
            header = [name.strip() for name in next(reader, [])]
            problems += _header_problems(header)
            if problems:
                return problems
            last_line = reader.line_num
            for row in reader:
                # A quoted field may hold line breaks: a row is where it begins.
                line, last_line = last_line + 1, reader.line_num
                if not row:
                    continue
                if len(row) != len(header):
                    reason = f"{len(row)} fields, but the header has {len(header)}"
                    problems.append(Problem(line, "", reason))
                    continue
                if not all(map(_is_text, row)):
                    problems.append(Problem(line, "", NOT_TEXT))
                    continue
                table.lines.append(line)
                rows.append(row)
        except csv.Error as error:
            problems.append(Problem(last_line + 1, "", str(error)))
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    table.columns = dict(zip(header, map(list, columns), strict=True))
    return problems


def _header_problems(header: list[str]) -> list[Problem]:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    return [Problem(1, name, "two columns have this name") for name in twice]


def _read_json_lines(table: Table, tolerant: bool) -> list[Problem]:
    problems, rows = [], []
    with _text(table, tolerant) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            if not _is_text(text):
                problems.append(Problem(line, "", NOT_TEXT))
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                problems.append(Problem(line, "", f"is not JSON: {error}"))
                continue
            if not isinstance(row, dict):
                reason = f"holds a {type(row).__name__}, expected an object {{...}}"
                problems.append(Problem(line, "", reason))
                continue
            table.lines.append(line)
            rows.append(row)
    names = dict.fromkeys(key for row in rows for key in row)
    table.columns = {name: [row.get(name) for row in rows] for name in names}
    return problems


def _read_json(table: Table, _: bool) -> list[Problem]:
    table.unit = "item"
    with _text(table, False) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            return [Problem(0, "", f"is not JSON: {error}")]
    if not isinstance(rows, list):
        found = f"holds a {type(rows).__name__}"
        return [Problem(0, "", f"{found}, expected a list of objects [{{...}}, ...]")]
    problems = [
        Problem(item, "", f"is a {type(row).__name__}, expected an object {{...}}")
        for item, row in enumerate(rows, start=1)
        if not isinstance(row, dict)
    ]
    kept = [(item, r) for item, r in enumerate(rows, start=1) if isinstance(r, dict)]
    table.lines = [item for item, _ in kept]
    names = dict.fromkeys(key for _, row in kept for key in row)
    table.columns = {name: [row.get(name) for _, row in kept] for name in names}
    return problems


def _read_parquet(table: Table, _: bool) -> list[Problem]:
    import pyarrow
    from pyarrow import parquet

    table.unit = "row"
    try:
        with remote.opened(table.path) as file:
            content = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        return [Problem(0, "", f"is not a Parquet file: {error}")]
    table.columns = {name: content[name].to_pylist() for name in content.column_names}
    table.lines = list(range(1, content.num_rows + 1))
    return []


NAMED = "audio_name"
"""The column that `named` adds."""

FIELD = re.compile(r"{([^{}]*)}")

ASKING, ANSWERING = ("human", "user", "system"), ("gpt", "assistant", "model")

READERS = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "json": _read_json,
    "parquet": _read_parquet,
}


def _read_folder(path: str) -> Table:
    """Sounds of a folder: their path and, from the folder they are in, a label.

    Sounds right in `path` have no label, but a caption: the words of their name.
    """
    files = map(Path, remote.below(path))
    found = [file for file in files if file.suffix.lower() in SOUND_SUFFIXES]
    found.sort(key=lambda file: (file.parent.parts, file.name))
    if not found:
        known = ", ".join(SOUND_SUFFIXES)
        raise _whole(path, f"no sounds in this folder (files that end in {known})")
    table = Table(path, "folder", path, unit="file")
    table.lines = list(range(1, len(found) + 1))
    table.columns = {"path": list(map(str, found))}
    if all(len(file.parts) > 2 and file.parts[0] in SPLIT_FOLDERS for file in found):
        table.columns["split"] = [file.parts[0] for file in found]
    loose = [file for file in found if len(file.parts) == 1]
    if not loose:
        table.columns["label"] = [file.parts[-2] for file in found]
    elif len(loose) == len(found):
        table.columns["caption"] = [_words(file.stem) for file in found]
    else:
        raise _whole(
            path,
            f"{len(loose)} sounds (first: {loose[0]}) lie beside the sub-folders that "
            "name the labels: move them into one",
        )
    return table


def _words(stem: str) -> str:
    return prompts.class_name(stem.replace("-", " ").replace(".", " ")) or stem


def text(value: Any) -> str:
    """A cell as text without blanks at its ends; an empty one, or none, is ""."""
    return "" if value is None else str(value).strip()


def texts(value: Any, separator: str = "") -> list[str]:
    """A cell that holds several texts: a list, a JSON list, or text with separators."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass  # a text that happens to begin with a bracket
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, Mapping) for item in value):
            return [answers(value)]
        return [text(item) for item in value]
    parts = text(value).split(separator) if separator else [text(value)]
    return [text(part) for part in parts]


def answers(turns: Sequence[Mapping[str, Any]]) -> str:
    """What the model says in a conversation, one answer after the other.

    turns: {"from": "human" | "gpt", "value": text}, or {"role": "user" | "assistant",
    "content": text}. Raises ValueError for others.
    """
    said = []
    for turn in turns:
        who = text(turn.get("from", turn.get("role"))).lower()
        words = turn.get("value", turn.get("content"))
        if who not in (*ASKING, *ANSWERING) or not isinstance(words, str):
            raise ValueError(
                f"a turn of a conversation is {dict(turn)!r:.60}, expected "
                '{"from": "human" or "gpt", "value": text}'
            )
        if who in ANSWERING:
            said.append(words.strip())
    return " ".join(filter(None, said))


def named(table: Table, pattern: str) -> Table:
    """The table with one more column, of the file names that a pattern makes of others.

    pattern: "{ytid}.wav" for the column ytid. Raises ManifestError for columns that
    are not there.
    """
    fields = re.findall(FIELD, pattern)
    if not fields:
        reason = f"audio_name {pattern!r} has no column in it, such as {{ytid}}"
        raise table.error(Problem(0, "", reason))
    for name in fields:
        if name not in table.columns:
            reason = f"audio_name {pattern!r}: no such column"
            known = close(name, table.columns)
            raise table.error(Problem(0, name, f"{reason} ({known})"))
    made = [
        re.sub(FIELD, lambda field: text(table.columns[field[1]][row]), pattern)
        for row in range(len(table.lines))
    ]
    columns = {**table.columns, NAMED: made}
    return Table(table.path, table.kind, table.folder, columns, table.lines, table.unit)


# --- which rows ---


def close(name: str, known: Any) -> str:
    """Which of the known names come close to one that is not, and what there is."""
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}found: {', '.join(known)}"


def values(wanted: Any) -> list[str]:
    """One value or several of a filter as text."""
    several = isinstance(wanted, Sequence) and not isinstance(wanted, str)
    return [text(value) for value in (wanted if several else [wanted])]


def distinct(table: Table, column: str) -> list[str]:
    """The values in a column, sorted."""
    found = {text(value) for value in table.columns[column]}
    # 2 before 10, then words.
    return sorted(found, key=lambda v: (not v.isdecimal(), len(v) * v.isdecimal(), v))


def kept_rows(table: Table, where: Mapping[str, Any]) -> list[int]:
    """Rows that pass the filter {column: value or values}. Raises ManifestError."""
    kept = list(range(len(table.lines)))
    for column, wanted in where.items():
        if column not in table.columns:
            reason = f"where: no such column ({close(column, table.columns)})"
            raise table.error(Problem(0, column, reason))
        cells, wanted = table.columns[column], set(values(wanted))
        absent = sorted(wanted - set(distinct(table, column)))
        kept = [row for row in kept if text(cells[row]) in wanted]
        if absent or not kept:
            found = distinct(table, column)
            more = f" and {len(found) - 20} more" if len(found) > 20 else ""
            reason = (
                f"where: no row has {', '.join(map(repr, absent or sorted(wanted)))}"
                + ("" if absent else " and passes the other filters")
                + f"; values in the table: {', '.join(found[:20])}{more}"
            )
            raise table.error(Problem(0, column, reason))
    return kept


def without(
    table: Table, rows: list[int], ids: list, clips: list, path: str
) -> list[int]:
    """Rows of clips that have no id in a file. Raises ManifestError if none is left.

    ids: the id of every row of the table; clips: what rows of one clip have in common.
    """
    listed = read_ids(path)
    gone = {text(clips[row]) for row in rows if text(ids[row]) in listed}
    kept = [row for row in rows if text(clips[row]) not in gone]
    if not kept:
        reason = f"exclude: all {len(rows)} rows are listed in {path}"
        raise table.error(Problem(0, "", reason))
    return kept


def read_ids(path: str) -> set[str]:
    """The ids in a text file, one a line. Raises ManifestError or OSError."""
    try:
        lines = remote.read(os.path.expanduser(path)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _whole(path, "is not UTF-8 text") from None
    return set(filter(None, map(text, lines)))
