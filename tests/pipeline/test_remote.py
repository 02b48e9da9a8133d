"""Clips in object stores, played by fsspec's file system in memory."""

import importlib.util
import os
import shutil
import threading
from collections import namedtuple
from io import RawIOBase

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clap_jax import hosts, remote
from clap_jax.audio import io
from clap_jax.pipeline import array_record, loader
from clap_jax.pipeline.array_record import ArrayRecordError, ArrayRecordSource
from clap_jax.pipeline.manifest import ManifestError, ManifestSource
from clap_jax.pipeline.ops import Clips, Prepare
from clap_jax.pipeline.tars import LaionTarSource
from tests.pipeline.clips import (
    FRONTEND,
    RATE_HZ,
    TinySource,
    make_tokenizer,
    wave,
    write_table,
)
from tests.pipeline.shards import shard


class Counting(MemoryFileSystem):
    """Files in memory that count how often a part of them is asked for."""

    protocol = "counting"
    store = {}  # noqa: RUF012 - of its own, not shared with memory://
    requests = []  # noqa: RUF012
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("counting://").strip("/")

    def cat_file(self, path, start=None, end=None, **options):
        self.requests.append((path, start, end))
        fault()
        return super().cat_file(path, start, end, **options)

    def info(self, path, **options):
        fault()
        return super().info(path, **options)

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return Shaky(file) if mode == "rb" else file


class Shaky(RawIOBase):
    """A file whose reads fail while the store is down."""

    def __init__(self, file):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size=-1):
        fault(FILE_FAULTS)
        return self._file.read(size)


FAULTS, FILE_FAULTS = [], []


def fault(faults=FAULTS):
    """Raise the next of the faults to come, if any is left."""
    try:
        error = faults.pop()
    except IndexError:
        return
    raise error


@pytest.fixture
def pauses(monkeypatch):
    """How long was waited for stores, in seconds; nobody waits."""
    seconds = []
    monkeypatch.setattr(remote, "_sleep", seconds.append)
    yield seconds
    FAULTS.clear()
    FILE_FAULTS.clear()


class HttpError(Exception):
    """As libraries of stores have it."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


@pytest.fixture
def bucket():
    """Put files into counting://bucket."""
    fsspec.register_implementation("counting", Counting, clobber=True)
    remote._filesystem.cache_clear()
    Counting.store.clear()
    Counting.requests.clear()
    Counting.pseudo_dirs = [""]

    def put(name, content):
        fsspec.filesystem("counting").pipe_file(f"/bucket/{name}", content)
        return f"counting://bucket/{name}"

    return put


@pytest.fixture
def shards(bucket):
    for number in range(4):
        bucket(f"data/{number:03}.tar", shard(16 * number, 16))
    return "counting://bucket/data"


# --- tar shards ---


@pytest.mark.parametrize("end", ["", "/", "/*.tar", "/{000..003}.tar"])
def test_tar_shards(shards, tmp_path, end):
    source = LaionTarSource(shards + end, cache_folder=str(tmp_path))
    assert len(source) == 64 and source.id(17) == "001/017"
    found, _ = io.read(source[17]["audio"])
    assert np.abs(found - wave(17)).max() < 1 / 32000
    assert source.captions(40) == ["number 40", "sound 40"]
    assert len(list(tmp_path.iterdir())) == 4


def test_an_index_in_the_store_serves_all_hosts(shards, tmp_path):
    folder = "counting://bucket/index"
    wanted = LaionTarSource(shards, cache_folder=folder).digest()
    Counting.requests.clear()
    assert LaionTarSource(shards, cache_folder=folder).digest() == wanted
    asked = {path for path, _, _ in Counting.requests}
    assert {os.path.dirname(path) for path in asked} == {
        "/bucket/index",
        "/bucket/data",
    }
    assert asked - {"/bucket/data/sizes.json"} == {
        path for path in asked if path.endswith(".index")
    }


def test_requests_fall_by_the_clips_read_together(shards, tmp_path):
    source = LaionTarSource(shards, cache_folder=str(tmp_path))
    tokenizer, counts, groups = make_tokenizer(), {}, {}
    for together in (1, 4, 16):
        Counting.requests.clear()
        dataset = loader.train_dataset(
            [(source, None)],
            Prepare(FRONTEND),
            tokenizer,
            batch_size=16,
            seed=0,
            threads=0,
            read_together=together,
        )
        iterator = iter(dataset)
        batches = [next(iterator) for _ in range(4)]
        iterator.close()
        counts[together] = len(Counting.requests)
        groups[together] = {g for batch in batches for g in batch["group"].tolist()}
        assert not any(batch["bad"].any() for batch in batches)
    assert counts == {1: 64, 4: 16, 16: 4}
    assert len(groups[1]) == 64 and groups[1] == groups[4] == groups[16]


