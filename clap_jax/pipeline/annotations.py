"""Labels and sections of clips from a table beside them.

A row belongs to the clip that its column id (or else path) names. Without sections, rows
have labels: the column `label`, or another that is asked for; an empty cell is none. With
them, rows are sections: columns begin (or start) and end, in seconds, and label; or one
row has all sections of a clip in a column `sections`, as JSON: [[0, 21.5, "verse"], ...]
or [{"begin": 0, "end": 21.5, "label": "verse"}, ...].
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clap_jax.pipeline import order, tables
from clap_jax.pipeline.exclude import SomeSource
from clap_jax.pipeline.tables import ManifestError, Problem, Table

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

IDS = ("id", "path")
BEGINS = ("begin", "start", "begin_seconds", "start_seconds", "start_time")
ENDS = ("end", "end_seconds", "end_time")

Sections = list[tuple[float, float, str]]
"""Begin and end in seconds and the label of each, sorted."""


class AnnotatedSource(SomeSource):
    """The clips of a source that a table says something of.

    table: its path. label: its column of labels; separator: between those of a cell.
    Where the table has sections, and no other column than "label" is asked for,
    `sections(index)` gives a clip's, and labels are the source's own; else labels are
    the table's.

    Raises ManifestError for rows that cannot be used, and where no row names a clip.
    """

    def __init__(
        self, source: "Source", table: str, label: str = "label", separator: str = ""
    ):
        read = tables.read(table)
        has_begins = {*BEGINS} & {*read.columns} and {*ENDS} & {*read.columns}
        of_sections = "sections" in read.columns or bool(has_begins)
        self._of_sections = of_sections and label == "label"
        if self._of_sections:
            self._found: Mapping[str, Any] = sections(read)
        else:
            self._found = labels(read, label, separator)
        ids = [source.id(i) for i in range(len(source))]
        kept = [i for i, name in enumerate(ids) if name in self._found]
        if not kept:
            here = next(iter(ids), "none")
            reason = f"no row names a clip of source {source.name!r} (such as {here!r})"
            raise read.error(Problem(0, "", reason))
        what = "sections" if self._of_sections else f"{label}"
        says = f"the {len(kept):,} with {what} in {table}"
        super().__init__(source, kept, says)
        self._found = {ids[i]: self._found[ids[i]] for i in kept}  # workers get a copy

    def tags(self, index: int) -> list[str]:
        """Labels of a clip."""
        if self._of_sections:
            return super().tags(index)
        return list(self._found[self.id(index)])

    def __getattr__(self, name: str) -> Any:
        if name == "sections" and self._of_sections:
            return lambda index: list(self._found[self.id(index)])
        return super().__getattr__(name)

    def digest(self) -> str:
        """Short hex of the source's own, and of what the table says of its clips."""
        said = [self._found[self.id(index)] for index in range(len(self))]
        return order.digest([super().digest(), json.dumps(said)])


def labels(table: Table, column: str, separator: str = "") -> dict[str, list[str]]:
    """Clip -> its labels; without clips that have none. Raises ManifestError."""
    found: dict[str, list[str]] = {}
    if column not in table.columns:
        reason = f"no such column ({tables.close(column, table.columns)})"
        raise table.error(Problem(0, column, reason))
    for name, cell in zip(_ids(table), table.columns[column], strict=True):
        own = [label for label in tables.texts(cell, separator) if label]
        if own:
            found[name] = list(dict.fromkeys([*found.get(name, ()), *own]))
    return found


def sections(table: Table) -> dict[str, Sections]:
    """Clip -> its sections. Raises ManifestError, also for one that ends before it has
    begun."""
    found: dict[str, Sections] = {}
    problems = []
    columns = table.columns
    if "sections" in columns:
        column, cells = "sections", columns["sections"]
    else:
        begin, end = _one_of(table, BEGINS), _one_of(table, ENDS)
        column, words = begin, columns.get("label", [""] * len(table.lines))
        cells = [[row] for row in zip(columns[begin], columns[end], words)]
    for line, name, cell in zip(table.lines, _ids(table), cells, strict=True):
        try:
            own = json.loads(cell) if isinstance(cell, str) and cell.strip() else cell
            found.setdefault(name, []).extend(map(_section, own or ()))
        except (ValueError, TypeError, LookupError) as error:
            reason = f"no sections, expected [begin, end, label] in seconds: {error!r}"
            problems.append(Problem(line, column, reason))
    if problems:
        raise table.error(*problems)
    return {name: sorted(own) for name, own in found.items() if own}


def _section(said: Any) -> tuple[float, float, str]:
    if isinstance(said, Mapping):
        said = (said["begin"], said["end"], said.get("label"))
    begin, end = float(said[0]), float(said[1])
    if not (0 <= begin < end and math.isfinite(end)):
        raise ValueError(f"from {begin} to {end}")
    return begin, end, tables.text(said[2]) if len(said) > 2 else ""


def _ids(table: Table) -> list[str]:
    return [tables.text(name) for name in table.columns[_one_of(table, IDS)]]


def _one_of(table: Table, names: tuple[str, ...]) -> str:
    """The first of some columns that is there. Raises ManifestError."""
    for name in names:
        if name in table.columns:
            return name
    reason = f"there is no column {' or '.join(names[:2])}"
    raise ManifestError(table.path, [Problem(0, "", reason)])
