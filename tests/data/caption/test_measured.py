"""Tempo and key as labels: what is measured, and empty cells where nothing is clear."""

import csv

import numpy as np
import pytest
import soundfile

from data.caption import measured
from tests.data.caption.test_music import FIRST, RATE_HZ, SECOND


def test_a_table_of_tempo_and_key(tmp_path, capsys):
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sounds = {
        "first.wav": FIRST[: 12 * RATE_HZ],
        "second.wav": SECOND[: 12 * RATE_HZ],
        "short.wav": FIRST[:RATE_HZ],
        "steady.wav": 0.1 * rng.normal(size=5 * RATE_HZ),
    }
    for name, wave in sounds.items():
        soundfile.write(folder / name, wave, RATE_HZ)
    (folder / "broken.wav").write_text("not a sound")
    out = tmp_path / "heard.csv"
    assert measured.main([str(folder), f"--out={out}"]) == 0
    with out.open() as file:
        rows = {row["id"].split("/")[-1]: row for row in csv.DictReader(file)}
    assert set(rows) == {*sounds, "broken.wav"}
    assert (rows["first.wav"]["key"], rows["first.wav"]["mode"]) == ("C major", "major")
    assert rows["second.wav"]["key"] == "F sharp minor"
    bpm = float(rows["first.wav"]["tempo_bpm"])
    assert rows["first.wav"]["tempo"] == measured.tempo_class(bpm)
    assert rows["short.wav"]["reason"] == "shorter than 3 s"
    assert not rows["short.wav"]["tempo"] and not rows["short.wav"]["key"]
    assert rows["steady.wav"]["mode"] == ""
    assert "cannot be read" in rows["broken.wav"]["reason"]
    assert "5 clips" in capsys.readouterr().out


def test_classes_of_tempo():
    found = [measured.tempo_class(bpm) for bpm in (60, 76, 120, 200)]
    assert found == ["slow", "moderate", "lively", "fast"]


def test_wrong_usage(tmp_path):
    with pytest.raises(SystemExit) as ended:
        measured.main([str(tmp_path), "--out=labels.txt"])
    assert ended.value.code == 2