def test_what_cannot_be_read_is_a_bad_clip(shards, tmp_path):
    source = LaionTarSource(shards, cache_folder=str(tmp_path))
    del Counting.store["/bucket/data/001.tar"]
    examples = source.read([15, 16, 32])
    assert examples[0]["id"] == "000/015" and examples[2]["id"] == "002/032"
    assert isinstance(examples[1], io.AudioError)
    assert str(examples[1]).startswith("counting://bucket/data/001.tar, clip 016: ")


# --- stores that fail ---


@pytest.fixture
def batches(tmp_path):
    """The first batches of a training set over shards, from a state on."""
    tokenizer = make_tokenizer()

    def take(url, count, state=None, **options):
        source = LaionTarSource(url, cache_folder=str(tmp_path / "index"))
        options = {"batch_size": 8, "seed": 0, "threads": 2} | options
        dataset = loader.train_dataset(
            [(source, None)], Prepare(FRONTEND), tokenizer, **options
        )
        iterator = iter(dataset)
        if state is not None:
            iterator.set_state(state)
        found = []
        for number in range(count):
            if number == count // 2 and state is None:
                FAULTS.extend(options_faults)
                states.append(iterator.get_state())
            found.append(next(iterator))
        iterator.close()
        return found

    options_faults, states = [], []
    take.faults, take.states = options_faults, states
    return take


