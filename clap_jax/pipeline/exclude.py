"""A source without some of its clips: those that a file lists, or all but a part."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax.pipeline import order, tables

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


class SomeSource:
    """Some clips of a source, in their order.

    source: the clips. kept: the numbers of those that stay. says: what became of the
        others, for the description.

    What else the source has (see `Source` and `GeneratedSource`), this has too.
    """

    # Of what some sources have besides: what takes a clip's index, and what does not.
    _BY_INDEX = ("generated", "caption_weights", "fold", "audio_path", "sections")
    _WHOLE = ("audio_files", "origins", "problems", "features_width")

    def __init__(self, source: "Source", kept: Sequence[int], says: str):
        self.name, self._source, self._says = source.name, source, says
        self._kept = np.array(kept, np.int64)

    def __len__(self) -> int:
        return len(self._kept)

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here; names with "_" are asked for by pickle.
        if name in self._WHOLE:
            return getattr(self._source, name)
        if name in self._BY_INDEX:
            method = getattr(self._source, name)
            return lambda index: method(self._own(index))
        found = {"read": self._read, "generated_clips": self._generated_clips}
        if name in found and hasattr(self._source, name):
            return found[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def _own(self, index: int) -> int:
        """What the source itself calls a clip by."""
        return int(self._kept[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip as the source gives it, or the AudioError that it raises."""
        return self._source[self._own(index)]

    def _read(self, indices: Sequence[int]) -> list[Mapping[str, Any] | Exception]:
        return self._source.read([self._own(index) for index in indices])

    def _generated_clips(self) -> int:
        return sum(bool(self.generated(index)) for index in range(len(self)))

    def captions(self, index: int) -> list[str]:
        """Captions of a clip."""
        return self._source.captions(self._own(index))

    def tags(self, index: int) -> list[str]:
        """Labels of a clip."""
        return self._source.tags(self._own(index))

    def group(self, index: int) -> str:
        """Clips of one group are positives of each other."""
        return self._source.group(self._own(index))

    def id(self, index: int) -> str:
        """What the clip is called."""
        return self._source.id(self._own(index))

    def description(self) -> str:
        """The source's line, and which of its clips are left out."""
        return f"{self._source.description()}; {self._says}"

    def digest(self) -> str:
        """Short hex of the source's own and of which clips are left."""
        return order.digest([self._source.digest(), memoryview(self._kept)])


class ExcludingSource(SomeSource):
    """The clips of a source whose ids are not in a file, as `data.overlap` writes one.

    path: a file or URL with an id a line; ids of no clip here are nothing wrong, since
        one file may be for several sources.

    Raises ValueError when no clip is left, ManifestError or OSError for a file that
    cannot be read.
    """

    def __init__(self, source: "Source", path: str):
        listed = tables.read_ids(path)
        kept = [i for i in range(len(source)) if source.id(i) not in listed]
        if not kept:
            raise ValueError(
                f"source {source.name!r}: exclude: all {len(source)} clips are listed in "
                f"{path}"
            )
        gone = len(source) - len(kept)
        says = f"{gone:,} of them left out, listed in {path}"
        super().__init__(source, kept, says)


class PartSource(SomeSource):
    """One of several parts of a source, of about equal size; no clip is in two.

    part: "1/2" is the first of two. Which part a clip is in depends on its id alone.

    Raises ValueError for what is no part, and when no clip is in it.
    """

    def __init__(self, source: "Source", part: str):
        match = re.fullmatch(r"(\d+)/(\d+)", str(part))
        number, parts = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= parts:
            raise ValueError(
                f"source {source.name!r}: part is {part!r}, expected a number of a "
                "number of parts, such as '1/2'"
            )
        # What a config calls a source, with which some ids begin, is of no matter.
        ids = (source.id(i).removeprefix(f"{source.name}-") for i in range(len(source)))
        kept = [i for i, name in enumerate(ids) if _place(name, parts) == number]
        if not kept:
            raise ValueError(
                f"source {source.name!r}: part {part}: none of its {len(source)} clips"
            )
        super().__init__(source, kept, f"{len(kept):,} of them, part {part}")


def _place(name: str, parts: int) -> int:
    """The number of the part that a clip is in, from 1."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % parts + 1
