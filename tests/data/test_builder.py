"""The builder: numbers that must be right, archives, downloads, shards, records."""

import dataclasses
import functools
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from clap_jax.pipeline import tfds as tfds_source
from clap_jax.pipeline.tfds import TfdsSource
from data.datasets import SETS, builder, layout
from data.datasets.layout import Folder, LayoutError
from data.datasets.row import Clip
from tests.data.layouts import captioned, environment, speech, tagged
from tests.data.layouts.files import write
from tests.data.test_datasets import prepared, shrunk

ESC50, ESC50_CLIPS = environment.esc50()
AUDIOSET = SETS["audioset"]
ROW = shrunk(SETS["esc50"], "", ESC50_CLIPS)


def gathered(folder: Path, row=ROW, **options) -> dict[str, list[Clip]]:
    return builder.gather(row, Folder([folder]), **options)[0]


def test_published_numbers_are_expected(tmp_path):
    folder = write(tmp_path, ESC50)
    with pytest.raises(LayoutError, match="esc50, fold1: 1 clips found, 400 expected"):
        gathered(folder, SETS["esc50"])
    more = dataclasses.replace(ROW, splits={"fold1": 1, "fold2": 1, "fold3": 0})
    with pytest.raises(LayoutError, match="fold3: 1 clips found, 0 expected"):
        gathered(folder, more)
    assert {split: len(own) for split, own in gathered(folder).items()} == {
        f"fold{fold}": 1 for fold in range(1, 6)
    }


def test_clips_that_are_not_there_are_named_and_may_be_left_out(tmp_path):
    files, clips = tagged.vggsound()
    row = shrunk(SETS["vggsound"], "", clips)
    files["audio/--0PQM4-hqg_000030.flac"] = b""
    folder = write(tmp_path, files)
    with pytest.raises(LayoutError) as caught:
        gathered(folder, row)
    assert str(caught.value) == (
        "vggsound, train: 1 clips found, 2 expected; 1 have no audio file, or an empty "
        f"one: --0PQM4-hqg_000030 in {folder}. --allow_partial prepares those that are "
        "there (videos vanish from YouTube)"
    )
    found = gathered(folder, row, allow_partial=True)
    assert [clip.id for clip in found["train"]] == ["--0PQM4-hqg_000050"]
    (folder / "audio/---g-f_I2yQ_000001.wav").unlink()
    with pytest.raises(LayoutError, match="test: 0 clips found, .*splits=train prepar"):
        gathered(folder, row, allow_partial=True)
    assert len(gathered(folder, row, allow_partial=True, wanted=["train"])) == 1


def test_nothing_at_all_says_what_is_needed(tmp_path):
    tables = {f"{split}_segments.csv": "# of nothing\n" for split in AUDIOSET.splits}
    tables["class_labels_indices.csv"] = "index,mid,display_name\n"
    folder = write(tmp_path, tables)
    with pytest.raises(
        LayoutError, match="audioset: no clips in .* It needs balanced_"
    ):
        gathered(folder, AUDIOSET)


def test_json_of_another_shape_is_refused(tmp_path):
    files, clips = speech.vocalsound()
    for content in ("{}", "[]", '{"data": [{"labels": 1}]}'):
        folder = write(tmp_path, {**files, "datafiles/te.json": content})
        with pytest.raises(LayoutError, match="vocalsound: a file in .* not as publ"):
            gathered(folder, shrunk(SETS["vocalsound"], "", clips))


def test_unknown_splits_and_configs_are_refused(tmp_path):
    with pytest.raises(LayoutError, match=r"no split 'fold6' \(splits: fold1, fold2"):
        gathered(tmp_path, wanted=["fold6"])
    with pytest.raises(ValueError, match=r"no config 'pich' \(configs: instrument, pi"):
        builder.make(SETS["nsynth"], "pich", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"config 'x' \(configs: it has none\)"):
        builder.make(SETS["esc50"], "x", data_dir=tmp_path)


def test_two_clips_of_one_name_are_refused(tmp_path):
    csv = "ESC-50-master/meta/esc50.csv"
    last = ESC50[csv].splitlines()[-1]
    folder = write(tmp_path, {**ESC50, csv: ESC50[csv] + last + "\n"})
    with pytest.raises(LayoutError, match="esc50, fold5: 2 clips are called '5-10003"):
        gathered(folder)


