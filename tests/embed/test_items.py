"""What is to be embedded: folders, tables, files, texts."""

import json
import os

import pytest

from clap_jax.embed import items
from clap_jax.pipeline.tables import ManifestError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A few empty files, with `tmp_path` as the current folder."""
    for name in (
        *("b/two.WAV", "b/one.flac", "b/deep/er/x.ogg", "a.mp3", "notes.txt"),
        *(".hidden.wav", ".git/y.wav"),
    ):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_with_all_that_is_in_it(place):
    assert items.sounds(["sounds"]) == [
        "sounds/a.mp3",
        "sounds/b/one.flac",
        "sounds/b/two.WAV",
        "sounds/b/deep/er/x.ogg",
    ]


def test_files_are_taken_whatever_they_are_called_and_once(place):
    found = items.sounds(["sounds/notes.txt", "sounds/b", "sounds/b/one.flac"])
    assert found == [
        "sounds/notes.txt",
        "sounds/b/one.flac",
        "sounds/b/two.WAV",
        "sounds/b/deep/er/x.ogg",
    ]


def test_tables_name_paths_relative_to_themselves(place):
    (place / "sounds" / "list.csv").write_text("id,File\n1,a.mp3\n2,/x/y.wav\n3,\n")
    (place / "list.jsonl").write_text(json.dumps({"path": "sounds/a.mp3"}))
    found = items.sounds(["sounds/list.csv", "list.jsonl"])
    assert found == ["sounds/a.mp3", "/x/y.wav"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", "there is no file or folder nowhere"),
        ("empty", "empty holds no sounds .*wav"),
        ("odd.csv", "no column of paths of sounds: expected path, .* found clip, id"),
    ],
)
def test_what_cannot_be_heard(place, argument, message):
    (place / "empty").mkdir()
    (place / "odd.csv").write_text("clip,id\na.wav,1\n")
    with pytest.raises(items.ItemsError, match=message):
        items.sounds([argument])


def test_a_broken_table_is_named(place):
    (place / "broken.csv").write_text("path,id\na.wav\n")
    with pytest.raises(ManifestError, match=r"broken\.csv: line 2: 1 fields"):
        items.sounds(["broken.csv"])


def test_texts_of_lines_and_of_tables(place):
    (place / "texts.txt").write_text("\ufeffa dog\n\n  a cat \na dog\n")
    assert items.texts("texts.txt") == ["a dog", "a cat", "a dog"]
    (place / "texts.csv").write_text('path,captions\n1,a dog\n2,"[""x"", ""y""]"\n')
    assert items.texts("texts.csv") == ["a dog", "x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"\n \n", "holds no text"), (b"\xff\xfe\xff", "UTF")],
)
def test_no_texts(place, content, message):
    if content is not None:
        (place / "t.txt").write_bytes(content)
    with pytest.raises(items.ItemsError, match=message):
        items.texts("t.txt")


def test_links_to_folders_are_not_followed(place):
    os.symlink(place / "sounds", place / "sounds" / "b" / "again")
    assert len(items.sounds(["sounds"])) == 4
