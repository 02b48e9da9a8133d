"""What is to be embedded: sounds by path, from folders and tables; texts of a file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clap_jax.pipeline import manifest, tables


class ItemsError(ValueError):
    """Nothing to embed, or not what was said; one sentence that names the file."""


def sounds(places: Iterable[str]) -> list[str]:
    """Paths of sounds, each once, in the order of `places`.

    places: a folder stands for all sounds in it and in its sub-folders, sorted
        (hidden ones are left out, links to folders are not followed); a table (CSV,
        TSV, JSON lines, Parquet) for its column of paths, relative to its own folder;
        any other file for itself.

    Raises ItemsError for a place that is not there or holds no sounds, and
    `tables.ManifestError` for a table that cannot be read.
    """
    found: list[str] = []
    for place in places:
        suffix = Path(place).suffix.lower().lstrip(".")
        if os.path.isdir(place):
            found += _folder(place)
        elif not os.path.exists(place):
            raise ItemsError(f"there is no file or folder {place}")
        elif suffix in tables.READERS:
            found += _table(place)
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def texts(path: str) -> list[str]:
    """Texts of a file: one a line, or the captions of a table; blank ones left out.

    Raises ItemsError for a file that is not there or holds none, and
    `tables.ManifestError` for a table that cannot be read.
    """
    if not os.path.isfile(path):
        raise ItemsError(f"there is no file {path}")
    if Path(path).suffix.lower().lstrip(".") in tables.READERS:
        table = tables.read(path)
        cells = table.columns[_column(table, manifest.CAPTION_COLUMNS, "texts")]
        found = [text for cell in cells for text in tables.texts(cell)]
    else:
        try:
            found = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ItemsError(f"{path} is not UTF-8 text ({error})") from error
    found = [text.strip() for text in found if text.strip()]
    if not found:
        raise ItemsError(f"{path} holds no text")
    return found


def _folder(place: str) -> list[str]:
    found = []
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(folder, name)
            for name in sorted(names)
            if not name.startswith(".")
            and os.path.splitext(name)[1].lower() in tables.SOUND_SUFFIXES
        ]
    if not found:
        known = ", ".join(tables.SOUND_SUFFIXES)
        raise ItemsError(f"{place} holds no sounds (files that end in {known})")
    return found


def _table(place: str) -> list[str]:
    table = tables.read(place)
    cells = table.columns[_column(table, manifest.AUDIO_COLUMNS, "paths of sounds")]
    found = [tables.text(cell) for cell in cells]
    return [os.path.join(table.folder, path) for path in found if path]


def _column(table: tables.Table, names: Sequence[str], what: str) -> str:
    by_name = {name.lower(): name for name in table.columns}
    found = next((by_name[name] for name in names if name in by_name), None)
    if found is None:
        raise ItemsError(
            f"{table.path} has no column of {what}: expected {', '.join(names)}, found "
            f"{', '.join(table.columns)}"
        )
    return found
