"""Rows made of sources of clips, so that TFDS packs any table, folder or shards."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax.pipeline import manifest, tables
from clap_jax.pipeline.sources import Source
from data.datasets.layout import Folder
from data.datasets.row import Clip, DataSet, Splits

SPLIT = "train"
"""The one split of a table that is not split by a column."""


def clips(source: Source, split: str) -> Iterator[Clip]:
    """The clips of a source, in its order; audio is read when it is written."""
    for index in range(len(source)):
        yield Clip(
            split,
            source.id(index),
            functools.partial(_audio, source, index),
            tuple(source.captions(index)),
            tuple(source.tags(index)),
            source.group(index),
        )


def _audio(source: Source, index: int) -> bytes:
    audio = source[index]["audio"]
    return audio if isinstance(audio, bytes) else Path(audio).read_bytes()


def row(name: str, sources: Mapping[str, Source], title: str) -> DataSet:
    """A row whose splits are sources of encoded audio."""

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
        sources = {SPLIT: manifest.ManifestSource(table, **options)}
    else:
        sources = {}
        columns = tables.read(table).columns
        if split_column not in columns:
            raise ValueError(config_lib.unknown("column", split_column, columns))
        for value in dict.fromkeys(map(tables.text, columns[split_column])):
            where = {**options.get("where", {}), split_column: value}
            split = f"{split_column}{value}" if value.isdecimal() else value
            own = {**options, "where": where}
            sources[split] = manifest.ManifestSource(table, **own)
    return row(name, sources, f"Packed from {Path(table).name}")
