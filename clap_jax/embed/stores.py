"""Vectors on disk: one .npz, one .parquet, or a folder of ArrayRecord files.

All three hold the same columns (`path` and `seconds`, or `text`; `embedding`) and the
same metadata, are written in bounded memory, and appear under their name only when they
are whole. `read` reads each of them.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = (".npz", ".parquet", "")

# Rows that are in memory at a time, and in a row group of a Parquet file.
BLOCK_ROWS = 4096
# Rows of one ArrayRecord file.
SHARD_ROWS = 65_536

_RECORD_MAGIC = b"CLAPEMB1"
_ARRAY_RECORD = ".array_record"
# Groups of one record are what random access wants; floats do not get smaller.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class StoreError(ValueError):
    """A file of vectors that cannot be read or written, in one sentence."""


class Rows(NamedTuple):
    """Some rows: `items` (paths or texts), seconds float64 [n], embedding f32 [n, E].

    seconds is zeros for texts.
    """

    items: list[str]
    seconds: np.ndarray
    embedding: np.ndarray


class Content(NamedTuple):
    """What is to be written: the number of rows, how to get them, what they are.

    rows may be called more than once. metadata needs `kind` ("path" or "text", the
    name of the first column) and `embed_dim`; JSON values only.
    """

    count: int
    rows: Callable[[], Iterator[Rows]]
    metadata: Mapping[str, Any]


def check_name(path: Path | str) -> None:
    """Raise StoreError for a name that is of no known kind."""
    suffix = "" if str(path).endswith("/") else Path(path).suffix
    if suffix not in SUFFIXES:
        raise StoreError(
            f"{path} ends in {suffix}, expected .npz, .parquet, or a folder's name "
            "without a suffix (end it with / otherwise)"
        )


def write(path: Path, content: Content) -> None:
    """Write all rows; by its suffix a .npz, a .parquet or a folder of ArrayRecords."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    writers.get(path.suffix, _write_array_record)(temporary, content)
    os.replace(temporary, path)


def read(path: Path | str) -> tuple[Rows, dict[str, Any]]:
    """All rows of what `write` wrote, and its metadata. Raises StoreError."""
    path = Path(path)
    readers = {".npz": _read_npz, ".parquet": _read_parquet}
    reader = readers.get(path.suffix, _read_array_record)
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} cannot be read as vectors: {error}") from error


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata alone, without reading the rows. Raises StoreError."""
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return json.loads(str(file["metadata"]))
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return json.loads(parquet.read_schema(path).metadata[b"clap_jax"])
        return json.loads((path / "metadata.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} was not written by clap-jax embed") from error


def _write_npz(path: Path, content: Content) -> None:
    """Numpy's format, array by array, without ever holding all rows."""
    count, dim = content.count, content.metadata["embed_dim"]
    width = max((len(t) for rows in content.rows() for t in rows.items), default=1)
    columns = {
        content.metadata["kind"]: (
            f"<U{max(width, 1)}",
            (count,),
            lambda rows, dtype: np.array(rows.items, dtype),
        ),
        "embedding": ("<f4", (count, dim), lambda rows, dtype: rows.embedding),
    }
    if content.metadata["kind"] == "path":
        columns["seconds"] = ("<f8", (count,), lambda rows, dtype: rows.seconds)
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape, column) in columns.items():
            # Names shrink to a tenth, floats not at all.
            with _entry(archive, name, deflate=dtype.startswith("<U")) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in content.rows():
                    values = np.ascontiguousarray(column(rows, dtype), dtype)
                    file.write(values.tobytes())
        with _entry(archive, "metadata", deflate=False) as file:
            np.save(file, np.array(json.dumps(content.metadata)))


def _entry(archive: zipfile.ZipFile, name: str, deflate: bool) -> Any:
    # A fixed date: the same rows are the same bytes.
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    return archive.open(entry, "w", force_zip64=True)


