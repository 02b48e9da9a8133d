"""Who learns and who is tested: clips in parts that are given, or in folds of one."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

# Of the training clips, where no part of the data is for validation: one in so many.
VALIDATION_SHARE = 5


class Division:
    """Clips of all parts, one part after the other, by position.

    names: the parts, or the folds. part_of: str [n], the one of every clip. tested:
    those that are tested, each by a head that learnt from no tested one (or, where all
    are, from all others).
    """

    def __init__(
        self,
        what: str,
        parts: "Mapping[str, Source]",
        test: Sequence[str] = (),
        validation: str = "",
        folds: int = 0,
        strata: np.ndarray | None = None,
    ):
        """what: who asks, for errors. strata: [n, ...], what each clip is, of which
        every fold, and what validates, gets its share. For the others, and errors, see
        `Probe`.
        """
        self._what, self._parts = what, dict(parts)
        sizes = [len(source) for source in parts.values()]
        self._strata = np.zeros((sum(sizes), 1), bool) if strata is None else strata
        self.part_of = np.repeat(list(parts), sizes)
        self.names, self._made_folds = list(parts), folds
        if folds:
            self.part_of = self._folds(folds)
            self.names = [str(fold + 1) for fold in range(folds)]
        self._test, self._validation = tuple(test), validation
        self._check()
        self.tested = self._test or tuple(self.names)

    def _folds(self, folds: int) -> np.ndarray:
        """A fold for each clip of the only part, by its id."""
        if len(self._parts) > 1:
            raise ValueError(
                f"{self._what}: folds={folds} is for data of one part, found "
                f"{', '.join(self._parts)}"
            )
        if folds < 2:
            raise ValueError(f"{self._what}: folds is {folds}, expected 2 or more")
        (source,) = self._parts.values()
        digests = [
            hashlib.blake2b(
                source.id(clip).encode("utf-8", "surrogatepass"), digest_size=8
            ).hexdigest()
            for clip in range(len(source))
        ]
        keys = [(tuple(row), digests[clip]) for clip, row in enumerate(self._strata)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        found = np.empty(len(keys), dtype="U20")
        found[order] = [str(place % folds + 1) for place in range(len(keys))]
        return found

    def _check(self) -> None:
        names, what = self.names, self._what
        for part in (*self._test, *filter(None, [self._validation])):
            if part not in names:
                raise ValueError(f"{what}: {config_lib.unknown('part', part, names)}")
        if self._validation in self._test:
            raise ValueError(
                f"{what}: {self._validation!r} is for testing and for validation; what "
                "is chosen by test clips proves nothing"
            )
        if len(names) < 2 or not set(names) - set(self._test):
            raise ValueError(
                f"{what}: the parts are {', '.join(names)}, of which "
                f"{', '.join(self._test) or 'each'} is to be tested: nothing is left to "
                "learn from (folds=5 makes five of one)"
            )
        seen: dict[str, str] = {}
        for name, source in self._parts.items():
            for clip in range(len(source)):
                other = seen.setdefault(source.id(clip), name)
                if other != name:
                    raise ValueError(
                        f"{what}: clip {source.id(clip)} is in the parts {other} and "
                        f"{name}"
                    )

    def learns(self, clips: np.ndarray, tested: str) -> np.ndarray:
        """Which of some clips (positions int64 [k]) the head of a tested part learns
        from, bool [k].

        Raises ValueError where that is none, or none of the part itself is there.
        """
        part_of = self.part_of[clips]
        held_out = np.isin(part_of, [tested, *self._test])
        if not (part_of == tested).any() or held_out.all():
            raise ValueError(
                f"{self._what}: no clip could be read for the part {tested!r}"
            )
        return ~held_out

    def validates(
        self, clips: np.ndarray, tested: str, train: np.ndarray
    ) -> tuple[np.ndarray, str]:
        """Which of the training clips validate, bool [k], and that in words."""
        part_of = self.part_of[clips]
        names = [name for name in self.names if (part_of[train] == name).any()]
        part = self._validation if self._validation != tested else ""
        if not part and len(names) > 1:
            # In cross-validation the next one, so that each part is used for it once.
            after = self.names[self.names.index(tested) + 1 :] + self.names
            part = names[-1] if self._test else next(n for n in after if n in names)
        if part:
            return train & (part_of == part), f"part {part}"
        held = np.zeros(len(train), bool)
        rows = np.flatnonzero(train)
        first = self._strata[clips[rows]].argmax(axis=1)
        by_class = rows[np.lexsort((rows, first))]
        held[by_class[:: min(VALIDATION_SHARE, len(rows))]] = True
        return held, f"one in {VALIDATION_SHARE} training clips"

    def says(self) -> str:
        """How the clips are divided, for a result's protocol."""
        if self._made_folds:
            return f"cross-validation over {self._made_folds} folds made by chance"
        if self._test:
            return "the tested parts are never learnt from"
        return f"cross-validation over {len(self._parts)} given parts"


class Joined:
    """The clips of all parts, one part after the other, to be heard and named."""

    def __init__(self, sources: "Sequence[Source]"):
        self._sources = sources
        self._first = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, place = self._place(index)
        return source[place]

    def id(self, index: int) -> str:
        """What its source calls a clip."""
        source, place = self._place(index)
        return source.id(place)

    def _place(self, index: int) -> "tuple[Source, int]":
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._sources[number], index - int(self._first[number])
