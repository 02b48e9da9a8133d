"""Bad input: every message names the place and what is wrong with it."""

import logging

import numpy as np
import pytest
import soundfile

from clap_jax.audio.io import AudioError
from clap_jax.pipeline.manifest import ManifestError, ManifestSource, inspect_manifest
from clap_jax.pipeline.ops import Clips, Prepare
from tests.pipeline.clips import (
    FRONTEND,
    RATE_HZ,
    TinySource,
    wave,
    write_sounds,
    write_table,
)

MERGE_HINT = "(merge_rows=True makes one clip of such rows, or remove the row)"
PATH_HINT = "(check the path, or set audio_folder)"
FILL_HINT = "(fill it in, or remove the row)"
AUDIO_HINT = "; export it again or remove the clip"


def refuse(path, **options):
    """What ManifestSource says about a table."""
    with pytest.raises(ManifestError) as caught:
        ManifestSource(path, **options)
    return str(caught.value)


def table(folder, text, name="clips.csv"):
    write_sounds(folder, 3)
    (folder / name).write_text(text)
    return folder / name


# --- tables ---


def test_wrong_path_in_line_7(tmp_path):
    path = write_table(tmp_path, 9)
    path.write_text(path.read_text().replace("5.flac", "nowhere/5.flac"))
    message = refuse(path)
    assert message == (
        f"{path}: line 7, column 'path': there is no file {tmp_path}/nowhere/5.flac "
        f"{PATH_HINT}"
    )


def test_lines_are_those_of_the_file(tmp_path):
    text = 'path,caption\n0.flac,"two\nlines"\n\nx.flac,a\n1.flac,b\n'
    assert "line 5, column 'path'" in refuse(table(tmp_path, text))


def test_all_problems_at_once(tmp_path):
    text = "path,caption\nx.flac,a\n0.flac,\n1.flac,b\n1.flac,c\n,d\n"
    message = refuse(table(tmp_path, text))
    assert message.splitlines()[1:] == [
        f"  line 2, column 'path': there is no file {tmp_path}/x.flac {PATH_HINT}",
        f"  line 3, column 'caption': empty caption {FILL_HINT}",
        f"  line 5, column 'path': '1.flac' is in line 4 already {MERGE_HINT}",
        "  line 6, column 'path': is empty, expected the path of an audio file",
    ]
    assert "4 problems" in message


def test_only_twenty_problems_are_shown(tmp_path):
    rows = "\n".join(f"x{i}.flac,a" for i in range(50))
    message = refuse(table(tmp_path, f"path,caption\n0.flac,b\n{rows}\n"))
    assert "50 problems" in message and message.endswith("... and 30 more")
    assert len(message.splitlines()) == 22
    assert message.count(PATH_HINT) == 1


def test_no_file_found_points_to_audio_folder(tmp_path):
    message = refuse(table(tmp_path, "path,caption\nx.wav,a\ny.wav,b\n"))
    assert "none of the 2 audio files was found" in message
    assert message.count("set audio_folder") == 1


def test_no_audio_column(tmp_path):
    path = table(tmp_path, "sound,caption\n0.flac,a\n")
    message = refuse(path)
    assert "no column with audio paths among sound, caption" in message
    assert "filename" in message and "set audio_column" in message
    with pytest.raises(ManifestError, match="no column with audio paths"):
        inspect_manifest(path)
    assert len(ManifestSource(path, audio_column="sound")) == 1


def test_no_captions_and_no_labels(tmp_path):
    message = refuse(table(tmp_path, "path,seconds\n0.flac,1\n"))
    assert "neither captions nor labels" in message and "set caption_columns" in message


def test_chosen_column_is_not_there(tmp_path):
    path = table(tmp_path, "path,caption\n0.flac,a\n")
    message = refuse(path, caption_columns="captoin")
    assert "column 'captoin': there is no such column" in message
    assert "did you mean 'caption'?" in message


def test_filter_that_keeps_nothing(tmp_path):
    path = table(tmp_path, "path,caption,fold\n0.flac,a,1\n1.flac,b,2\n")
    message = refuse(path, where={"fold": ["9"]})
    assert "no row has '9'; values in the table: 1, 2" in message
    assert "did you mean 'fold'?" in refuse(path, where={"fol": "1"})


def test_duplicate_ids(tmp_path):
    text = "id,path,caption\na,0.flac,x\nb,1.flac,y\na,2.flac,z\n"
    message = refuse(table(tmp_path, text))
    assert message.endswith(
        "line 4, column 'id': 'a' is in line 2 already (rename one, or remove the row)"
    )
    text = text.replace("2.flac", "0.flac")
    assert refuse(table(tmp_path, text)).endswith(f"line 2 already {MERGE_HINT}")


def test_empty_label(tmp_path):
    message = refuse(table(tmp_path, "path,label\n0.flac,dog\n1.flac,  \n"))
    assert message.endswith(f"line 3, column 'label': empty label {FILL_HINT}")
    message = refuse(table(tmp_path, "path,caption\n0.flac,a\n"), group_by="label")
    assert "needs a label column" in message


