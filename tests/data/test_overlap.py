"""The overlap filter on planted copies of real clips, and its parts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap_jax.pipeline.manifest import ManifestSource
from data import landmarks, listing, search
from data.overlap import find, id_key, main
from tests.data import planted
from tests.pipeline.clips import wave

KINDS = ("mp3", "ogg", "cut", "louder", "into")


def query(path: Path) -> listing.Query:
    return listing.Query("manifest", str(path))


def test_planted_copies_are_found_and_nothing_else(shared_data, tmp_path, capsys):
    """Recall above 0.95 by each kind of copy, no false hit; prints the table."""
    clips = [
        clip
        for clip in planted.clips(shared_data, planted.SETS[:2], every=15)
        if clip.seconds >= planted.LONG_SECONDS
    ]
    evals = clips[::2]
    others = clips[1::2] + planted.clips(shared_data, planted.SETS[2:4], every=20)
    training, evaluation = planted.write(tmp_path / "in", evals, others, KINDS)
    done = find(query(training), [query(evaluation)], str(tmp_path / "out"), "off")
    found, true, false = planted.judge(tmp_path / "out", training, evals, others)
    for kind in KINDS:
        rows = [hit for (_, k), row in found.items() if k == kind for hit in row]
        with capsys.disabled():
            print(f"\n{kind}: {sum(rows)} of {len(rows)}", end="")
        assert len(rows) >= 12 and sum(rows) / len(rows) > 0.95 - 1 / len(rows)
    every = [hit for row in found.values() for hit in row]
    assert sum(every) / len(every) > 0.95
    assert false == [] and true == []
    ids = (tmp_path / "out" / "exclude.txt").read_text().splitlines()
    assert len(ids) == done["excluded_clips"] == sum(every)
    # A manifest leaves them out.
    left = ManifestSource(training, exclude=str(tmp_path / "out" / "exclude.txt"))
    assert len(left) == done["train_clips"] - len(ids)


def test_one_file_in_two_sets_is_found(shared_data, tmp_path):
    """Freesound's 19433 is in both; the ends of their ids differ."""
    paths = [
        shared_data / "sonicpi_cc0" / "audio" / "drum_roll.flac",
        shared_data / "fsdk_instruments" / "audio" / "1bc8eae1.flac",
    ]
    for name, path in zip(("training", "evaluation"), paths, strict=True):
        (tmp_path / f"{name}.csv").write_text(f"path,caption\n{path},a drum roll\n")
    queries = [query(tmp_path / f"{name}.csv") for name in ("training", "evaluation")]
    done = find(queries[0], queries[1:], str(tmp_path / "out"))
    assert (done["hits_by_id"], done["hits_by_sound"]) == (0, 1)
    with open(tmp_path / "out" / "hits.csv") as file:
        (hit,) = csv.DictReader(file)
    assert hit["how"] == "sound" and float(hit["score"]) > 0.8
    assert abs(float(hit["offset_seconds"])) < 0.01


def noise(seed: int, seconds: float) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * 8000))
    return (0.1 * samples).astype(np.float32)


@pytest.mark.parametrize("first", [0, 4000, 10_037])
def test_the_lag_is_exact(first):
    clip = noise(0, 4)
    part = 0.3 * clip[first : first + 9000]
    index = landmarks.build([(7, noise(1, 4)), (8, clip)])
    best = index.find(landmarks.landmarks(part))[0]
    likeness = landmarks.same_recording(part, clip, best)
    assert best.clip == 8 and likeness.lag_samples == first
    assert likeness.phases > 0.9 and likeness.shape > 0.99


def test_the_lag_of_a_longer_sound_is_negative():
    clip = noise(0, 2)
    longer = np.concatenate([noise(2, 1.5), clip, noise(3, 1)])
    (best, *_) = landmarks.build([(0, clip)]).find(landmarks.landmarks(longer))
    assert landmarks.same_recording(longer, clip, best).lag_samples == -12_000


def test_other_noise_and_the_same_tone_are_not_the_same():
    index = landmarks.build([(0, noise(0, 4)), (1, wave(3, 4.0))])
    clips = [noise(0, 4), wave(3, 4.0)]
    tone = np.roll(wave(3, 4.0) + 0.05 * noise(5, 4), 333)
    for sound in (noise(1, 4), 0.2 * noise(2, 4), tone[::-1].copy()):
        for candidate in index.find(landmarks.landmarks(sound)):
            clip = clips[candidate.clip]
            assert landmarks.same_recording(sound, clip, candidate) is None


def test_sounds_without_peaks():
    nothing = np.zeros(8000, np.float32)
    for sound in (nothing, nothing[:1], nothing[:100]):
        assert not len(landmarks.landmarks(sound).hashes)
        assert (
            landmarks.build([(0, sound)]).find(landmarks.landmarks(noise(0, 1))) == []
        )
    index = landmarks.build([(0, noise(0, 1))])
    assert index.find(landmarks.landmarks(nothing)) == []
    assert not len(landmarks.joined([]).hashes)


@pytest.mark.parametrize(
    ("pattern", "name", "key"),
    [
        ("name", "a/b/rain_1.wav", "rain_1"),
        ("name", "train/0001/Yabc-def.flac", "Yabc-def"),
        ("name", "rain.v2", "rain.v2"),
        ("name", "x/000123.wav", ""),
        ("name", "a.wav", ""),
        ("off", "rain_1.wav", ""),
        (r"(\d+)", "sounds/349053-rain.wav", "349053"),
        (r"(\d+)", "rain.wav", ""),
    ],
)
def test_what_is_compared_of_ids(pattern, name, key):
    assert id_key(pattern)(name) == key