def test_order_depends_on_names_alone(tmp_path):
    clips = [Clip("train", f"{n}", lambda: b"x", tags=("a",)) for n in range(50)]
    row = dataclasses.replace(ROW, splits={"train": 50}, read=lambda *_: clips)
    back = dataclasses.replace(row, read=lambda *_: clips[::-1])
    names = [clip.id for clip in gathered(tmp_path, row)["train"]]
    assert names == [clip.id for clip in gathered(tmp_path, back)["train"]]
    assert sorted(names) == sorted(clip.id for clip in clips)
    assert names != [clip.id for clip in clips]
    kept = dataclasses.replace(row, keep_order=True)
    assert gathered(tmp_path, kept)["train"] == clips


def test_shards_are_made_by_size(tmp_path):
    clips = []
    for number, size in enumerate((40, 60, 10, 120, 30)):
        path = tmp_path / str(number)
        path.write_bytes(bytes(size))
        clips.append(Clip("train", str(number), path))
    parts = builder.shards(clips, 100)
    assert [[clip.id for clip in part] for part in parts] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4"],
    ]
    assert builder.shards([], 100) == []
    unseen = [Clip("train", "a", bytes, audio_bytes=60), Clip("train", "b", bytes)]
    assert len(builder.shards(unseen, 100)) == 2
    assert len(builder.shards(unseen, builder.CLIP_BYTES + 60)) == 1


def test_several_shards_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(
        builder, "shards", functools.partial(builder.shards, shard_bytes=1)
    )
    write(tmp_path / "manual", captioned.audiocaps()[0])
    row = shrunk(SETS["audiocaps"], "", captioned.audiocaps()[1])
    made = prepared(tmp_path, row)
    assert made.info.splits["train"].shard_lengths == [1, 1, 1]
    whole = TfdsSource("audiocaps", "train", tmp_path / "tfds")
    ids = [whole[index]["id"] for index in range(3)]
    for split, expected in {
        "train[1:]": ids[1:],
        "train[:34%]": ids[:1],
        "train[-1:]+train[:1]": [ids[2], ids[0]],
    }.items():
        part = TfdsSource("audiocaps", split, tmp_path / "tfds")
        assert [part[index]["id"] for index in range(len(part))] == expected
        assert [part.id(index) for index in range(len(part))] == expected
        assert [e["id"] for e in part.read(range(len(part)))] == expected


