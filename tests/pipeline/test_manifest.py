"""Manifests: tables in every format, folders of sounds, columns, filters, captions."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from clap_jax.pipeline import tables
from clap_jax.pipeline.manifest import (
    ManifestError,
    ManifestSource,
    inspect_manifest,
)
from clap_jax.pipeline.sources import build_source
from tests.pipeline.clips import write_sounds, write_table


@pytest.fixture
def sounds(tmp_path):
    """A folder with 0.flac ... 5.flac."""
    write_sounds(tmp_path, 6)
    return tmp_path


def save(folder, text, name="clips.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_esc10_with_labels(shared_data):
    path = shared_data / "esc10" / "metadata.csv"
    source = ManifestSource(
        path,
        "esc10",
        label_column="label_text",
        templates=("{}", "the sound of {}"),
        where={"fold": ["1", "2"]},
        group_by="label",
    )
    assert len(source) == 160
    first = source[0]
    assert first["audio"] == str(path.parent / "audio" / "1-100032-A.ogg")
    assert first["captions"] == ["a dog barking", "the sound of a dog barking"]
    assert first["tags"] == ["a dog barking"] and first["group"] == "a dog barking"
    assert first["id"] == "audio/1-100032-A.ogg"
    assert source.description() == (
        "esc10: 160 clips of metadata.csv (fold 1, 2), captions from labels in column "
        "label_text, 10 labels"
    )


def test_esc10_columns_are_found(shared_data):
    path = shared_data / "esc10" / "metadata.csv"
    source = ManifestSource(path, where={"fold": 4})
    assert len(source) == 80
    assert source.captions(0)[0].startswith("the sound of ")
    assert source.group(0) == source.id(0)

    found = inspect_manifest(path)
    assert found["rows"] == 320 and len(found["labels"]) == 10
    assert (found["audio_column"], found["label_column"]) == ("path", "label_text")
    assert found["caption_columns"] == ("caption",)
    assert (found["split_column"], found["fold_column"]) == ("", "fold")
    assert found["values"] == {"fold": ["1", "2", "3", "4"]}


def test_other_shared_tables_load(shared_data):
    for name, count in (("sonicpi_cc0", 190), ("fsdk_instruments", 160), ("fsdd", 300)):
        assert len(ManifestSource(shared_data / name / "metadata.csv")) == count


def test_byte_order_mark_semicolons_and_case(sounds):
    text = 'File;Caption\r\n0.flac;"one; two"\r\n1.flac;drei Glöckchen\r\n'
    source = ManifestSource(save(sounds, text, encoding="utf-8-sig"))
    assert [source.captions(i) for i in range(2)] == [["one; two"], ["drei Glöckchen"]]
    assert source.id(1) == "1.flac"


def test_formats_give_the_same_source(sounds):
    rows = [
        {"path": f"{i}.flac", "captions": [f"a {i}", f"b {i}"], "fold": i % 2}
        for i in range(6)
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    parquet.write_table(pyarrow.Table.from_pylist(rows), sounds / "clips.parquet")
    table = "\n".join(
        [
            "path,caption_1,caption_2,fold",
            *(f"{i}.flac,a {i},b {i},{i % 2}" for i in range(6)),
        ]
    )
    paths = [
        save(sounds, lines, "clips.jsonl"),
        sounds / "clips.parquet",
        save(sounds, table),
        save(sounds, table.replace(",", "\t"), "clips.tsv"),
    ]
    wanted = None
    for path in paths:
        source = ManifestSource(path, where={"fold": [1]})
        examples = [source[i] for i in range(len(source))]
        wanted = wanted or examples
        assert examples == wanted
    assert [example["id"] for example in wanted] == ["1.flac", "3.flac", "5.flac"]
    assert wanted[0]["captions"] == ["a 1", "b 1"]


def test_inspect_finds_numbered_captions(sounds):
    found = inspect_manifest(write_table(sounds, 3))
    assert found["label_column"] == ""
    assert found["caption_columns"] == ("caption_1", "caption_2")


def test_blank_extra_captions_are_left_out(sounds):
    source = ManifestSource(
        save(sounds, "path,caption_1,caption_2\n0.flac,one,\n1.flac,two,deux\n")
    )
    assert [source.captions(i) for i in range(2)] == [["one"], ["two", "deux"]]


def test_several_labels(sounds):
    source = ManifestSource(
        save(sounds, 'path,tags\n0.flac,"Dog_bark, rain"\n1.flac,rain\n'),
        separator=",",
        templates=("{}", "{} can be heard"),
        group_by="label",
    )
    assert source.tags(0) == ["Dog_bark", "rain"]
    assert source.captions(0) == [
        *("dog bark", "dog bark can be heard"),
        *("rain", "rain can be heard"),
    ]
    assert (source.group(0), source.group(1)) == ("Dog_bark|rain", "rain")


def test_rows_of_one_file_are_merged_on_request(sounds):
    path = save(sounds, "path,caption\n0.flac,a\n1.flac,b\n0.flac,c\n0.flac,a\n")
    source = ManifestSource(path, merge_rows=True)
    assert [source.captions(i) for i in range(len(source))] == [["a", "c"], ["b"]]
    with pytest.raises(
        ManifestError, match=r"line 4.*line 2 already \(merge_rows=True"
    ):
        ManifestSource(path)


def test_audio_folder_and_absolute_paths(tmp_path):
    write_sounds(tmp_path / "sounds", 2)
    absolute = tmp_path / "sounds" / "1.flac"
    path = save(tmp_path, f"path,caption\n0.flac,a\n{absolute},b\n")
    source = ManifestSource(path, audio_folder=str(tmp_path / "sounds"))
    assert source[0]["audio"] == str(tmp_path / "sounds" / "0.flac")
    assert source[1]["audio"] == str(absolute)


def test_folder_with_labels(tmp_path):
    for label in ("dog_bark", "rain"):
        write_sounds(tmp_path / label, 2)
    write_sounds(tmp_path / ".hidden", 1)
    (tmp_path / "rain" / "notes.txt").write_text("no sound")
    source = ManifestSource(tmp_path, group_by="label", templates=("hear {}",))
    assert [source.id(i) for i in range(4)] == [
        *("dog_bark/0.flac", "dog_bark/1.flac"),
        *("rain/0.flac", "rain/1.flac"),
    ]
    assert source.tags(0) == ["dog_bark"] and source.captions(0) == ["hear dog bark"]
    assert inspect_manifest(tmp_path)["kind"] == "folder"


def test_folder_with_splits(tmp_path):
    for place in ("train/dog", "train/rain", "test/dog"):
        write_sounds(tmp_path / place, 2)
    assert len(ManifestSource(tmp_path, where={"split": "test"})) == 2
    found = inspect_manifest(tmp_path)
    assert found["values"] == {"split": ["test", "train"]}
    assert found["labels"] == ["dog", "rain"]


def test_folder_of_named_sounds(tmp_path):
    write_sounds(tmp_path, 1, "wav")
    (tmp_path / "0.wav").rename(tmp_path / "Slow_church-bell.WAV")
    source = ManifestSource(tmp_path)
    assert source.captions(0) == ["slow church bell"] and source.tags(0) == []


def test_many_files_in_a_folder(tmp_path):
    path = write_table(tmp_path, 40)
    assert len(ManifestSource(path)) == 40
    (tmp_path / "33.flac").unlink()
    with pytest.raises(
        ManifestError, match=r"line 35, column 'path': there is no file"
    ):
        ManifestSource(path)
    assert len(ManifestSource(path, check_files=False)) == 40


def test_digest_tells_data_apart(sounds, tmp_path):
    text = "path,caption,label,fold\n0.flac,a,x,1\n1.flac,b,y,2\n2.flac,c,y,2\n"
    path = save(sounds, text)
    whole = ManifestSource(path).digest()
    assert len(whole) == 8 and int(whole, 16) >= 0
    # Neither where the files lie, nor what the table and the source are called.
    write_sounds(sounds / "moved", 3)
    moved = save(sounds / "moved", text, "other.csv")
    assert ManifestSource(moved, "other").digest() == whole
    others = [
        ManifestSource(save(sounds, text.replace("b,y", "B,y"))).digest(),
        ManifestSource(save(sounds, text.replace("b,y", "b,z"))).digest(),
        ManifestSource(save(sounds, text.replace("0.flac", "5.flac"))).digest(),
        ManifestSource(moved, group_by="label").digest(),
        ManifestSource(moved, label_column="label").digest(),
        ManifestSource(moved, label_column="label", templates=("a {}",)).digest(),
        ManifestSource(moved, where={"fold": 2}).digest(),
    ]
    assert len({whole, *others}) == 8
    same = ManifestSource(moved, where={"fold": ["2"]}).digest()
    assert same == others[-1]


def test_build_source(sounds):
    path = str(write_table(sounds, 2))
    source = build_source("manifest", "mine", {"path": path})
    assert source.name == "mine" and source.description().startswith("mine: 2 clips")
    with pytest.raises(ValueError, match="'group' .did you mean 'group_by'"):
        build_source("manifest", "mine", {"path": path, "group": "label"})
    with pytest.raises(ValueError, match="'manifst' .did you mean 'manifest'"):
        build_source("manifst", "mine", {})
    with pytest.raises(ValueError, match="option 'path' is missing"):
        build_source("manifest", "mine", {})


def test_exclude_leaves_listed_ids_out(tmp_path):
    table = write_table(tmp_path, 4)
    (tmp_path / "ids.txt").write_text("\ufeff1.flac\n\n 3.flac \nunknown\n", "utf-8")
    source = ManifestSource(table, exclude=str(tmp_path / "ids.txt"))
    assert [source.id(i) for i in range(len(source))] == ["0.flac", "2.flac"]
    assert source.digest() != ManifestSource(table).digest()


def test_exclude_takes_all_rows_of_a_clip(tmp_path):
    write_table(tmp_path, 2)
    rows = ["id,path,caption", "a,0.flac,one", "b,0.flac,two", "c,1.flac,three"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    (tmp_path / "ids.txt").write_text("a")
    options = {"exclude": str(tmp_path / "ids.txt")}
    merged = ManifestSource(tmp_path / "rows.csv", merge_rows=True, **options)
    assert [merged.id(i) for i in range(len(merged))] == ["c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"0.flac\n1.flac", "all 2 rows are listed in"), (b"\xff", "is not UTF-8 text")],
)
def test_exclude_is_checked(tmp_path, content, message):
    table = write_table(tmp_path, 2)
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        ManifestSource(table, exclude=str(tmp_path / "ids.txt"))


def test_rows_that_cannot_be_read_may_be_left_out(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"path,caption\na.wav,a\nb.wav\nc.wav,Gl\xf6ck\nd.wav,d\n")
    left_out = []
    table = tables.read(path, left_out)
    assert table.columns == {"path": ["a.wav", "d.wav"], "caption": ["a", "d"]}
    assert table.lines == [2, 5]
    assert [(p.line, p.reason) for p in left_out] == [
        (3, "1 fields, but the header has 2"),
        (4, "is not UTF-8 text"),
    ]
    path.write_bytes(b"path,caption\nb.wav\n")
    with pytest.raises(ManifestError, match="line 2: 1 fields"):
        tables.read(path, [])


# --- files that teach language models about music ---


def conversation(*turns):
    return [
        {"from": "gpt" if n % 2 else "human", "value": words}
        for n, words in enumerate(turns)
    ]


def test_answers_are_captions(sounds):
    said = conversation("<audio> What is heard?", "A rock song.", "Who?", "A man.")
    roles = [
        {"role": "user", "content": "Describe it."},
        {"role": "assistant", "content": "A slow waltz."},
    ]
    rows = [
        {"id": "a", "audio": "0.flac", "conversations": said},
        {"id": "b", "audio": "1.flac", "conversations": roles},
    ]
    lists = save(sounds, json.dumps(rows), "music.json")
    lines = save(sounds, "\n".join(map(json.dumps, rows)), "music.jsonl")
    for path in (lists, lines):
        source = ManifestSource(path)
        assert [source.captions(i) for i in range(2)] == [
            ["A rock song. A man."],
            ["A slow waltz."],
        ]
        assert [source.id(i) for i in range(2)] == ["a", "b"]
    outputs = [{"audio": "2.flac", "instruction": "Describe.", "output": "Jazz."}]
    path = save(sounds, json.dumps(outputs), "outputs.json")
    assert ManifestSource(path).captions(0) == ["Jazz."]


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"a": 1}, r"holds a dict, expected a list of objects"),
        ([1], r"item 1: is a int, expected an object"),
        (
            [{"audio": "0.flac", "conversations": [{"who": "me", "value": "x"}]}],
            r"item 1, column 'conversations': a turn of a conversation is \{'who'",
        ),
        (
            [{"audio": "0.flac", "conversations": conversation("What?")}],
            r"item 1, column 'conversations': empty caption",
        ),
    ],
)
def test_bad_answers(sounds, rows, message):
    path = save(sounds, json.dumps(rows), "music.json")
    with pytest.raises(ManifestError, match=message):
        ManifestSource(path)
    with pytest.raises(ManifestError, match="is not JSON"):
        ManifestSource(save(sounds, "[{", "broken.json"))


def test_names_of_files_are_made_of_columns(sounds, shared_data):
    path = shared_data / "captions" / "open" / "musiccaps_train.csv"
    options = {"audio_name": "[{ytid}]-[{start_s}-{end_s}].wav", "check_files": False}
    source = ManifestSource(path, audio_folder="clips", id_column="ytid", **options)
    assert len(source) == 2663 and source.id(0) == "-0SdAVK79lg"
    assert source.audio_path(0) == "clips/[-0SdAVK79lg]-[30-40].wav"
    assert source.captions(0)[0].startswith("This song features an electric guitar")
    for name, message in (
        ("{ytidd}.wav", "no such column .did you mean 'ytid'"),
        ("x.wav", "has no column in it"),
    ):
        with pytest.raises(ManifestError, match=message):
            ManifestSource(path, audio_name=name)
