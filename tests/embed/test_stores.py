"""Files of vectors: what is written is read, whole, typed, and only when complete."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from clap_jax.embed import stores

KINDS = ["vectors.npz", "vectors.parquet", "vectors"]


def content(count=10, kind="path", dim=4):
    rng = np.random.default_rng(0)
    rows = stores.Rows(
        [f"sounds/ü {i}.wav" for i in range(count)],
        np.arange(count) / 3,
        rng.normal(size=(count, dim)).astype(np.float32),
    )

    def blocks():
        for start in range(0, count, 4):
            yield stores.Rows(*(column[start : start + 4] for column in rows))

    metadata = {"kind": kind, "embed_dim": dim, "note": "x"}
    return rows, stores.Content(count, blocks, metadata)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["path", "text"])
def test_there_and_back(tmp_path, name, kind, monkeypatch):
    monkeypatch.setattr(stores, "SHARD_ROWS", 4)
    rows, written = content(kind=kind)
    stores.write(tmp_path / name, written)
    found, metadata = stores.read(tmp_path / name)
    assert found.items == rows.items
    np.testing.assert_array_equal(found.embedding, rows.embedding)
    assert found.embedding.dtype == np.float32
    seconds = rows.seconds if kind == "path" else np.zeros(10)
    np.testing.assert_array_equal(found.seconds, seconds)
    assert metadata == written.metadata == stores.read_metadata(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_numpy_and_parquet_read_it_alone(tmp_path):
    rows, written = content()
    stores.write(tmp_path / "v.npz", written)
    with np.load(tmp_path / "v.npz") as file:
        assert list(file["path"]) == rows.items
        assert file["seconds"].dtype == np.float64
        assert json.loads(str(file["metadata"]))["note"] == "x"
    stores.write(tmp_path / "v.parquet", written)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "seconds", "embedding"]
    assert table["embedding"][3].as_py() == rows.embedding[3].tolist()


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD_ROWS", 4)
    stores.write(tmp_path / "v", content()[1])
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        *(f"embeddings-0000{i}-of-00003.array_record" for i in range(3)),
        "metadata.json",
    ]


@pytest.mark.parametrize("name", ["v.npz", "v.parquet"])
def test_the_same_rows_are_the_same_bytes(tmp_path, name):
    contents = []
    for _ in range(2):
        stores.write(tmp_path / name, content()[1])
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", KINDS)
def test_a_failure_leaves_nothing_under_the_name(tmp_path, name):
    rows, written = content()

    def fail():
        yield stores.Rows(rows.items[:4], rows.seconds[:4], rows.embedding[:4])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stores.write(tmp_path / name, written._replace(rows=fail))
    assert not (tmp_path / name).exists()
    stores.write(tmp_path / name, written)
    assert stores.read(tmp_path / name)[0].items == rows.items


@pytest.mark.parametrize("name", ["v.csv", "v.tar.gz", "x/v.json"])
def test_names_of_no_known_kind(name):
    with pytest.raises(stores.StoreError, match="expected .npz, .parquet, or a folder"):
        stores.check_name(name)


@pytest.mark.parametrize("name", ["v.npz", "x/v.parquet", "v", "x.y/v", "v.2/"])
def test_names_of_a_known_kind(name):
    stores.check_name(name)


@pytest.mark.parametrize("name", KINDS)
def test_foreign_files_are_refused(tmp_path, name):
    with pytest.raises(stores.StoreError, match="cannot be read as vectors"):
        stores.read(tmp_path / name)
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(stores.StoreError, match="not written by clap-jax embed"):
        stores.read_metadata(tmp_path / name)
