"""What classes sound like, in sentences: read from files of several forms.

    .json   {"dog": "It barks.", "rain": ["Drops fall.", "A steady hiss."]}, or AudioSet's
            ontology, a list of {"id", "name", "description"}
    .jsonl  one {"label": ..., "description": ...} a line
    .csv    columns name (or label, class, category) and description; more rows of a
            class add sentences

Classes are found by the text as it is written, by what `prompts.class_name` makes of it,
and, in the ontology, by id.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clap_jax.text import prompts

NAMES = ("name", "label", "class", "category", "display_name")
TEXTS = ("description", "descriptions")
IDS = ("id", "mid")

Descriptions = Mapping[str, str | Sequence[str]]


class DescriptionError(ValueError):
    """A file of descriptions that cannot be used; names the file and what is wrong."""


def read(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Class -> its sentences, from a file. Raises DescriptionError and OSError."""
    path = Path(path).expanduser()
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _table}
    if path.suffix not in readers:
        raise DescriptionError(f"{path}: expected a file .json, .jsonl or .csv")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = readers[path.suffix](file, path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{path} cannot be read: {error}") from None
    return rows if isinstance(rows, dict) else _by_class(rows, path)


def choose(descriptions: Descriptions, labels: Iterable[str]) -> list[tuple[str, ...]]:
    """The sentences of every label, in their order.

    Raises DescriptionError that names the labels without any.
    """
    exact = {label: _sentences(own, label) for label, own in descriptions.items()}
    spoken: dict[str, tuple[str, ...]] = {}
    for label, own in exact.items():
        spoken.setdefault(prompts.class_name(label), own)
    found = [
        exact.get(label) or spoken.get(prompts.class_name(label)) for label in labels
    ]
    missing = [label for label, own in zip(labels, found, strict=True) if not own]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DescriptionError(
            f"no description of {', '.join(map(repr, missing[:5]))}{more}; there are "
            f"descriptions of {len(exact)} classes"
        )
    return found


def _json(file: Any, path: Path) -> Any:
    content = json.load(file)
    if isinstance(content, dict):
        return {
            label: _sentences(own, f"{path}: {label}") for label, own in content.items()
        }
    if isinstance(content, list):
        return list(enumerate(content, 1))
    raise DescriptionError(
        f"{path}: expected an object (class -> sentences) or a list, found "
        f"{type(content).__name__}"
    )


def _json_lines(file: Any, path: Path) -> list[tuple[int, Any]]:
    return [(line, json.loads(row)) for line, row in enumerate(file, 1) if row.strip()]


def _table(file: Any, path: Path) -> list[tuple[int, Any]]:
    rows = csv.DictReader(file)
    return [(rows.line_num, row) for row in rows]


def _by_class(rows: list[tuple[int, Any]], path: Path) -> dict[str, tuple[str, ...]]:
    """Rows with a name (and an id) and a description, by both."""
    found: dict[str, tuple[str, ...]] = {}
    for place, row in rows:
        name, text = _first(row, NAMES), _first(row, TEXTS)
        if not name or not text:
            raise DescriptionError(
                f"{path}, entry {place}: no {'description' if name else 'name'} "
                "(expected one of "
                f"{', '.join(NAMES if not name else TEXTS)})"
            )
        own = _sentences(text, f"{path}, entry {place}")
        for key in filter(None, (name, _first(row, IDS))):
            found[key] = found.get(key, ()) + own
    return found


def _first(row: Any, keys: Sequence[str]) -> Any:
    if not isinstance(row, Mapping):
        return None
    return next((row[key] for key in keys if row.get(key)), None)


def _sentences(own: Any, where: str) -> tuple[str, ...]:
    """One sentence or several, as a tuple of them."""
    own = (own,) if isinstance(own, str) else own
    is_text = isinstance(own, Sequence) and all(isinstance(text, str) for text in own)
    if not is_text or not own or not all(text.strip() for text in own):
        raise DescriptionError(f"{where}: {own!r:.60} is no sentence or list of them")
    return tuple(text.strip() for text in own)
