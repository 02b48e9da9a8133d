"""Broken input of every kind ends in the report of rejects and stops nothing."""

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from clap_jax.pipeline import array_record
from clap_jax.pipeline.array_record import ArrayRecordSource
from data import clips, listing, shards
from data.pack import main, pack
from tests.data import broken
from tests.pipeline.clips import TinySource, wave

LIMITS = clips.Settings(min_seconds=0.2, max_seconds=3)


def query(kind: str, path: Path, **options) -> listing.Query:
    return listing.Query(kind, str(path), json.dumps(options))


def rejects(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "rejects.csv", newline="") as file:
        return {
            row["id"] or Path(row["path"]).name: row for row in csv.DictReader(file)
        }


def ids(out: Path) -> list[str]:
    source = ArrayRecordSource(out)
    return [source.id(index) for index in range(len(source))]


def check(found: dict, expected: dict) -> None:
    """The rejects have these kinds, and reasons with these words."""
    for name, (kind, words) in expected.items():
        row = found.pop(name)
        assert row["kind"] == kind and words in row["reason"], row


def test_rows_and_files_of_a_table(tmp_path):
    table = broken.write_table(tmp_path / "in")
    done = pack(query("manifest", table), LIMITS, str(tmp_path / "out"), 2)
    assert ids(tmp_path / "out") == ["ok_0", "ok_1", "ok_2"]
    found = rejects(tmp_path / "out")
    # Rows that are no rows have a line, but no id: both go by the table's name.
    with open(tmp_path / "out" / "rejects.csv") as file:
        lines = file.read()
    for name in ("row_fields", "row_latin"):
        _, kind, words = broken.ROWS[name]
        assert f": {words},{kind}\n" in lines.replace('"', "")
    found.pop("clips.csv")
    rows = {
        n: r for n, r in broken.ROWS.items() if n not in ("row_fields", "row_latin")
    }
    check(found, {name: rest for name, (_, *rest) in rows.items()})
    check(found, {name: rest for name, (_, *rest) in broken.SOUNDS.items()})
    assert not found
    total = len(broken.SOUNDS) + len(broken.ROWS)
    assert done["rejected"] == total and done["listed"] == total + 3
    assert sum(done["rejected_by_kind"].values()) == total
    assert len({*done["rejected_by_kind"]}) >= 18
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "packed             3 of 26 clips" in text and "wrong_extension  1" in text


def test_paths_of_rejects_are_those_of_the_files(tmp_path):
    table = broken.write_table(tmp_path / "in")
    pack(query("manifest", table), LIMITS, str(tmp_path / "out"))
    found = rejects(tmp_path / "out")
    assert found["empty.wav"]["path"] == str(tmp_path / "in" / "empty.wav")
    assert found["row_blank_caption"]["path"] == "ok_0.wav"
    assert found["row_blank_caption"]["reason"].startswith(
        "line 23, column 'caption': "
    )


