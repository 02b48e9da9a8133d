"""Captions by ear: what is measured is so, and what cannot be heard is said."""

import json

import numpy as np
import pytest
import soundfile

from clap_jax.text import sections
from data.caption import hearing, job, music
from data.caption.__main__ import main
from data.caption.clips import Clip
from data.caption.rules import NONE, Rules
from tests.data.caption import cases

RATE_HZ = 22_050


def notes(pitches, seconds, each=0.5, gain=0.3, harmonics=4, seed=0):
    """Plucked notes of these MIDI pitches, one after the other, again and again."""
    time = np.arange(int(each * RATE_HZ)) / RATE_HZ
    decay = np.minimum(time * 200, 1) * np.exp(-time * 6)
    played = [
        decay
        * sum(
            np.sin(2 * np.pi * k * 440 * 2 ** ((pitch - 69) / 12) * time) / k
            for k in range(1, harmonics + 1)
        )
        for pitch in pitches
    ]
    wave = np.concatenate(played)
    wave = np.tile(wave, int(np.ceil(seconds * RATE_HZ / len(wave))))
    return (gain * wave[: int(seconds * RATE_HZ)]).astype(np.float32)


# C major and, an octave higher, quick and softer, a pentatonic scale on F sharp minor.
FIRST = notes([60, 64, 67, 72, 60, 65, 69, 72, 60, 62, 64, 60], 30, each=0.5)
SECOND = notes([78, 81, 85, 78, 80, 85, 83, 78], 30, 0.25, gain=0.08, harmonics=8)
PIECE = np.concatenate([FIRST, SECOND])


@pytest.fixture(scope="module")
def heard():
    return hearing.hear((PIECE, RATE_HZ))


def test_what_is_measured(heard):
    assert heard.tempo_bpm == pytest.approx(120, rel=0.04) or (
        heard.tempo_bpm == pytest.approx(240, rel=0.04)
    )
    edges = [section.end for section in heard.sections]
    assert any(abs(edge - 30) <= 1 for edge in edges)
    first, last = heard.sections[0], heard.sections[-1]
    assert first.key == "C major" and last.key == "F sharp minor"
    assert first.onsets == pytest.approx(2, abs=0.3)
    assert last.onsets == pytest.approx(4, abs=0.4)
    assert first.level_db > last.level_db + 6
    assert last.brightness_hz > 1.3 * first.brightness_hz
    assert heard.whole.end == pytest.approx(60)


def test_the_caption_is_long_and_its_sections_are_read(heard):
    caption = music.write(heard, ["piano music", "calm"], "0/a")
    assert len(caption.split()) >= 100
    assert "piano music and calm" in caption
    assert sections.check(caption, 60.0) == []
    found = [span[:2] for span in sections.timed(caption, 60.0)]
    assert found == [(section.begin, section.end) for section in heard.sections]
    assert "softer than the rest" in caption or "quieter than on average" in caption
    assert "F sharp minor" in caption and "brighter" in caption or "treble" in caption
    assert caption == music.write(heard, ["piano music", "calm"], "0/a")
    others = {music.write(heard, [], f"{seed}/a") for seed in range(6)}
    assert len(others) == 6 and not any("label" in other for other in others)


def test_short_and_beatless_clips_have_long_captions():
    tone = np.sin(np.arange(8 * RATE_HZ) * 0.05).astype(np.float32) * 0.2
    found = hearing.hear((tone, RATE_HZ))
    assert found.sections == ()
    for seed in range(20):
        caption = music.write(found, [], f"{seed}")
        assert len(caption.split()) >= 100 and "minute" not in caption


def test_keys_by_their_profiles():
    for tonic in range(12):
        scale = np.zeros(12)
        scale[(tonic + np.array([0, 2, 4, 5, 7, 9, 11])) % 12] = [3, 1, 2, 1, 2, 1, 1]
        key, sureness = hearing.key_of(scale)
        assert key == f"{hearing.NOTES[tonic]} major" and sureness > 0.8
    assert hearing.key_of(np.ones(12))[1] < music.LEAST_SURENESS


@pytest.mark.parametrize(
    "audio, reason",
    [
        ((np.zeros(5 * RATE_HZ, np.float32), RATE_HZ), "silent"),
        ((np.ones(RATE_HZ, np.float32), RATE_HZ), "shorter than 3 s"),
        (b"no sound at all", "cannot be read"),
        ("/nowhere.wav", "cannot be read"),
    ],
)
def test_what_cannot_be_heard(audio, reason):
    with pytest.raises(hearing.HearingError, match=reason):
        hearing.hear(audio)


class Killed(Exception):
    pass


def test_a_killed_job_goes_on_and_gives_the_same_file(tmp_path):
    clips = [Clip(f"{n}.wav", ("music",) * (n % 2)) for n in range(4)]
    short = (PIECE[: 6 * RATE_HZ], RATE_HZ)
    asked = []

    def sound(clip_id, stop=""):
        if clip_id == stop:
            raise Killed
        asked.append(clip_id)
        return b"" if clip_id == "2.wav" else short

    def run(out, stop=""):
        writer = music.Music(lambda clip_id: sound(clip_id, stop))
        return job.run(clips, writer, music.Fallback(), Rules(NONE), out)

    summary = run(tmp_path / "whole.jsonl")
    assert summary.captions == 4 and summary.instead == 1
    assert summary.broken == {"cannot be read": 1}
    with pytest.raises(Killed):
        run(tmp_path / "killed.jsonl", stop="3.wav")
    asked.clear()
    run(tmp_path / "killed.jsonl")
    assert asked == ["3.wav"]
    assert (tmp_path / "killed.jsonl").read_bytes() == (
        tmp_path / "whole.jsonl"
    ).read_bytes()


def test_the_command_captions_sounds_without_labels(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", PIECE[: 8 * RATE_HZ], RATE_HZ)
    (tmp_path / "b.wav").write_bytes(b"broken")
    table = tmp_path / "sounds.csv"
    table.write_text("path\na.wav\nb.wav\n")
    out = tmp_path / "long.jsonl"
    assert main([str(table), "--by=music", f"--out={out}"]) == 0
    rows = cases.lines(out)
    assert [row["id"] for row in rows] == ["a.wav", "b.wav"]
    assert len(rows[0]["caption"].split()) >= 100
    assert rows[0]["origin"]["kind"] == "music" and rows[0]["tags"] == []
    assert rows[1]["origin"]["instead_of"]["kind"] == "music"
    printed = capsys.readouterr()
    assert "b.wav: cannot be read" in printed.err
    assert "broken answers: cannot be read 1" in printed.out
    assert json.dumps(rows[0]["caption"]).isascii()
