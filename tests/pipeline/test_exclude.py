"""Clips that a file lists are left out of any kind of source."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from clap_jax.pipeline import array_record, feature_files
from clap_jax.pipeline.features import Features
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.sources import SOURCES, build_source
from data.datasets import builder, packed
from data.datasets.row import Clip
from tests.pipeline import test_hdf5
from tests.pipeline.clips import wave, write_table
from tests.pipeline.shards import pair, tar_bytes

CLIPS = 4


@pytest.fixture(scope="module")
def sections(tmp_path_factory) -> dict[str, dict]:
    """The options of a source of each kind, of so many clips."""
    folder = tmp_path_factory.mktemp("kinds")
    table = write_table(folder / "sounds", CLIPS)
    array_record.pack(ManifestSource(table), folder / "packed" / "x", shards=2)
    row = packed.table_row("four", str(table))
    builder.make(row, data_dir=folder / "tfds").download_and_prepare()
    made = {"text_augment_t5": "made"}
    members = pair(0) | pair(1, **made) | pair(2) | pair(3, **made)
    (folder / "0.tar").write_bytes(tar_bytes(members))
    names = [f"Y{number}.wav" for number in range(CLIPS)]
    waves = {name: wave(int(name[1])).astype(np.float16) for name in names}
    texts = {name: test_hdf5.rows(name) for name in names}
    blat = test_hdf5.write_waves(folder / "blat.h5", waves)
    captions = test_hdf5.write_captions(folder / "train.json", texts)
    feature_files.write_features(
        folder / "features.array_record",
        (
            _embedded(clip)
            for clip in map(ManifestSource(table).__getitem__, range(CLIPS))
        ),
    )
    return {
        "features": {"path": str(folder / "features.array_record")},
        "pieces": {"examples": CLIPS, "seconds": (48, 49)},
        "manifest": {"path": str(table)},
        "array_record": {"path": str(folder / "packed")},
        "tfds": {"dataset": "four", "data_dir": str(folder / "tfds")},
        "laion_tar": {
            "path": str(folder / "0.tar"),
            "cache_folder": str(folder / "cache"),
        },
        "hdf5": {"path": str(blat), "captions": str(captions)},
        "synthetic": {"examples": CLIPS},
    }


def _embedded(clip: dict) -> dict:
    """A clip as features of two segments."""
    features = np.random.default_rng(len(clip["id"])).normal(size=(2, 3))
    seconds = np.array([[0, 1], [1, 2]], np.float32)
    return clip | {"audio": Features(features, seconds, np.array([True, False]))}


def same(one: dict, other: dict) -> bool:
    """Whether two clips are the same, samples included."""
    one, other = dict(one), dict(other)
    sounds = one.pop("audio"), other.pop("audio")
    if isinstance(sounds[0], Features):
        return one == other and all(map(np.array_equal, *sounds))
    if isinstance(sounds[0], tuple):
        (own, rate_hz), (others, others_hz) = sounds
        return one == other and rate_hz == others_hz and np.array_equal(own, others)
    return one == other and sounds[0] == sounds[1]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_leaves_them_out(sections, tmp_path, kind):
    whole = build_source(kind, "mine", sections[kind])
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"{whole.id(2)}\n{whole.id(0)}\nof another source\n")
    options = {**sections[kind], "exclude": str(listed)}
    source = build_source(kind, "mine", options)
    assert source.name == "mine" and len(source) == 2
    copy = pickle.loads(pickle.dumps(source))  # as worker processes get it
    for index, original in enumerate((1, 3)):
        for found in (source, copy):
            assert same(found[index], whole[original])
            for of in ("id", "captions", "tags", "group"):
                assert getattr(found, of)(index) == getattr(whole, of)(original)
    with pytest.raises(IndexError):
        source[2]
    for name in ("read", "audio_files", "problems", "generated", "caption_weights"):
        assert hasattr(source, name) == hasattr(whole, name), name
    if hasattr(whole, "read"):
        pairs = zip(copy.read([1, 0]), whole.read([3, 1]), strict=True)
        assert all(same(*both) for both in pairs)
    assert source.digest() == copy.digest() != whole.digest()
    listed.write_text(whole.id(0))
    assert build_source(kind, "mine", options).digest() != source.digest()
    # None of the ids is here; and no file at all.
    listed.write_text("nobody\n")
    assert len(build_source(kind, "mine", options)) == CLIPS
    assert len(build_source(kind, "mine", options | {"exclude": ""})) == CLIPS
    listed.write_text("\n".join(whole.id(index) for index in range(CLIPS)))
    with pytest.raises(ValueError, match=f"exclude: all {CLIPS} .* are listed in"):
        build_source(kind, "mine", options)


def test_what_is_left_out_is_said(sections, tmp_path):
    listed = tmp_path / "exclude.txt"
    listed.write_text("0.flac\n")
    options = {**sections["tfds"], "exclude": str(listed)}
    line = build_source("tfds", "mine", options).description()
    assert line.endswith(f"; 1 of them left out, listed in {listed}")
    with pytest.raises(FileNotFoundError):
        build_source("tfds", "mine", options | {"exclude": str(tmp_path / "no.txt")})
    with pytest.raises(ValueError, match="'exlude' .did you mean 'exclude'"):
        build_source("tfds", "mine", {**sections["tfds"], "exlude": str(listed)})


def test_generated_captions_stay_with_their_clips(sections, tmp_path):
    """Those of a file, and those that LAION's shards bring."""
    listed = tmp_path / "exclude.txt"
    listed.write_text("1.flac\n")
    lines = [
        {"id": f"{n}.flac", "caption": f"made {n}", "origin": {"kind": "t5"}}
        for n in (0, 1, 3)
    ]
    file = tmp_path / "made.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    more = {"exclude": str(listed), "generated": str(file), "captions": "augment_only"}
    source = build_source("array_record", "mine", sections["array_record"] | more)
    own = ["number 2", "the sound of number 2"]
    assert [source.captions(n) for n in range(3)] == [["made 0"], own, ["made 3"]]

    listed.write_text("0/000\n0/001\n")
    more = {"exclude": str(listed), "captions": {"original": 0.5, "t5": 0.5}}
    source = build_source("laion_tar", "mine", sections["laion_tar"] | more)
    assert [source.captions(n)[0] for n in range(2)] == ["number 2", "number 3"]
    assert source.captions(1)[-1] == "made" and "made" not in source.captions(0)
    assert "; 1 of them bring generated captions" in source.description()
    assert source.read([1])[0]["captions"] == source.captions(1)


