"""Reading the folders that data sets come in, and saying what is wrong with them."""

import csv
import functools
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clap_jax.pipeline.tables import SOUND_SUFFIXES


class LayoutError(ValueError):
    """A folder that is not as its data set was published; names the file."""


class Folder:
    """Where the files of a data set are: its folder, and what was unpacked of it.

    Paths are looked for in every root and in the folders right in it, so that an
    archive may have been unpacked into the folder or beside it.
    """

    def __init__(self, roots: Sequence[str | os.PathLike]):
        self.roots = tuple(map(Path, roots))

    def __str__(self) -> str:
        return ", ".join(map(str, self.roots))

    def find(self, name: str) -> Path | None:
        """A file or folder by its published path; None if it is not there."""
        places = (place / name for place in self._places)
        return next((path for path in places if path.exists()), None)

    @functools.cached_property
    def _places(self) -> list[Path]:
        return [
            place
            for root in self.roots
            for place in (root, *(p for p in sorted(root.glob("*")) if p.is_dir()))
        ]

    def path(self, name: str) -> Path:
        """A file or folder that must be there. Raises LayoutError."""
        found = self.find(name)
        if found is None:
            raise LayoutError(
                f"{self}: {name} is missing there, and in the folders in it"
            )
        return found

    def table(
        self,
        name: str,
        columns: Sequence[str],
        delimiter: str = ",",
        header: bool = True,
    ) -> Iterator[dict[str, str]]:
        """Rows of a table by column.

        columns: those that must be there; without a header, all of them in order. Where
        there is no header, lines that begin with "# " are comments. Text is UTF-8, or
        else Latin-1 (Clotho's metadata). Raises LayoutError naming the line.
        """
        path = self.path(name)
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        spaces = delimiter == ","  # AudioSet writes ", " between its fields
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaces
        )
        names = [cell.strip() for cell in next(reader, [])] if header else list(columns)
        absent = [column for column in columns if column not in names]
        if absent:
            raise LayoutError(
                f"{path}: column {absent[0]!r} is missing (found: {', '.join(names)})"
            )
        for row in reader:
            if not row or (not header and row[0].startswith("# ")):
                continue
            if len(row) != len(names):
                raise LayoutError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected "
                    f"{len(names)} ({', '.join(names)})"
                )
            yield dict(zip(names, row, strict=True))

    def json(self, name: str) -> Any:
        """What a JSON file holds. Raises LayoutError."""
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LayoutError(f"{path}: is not JSON: {error}") from None

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty."""
        rows = self.path(name).read_text(encoding="utf-8").splitlines()
        return [row.strip() for row in rows if row.strip()]

    @functools.cached_property
    def _sounds(self) -> dict[str, list[tuple[Path, frozenset[str]]]]:
        """Sound files by name without suffix, with the names of the folders above."""
        found: dict[str, list] = {}
        for root in self.roots:
            for place, folders, names in os.walk(root):
                folders.sort()
                above = frozenset((root.name, *Path(place).relative_to(root).parts))
                for name in sorted(names):
                    stem, suffix = os.path.splitext(name)
                    if suffix.lower() in SOUND_SUFFIXES and not name.startswith("."):
                        found.setdefault(stem, []).append((Path(place, name), above))
        return found

    def sounds(self, inside: str = "") -> list[Path]:
        """All sound files below a folder of this name, however deep; not hidden ones.

        Raises LayoutError if there are none.
        """
        rows = (row for own in self._sounds.values() for row in own)
        kept = sorted(path for path, above in rows if not inside or inside in above)
        if not kept:
            where = f" in a folder {inside}" if inside else ""
            suffixes = ", ".join(SOUND_SUFFIXES)
            raise LayoutError(f"{self}: no sound file{where} there ({suffixes})")
        return kept

    def sound(self, *stems: str, inside: Sequence[str] = ()) -> Path | None:
        """The sound file with one of these names without suffix, however deep.

        inside: the names of folders, one of which must be above it.
        """
        for stem in stems:
            for path, above in self._sounds.get(stem, ()):
                if not inside or not above.isdisjoint(inside):
                    return path
        return None


def youtube_names(
    youtube_id: str, start: float | str = 0, end: float | str = ""
) -> list[str]:
    """Names, without suffix, under which people keep a clip of a video.

    The id, with AudioSet tools' Y before it or not; then start and end, the start in
    whole seconds, in milliseconds, in six digits (VGGSound), or nothing.
    """
    start = float(start)
    ends = [f"_{start:.0f}", f"_{start * 1000:.0f}", f"_{start:06.0f}", ""]
    if end != "":
        both = (start, float(end))
        ends = ["_{:.3f}_{:.3f}".format(*both), "_{:.0f}_{:.0f}".format(*both), *ends]
    return [f"{prefix}{youtube_id}{tail}" for tail in ends for prefix in ("", "Y")]


def youtube_link(youtube_id: str) -> str:
    """The attribution of a clip of a video."""
    return f"https://www.youtube.com/watch?v={youtube_id}"


def unpack(archive: str | os.PathLike, into: str | os.PathLike) -> Path:
    """Unpack a zip or tar file into a folder of its own below `into`, once.

    Not by TFDS, whose extraction needs TensorFlow. Raises LayoutError for what is no
    archive.
    """
    archive = Path(archive)
    if zipfile.is_zipfile(archive):
        options = {"format": "zip"}
    elif tarfile.is_tarfile(archive):
        options = {"format": "tar", "filter": "data"}  # compressed or not
    else:
        raise LayoutError(f"{archive}: is neither a zip nor a tar file")
    target = Path(into) / f"{archive.name}-{archive.stat().st_size}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(prefix="incomplete.", dir=target.parent)
        try:
            shutil.unpack_archive(archive, partial, **options)
            os.rename(partial, target)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise LayoutError(f"{archive}: cannot be unpacked: {error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
