"""Packed clips: the round trip, and files that are not what they should be."""

import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordWriter

from clap_jax.audio import io
from clap_jax.pipeline import array_record
from clap_jax.pipeline.array_record import ArrayRecordError, ArrayRecordSource
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.ops import Clips, Prepare
from clap_jax.pipeline.sources import build_source
from tests.pipeline.clips import FRONTEND, RATE_HZ, TinySource, wave, write_table


def test_files_are_packed_byte_for_byte(tmp_path):
    manifest = ManifestSource(write_table(tmp_path / "sounds", 5))
    files = array_record.pack(manifest, tmp_path / "packed" / "clips", shards=2)
    assert [file.rsplit("/", 1)[1] for file in files] == [
        "clips-00000-of-00002.array_record",
        "clips-00001-of-00002.array_record",
    ]
    pattern = str(tmp_path / "packed" / "clips-*")
    for path in (tmp_path / "packed", pattern):
        packed = ArrayRecordSource(path)
        assert len(packed) == 5
        for index in range(5):
            example, original = packed[index], manifest[index]
            with open(original["audio"], "rb") as file:
                assert example["audio"] == file.read()
            for key in ("captions", "tags", "id", "group"):
                assert example[key] == original[key]
            assert packed.captions(index) == original["captions"]
            assert packed.tags(index) == [] and packed.group(index) == original["group"]
            assert packed.id(index) == original["id"]
    assert (
        packed.description() == f"array_record: 5 packed clips in 2 files ({pattern})"
    )
    assert len(ArrayRecordSource(files[1])) == 3
    assert len(list((tmp_path / "packed").iterdir())) == 2


def test_real_audio_survives(shared_data, tmp_path):
    manifest = ManifestSource(
        shared_data / "esc10" / "metadata.csv", where={"fold": "1"}
    )
    array_record.pack(manifest, tmp_path / "esc10")
    packed = build_source("array_record", "esc10", {"path": str(tmp_path)})
    assert len(packed) == len(manifest) and packed.tags(0) == ["a dog barking"]
    for index in (0, 79):
        np.testing.assert_array_equal(
            io.load(packed[index]["audio"], 16_000),
            io.load(manifest[index]["audio"], 16_000),
        )


@pytest.mark.parametrize(("encoding", "error"), [("flac", 1 / 32767), ("wav", 0)])
def test_arrays_are_encoded(tmp_path, encoding, error):
    source = TinySource(3)
    (file,) = array_record.pack(source, tmp_path / "tiny", encoding=encoding)
    packed = ArrayRecordSource(file)
    for index in range(3):
        found, rate_hz = io.read(packed[index]["audio"])
        assert rate_hz == RATE_HZ
        assert np.abs(found - wave(index)).max() <= error


def test_digest_tells_data_apart(tmp_path):
    sources = [TinySource(3), TinySource(3, "other"), TinySource(4)]
    digests = {
        ArrayRecordSource(array_record.pack(source, tmp_path / str(n))[0]).digest()
        for n, source in enumerate(sources)
    }
    assert len(digests) == 3
    array_record.pack(TinySource(4), tmp_path / "elsewhere" / "clips", shards=2)
    assert ArrayRecordSource(tmp_path / "elsewhere").digest() in digests


def test_it_can_be_pickled(tmp_path):
    (file,) = array_record.pack(TinySource(4), tmp_path / "tiny")
    source = ArrayRecordSource(file)
    before = source[2]
    assert pickle.loads(pickle.dumps(source))[2] == before


def test_captions_do_not_touch_the_audio(tmp_path, monkeypatch):
    (file,) = array_record.pack(TinySource(2), tmp_path / "tiny")
    source = ArrayRecordSource(file)
    monkeypatch.setattr(source, "_records", None)
    assert source.captions(1) == ["tiny 1", "tiny clip number 1"]