def test_a_prepared_set_says_its_folds_of_the_clips_that_are_left(sections, tmp_path):
    folder = Path(sections["tfds"]["data_dir"])
    listed = tmp_path / "exclude.txt"
    listed.write_text("a\n")
    clips = [
        Clip("train", name, lambda: b"x", (name,), fold=fold)
        for name, fold in (("a", "1"), ("b", "2"))
    ]
    row = packed.row("folds", {}, "two clips")
    row = dataclasses.replace(row, splits={"train": 2}, read=lambda *_: clips)
    builder.make(row, data_dir=folder).download_and_prepare()
    options = {"dataset": "folds", "data_dir": str(folder), "exclude": str(listed)}
    assert build_source("tfds", "mine", options).fold(0) == "2"


@pytest.mark.parametrize("kind", SOURCES)
def test_parts_of_every_kind(sections, tmp_path, kind):
    """Each clip is in one part, whatever else is left out, and whatever it is called."""
    whole = build_source(kind, "mine", sections[kind])
    ids = [whole.id(index) for index in range(len(whole))]
    parts = []
    for part in ("1/2", "2/2"):
        try:
            parts.append(build_source(kind, "mine", {**sections[kind], "part": part}))
        except ValueError as error:  # four clips may all be in one
            assert "none of its 4 clips" in str(error)
    found = [source.id(i) for source in parts for i in range(len(source))]
    assert sorted(found) == sorted(ids)
    source = parts[0]
    assert all(
        same(source[i], whole[ids.index(source.id(i))]) for i in range(len(source))
    )
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"{parts[-1].id(0)}\n")
    if len(parts) > 1:  # what is left out moves no other clip
        options = {**sections[kind], "part": "1/2", "exclude": str(listed)}
        kept = build_source(kind, "mine", options)
        assert [kept.id(i) for i in range(len(kept))] == found[: len(source)]
    assert ", part " in source.description()


def test_parts_are_alike_and_do_not_follow_names():
    options = {"examples": 2000}
    named = [
        build_source("synthetic", name, options | {"part": part})
        for name in ("one", "other")
        for part in ("1/2", "2/2")
    ]
    numbers = [
        {int(source.id(i).rpartition("-")[2]) for i in range(len(source))}
        for source in named
    ]
    assert numbers[:2] == numbers[2:]
    assert numbers[0] | numbers[1] == set(range(2000)) and not numbers[0] & numbers[1]
    assert 900 < len(numbers[0]) < 1100
    for part in ("0/2", "3/2", "half"):
        with pytest.raises(ValueError, match="expected a number of a number of parts"):
            build_source("synthetic", "one", options | {"part": part})
