"""A task that models of sound and text are examined on: a row of `tasks.TASKS`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """A row of the table.

    name: of the evaluation. suites: those that it belongs to. covers: the names of the
        paper's tasks that it answers, where they are not one.
    dataset, split: of TFDS, as `python -m data.prepare` writes them; or `source`, a
        section of `evals.<name>.source` in which {data_dir} is filled in.
    kind: zeroshot, retrieval or captioning. metric: the paper's, as the result calls it.
    options: of the evaluator. clips, classes: of the official split; 0 where that is not
        fixed. fold_splits: the split is all folds, and each is a split of its own.
    reasons: choice -> its source. published: paper -> its number.
    """

    name: str
    suites: tuple[str, ...]
    dataset: str
    split: str
    kind: str
    metric: str
    options: Mapping[str, Any] = field(default_factory=dict)
    clips: int = 0
    classes: int = 0
    fold_splits: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)
    covers: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
