"""Tar shards: what is in them, what is broken in them, and how they are read."""

import itertools
import json
import os
import pickle
import re

import numpy as np
import pytest

from clap_jax import remote
from clap_jax.audio import io
from clap_jax.pipeline import loader, tar_index, tars
from clap_jax.pipeline.ops import Clips, Prepare
from clap_jax.pipeline.sources import build_source
from clap_jax.pipeline.tars import LaionTarSource, TarError
from tests.pipeline.clips import FRONTEND, RATE_HZ, make_tokenizer, wave
from tests.pipeline.shards import pair, shard, sound, tar_bytes, write_shards


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def open_tars(cache):
    return lambda path, **options: LaionTarSource(path, cache_folder=cache, **options)


def check(source, count=12):
    """Every clip is the tone, and has the captions, that its name says."""
    assert len(source) == count
    for index in range(count):
        example = source[index]
        number = int(example["id"].rpartition("/")[2])
        found, rate_hz = io.read(example["audio"])
        assert rate_hz == RATE_HZ
        assert np.abs(found - wave(number)).max() < 1 / 32000
        assert example["captions"] == [f"number {number}", f"sound {number}"]
        assert example["captions"] == source.captions(index)
        assert example["tags"] == source.tags(index) == ["tone"]
        assert example["group"] == source.group(index) == source.id(index)


def test_clips_of_shards(tmp_path, open_tars):
    write_shards(tmp_path / "data")
    source = open_tars(tmp_path / "data")
    check(source)
    assert source.id(5) == "001/005" and source.problems == []
    assert sorted(source.audio_files()) == sorted(
        map(str, (tmp_path / "data").glob("*.tar"))
    )
    assert source.description() == (
        f"laion_tar: 12 clips in 3 shards ({tmp_path / 'data'})"
    )
    assert pickle.loads(pickle.dumps(source))[7] == source[7]
    with pytest.raises(IndexError, match="has 12 clips, no 12"):
        source[12]


def test_paths_of_every_kind(tmp_path, open_tars):
    paths = [str(path) for path in write_shards(tmp_path / "data" / "train")]
    folder = str(tmp_path / "data")
    ids = [f"{n // 4:03}/{n:03}" for n in range(12)]
    cases = [
        (folder, ids),
        (f"{folder}/train/*.tar", ids),
        (f"{folder}/train/{{000..002}}.tar", ids),
        (f"{folder}/train/{{1..1}}.tar", None),
        (f"{folder}/train/00{{1..1}}.tar", ids[4:8]),
        (f"{folder}/{{train,train}}/00{{1..1}}.tar", None),
        (f"{folder}/tr{{ai,oo}}n/00[01].tar", ids[:8]),
        (paths[1], ids[4:8]),
        ([paths[2], paths[0]], ids[8:] + ids[:4]),
    ]
    for path, wanted in cases:
        if wanted is None:
            with pytest.raises(
                TarError, match="001.tar is named twice|/1.tar: there is"
            ):
                open_tars(path)
            continue
        source = open_tars(path)
        assert [source.id(i) for i in range(len(source))] == wanted


def test_names_tell_folders_apart(tmp_path, open_tars):
    for split in ("train", "valid"):
        write_shards(tmp_path / "data" / split, shards=1)
    source = open_tars(tmp_path / "data")
    assert source.id(0) == "train/000/000" and source.id(4) == "valid/000/000"


def test_other_audio_and_texts(tmp_path, open_tars):
    members = {
        "a.wav": sound(1, "wav"),
        "a.txt": b"first\n\n second \n",
        "sub/b.OGG": sound(2, "ogg"),
        "sub/b.json": json.dumps({"text": "only one", "tags": ["x", "y"]}).encode(),
        "c.v2.mp3": sound(3, "mp3"),
        "c.v2.json": b'{"text": ["third"]}',
        "__key__": b"of no interest",
        "sub/._b.ogg": b"of macOS",
    }
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    source = open_tars(tmp_path / "x.tar")
    assert [source.id(i) for i in range(3)] == ["x/a", "x/sub/b", "x/c.v2"]
    captions = [source.captions(i) for i in range(3)]
    assert captions == [["first", "second"], ["only one"], ["third"]]
    assert source.tags(1) == ["x", "y"] and source.tags(0) == []
    for index in range(3):
        assert len(io.load(source[index]["audio"], RATE_HZ)) > 3000