def _read_npz(path: Path) -> tuple[Rows, dict[str, Any]]:
    with np.load(path) as file:
        metadata = json.loads(str(file["metadata"]))
        items = [str(item) for item in file[metadata["kind"]]]
        seconds = file["seconds"] if "seconds" in file else np.zeros(len(items))
        return Rows(items, seconds, file["embedding"]), metadata


def _write_parquet(path: Path, content: Content) -> None:
    import pyarrow
    from pyarrow import parquet

    metadata = content.metadata
    fields = [(metadata["kind"], pyarrow.string())]
    if metadata["kind"] == "path":
        fields.append(("seconds", pyarrow.float64()))
    vector = pyarrow.list_(pyarrow.float32(), metadata["embed_dim"])
    schema = pyarrow.schema(
        [*fields, ("embedding", vector)],
        metadata={"clap_jax": json.dumps(metadata)},
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in content.rows():
            floats = pyarrow.array(rows.embedding.reshape(-1))
            columns = {
                metadata["kind"]: rows.items,
                "seconds": rows.seconds,
                "embedding": pyarrow.FixedSizeListArray.from_arrays(
                    floats, metadata["embed_dim"]
                ),
            }
            columns = [columns[name] for name in schema.names]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _read_parquet(path: Path) -> tuple[Rows, dict[str, Any]]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    metadata = json.loads(table.schema.metadata[b"clap_jax"])
    items = table[metadata["kind"]].to_pylist()
    embedding = table["embedding"].combine_chunks().flatten().to_numpy()
    seconds = np.zeros(len(items))
    if "seconds" in table.column_names:
        seconds = table["seconds"].to_numpy()
    embedding = embedding.reshape(-1, metadata["embed_dim"])
    return Rows(items, seconds, embedding), metadata


def _write_array_record(folder: Path, content: Content) -> None:
    """Records in files of SHARD_ROWS, and metadata.json.

    A record is the magic, the length of the header (4 bytes, little endian), the header
    (JSON: path and seconds, or text), and the vector, float32, little endian.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    shards = max(-(-content.count // SHARD_ROWS), 1)
    records = _records(content)
    for shard in range(shards):
        name = f"embeddings-{shard:05d}-of-{shards:05d}{_ARRAY_RECORD}"
        writer = ArrayRecordWriter(str(folder / name), _WRITER_OPTIONS)
        try:
            for _ in range(min(SHARD_ROWS, content.count - shard * SHARD_ROWS)):
                writer.write(next(records))
        finally:
            writer.close()
    (folder / "metadata.json").write_text(json.dumps(content.metadata, indent=2) + "\n")


def _records(content: Content) -> Iterator[bytes]:
    kind = content.metadata["kind"]
    for rows in content.rows():
        for item, seconds, vector in zip(*rows, strict=True):
            header = {kind: item}
            if kind == "path":
                header["seconds"] = float(seconds)
            packed = json.dumps(header, ensure_ascii=False).encode()
            length = len(packed).to_bytes(4, "little")
            yield _RECORD_MAGIC + length + packed + vector.astype("<f4").tobytes()


def _read_array_record(folder: Path) -> tuple[Rows, dict[str, Any]]:
    from array_record.python.array_record_module import ArrayRecordReader

    metadata = json.loads((folder / "metadata.json").read_text())
    headers, vectors = [], []
    for path in sorted(folder.glob(f"*{_ARRAY_RECORD}")):
        reader = ArrayRecordReader(str(path))
        for record in reader.read_all() if reader.num_records() else []:
            start = len(_RECORD_MAGIC) + 4
            if not record.startswith(_RECORD_MAGIC):
                raise StoreError(f"a record of {path.name} is no vector")
            end = start + int.from_bytes(record[start - 4 : start], "little")
            headers.append(json.loads(record[start:end]))
            vectors.append(np.frombuffer(record[end:], "<f4"))
        reader.close()
    items = [header[metadata["kind"]] for header in headers]
    seconds = np.array([header.get("seconds", 0.0) for header in headers], np.float64)
    vectors = np.array(vectors, np.float32).reshape(-1, metadata["embed_dim"])
    return Rows(items, seconds, vectors), metadata