def archive(kind: str) -> bytes:
    """ESC-50 as an archive."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            for name, content in ESC50.items():
                packed.writestr(name, content)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as packed:
        for name, content in ESC50.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked_where_they_lie(tmp_path, kind):
    write(tmp_path / "manual", {f"ESC-50-master.{kind}": archive(kind)})
    made = prepared(tmp_path, ROW)
    source = TfdsSource("esc50", "all", tmp_path / "tfds")
    assert sorted(source.id(index) for index in range(5)) == [c[1] for c in ESC50_CLIPS]
    kept = Path(made.data_path) / "source-LICENSE"
    assert kept.read_text() == ESC50["ESC-50-master/LICENSE"]
    assert [path.name for path in (tmp_path / "manual").iterdir()] == [
        f"ESC-50-master.{kind}"
    ]


def test_archives_beside_what_was_in_them_are_left_alone(tmp_path):
    write(tmp_path / "manual", {**ESC50, "ESC-50-master.zip": archive("zip")})
    prepared(tmp_path, ROW)
    assert len(TfdsSource("esc50", "all", tmp_path / "tfds")) == 5
    assert not list((tmp_path / "tfds" / "downloads").rglob("ESC-50*"))


def test_unpacking_happens_once_and_whole(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(archive("tar"))
    first = layout.unpack(path, tmp_path / "out")
    (first / "mark").touch()
    assert layout.unpack(path, tmp_path / "out") == first
    assert (first / "mark").exists()

    for content, reason in {
        b"words " * 500: "is neither a zip nor a tar file",
        archive("tar.gz")[:-200]: "cannot be unpacked",
    }.items():
        path.write_bytes(content)
        with pytest.raises(LayoutError, match=f"a.tar: {reason}"):
            layout.unpack(path, tmp_path / "other")
    other = tmp_path / "other"
    assert not other.exists() or not list(other.iterdir())


def test_archives_cannot_write_elsewhere(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("../../evil.wav"), io.BytesIO())
    path = tmp_path / "deep" / "a.tar"
    write(tmp_path / "deep", {"a.tar": file.getvalue()})
    with pytest.raises(LayoutError, match="cannot be unpacked"):
        layout.unpack(path, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.wav"))


def test_a_set_is_downloaded_when_asked_for(tmp_path, server):
    (tmp_path / "served" / "master.zip").write_bytes(archive("zip"))
    row = dataclasses.replace(ROW, urls=(f"{server}/master.zip",))
    prepared(tmp_path, row, download=True)
    assert len(TfdsSource("esc50", "all", tmp_path / "tfds")) == 5


def test_nothing_is_downloaded_unasked(tmp_path):
    with pytest.raises(LayoutError) as caught:
        prepared(tmp_path, ROW)
    text = str(caught.value)
    assert f"{tmp_path / 'manual'} does not exist or is empty" in text
    assert "--manual_dir" in text and "--download" in text and "meta/esc50.csv" in text


def test_nothing_is_left_of_a_preparation_that_failed(tmp_path):
    files = {**ESC50}
    csv = "ESC-50-master/meta/esc50.csv"
    files[csv] = files[csv].replace("fold", "folt", 1)
    write(tmp_path / "manual", files)
    with pytest.raises(LayoutError, match="column 'fold' is missing"):
        prepared(tmp_path, ROW)
    assert not list((tmp_path / "tfds" / "esc50").glob("*"))


def test_what_tfds_knows_of_a_set(tmp_path):
    write(tmp_path / "manual", ESC50)
    made = prepared(tmp_path, ROW)
    info = json.loads((Path(made.data_path) / tfds_source.INFO).read_text())
    assert info["citation"] == ROW.citation
    assert info["redistributionInfo"]["license"] == ROW.licence
    assert info["location"]["urls"] == [ROW.homepage]
    assert info["fileFormat"] == "array_record"
    metadata = json.loads((Path(made.data_path) / "metadata.json").read_text())
    ones = {f"fold{fold}": 1 for fold in range(1, 6)}
    assert metadata == {"published_clips": ones, "listed_clips": ones}


def test_records_hold_what_is_known_of_a_clip(tmp_path):
    write(tmp_path / "manual", environment.urbansound8k()[0])
    row = shrunk(SETS["urbansound8k"], "", environment.urbansound8k()[1])
    made = prepared(tmp_path, row)
    (record,) = made.as_data_source(split="fold3")
    assert record["tags"] == [b"dog_bark"] and record["fold"] == b"3"
    assert (record["start_seconds"], record["end_seconds"]) == (0.5, 4.5)
    assert record["attribution"] == b"https://freesound.org/s/100033/"
    source = TfdsSource("urbansound8k", "fold3", tmp_path / "tfds")
    assert source.fold(0) == "3"


def test_empty_captions_are_left_out_and_nobody_shares_their_group(tmp_path):
    texts = ("", " ", "rain")
    own = [Clip("train", text or "none", lambda: b"x", (text,)) for text in texts]
    bare = [Clip("train", name, lambda: b"x") for name in ("a", "b")]
    row = dataclasses.replace(
        ROW, name="few", splits={"train": 5}, read=lambda *_: own + bare, get=""
    )
    prepared(tmp_path, row)
    source = TfdsSource("few", "train", tmp_path / "tfds")
    clips = [source[index] for index in range(5)]
    assert sorted(clip["captions"] for clip in clips) == [*([[""]] * 4), ["rain"]]
    assert len({clip["group"] for clip in clips}) == 5


def test_the_same_folder_gives_the_same_files(tmp_path):
    for place in ("a", "b"):
        write(tmp_path / place / "manual", captioned.macs()[0])
        prepared(tmp_path / place, shrunk(SETS["macs"], "", captioned.macs()[1]))
    first, second = (
        {
            path.name: path.read_bytes()
            for path in (tmp_path / place / "tfds/macs/1.0.0").iterdir()
        }
        for place in ("a", "b")
    )
    assert first == second
