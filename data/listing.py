"""The clips of a source as a list that no broken entry stops: those go to the rejects."""

import array
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from clap_jax import remote
from clap_jax.pipeline import array_record, manifest, order, sources, tables, tars
from clap_jax.pipeline.sources import Source

_KEPT_LISTINGS = 64

RATE_COLUMNS = ("sample_rate", "rate_hz", "sampling_rate", "sample_rate_hz")


class Rejected(NamedTuple):
    """A clip that is left out, a row of the report of rejects."""

    id: str
    path: str
    kind: str
    reason: str


class Query(NamedTuple):
    """Which clips: an entry of `data.sources`, in a form that can be sent about."""

    kind: str
    path: str  # or the data set's name; "" where it is among the options
    options: str = "{}"  # JSON
    exclude: str = ""  # a file with an id a line

    @property
    def label(self) -> str:
        """What tables call it: the name that it was given, else its path and split."""
        options = json.loads(self.options)
        if "name" in options:
            return options["name"]
        path = self.path or options.get(sources.place(self.kind), self.kind)
        return ", ".join(filter(None, (str(path), options.get("split"))))


class Listing:
    """Clips by index.

    rejected: what the source itself had to leave out; excluded: how many ids of the list
    of those to leave out were there; digest: changes with the list, not with audio.
    """

    def __init__(
        self,
        parts: list[Source],
        rejected: list[Rejected],
        exclude: set[str],
        rates_hz: Mapping[str, float],
    ):
        self._rates_hz, self.rejected = rates_hz, list(rejected)
        self.excluded = 0
        self._parts = parts
        # Numbers, not objects: there may be millions.
        self._part, self._index = array.array("L"), array.array("Q")
        seen: set[str] = set()
        for number, part in enumerate(parts):
            for index in range(len(part)):
                name = part.id(index)
                if name in seen:
                    reason = "another clip has this id"
                    row = Rejected(name, part.description(), "duplicate_id", reason)
                    self.rejected.append(row)
                elif name in exclude:
                    self.excluded += 1
                else:
                    self._part.append(number)
                    self._index.append(index)
                seen.add(name)
        left_out = [tuple(entry) for entry in self.rejected]
        own = [part.digest() for part in parts]
        self.digest = order.digest([own, sorted(exclude & seen), left_out])
        self.description = "; ".join(part.description() for part in parts[:3])
        if len(parts) > 3:
            self.description += f"; and {len(parts) - 3} more"

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip as its source gives it. Raises AudioError."""
        return self._parts[self._part[index]][self._index[index]]

    def id(self, index: int) -> str:
        """What a clip is called; unique."""
        return self._parts[self._part[index]].id(self._index[index])

    def tags(self, index: int) -> list[str]:
        """Labels of a clip, maybe none."""
        return self._parts[self._part[index]].tags(self._index[index])

    def path(self, index: int) -> str:
        """The path or URL of a clip's own file, "" where its sound is in none."""
        part = self._parts[self._part[index]]
        own = getattr(part, "audio_path", None)
        return own(self._index[index]) if own else ""

    def rate_hz(self, index: int) -> float:
        """The rate that a table says a clip has, 0 where it does not."""
        return self._rates_hz.get(self.id(index), 0.0)


@functools.lru_cache(maxsize=_KEPT_LISTINGS)
def read(query: Query) -> Listing:
    """List the clips that a query means; a process does it once in a run (`cache_clear`
    begins another).

    Raises what the source raises when nothing can be used.
    """
    options = json.loads(query.options)
    lists = [query.exclude]
    if query.kind != "manifest":  # whose own knows the rows of one clip
        lists.append(options.pop("exclude", ""))
    exclude = {name for path in lists if path for name in tables.read_ids(path)}
    path = query.path or options.pop(sources.place(query.kind), "")
    reader = _READERS.get(query.kind, _read_other)
    parts, rejected, rates_hz = reader(query.kind, path, options)
    return Listing(parts, rejected, exclude, rates_hz)


def _build(kind: str, path: Any, options: Mapping[str, Any]) -> Source:
    name = options.get("name", kind)
    rest = {key: value for key, value in options.items() if key != "name"}
    where = {sources.place(kind): path} if path else {}
    return sources.build_source(kind, name, where | rest)


def _read_other(kind: str, path: Any, options: Mapping) -> tuple[list, list, dict]:
    source = _build(kind, path, options)
    return [source], _problems(source), {}


def _problems(source: Source) -> list[Rejected]:
    """What a source that leaves out broken clips by itself says about them."""
    return [
        Rejected(name, file, _kind(reason), reason)
        for file, name, reason in getattr(source, "problems", ())
    ]


