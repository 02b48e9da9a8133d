"""A source without the clips that a file lists, as `data.overlap` writes one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax.pipeline import order, tables

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


class ExcludingSource:
    """The clips of a source whose ids are not in a file, in their order.

    source: the clips. path: a file or URL with an id a line; ids of no clip here are
        nothing wrong, since one file may be for several sources.

    What else the source has (see `Source` and `GeneratedSource`), this has too. Raises
    ValueError when no clip is left, ManifestError or OSError for a file that cannot be
    read.
    """

    # Of what some sources have besides: what takes a clip's index, and what does not.
    _BY_INDEX = ("generated", "caption_weights", "fold")
    _WHOLE = ("audio_files", "origins", "problems")

    def __init__(self, source: "Source", path: str):
        self.name, self._source, self._path = source.name, source, path
        listed = tables.read_ids(path)
        kept = [i for i in range(len(source)) if source.id(i) not in listed]
        if not kept:
            raise ValueError(
                f"source {self.name!r}: exclude: all {len(source)} clips are listed in "
                f"{path}"
            )
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
        """The source's line, and how many of its clips are left out."""
        gone = len(self._source) - len(self)
        return (
            f"{self._source.description()}; {gone:,} of them left out, listed in "
            f"{self._path}"
        )

    def digest(self) -> str:
        """Short hex of the source's own and of which clips are left."""
        return order.digest([self._source.digest(), memoryview(self._kept)])