def test_nothing_is_left_of_a_packing_that_failed(tmp_path):
    example = TinySource(1)[0]
    path = tmp_path / "x.array_record"
    cases = [
        ([example, example], "two clips have the id 'clip0'"),
        ([], "there are no clips"),
        ([example | {"captions": ["a", " "]}], "'clip0' has no or an empty caption"),
        ([example | {"audio": str(tmp_path / "no.wav")}], "no.wav: No such file"),
    ]
    for examples, reason in cases:
        with pytest.raises(ValueError, match=reason):
            array_record.write_array_record(path, examples)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="must end in .array_record"):
        array_record.write_array_record(tmp_path / "x.tar", [example])
    with pytest.raises(ValueError, match="encoding is 'mp3'"):
        array_record.write_array_record(path, [example], encoding="mp3")
    with pytest.raises(ValueError, match="shards is 5, expected 1 to 2"):
        array_record.pack(TinySource(2), tmp_path / "x", shards=5)


def test_files_that_are_something_else(tmp_path):
    (file,) = array_record.pack(TinySource(3), tmp_path / "tiny")
    with open(file, "rb") as content:
        whole = content.read()
    bad = tmp_path / "bad.array_record"
    cases = [
        (whole[: len(whole) // 2], "truncated: its end"),
        (b"", "the file is empty"),
        (b"words " * 100, "is not an ArrayRecord file .starts with b'words wo'"),
    ]
    for content, reason in cases:
        bad.write_bytes(content)
        with pytest.raises(ArrayRecordError, match=reason) as caught:
            ArrayRecordSource(bad)
        assert str(bad) in str(caught.value)

    writer = ArrayRecordWriter(str(bad), "group_size:1")
    writer.write(b"a record of somebody else")
    writer.close()
    with pytest.raises(ArrayRecordError, match="its 1 records were not packed by"):
        ArrayRecordSource(bad)


def test_missing_and_doubled_files(tmp_path):
    with pytest.raises(ArrayRecordError, match="no .array_record file there"):
        ArrayRecordSource(tmp_path)
    files = array_record.pack(TinySource(4), tmp_path / "tiny", shards=3)
    (tmp_path / "tiny-00001-of-00003.array_record").rename(tmp_path / "aside")
    with pytest.raises(ArrayRecordError, match="tiny-00001-of-00003.*is missing"):
        ArrayRecordSource(tmp_path)
    shutil.copy(files[0], tmp_path / "copy.array_record")
    with pytest.raises(ArrayRecordError, match="two clips have the id 'clip0'"):
        ArrayRecordSource(tmp_path / "*.array_record")


def test_a_damaged_record_is_a_bad_clip(tmp_path):
    (file,) = array_record.pack(TinySource(5), tmp_path / "tiny", encoding="wav")
    with open(file, "r+b") as content:
        content.seek(content.read().index(json.dumps("clip3").encode()))
        content.write(b"\xff" * 400)
    source = ArrayRecordSource(file)
    with pytest.raises(io.AudioError, match="clip clip3: damaged record"):
        source[3]
    clips = Clips(source, Prepare(FRONTEND))
    assert [clips.fetch(i).index for i in range(5)] == [0, 1, 2, 4, 4]


def test_audio_that_is_not_audio_is_named(tmp_path):
    path = tmp_path / "x.array_record"
    array_record.write_array_record(path, [TinySource(1)[0] | {"audio": b"words"}])
    with pytest.raises(io.AudioError, match="array_record clip0: not decodable"):
        Clips(ArrayRecordSource(path), Prepare(FRONTEND)).load(0)


def test_stereo_arrays_become_mono(tmp_path):
    stereo = np.stack([wave(0), wave(1)])
    path = tmp_path / "x.array_record"
    example = TinySource(1)[0] | {"audio": (stereo, RATE_HZ)}
    array_record.write_array_record(path, [example], encoding="wav")
    found, _ = io.read(ArrayRecordSource(path)[0]["audio"])
    np.testing.assert_allclose(found, stereo.mean(0), atol=1e-7)
    assert soundfile.available_formats()["FLAC"]
