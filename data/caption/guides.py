"""Which tags guide a captioner: a clip's own labels, those of a file, or a tagger's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clap_jax import remote
from clap_jax.pipeline import tables, tag_files
from clap_jax.pipeline.manifest import AUDIO_COLUMNS, ID_COLUMNS, LABEL_COLUMNS
from clap_jax.pipeline.tables import Problem
from clap_jax.pipeline.tags import TagRule
from clap_jax.text import prompts

PROBABILITIES = "probabilities"
"""The column of a file of tags with an object, {tag: probability}."""


class GuideError(ValueError):
    """Tags that cannot guide a captioner; says why."""


class Tagged(NamedTuple):
    """The tags of a clip.

    probabilities: how likely each is; () where they are labels, which are certain.
    origin: "source", "file", "tagger", or "none".
    """

    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    origin: str = "none"


def chosen(
    labels: Sequence[str], probabilities: Sequence[float], rule: TagRule, origin: str
) -> Tagged:
    """The tags that a rule chooses, in the order of `labels`."""
    row = np.asarray(probabilities, np.float64)
    kept = np.flatnonzero(rule(row)) if len(row) else ()
    return Tagged(
        tuple(labels[i] for i in kept),
        tuple(round(float(row[i]), 6) for i in kept),
        origin,
    )


class TagFile:
    """Tags of clips by their ids, from a table (CSV, JSON lines, Parquet), or a tagger's
    probabilities as training reads them (`clap_jax.pipeline.tag_files`).

    In a table: a column `id` (or of paths, which then are the ids), and one of:

    * a column of labels (`tags`, `label`, ...): names, several as a list or between
      `separator`; or, in JSON lines, an object {name: probability};
    * a column `probabilities` with such an object, in a CSV as JSON;
    * otherwise every other column is a tag, and its cells are probabilities.

    Of tags with probabilities `rule` chooses. A file that is not there has no clip
    (`is_there`). Raises ManifestError, or ValueError, for one that cannot be read.
    """

    def __init__(self, path: str, rule: TagRule, separator: str = ""):
        self.path, self._rule, self._separator = path, rule, separator
        self._found: dict[str, Tagged] = {}
        self.is_there, self.digest = remote.is_file(path), ""
        if self.is_there:
            content = remote.read(path)
            self.digest = hashlib.blake2b(content, digest_size=8).hexdigest()
            self._read_arrays() if path.endswith(".npz") else self._read_table()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._found

    def __getitem__(self, clip_id: str) -> Tagged:
        return self._found[clip_id]

    def _read_arrays(self) -> None:
        table = tag_files.read(self.path)
        for clip_id, row in table.rows.items():
            likely = table.probabilities[row]
            self._found[clip_id] = chosen(table.names, likely, self._rule, "file")

    def _read_table(self) -> None:
        table = tables.read(self.path)
        names = {name.lower(): name for name in table.columns}
        own = [names[n] for n in (*ID_COLUMNS, *AUDIO_COLUMNS) if n in names]
        if not own:
            reason = f"no column id among {', '.join(table.columns)}"
            raise table.error(Problem(0, "", reason))
        of_tags = [names[n] for n in (PROBABILITIES, *LABEL_COLUMNS) if n in names]
        wide = [name for name in table.columns if name not in own]
        if not of_tags and not wide:
            raise table.error(Problem(0, "", "no column of tags beside the ids"))
        problems: list[Problem] = []
        for row, line in enumerate(table.lines):
            clip_id = tables.text(table.columns[own[0]][row])
            column = of_tags[0] if of_tags else ""
            try:
                if column:
                    tagged = self._cell(table.columns[column][row])
                else:
                    cells = {name: table.columns[name][row] for name in wide}
                    tagged = self._likely(cells)
            except ValueError as error:
                problems.append(Problem(line, column, str(error)))
                continue
            if clip_id in self._found:
                reason = f"{clip_id!r} is there already"
                problems.append(Problem(line, own[0], reason))
            self._found[clip_id] = tagged
        if problems:
            raise table.error(*problems)

    def _cell(self, value: Any) -> Tagged:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json.loads(value)
        if isinstance(value, Mapping):
            return self._likely(value)
        names = filter(None, tables.texts(value, self._separator))
        return Tagged(tuple(dict.fromkeys(names)), (), "file")

    def _likely(self, cells: Mapping[str, Any]) -> Tagged:
        # Parquet gives every row of a column of objects all keys that any row has.
        cells = {name: cell for name, cell in cells.items() if cell is not None}
        return chosen(
            list(cells),
            [_probability(name, cell) for name, cell in cells.items()],
            self._rule,
            "file",
        )


def _probability(name: str, cell: Any) -> float:
    try:
        value = float(cell)
        if not 0 <= value <= 1:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} is {cell!r:.40}, expected a probability, 0 to 1"
        ) from None
    return value


class Columns:
    """Tags as a captioner takes them.

    names: what its columns mean, which labels match whatever their case, with blanks or
    underscores. soft: a tag's probability stands in its column, else 1.
    """

    def __init__(self, names: Sequence[str], soft: bool = False):
        self._count, self._soft = len(names), soft
        self._exact = {name: column for column, name in enumerate(names)}
        self._plain = {_plain(name): column for name, column in self._exact.items()}

    def __call__(self, tagged: Tagged) -> tuple[np.ndarray, tuple[str, ...]]:
        """The row of a clip, float32 [C], and its tags that no column means."""
        row, unknown = np.zeros(self._count, np.float32), []
        shares = tagged.probabilities or (1.0,) * len(tagged.names)
        for name, share in zip(tagged.names, shares, strict=True):
            column = self._exact.get(name, self._plain.get(_plain(name)))
            if column is None:
                unknown.append(name)
            else:
                row[column] = share if self._soft else 1
        return row, tuple(unknown)


def _plain(name: str) -> str:
    return prompts.class_name(name).lower()


def columns_of(spec: Any, model: str, soft: bool) -> Columns | None:
    """How a captioner takes tags; None where none guide it. Raises GuideError."""
    guide = spec.decoder.options.get("guide", "none")
    if soft and guide != "keyword":
        raise GuideError(
            f"{model} has the guide {guide!r}: only a captioner with the guide "
            "'keyword' hears how likely tags are"
        )
    if not spec.is_guided:
        return None
    if not spec.tag_names:
        raise GuideError(
            f"{model} does not say what its tags mean (tag_names is empty)"
        )
    return Columns(spec.tag_names, soft)