def test_augmented_captions(tmp_path, open_tars):
    more = {"text_augment_all": ["a", "b"], "text_augment_t5": "t"}
    members = pair(0, **more) | pair(1, text_augment_t5=None)
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    plain = ["number 1", "sound 1"]
    digests = set()
    for choice, wanted in {
        "none": ["number 0", "sound 0"],
        "all": ["a", "b"],
        "augment_only": ["t"],
    }.items():
        source = open_tars(tmp_path, text_augment=choice)
        assert source.captions(0) == wanted and source.captions(1) == plain
        digests.add(source.digest())
    assert len(digests) == 3
    with pytest.raises(ValueError, match="text_augment is 'every', expected one of"):
        open_tars(tmp_path, text_augment="every")


# --- the index ---


def test_the_index_is_made_once(tmp_path, cache, open_tars, monkeypatch):
    paths = write_shards(tmp_path / "data")
    before = open_tars(tmp_path / "data")
    assert len(os.listdir(cache)) == 3
    made = []
    monkeypatch.setattr(
        tar_index, "read", lambda *a, read=tar_index.read: made.append(a) or read(*a)
    )
    after = open_tars(tmp_path / "data")
    assert not made and after.digest() == before.digest()
    # A shard that was written again is read again, and so is a damaged index.
    paths[1].write_bytes(shard(50, 4))
    with open(min(os.scandir(cache), key=lambda e: e.name).path, "wb") as file:
        file.write(b"PK not an index")
    changed = open_tars(tmp_path / "data")
    assert {a[0] for a in made} >= {str(paths[1])} and len(made) <= 2
    assert changed.captions(4) == ["number 50", "sound 50"]
    assert changed.digest() != before.digest()


def test_an_index_that_cannot_be_kept(tmp_path):
    write_shards(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(TarError, match="set cache_folder to one that can be written"):
        LaionTarSource(tmp_path / "data", cache_folder=str(tmp_path / "file" / "x"))


# --- what is broken ---


def test_broken_members_are_named_and_left_out(tmp_path, open_tars):
    members = (
        pair(0)
        | {"001.flac": sound(1)}
        | {"002.json": b'{"text": "no sound"}'}
        | pair(3)
        | {"003.flac": b"", "004.flac": sound(4), "004.json": b"{not json"}
        | {"005.flac": sound(5), "005.json": b'{"text": ""}'}
        | {"006.flac": sound(6), "006.json": b'["a list"]'}
        | {"007.flac": sound(7), "007.txt": b"\xff\xfe"}
        | pair(8)
    )
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(members))
    source = open_tars(path)
    assert [source.id(i) for i in range(len(source))] == ["x/000", "x/008"]
    found = {member: reason for _, member, reason in source.problems}
    expected = {
        "001.flac": "there is no .json or .txt of this name",
        "002.json": "there is no audio of this name",
        "003.flac": "the audio is empty",
        "004.json": "is not JSON",
        "005.flac": "its JSON has no text",
        "006.json": "holds a list, expected an object",
        "007.txt": "is not UTF-8 text",
    }
    assert found.keys() == expected.keys()
    for member, reason in expected.items():
        assert found[member].startswith(reason)
    assert {shard for shard, _, _ in source.problems} == {str(path)}
    assert "2 clips in 1 shard, 7 problems" in source.description()


def test_shards_that_are_cut(tmp_path, open_tars):
    whole = shard(0, 4)
    path = tmp_path / "x.tar"
    # Every clip takes a header and its audio, and two blocks of JSON.
    clip = 2 * 512 + len(sound(0)) + -len(sound(0)) % 512 + 512
    second = whole.index(b"001.flac")
    cases = [
        (whole[: second + 900], 1, "001.flac", "truncated: it ends at byte"),
        (whole[: second + 100], 1, "000.json", "no end mark"),
        (whole[:second], 1, "000.json", "no end mark"),
        (
            whole[:second] + b"\xff" * clip + whole[second + clip :],
            1,
            "000.json",
            "lost",
        ),
    ]
    for content, count, member, reason in cases:
        path.write_bytes(content)
        source = open_tars(path)
        assert len(source) == count
        ((_, found, said),) = source.problems
        assert found == member and reason in said