def test_ragged_rows(tmp_path):
    message = refuse(table(tmp_path, "path,caption\n0.flac,a, b\n1.flac\n"))
    assert "line 2: 3 fields, but the header has 2" in message
    assert "line 3: 1 fields, but the header has 2" in message


def test_two_columns_of_one_name(tmp_path):
    message = refuse(table(tmp_path, "path,caption,caption\n0.flac,a,b\n"))
    assert message.endswith("line 1, column 'caption': two columns have this name")


def test_bad_json_lines(tmp_path):
    text = '{"path": "0.flac", "caption": "a"}\n{"path": \n[1]\n'
    message = refuse(table(tmp_path, text, "clips.jsonl"))
    assert "line 2: is not JSON" in message
    assert "line 3: holds a list, expected an object" in message


def test_json_cell_that_is_no_path(tmp_path):
    text = '{"path": {"bytes": 1}, "caption": "a"}\n'
    message = refuse(table(tmp_path, text, "clips.jsonl"))
    assert "line 1, column 'path': is {'bytes': 1}, expected the path" in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", b"path,caption\n", "there are no rows"),
        ("latin.csv", "path,caption\n0.flac,Glöckchen".encode("latin1"), "not UTF-8"),
        ("clips.xlsx", b"PK", "unknown kind of table, expected .csv, .tsv"),
        ("clips.parquet", b"path,caption", "is not a Parquet file"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in refuse(tmp_path / name)


def test_missing_table_and_folder_without_sounds(tmp_path):
    assert "No such file" in refuse(tmp_path / "nowhere.csv")
    assert "no sounds in this folder" in refuse(tmp_path)
    write_sounds(tmp_path / "dog", 1)
    write_sounds(tmp_path, 1)
    assert "lie beside the sub-folders" in refuse(tmp_path)


def test_options_that_make_no_sense(tmp_path):
    path = table(tmp_path, "path,label\n0.flac,dog\n")
    with pytest.raises(ValueError, match="group_by is 'tag'"):
        ManifestSource(path, group_by="tag")
    with pytest.raises(ValueError, match="exactly once"):
        ManifestSource(path, templates=("no place",))
    with pytest.raises(ValueError, match="templates is empty"):
        ManifestSource(path, templates=())


# --- audio ---


def bad_files(folder):
    """Damaged sounds by what the error says of them."""
    good = folder / "good.flac"
    soundfile.write(good, wave(0, seconds=2.0), RATE_HZ)
    truncated = folder / "truncated.flac"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty, text = folder / "empty.wav", folder / "text.wav"
    empty.write_bytes(b"")
    text.write_text("these are words, not a sound\n" * 50)
    none, nan, one = (folder / f"{name}.wav" for name in ("none", "nan", "one"))
    soundfile.write(none, np.zeros(0, np.float32), RATE_HZ, "FLOAT")
    soundfile.write(nan, np.full(800, np.nan, np.float32), RATE_HZ, "FLOAT")
    soundfile.write(one, np.zeros(1, np.float32), RATE_HZ, "FLOAT")
    return {
        folder / "missing.wav": "No such file",
        empty: "the file is empty",
        text: "not decodable",
        truncated: "truncated|not decodable|cannot be decoded",
        none: "has no samples",
        nan: "800 of 800 samples are not finite",
        one: "1 samples",
    }


@pytest.mark.parametrize("mel", ["host", "device"])
def test_every_bad_clip_is_an_audio_error(tmp_path, mel):
    prepare = Prepare(FRONTEND, mel=mel)
    for path, reason in bad_files(tmp_path).items():
        with pytest.raises(AudioError, match=reason) as caught:
            prepare(str(path))
        assert str(caught.value).startswith(f"{path}: ")
        if path.exists():
            assert str(caught.value).endswith(AUDIO_HINT)


def test_bad_files_are_replaced_and_named_once(tmp_path, caplog):
    paths = [*bad_files(tmp_path), tmp_path / "good.flac"]
    lines = [f"{path},clip {number}" for number, path in enumerate(paths)]
    path = tmp_path / "clips.csv"
    path.write_text("\n".join(["path,caption", *lines]))
    source = ManifestSource(path, "mine", check_files=False)
    clips = Clips(source, Prepare(FRONTEND))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = [clips.fetch(index) for index in range(len(paths))]
    last = len(paths) - 1
    assert [(clip.index, clip.bad) for clip in found] == [(last, True)] * last + [
        (last, False)
    ]
    assert len(caplog.records) == last
    for bad in paths[:-1]:
        named = [r for r in caplog.messages if f"mine: bad clip: {bad}: " in r]
        assert len(named) == 1


def test_too_many_bad_neighbours(caplog):
    broken = {number: np.full(800, np.nan, np.float32) for number in range(20)}
    clips = Clips(TinySource(30, broken=broken), Prepare(FRONTEND))
    assert clips.fetch(4).index == 20
    with pytest.raises(
        AudioError, match="tiny: clip clip3 and the 16 after it are all"
    ):
        clips.fetch(3)
