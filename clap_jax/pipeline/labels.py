"""Labels of clips as numbers: which classes there are, and which clip is of which."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


def tags_of(source: "Source") -> list[list[str]]:
    """The labels of every clip, each once; no audio is read."""
    return [list(dict.fromkeys(source.tags(clip))) for clip in range(len(source))]


def class_names(tags: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The classes that occur, sorted."""
    return tuple(sorted({tag for own in tags for tag in own}))


def check(
    what: str,
    source_name: str,
    tags: Sequence[Sequence[str]],
    labels: Sequence[str],
    one_each: bool = False,
) -> dict[str, int]:
    """The column of each label, after the tags of all clips are found to be labels.

    what: who asks; begins every error. one_each: a clip has exactly one label.
    Raises ValueError for labels that repeat, and for a clip with no tag, with a tag
    outside the labels, or (one_each) with several.
    """
    column = {label: i for i, label in enumerate(labels)}
    if len(column) < len(labels):
        twice = sorted({label for label in labels if list(labels).count(label) > 1})
        raise ValueError(f"{what}: labels repeat: {', '.join(twice)}")
    for clip, own in enumerate(tags):
        where = f"{what}: clip {clip} of source '{source_name}' has"
        if not own:
            raise ValueError(f"{where} no tag")
        if one_each and len(own) > 1:
            raise ValueError(
                f"{where} the tags {', '.join(own)}, expected one: where clips have "
                "several, the loss is 'bce'"
            )
        for tag in own:
            if tag not in column:
                raise ValueError(
                    f"{where} an {config_lib.unknown('label', tag, labels)}"
                )
    return column


def multi_hot(
    what: str,
    source_name: str,
    tags: Sequence[Sequence[str]],
    labels: Sequence[str],
    one_each: bool = False,
) -> np.ndarray:
    """Which clip has which label, bool [n, C]; arguments and errors as for `check`."""
    column = check(what, source_name, tags, labels, one_each)
    targets = np.zeros((len(tags), len(labels)), bool)
    for clip, own in enumerate(tags):
        targets[clip, [column[tag] for tag in own]] = True
    return targets


class Targets:
    """What a training batch says of labels, for heads that share a row of classes.

    columns: for each source the number of its head and the column of each label.
    classes: C, those of all heads.

    A row has `target` float32 [C], 1 in the columns of the clip's labels, and `head`
    int32, whose labels these are; columns of other heads are 0.
    """

    def __init__(self, columns: Sequence[tuple[int, Mapping[str, int]]], classes: int):
        self._columns, self._classes = tuple(columns), classes

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape (of one row) and dtype of both, by their names in a batch."""
        return {
            "target": ((self._classes,), np.dtype(np.float32)),
            "head": ((), np.dtype(np.int32)),
        }

    def blank(self, rows: int) -> dict[str, np.ndarray]:
        """Zeros for so many rows."""
        return {
            name: np.zeros((rows, *shape), dtype)
            for name, (shape, dtype) in self.fields.items()
        }

    def put(
        self,
        batch: dict[str, Any],
        row: int,
        which: int,
        tags: Sequence[str],
    ) -> None:
        """Write the labels of a clip of source number `which` into a row of a batch."""
        head, columns = self._columns[which]
        batch["head"][row] = head
        batch["target"][row, [columns[tag] for tag in tags]] = 1