_KINDS = {
    "truncated": "truncated",
    "damaged": "truncated",
    "lost": "truncated",
    "no text": "no_caption",
    "no .json": "no_caption",
    "caption": "no_caption",
    "no audio": "no_audio",
    "audio is empty": "empty_file",
    "no wave": "no_audio",
    "no dataset": "no_audio",
    "UTF-8": "not_utf8",
    "is not JSON": "broken_json",
    "holds a": "broken_json",
    "second time": "duplicate_id",
    "already": "duplicate_id",
    "no such": "missing_file",
    "no file": "missing_file",
    "not found": "missing_file",
    "is empty": "empty_field",
    "label": "no_caption",
    "fields": "broken_row",
}


def _kind(reason: str) -> str:
    """A word for a source's own sentence."""
    low = reason.lower()
    return next((k for words, k in _KINDS.items() if words.lower() in low), "other")


# --- tables and folders ---


def _read_manifest(kind: str, path: Any, options: Mapping) -> tuple[list, list, dict]:
    """A table without its bad rows; whether files are there is seen when they are read."""
    bad: list[tables.Problem] = []
    table = tables.read(path, bad)
    rejected = [_of_row(table, "", problem) for problem in bad]
    options = {"check_files": False, **options}
    while True:
        try:
            source = _build(kind, table, options)
        except manifest.ManifestError as error:
            named = {problem.line: problem for problem in reversed(error.problems)}
            rows = [row for row, line in enumerate(table.lines) if line in named]
            if 0 in named or not rows or len(rows) == len(table.lines):
                raise
            names = _column(table, (options.get("id_column"), *manifest.ID_COLUMNS))
            paths = _audio_column(table, options)
            for row in rows:
                name = tables.text((names or paths)[row])
                problem = named[table.lines[row]]
                rejected.append(_of_row(table, name, problem, tables.text(paths[row])))
            _remove(table, set(rows))
            continue
        break
    rates = _column(table, RATE_COLUMNS)
    return [source], rejected, _rates(table, rates, options)


def _of_row(
    table: tables.Table, name: str, problem: tables.Problem, path: str = ""
) -> Rejected:
    where = f"{table.unit} {problem.line}"
    if problem.column:
        where += f", column {problem.column!r}"
    reason = f"{where}: {problem.reason}"
    return Rejected(name, path or table.path, _kind(problem.reason), reason)


def _column(table: tables.Table, names: tuple) -> list | None:
    """The first of these columns that is there, by names in lower case."""
    known = {name.lower(): name for name in table.columns}
    found = next((known[n.lower()] for n in names if n and n.lower() in known), None)
    return None if found is None else table.columns[found]


def _audio_column(table: tables.Table, options: Mapping) -> list:
    names = (options.get("audio_column"), *manifest.AUDIO_COLUMNS)
    return _column(table, names) or [""] * len(table.lines)


def _remove(table: tables.Table, rows: set[int]) -> None:
    kept = [row for row in range(len(table.lines)) if row not in rows]
    table.lines = [table.lines[row] for row in kept]
    for name, cells in table.columns.items():
        table.columns[name] = [cells[row] for row in kept]


def _rates(
    table: tables.Table, rates: list | None, options: Mapping
) -> dict[str, float]:
    """What the table says about the rate of each clip, by id."""
    if rates is None:
        return {}
    names = _column(table, (options.get("id_column"), *manifest.ID_COLUMNS))
    names = names or _audio_column(table, options)
    found = {}
    for name, rate in zip(names, rates, strict=True):
        try:
            found[tables.text(name)] = float(rate)
        except (TypeError, ValueError):
            continue  # no number, so nothing is promised
    return found


# --- shards ---


def _read_tars(kind: str, path: Any, options: Mapping) -> tuple[list, list, dict]:
    """Tar shards without those that are none."""
    try:
        return _read_other(kind, path, options)
    except tars.TarError:
        shards = remote.expand(path, tars.SUFFIX)
        if len(shards) < 2:
            raise
    good, rejected = [], []
    for shard in shards:
        try:
            _build(kind, shard, options)
            good.append(shard)
        except tars.TarError as error:
            reason = str(error).removeprefix(f"{shard}: ")
            rejected.append(Rejected("", shard, "broken_shard", reason))
    if not good:
        return _read_other(kind, path, options)
    source = _build(kind, good, options)
    return [source], rejected + _problems(source), {}


def _read_array_record(
    kind: str, path: Any, options: Mapping
) -> tuple[list, list, dict]:
    """Packed files one by one, without those that are damaged."""
    if {"generated", "part"} & set(options):  # they are of clips in any of the files
        return _read_other(kind, path, options)
    files = remote.expand(path, array_record.SUFFIX)
    parts, rejected = [], []
    for file in files:
        try:
            parts.append(_build(kind, file, options))
        except (array_record.ArrayRecordError, FileNotFoundError) as error:
            reason = str(error).removeprefix(f"{file}: ")
            rejected.append(Rejected("", file, "broken_shard", reason))
    if not parts:
        return _read_other(kind, path, options)
    return parts, rejected, {}


_READERS = {
    "manifest": _read_manifest,
    "laion_tar": _read_tars,
    "array_record": _read_array_record,
}