def test_json_lines(tmp_path):
    (tmp_path / "a.wav").write_bytes(broken.encoded(wave(1)))
    rows = ['{"path": "a.wav", "caption": "a"}', '{"path": "a.wav", ', '["a.wav"]']
    (tmp_path / "clips.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    done = pack(query("manifest", tmp_path / "clips.jsonl"), clips.Settings(), str(out))
    assert ids(out) == ["a.wav"]
    assert done["rejected_by_kind"] == {"broken_json": 2}
    assert "line 2: is not JSON" in (out / "rejects.csv").read_text()


def test_tar_shards(tmp_path):
    folder = broken.write_tars(tmp_path / "in")
    caches = {"cache_folder": str(tmp_path / "cache")}
    done = pack(query("laion_tar", folder, **caches), LIMITS, str(tmp_path / "out"))
    found = rejects(tmp_path / "out")
    check(found, broken.TARS)
    check(found, {"4.tar": ("broken_shard", "is not a tar file")})
    (cut,) = found.values()
    assert cut["path"].endswith("3.tar") and cut["kind"] == "truncated"
    assert ids(tmp_path / "out")[:4] == ["1/040", "1/041", "1/042", "2/050"]
    assert done["clips"] in (5, 6)


def test_hdf5(tmp_path):
    options = broken.write_hdf5(tmp_path / "in")
    pack(query("hdf5", tmp_path / "in", **options), LIMITS, str(tmp_path / "out"))
    found = rejects(tmp_path / "out")
    check(found, broken.HDF5)
    check(found, {"1.h5": ("truncated", "truncated file")})
    assert not found and ids(tmp_path / "out") == ["whole"]


def test_array_record(tmp_path):
    files = array_record.pack(TinySource(9), tmp_path / "in" / "tiny", shards=3)
    content = bytearray(Path(files[0]).read_bytes())
    content[3000] ^= 255  # within a clip
    Path(files[0]).write_bytes(content)
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:-70_000])
    out = tmp_path / "out"
    pack(query("array_record", tmp_path / "in"), clips.Settings(), str(out))
    found = list(rejects(out).values())
    assert [row["kind"] for row in found] == ["broken_shard", "unreadable"]
    assert len(ids(out)) == 5


def test_a_file_that_may_not_be_read():
    """By a person who is not root, who may read everything."""
    folder = Path(tempfile.mkdtemp())
    own = os.geteuid()
    try:
        path = folder / "a.wav"
        path.write_bytes(broken.encoded(wave(1)))
        path.chmod(0)
        folder.chmod(0o755)
        if own == 0:
            os.seteuid(65534)
        with pytest.raises(clips.Reject, match="Permission denied") as error:
            clips.prepare({"audio": str(path)}, clips.Settings())
        assert error.value.kind == "no_permission"
    finally:
        os.seteuid(own)
        shutil.rmtree(folder)


def test_what_an_encoding_cannot_hold():
    loud = np.tile(wave(1)[:, None], (1, 9))
    example = {"audio": broken.encoded(loud)}
    with pytest.raises(clips.Reject, match="9 channels at 8000 Hz cannot be") as error:
        clips.prepare(example, clips.Settings("flac"))
    assert error.value.kind == "not_encodable"
    clips.prepare(example, clips.Settings("flac", mono=True))


def test_a_name_may_promise_another_format(tmp_path):
    table = broken.write_table(tmp_path / "in")
    settings = clips.Settings(any_extension=True)
    pack(query("manifest", table), settings, str(tmp_path / "out"))
    assert "flac.wav" in ids(tmp_path / "out")


def test_the_run_stops_at_a_stated_share(tmp_path, capsys):
    table, out = broken.write_table(tmp_path / "in"), tmp_path / "out"
    limits = [str(table), str(out), "--min_seconds=0.2", "--max_seconds=3"]
    assert main([*limits, "--max_bad_fraction=0.5"]) == 1
    assert "clips are rejected" in capsys.readouterr().err
    assert not list(out.glob("*.array_record"))
    assert main([*limits, "--max_bad_fraction=0.1"]) == 1  # by the table's rows alone
    assert (
        "5 of 26 clips are rejected, max_bad_fraction is 0.1" in capsys.readouterr().err
    )
    assert len(rejects(out)) == 4  # two of the five have no id
    # Spread over shards, each of them below the limit.
    assert main([*limits, "--max_bad_fraction=0.8", "--shards=3"]) == 1
    assert "23 of 26 clips are rejected, max_bad" in capsys.readouterr().err
    assert main([*limits, "--max_bad_fraction=0.9", "--shards=3"]) == 0


def test_nothing_but_rejects_is_an_error(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    (tmp_path / "clips.csv").write_text("path,caption\na.wav,a\n")
    table = query("manifest", tmp_path / "clips.csv")
    with pytest.raises(
        shards.PackError, match="all 1 clips are rejected, .*rejects.csv"
    ):
        pack(table, clips.Settings(), str(tmp_path / "out"))
    assert rejects(tmp_path / "out")["a.wav"]["kind"] == "not_audio"
