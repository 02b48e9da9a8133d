"""The heads of a classifier from `config.task`: their classes, and whose labels they learn."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.models import classifier, zoo
from clap_jax.models.classifier import ClassifierSpec, HeadSpec
from clap_jax.pipeline import labels as labels_lib
from clap_jax.pipeline.labels import Targets
from clap_jax.pipeline.sources import Source

# The one head of a config that names none.
ONLY = "labels"


@dataclasses.dataclass(frozen=True)
class Section:
    """One entry of `config.task.heads`, see there."""

    sources: Any = ()
    loss: str = "auto"
    labels: Any = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sources", "labels"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, name, value)
        if self.loss not in ("auto", *classifier.LOSSES):
            raise config_lib.ConfigError(
                f"loss of a head is auto, ce or bce, not {self.loss!r}"
            )
        if not (isinstance(self.weight, int | float) and 0 < self.weight < 1e9):
            raise config_lib.ConfigError(
                f"weight of a head is {self.weight!r}, expected a number above 0"
            )


def sections(config: ConfigDict) -> dict[str, Section]:
    """What the config says of each head, in the order of their names."""
    given = config_lib.plain(config.task.heads) or {ONLY: {}}
    return {
        name: config_lib.build(Section, given[name], f"task.heads.{name}")
        for name in sorted(given)
    }


class Heads(NamedTuple):
    """The heads by their names, and the name of the head of each source."""

    specs: dict[str, HeadSpec]
    of_source: tuple[str, ...]


def read(config: ConfigDict, sources: Sequence[Source]) -> Heads:
    """Heads with their classes, which the labels of the training clips give.

    Without sources (planning, noise) the config has to name classes and loss.
    Raises ConfigError for sources that belong to no head or to several, and ValueError
    for a clip without a label, or with one that its head does not know.
    """
    given = sections(config)
    owners = _owners(given, sources)
    specs = {
        name: _head(
            name,
            section,
            [s for s, owner in zip(sources, owners, strict=True) if owner == name],
        )
        for name, section in given.items()
    }
    return Heads(specs, owners)


def labelled(
    config: ConfigDict, spec: zoo.Spec | ClassifierSpec, sources: Sequence[Source]
) -> tuple[ClassifierSpec, Targets]:
    """The classifier that `config.task` makes of the audio side of `spec`, and what
    makes the labels of a batch. Errors as for `read`."""
    found = read(config, sources)
    made = classifier.of(
        spec,
        found.specs,
        features=config.task.features,
        hidden=config_lib.plain(config.task.hidden),
        dropout=config.task.dropout,
    )
    return made, targets(made, found)


def targets(spec: ClassifierSpec, heads: Heads) -> Targets:
    """What makes the labels of a training batch."""
    names = list(spec.heads)
    columns = {
        name: {label: spec.columns[name].start + i for i, label in enumerate(h.labels)}
        for name, h in spec.heads.items()
    }
    return Targets(
        [(names.index(owner), columns[owner]) for owner in heads.of_source],
        spec.classes,
    )


def _owners(given: dict[str, Section], sources: Sequence[Source]) -> tuple[str, ...]:
    """The head of each source."""
    if len(given) == 1:
        (only, section), *_ = given.items()
        if not section.sources:
            return (only,) * len(sources)
    known = [source.name for source in sources]
    owner: dict[str, str] = {}
    for name, section in given.items():
        where = f"task.heads.{name}.sources"
        if not section.sources:
            raise config_lib.ConfigError(
                f"{where} is missing: with several heads each names its data.sources"
            )
        for source in section.sources if sources else ():
            if source not in known:
                raise config_lib.ConfigError(
                    f"{where}: {config_lib.unknown('source', source, known)}"
                )
            if source in owner:
                raise config_lib.ConfigError(
                    f"{where}: {source!r} belongs to the head {owner[source]!r} already"
                )
            owner[source] = name
    missing = [name for name in known if name not in owner]
    if missing:
        raise config_lib.ConfigError(
            f"task.heads: no head learns the labels of {', '.join(missing)}"
        )
    return tuple(owner[name] for name in known)


def _head(name: str, section: Section, sources: Sequence[Source]) -> HeadSpec:
    """A head, after every clip of its sources is found to have labels that it knows."""
    where = f"task.heads.{name}"
    if not sources:
        if not section.labels or section.loss == "auto":
            raise config_lib.ConfigError(
                f"{where} needs `labels` and `loss` where there are no clips to read "
                "them from"
            )
        return HeadSpec(section.labels, section.loss)
    tags = [labels_lib.tags_of(source) for source in sources]
    names = section.labels or labels_lib.class_names([own for t in tags for own in t])
    several = any(len(own) > 1 for of_source in tags for own in of_source)
    loss = section.loss
    if loss == "auto":
        loss = "bce" if several else "ce"
    for source, of_source in zip(sources, tags, strict=True):
        one_each = loss == "ce"
        labels_lib.check(where, source.name, of_source, names, one_each)
    try:
        made = HeadSpec(names, loss)
    except ValueError as error:
        raise config_lib.ConfigError(f"{where}: {error}") from error
    logging.info("%s: %d classes, loss %s", where, len(made.labels), loss)
    return made
