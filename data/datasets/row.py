"""What a data set is to its builder: a row of facts, and what lists its clips."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.datasets.layout import Folder

Splits = Sequence[str]

FULL = "full"
"""The split of a data set that its authors did not split."""


class Clip(NamedTuple):
    """One clip as a published layout has it, before its audio is read."""

    split: str
    id: str  # unique in the split
    audio: Path | Callable[[], bytes] | None  # None: the file is not there
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    # Clips of one group are positives of each other; "": what `clip_group` says.
    group: str = ""
    fold: str = ""
    # Where in a longer recording the clip was cut from; NaN where that is not known.
    start_seconds: float = math.nan
    end_seconds: float = math.nan
    # Of this very clip, where the set says it.
    license: str = ""
    attribution: str = ""
    # How large the audio is where it is not a file; 0: that is not known.
    audio_bytes: int = 0

    @property
    def clip_group(self) -> str:
        """Clips with captions of their own are alone; others go by their labels."""
        labels = "" if self.captions else "|".join(self.tags)
        return self.group or labels or self.id


@dataclass(frozen=True)
class DataSet:
    """A row of the table of data sets.

    read: lists the clips that a folder holds, for a config ("" where there are none)
        and some splits, without a look at what only others need; clips of others may
        come too. Raises `LayoutError` for a folder that is not as published.
    splits: clips in each official split; None where the number is not published, or
        changes.
    get: what to fetch, and how the folder must look; "" if it needs no folder.
    urls: archives that may be fetched by the program itself; all that a set needs.
    archives: patterns of archives that are unpacked when they lie in the folder.
    configs: labels that the set can be prepared with, the first by default, with the
        splits where they differ from `splits`.
    keep: files of the set that are copied beside the shards.
    vanishing: clips come from YouTube, where they disappear.
    note: quirks, and choices that the authors left open.
    digest: of what a table says that is no published set; "" for those.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    splits: Mapping[str, int | None]
    read: Callable[[Folder, str, Splits], Iterable[Clip]]
    get: str
    urls: tuple[str, ...] = ()
    archives: tuple[str, ...] = ("*.zip", "*.tar.gz", "*.tgz")
    configs: Mapping[str, Mapping[str, int | None] | None] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    vanishing: bool = False
    keep_order: bool = False
    note: str = ""
    digest: str = ""

    def splits_of(self, config: str) -> Mapping[str, int | None]:
        """The official splits of a config, with their numbers of clips."""
        return self.configs.get(config) or self.splits