VIDEOS = ("--0PQM4-hqg", "---1_cCGK4M", "Yb8wWdy_0aA")


@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize(
    "form",
    [
        "{}",  # AudioSet, MusicCaps
        "{}_30",  # AudioCaps
        "{}_000030",  # VGGSound
        "{}_30.000_40.000",  # DCASE 2017
        "Y{}.wav",  # WavCaps
        "eval/Y{}_30.000_40.000.flac",
        "{}_30000_40000.mp3",
        "{}_90",  # another part of the same video
    ],
)
def test_a_video_is_the_same_by_the_name_of_any_set(video, form):
    assert id_key("name")(form.format(video)) == video
    assert id_key("(.+)")(form.format(video)) == form.format(video)


@pytest.mark.parametrize(
    "name",
    [
        *("rain_morning", "rain_mornin", "dog_barking_1", "footsteps_0", "door-slam-4"),
        *("Door_Knocks_2", "CarHornBus0_3", "BigRainDrop_30", "Thunderstorm_10"),
        *("Yellowstone", "Yellowstone0_1", "Yesterday_12", "NHU05033180_1"),
        *("0_jackson_0", "1-100032-A-0", "100032-3-0-0", "03-01-06-01-02-01-12"),
        *("1001_DFA_ANG_XX", "bass_synthetic_033-022-050", "c37a72d3_nohash_0"),
        *("1bc8eae1_02", "2020-10-08a_3", "blues.00001", "development sound 1"),
        # Not as long as a video's, another last letter, or more behind it.
        *("--0PQM4-hq_30", "--0PQM4-hqgg_30", "--0PQM4-hqb_30", "--0PQM4-hqg_a"),
        "--0PQM4-hqg_1_2_3",
    ],
)
def test_other_names_are_compared_as_they_are(name):
    assert id_key("name")(name) == name
    assert id_key("name")(f"sounds/{name}.wav") == name


@pytest.mark.parametrize("name", ["12345678901", "349053.wav", "00123456784.flac"])
def test_numbers_are_no_videos(name):
    assert id_key("name")(name) == ""


def write_set(folder: Path, names: dict[str, int]) -> Path:
    folder.mkdir()
    lines = ["path,caption"]
    for name, seed in names.items():
        soundfile.write(folder / name, noise(seed, 1.0), 8000)
        lines.append(f"{name},noise {seed}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_CLIPS", 2)
    train = write_set(
        tmp_path / "a", {"same_name.wav": 1, "one.wav": 2, "two.wav": 3, "old.wav": 4}
    )
    evals = [
        write_set(
            tmp_path / "b", {"same_name.flac": 11, "other.wav": 3, "more.wav": 13}
        ),
        write_set(tmp_path / "c", {"again.wav": 3, "new.wav": 14}),
    ]
    (tmp_path / "a" / "old.wav").write_bytes(b"no sound")
    (tmp_path / "c" / "new.wav").write_bytes(b"no sound")
    out = tmp_path / "out"
    command = [str(train), "--against", *map(str, evals), f"--out={out}"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "4 clips against 5 of 2 evaluation sets" in said.err
    assert "excluded_clips   2" in said.out
    with open(out / "hits.csv") as file:
        rows = [
            (r["id"], Path(r["set"]).parent.name, r["eval_id"], r["how"])
            for r in csv.DictReader(file)
        ]
    assert sorted(rows) == [
        ("same_name.wav", "b", "same_name.flac", "id"),
        ("two.wav", "b", "other.wav", "sound"),
        ("two.wav", "c", "again.wav", "sound"),
    ]
    assert (out / "exclude.txt").read_text() == "same_name.wav\ntwo.wav\n"
    unheard = (out / "unheard.csv").read_text()
    assert "old.wav" in unheard and "new.wav" in unheard and "not decodable" in unheard
    # Again: nothing is left to be done, and what is missing is done again.
    (parts,) = out.glob("parts-*")
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*-0*")}
    assert len(before) == 5
    (parts / "hits-000001.json").unlink()
    tables = [(out / name).read_bytes() for name in ("hits.csv", "unheard.csv")]
    assert main(command) == 0
    assert [(out / name).read_bytes() for name in ("hits.csv", "unheard.csv")] == tables
    after = {path.name: path.stat().st_mtime_ns for path in parts.glob("*-0*")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"hits-000001.json"}
    assert json.loads((out / "report.json").read_text())["hits_by_sound"] == 2


def test_a_search_without_hits(tmp_path):
    train = write_set(tmp_path / "a", {"one.wav": 1})
    evaluation = write_set(tmp_path / "b", {"two.wav": 2})
    done = find(query(train), [query(evaluation)], str(tmp_path / "out"))
    assert done["excluded_clips"] == 0
    assert (tmp_path / "out" / "exclude.txt").read_text() == ""


def test_errors_are_sentences(tmp_path, capsys):
    train = write_set(tmp_path / "a", {"one.wav": 1})
    for options, message in (
        (["--ids=["], "--ids is no regular expression"),
        (["--ids=abc"], "expected a group"),
        (["--workers=0"], "--workers is 0, expected 1 or more"),
        (["--wokers=2"], "unknown option --wokers=2"),
    ):
        with pytest.raises(SystemExit):
            main([str(train), "--against", str(train), "--out=x", *options])
        assert message in capsys.readouterr().err
    missing = [str(train), "--against", "none.csv", f"--out={tmp_path}"]
    assert main(missing) == 1
    assert "none.csv: No such file" in capsys.readouterr().err