def test_when_nothing_is_left(tmp_path, open_tars):
    path = tmp_path / "x.tar"
    cases = [
        (b"", "x.tar: the file is empty"),
        (b"words " * 500, "is not a tar file: .*starts with b'words"),
        (b"\x1f\x8b" + b"\0" * 600, "gzip: unpack it, single clips of it cannot"),
        (tar_bytes({}), "no clip in 1 shards has both audio and a caption"),
        (
            tar_bytes({"a.flac": sound(1)}),
            "no clip in 1 shards has both.*\n.*a.flac: there is no .json",
        ),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(TarError, match=message):
            open_tars(path)
    with pytest.raises(TarError, match="y.tar: there is no such shard"):
        open_tars(tmp_path / "y.tar")
    with pytest.raises(TarError, match="no .tar file there"):
        open_tars(tmp_path / "*.tar.gz")


def test_a_shard_that_shrinks_gives_bad_clips(tmp_path, open_tars):
    (path,) = write_shards(tmp_path, shards=1, clips=6)
    source = open_tars(path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"003.flac")])
    with pytest.raises(io.AudioError, match="clip 004: the shard is shorter than"):
        source[4]
    clips = Clips(source, Prepare(FRONTEND))
    assert [clips.fetch(i).index for i in range(6)] == [0, 1, 2, 0, 0, 0]
    path.unlink()
    with pytest.raises(io.AudioError, match="clip 000: No such file"):
        source[0]


def test_sizes_json_says_which_shards(tmp_path, open_tars):
    paths = write_shards(tmp_path)
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"000.tar": 4, "002.tar": 7}')
    source = open_tars(tmp_path)
    assert [source.id(i)[:3] for i in range(0, 8, 4)] == ["000", "002"]
    assert source.problems == [
        (str(paths[2]), "", "4 clips found, sizes.json promises 7")
    ]
    sizes.write_text('{"000.tar": 4, "003.tar": 4}')
    with pytest.raises(TarError, match="sizes.json lists 003.tar, which is missing"):
        open_tars(tmp_path)
    assert len(open_tars(paths[0])) == 4
    for content, message in (("{", "is not JSON"), ('{"a": "b"}', "number of clips")):
        sizes.write_text(content)
        with pytest.raises(TarError, match=message):
            open_tars(tmp_path)


# --- reading ---


def test_several_at_once_are_as_one_by_one(tmp_path, open_tars, monkeypatch):
    write_shards(tmp_path)
    source = open_tars(tmp_path)
    asked = []

    def counted(ranges, read=remote.read_ranges):
        asked.append(len(ranges))
        return read(ranges)

    monkeypatch.setattr(remote, "read_ranges", counted)
    indices = [3, 11, 0, 4, 5, 2]
    assert source.read(indices) == [source[index] for index in indices]
    # 0, 2 and 3 lie in one shard, 4 and 5 in the next, 11 in the last.
    assert asked[0] == 3
    monkeypatch.setattr(tars, "GAP_BYTES", 0)
    source.read([0, 1])
    assert asked[-1] == 2


def test_a_run_over_shards(tmp_path, open_tars):
    write_shards(tmp_path)
    source = build_source(
        "laion_tar",
        "tiny",
        {"path": str(tmp_path), "cache_folder": str(tmp_path / "c")},
    )
    batches = {}
    for together in (1, 4):
        dataset = loader.train_dataset(
            [(source, None)],
            Prepare(FRONTEND),
            make_tokenizer(),
            batch_size=4,
            seed=0,
            read_together=together,
        )
        iterator = iter(dataset)
        batches[together] = list(itertools.islice(iterator, 3))
        iterator.close()
        groups = [g for batch in batches[together] for g in batch["group"].tolist()]
        assert len(set(groups)) == 12
        assert not any(batch["bad"].any() for batch in batches[together])
    assert not np.array_equal(batches[1][0]["group"], batches[4][0]["group"])


def test_options_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match=re.escape("did you mean 'cache_folder'?")):
        build_source("laion_tar", "x", {"path": str(tmp_path), "cache_folde": ""})
