"""Clips to be captioned, from tables, folders, shards and sections of configs."""

import json

import pytest

from clap_jax.pipeline import array_record
from clap_jax.pipeline.manifest import ManifestSource
from data.caption.clips import Clip, ClipsError, read
from tests.data.caption import cases
from tests.pipeline.clips import write_sounds
from tests.pipeline.shards import write_shards


def test_tables_without_their_audio(tmp_path):
    table = cases.write_table(tmp_path / "clips.jsonl", 6)
    found = read(str(table))
    assert found.clips == [Clip(name, tuple(tags)) for name, tags in cases.clips(6)]
    assert (found.without_tags, found.short, found.unknown) == (0, 0, 6)

    table = tmp_path / "clips.csv"
    table.write_text('key,file,kinds\n1,a.wav,"Dog,Rain"\n2,b.wav,Sea\n')
    options = {"label_column": "kinds", "id_column": "key", "separator": ","}
    wanted = [Clip("1", ("Dog", "Rain")), Clip("2", ("Sea",))]
    assert read(str(table), options).clips == wanted
    section = {"kind": "manifest", "path": str(table), "where": {"key": "2"}}
    section |= options | {"weight": 2.0, "name": "x", "captions": "all"}
    assert read(json.dumps(section)).clips == wanted[1:]


def test_folders_and_shards(tmp_path):
    for label in ("dog", "rain"):
        write_sounds(tmp_path / "sounds" / label, 2)
    found = read(str(tmp_path / "sounds"))
    assert found.clips[3] == Clip("rain/1.flac", ("rain",))

    source = ManifestSource(tmp_path / "sounds")
    array_record.pack(source, tmp_path / "packed" / "x", shards=2)
    assert read(str(tmp_path / "packed")).clips == found.clips

    write_shards(tmp_path / "tars", 1, 2)
    section = {"kind": "laion_tar", "path": str(tmp_path / "tars")}
    section["cache_folder"] = str(tmp_path / "cache")
    assert read(json.dumps(section)).clips[1] == Clip("000/001", ("tone",))


def test_ids_are_those_of_training():
    """Synthetic clips are called by the name of their source in the config."""
    section = {"kind": "synthetic", "name": "mine", "examples": 3, "captions": "all"}
    assert [clip.id for clip in read(json.dumps(section)).clips] == [
        "mine-0-0",
        "mine-0-1",
        "mine-0-2",
    ]


def test_short_clips_are_left_out_where_lengths_are_known(tmp_path):
    # By a column; what is no number is unknown.
    seconds = [1.9, 2.0, "", "two", None, "3.5"]
    table = cases.write_table(tmp_path / "clips.jsonl", 6, duration_s=seconds)
    found = read(str(table), min_seconds=2.0)
    assert [clip.id for clip in found.clips] == [f"clips/{n}.wav" for n in range(1, 6)]
    assert (found.short, found.unknown) == (1, 3)
    assert len(read(str(table), min_seconds=2.0, lengths="none").clips) == 6

    # By the headers of files: those of `clips.wave` are 0.4 s long.
    write_sounds(tmp_path / "sounds" / "dog", 3)
    (tmp_path / "sounds" / "dog" / "broken.flac").write_bytes(b"no sound")
    found = read(str(tmp_path / "sounds"), min_seconds=0.3)
    assert (len(found.clips), found.short, found.unknown) == (4, 0, 1)
    found = read(str(tmp_path / "sounds"), min_seconds=0.5)
    assert [clip.id for clip in found.clips] == ["dog/broken.flac"] and found.short == 3

    # Sounds behind URLs are left where they are.
    table = tmp_path / "far.csv"
    table.write_text("path,label\nmemory://nowhere/a.wav,dog\n")
    assert read(str(table), min_seconds=0.5).unknown == 1

    # In shards, clips are opened only if asked to.
    source = ManifestSource(tmp_path / "sounds")
    array_record.pack(source, tmp_path / "packed" / "x")
    found = read(str(tmp_path / "packed"), min_seconds=0.5)
    assert (len(found.clips), found.unknown) == (4, 4)
    found = read(str(tmp_path / "packed"), min_seconds=0.5, lengths="audio")
    assert (len(found.clips), found.short, found.unknown) == (1, 3, 1)


def test_clips_without_labels(tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text("path,caption,tags\na.wav,one,dog\nb.wav,two,\n")
    found = read(str(table))
    assert found.clips == [Clip("a.wav", ("dog",))] and found.without_tags == 1
    table.write_text("path,caption\na.wav,one\nb.wav,two\n")
    with pytest.raises(
        ClipsError, match="no clips to caption: 2 have no labels, 0 are"
    ):
        read(str(table))


@pytest.mark.parametrize(
    "data, message",
    [
        ('{"kind": ', "the source is not JSON"),
        ('{"path": "x"}', "the source has no kind"),
        ('{"kind": "manifst", "path": "x"}', "did you mean 'manifest'"),
    ],
)
def test_sources_that_are_none(data, message):
    with pytest.raises(ValueError, match=message):
        read(data)
