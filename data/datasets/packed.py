"""Rows made of tables and folders of sounds, so that TFDS packs these too."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax import remote
from clap_jax.pipeline import order, tables
from clap_jax.pipeline.manifest import ManifestSource
from data.datasets.layout import Folder
from data.datasets.row import Clip, DataSet, Splits

SPLIT = "train"
"""The one split of a table that is not split by a column."""


def clips(source: ManifestSource, split: str) -> Iterator[Clip]:
    """The clips of a table, in its order; audio is read when it is written."""
    for index in range(len(source)):
        path = source.audio_path(index)
        is_remote = remote.is_remote(path)
        yield Clip(
            split,
            source.id(index),
            functools.partial(remote.read, path) if is_remote else Path(path),
            tuple(source.captions(index)),
            tuple(source.tags(index)),
            source.group(index),
        )


def row(name: str, sources: Mapping[str, ManifestSource], title: str) -> DataSet:
    """A row whose splits are tables."""

    def read(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
        for split in splits:
            yield from clips(sources[split], split)

    return DataSet(
        name=name,
        title=title,
        homepage="",
        licence="by clip",
        citation="",
        splits={split: len(source) for split, source in sources.items()},
        read=read,
        get="",
        archives=(),
        keep_order=True,
        digest=order.digest([[s, own.digest()] for s, own in sources.items()]),
    )


def table_row(
    name: str, table: str, split_column: str = "", options: Mapping[str, Any] = {}
) -> DataSet:
    """A row of a table or folder of sounds.

    split_column: each of its values is a split (a number n becomes <column>n); "": all
    rows are one split, SPLIT. options: of `ManifestSource`. Raises ManifestError and
    ValueError as `ManifestSource` does.
    """
    if not split_column:
        sources = {SPLIT: ManifestSource(table, **options)}
    else:
        sources = {}
        columns = tables.read(table).columns
        if split_column not in columns:
            raise ValueError(config_lib.unknown("column", split_column, columns))
        for value in dict.fromkeys(map(tables.text, columns[split_column])):
            where = {**options.get("where", {}), split_column: value}
            split = f"{split_column}{value}" if value.isdecimal() else value
            own = {**options, "where": where}
            sources[split] = ManifestSource(table, **own)
    return row(name, sources, f"Packed from {Path(table).name}")