def all_same(ones, twos):
    for one, two in zip(ones, twos, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


@pytest.mark.parametrize("together", [1, 4])
def test_an_outage_changes_no_batch(shards, batches, pauses, together):
    options = {"read_together": together}
    wanted = batches(shards, 12, **options)
    batches.faults += [ConnectionResetError("reset")] * 6 + [HttpError(503)] * 6
    found = batches(shards, 12, **options)
    assert not FAULTS and len(pauses) >= 3
    all_same(wanted, found)
    assert not any(batch["bad"].any() for batch in found)
    # And a run that goes on from within the outage.
    FAULTS.extend([TimeoutError()] * 5)
    all_same(wanted[6:], batches(shards, 6, batches.states[-1], **options))


def test_a_store_that_stays_away_is_no_bad_clip(shards, tmp_path, pauses):
    source = LaionTarSource(shards, cache_folder=str(tmp_path))
    clips = Clips(source, Prepare(FRONTEND))
    FAULTS.extend([HttpError(500)] * 1000)
    message = r"data/000.tar: HttpError: status 500 \(for 3\d\d s\)"
    with pytest.raises(remote.StoreError, match=message) as caught:
        clips.fetch(3)
    assert remote.PATIENCE_SECONDS <= sum(pauses) < 2 * remote.PATIENCE_SECONDS
    assert max(pauses) <= 30 and len(pauses) < 40
    said = hosts.again(caught.value)
    assert said.startswith("counting://bucket/data/000.tar: HttpError")
    assert "Run the same command again" in said
    FAULTS.clear()
    assert clips.fetch(3)[1:] == (3, False)


def test_only_a_file_that_is_gone_is_a_bad_clip(shards, tmp_path, pauses):
    source = LaionTarSource(shards, cache_folder=str(tmp_path))
    clips = Clips(source, Prepare(FRONTEND))
    for error in (PermissionError("not yours"), HttpError(403), TypeError("a bug")):
        FAULTS.append(error)
        with pytest.raises(remote.RemoteError, match="001.tar, clip|001.tar: ") as it:
            clips.fetch(20)
        assert not isinstance(it.value, remote.StoreError) and not hosts.again(it.value)
    FAULTS.append(HttpError(416))
    assert clips.fetch(20)[1:] == (21, True)  # the shard has become shorter
    del Counting.store["/bucket/data/002.tar"], Counting.store["/bucket/data/003.tar"]
    with pytest.raises(io.AudioError, match="are all damaged"):
        clips.fetch(32)
    assert not pauses


def test_indexing_outlasts_an_outage(shards, tmp_path, pauses):
    wanted = LaionTarSource(shards, cache_folder=str(tmp_path / "a"))
    for error in (HttpError(502), ValueError("half an answer"), ConnectionError()):
        folder = str(tmp_path / type(error).__name__)
        FILE_FAULTS.extend([error] * 10)
        FAULTS.extend([error] * 5)
        source = LaionTarSource(shards, cache_folder=folder)
        assert not FAULTS and not FILE_FAULTS and source.problems == []
        assert source.digest() == wanted.digest()
    FILE_FAULTS.extend([ValueError("half an answer")] * 5000)
    with pytest.raises(remote.StoreError, match="ValueError: half an answer"):
        LaionTarSource(shards, cache_folder=str(tmp_path / "z"))


def test_tables_outlast_an_outage(bucket, tmp_path, pauses):
    path = write_table(tmp_path, 3)
    for file in tmp_path.iterdir():
        bucket(f"sounds/{file.name}", file.read_bytes())
    url, wanted = "counting://bucket/sounds/clips.csv", ManifestSource(path)
    FAULTS.extend([HttpError(503)] * 6)
    FILE_FAULTS.extend([HttpError(503)] * 6)
    source = ManifestSource(url)
    assert not FAULTS and not FILE_FAULTS and source.digest() == wanted.digest()
    FAULTS.extend([HttpError(503)] * 6)
    with open(wanted[1]["audio"], "rb") as file:
        assert source[1]["audio"] == file.read()
    FAULTS.extend([HttpError(503)] * 500)
    with pytest.raises(remote.StoreError):
        source[1]
    with pytest.raises(remote.StoreError):
        ManifestSource(url)


# --- ArrayRecord ---


@pytest.fixture
def packed(bucket, tmp_path):
    """A URL of two files of packed clips."""
    for file in array_record.pack(TinySource(7), tmp_path / "made" / "x", shards=2):
        with open(file, "rb") as content:
            bucket(f"packed/{os.path.basename(file)}", content.read())
    return "counting://bucket/packed"


def inodes(folder):
    """The copies in a folder, each with a number that another copy would not have."""
    found = {entry.name: entry.inode() for entry in os.scandir(folder)}
    return {name: inode for name, inode in found.items() if not name.endswith(".lock")}


def test_array_record_files_are_copied_once(packed, tmp_path):
    options = {"cache_folder": str(tmp_path / "copies")}
    source = ArrayRecordSource(packed, **options)
    assert len(source) == 7
    for index in range(7):
        assert np.abs(io.read(source[index]["audio"])[0] - wave(index)).max() < 1e-4
    copies = inodes(tmp_path / "copies")
    assert len(copies) == 2
    again = ArrayRecordSource(packed + "/*.array_record", **options)
    assert again.digest() == source.digest()
    assert inodes(tmp_path / "copies") == copies


def test_a_changed_file_is_copied_again(packed, tmp_path):
    options = {"cache_folder": str(tmp_path / "copies")}
    before = ArrayRecordSource(packed, **options)
    (file,) = array_record.pack(TinySource(4, "other"), tmp_path / "more")
    name = "/bucket/packed/x-00001-of-00002.array_record"
    fsspec.filesystem("counting").put_file(file, name)
    with pytest.raises(ArrayRecordError, match="two clips have the id"):
        ArrayRecordSource(packed, **options)
    assert len(ArrayRecordSource(f"counting:/{name}", **options)) == 4
    assert before[0]["captions"] == ["tiny 0", "tiny clip number 0"]


def test_copies_are_bounded(packed, tmp_path):
    options = {"cache_folder": str(tmp_path / "copies")}
    with pytest.raises(
        OSError, match=r"1 other files take .*expected 1e-06 GiB at most"
    ):
        ArrayRecordSource(packed, cache_gib=1e-6, **options)
    ArrayRecordSource(packed, **options)
    first = f"{packed}/x-00000-of-00002.array_record"
    with pytest.raises(OSError, match="beside .* of other copies.*or empty the folder"):
        ArrayRecordSource(first, cache_gib=1e-6, **options)


def test_copies_by_several_at_a_time(packed, tmp_path):
    sources = []

    def make():
        sources.append(ArrayRecordSource(packed, cache_folder=str(tmp_path / "copies")))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({source.digest() for source in sources}) == 1 and len(sources) == 6
    assert all(len(source[6]["audio"]) > 100 for source in sources)
    assert len(inodes(tmp_path / "copies")) == 2


def test_own_copies_are_known_however_the_folder_is_said(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = sum(Counting.store[name].size for name in Counting.store)
    limit = 1.5 * size / 2**30
    for folder in ("copies", "./copies", f"{tmp_path}//copies", "x/../copies"):
        source = ArrayRecordSource(packed, cache_folder=folder, cache_gib=limit)
        assert len(source) == 7
    assert len(inodes(tmp_path / "copies")) == 2
    with pytest.raises(ValueError, match="is gs://b/c, expected a local folder"):
        ArrayRecordSource(packed, cache_folder="gs://b/c")


def test_copies_that_another_process_makes_have_their_room(
    packed, tmp_path, monkeypatch
):
    """With a disk that the other process's part has all but filled."""
    folder = tmp_path / "copies"
    folder.mkdir()
    files = sorted(name for name in Counting.store if name.endswith("array_record"))
    urls = [f"counting:/{name}" for name in files]
    sizes = [Counting.store[name].size for name in files]
    part = folder / f"{remote.key(urls[0], remote.find(urls[0]))}.0123.part"
    part.write_bytes(b"x" * (sizes[0] - 10))
    usage = namedtuple("usage", "free")
    free = sizes[1] + 10
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
    assert len(ArrayRecordSource(packed, cache_folder=str(folder))) == 7
    # That process was killed, or it would have held the file's lock.
    assert not part.exists() and len(inodes(folder)) == 2
    free = sizes[1] - 1
    with pytest.raises(OSError, match="has room for .*set cache_folder to another"):
        ArrayRecordSource(packed, cache_folder=str(tmp_path / "other"))


def test_a_copy_outlasts_an_outage(packed, tmp_path, pauses):
    FAULTS.extend([HttpError(503)] * 12)
    assert len(ArrayRecordSource(packed, cache_folder=str(tmp_path / "copies"))) == 7
    assert not FAULTS and pauses


def test_a_missing_shard_is_named(packed, tmp_path):
    del Counting.store["/bucket/packed/x-00000-of-00002.array_record"]
    with pytest.raises(
        ArrayRecordError, match="x-00000-of-00002.array_record is missing"
    ):
        ArrayRecordSource(packed, cache_folder=str(tmp_path / "copies"))
    with pytest.raises(ArrayRecordError, match="no .array_record file there"):
        ArrayRecordSource("counting://bucket/nothing")


# --- tables and folders ---


def test_a_table_and_its_sounds(bucket, tmp_path):
    path = write_table(tmp_path, 3)
    for file in tmp_path.iterdir():
        url = bucket(f"sounds/{file.name}", file.read_bytes())
    url = "counting://bucket/sounds/clips.csv"
    local, far = ManifestSource(path), ManifestSource(url)
    assert far.digest() == local.digest()
    with open(local[2]["audio"], "rb") as file:
        assert far[2]["audio"] == file.read()
    # Sounds of a store in a table on the disk.
    mixed = ManifestSource(path, audio_folder="counting://bucket/sounds")
    assert mixed[1] == far[1]
    del Counting.store["/bucket/sounds/1.flac"]
    with pytest.raises(
        io.AudioError, match="counting://bucket/sounds/1.flac: there is"
    ):
        far[1]
    with pytest.raises(
        ManifestError, match="line 3, .*no file counting://bucket/sounds/"
    ):
        ManifestSource(url)
    with pytest.raises(ManifestError, match="nothing.csv: there is no such file"):
        ManifestSource("counting://bucket/nothing.csv")


def test_a_folder_of_sounds(bucket, tmp_path):
    write_table(tmp_path, 4)
    for number in range(4):
        content = (tmp_path / f"{number}.flac").read_bytes()
        bucket(f"kinds/{'ab'[number % 2]}/{number}.flac", content)
    source = ManifestSource("counting://bucket/kinds")
    assert [source.id(i) for i in range(4)] == [
        f"{c}.flac" for c in ("a/0", "a/2", "b/1", "b/3")
    ]
    assert source.captions(3) == ["b"]
    assert len(io.load(source[3]["audio"], RATE_HZ)) == 3200


# --- what is said ---


def test_libraries_that_are_not_there():
    # pip install gcsfs would serve the first; nothing serves the second.
    if not importlib.util.find_spec("gcsfs"):
        with pytest.raises(
            OSError, match="gs://b/x.tar: gs:// needs a library .*gcsfs"
        ):
            remote.read("gs://b/x.tar")
    with pytest.raises(OSError, match="nowhere://b/x: fsspec knows no nowhere://"):
        remote.find("nowhere://b/x")


def test_paths():
    join = remote.join
    assert join("gs://a/b/", "c.wav") == "gs://a/b/c.wav"
    assert join("gs://a", "s3://b/c") == "s3://b/c" == join("/local", "s3://b/c")
    assert join("", "c.wav") == "c.wav" and join("/a", "/b") == "/b"
    assert remote.is_remote("memory://x") and not remote.is_remote("/a/b://c")
    assert list(remote._without_braces("a{08..10}/{x,y}")) == [
        *("a08/x", "a08/y", "a09/x"),
        *("a09/y", "a10/x", "a10/y"),
    ]
