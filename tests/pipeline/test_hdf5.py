"""BLAT's HDF5 layout: waves by id, captions in JSON, and what is broken in either."""

import json
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.pipeline.hdf5 import Hdf5Error, Hdf5Source
from clap_jax.pipeline.ops import Clips, Prepare
from clap_jax.pipeline.sources import build_source, section
from tests.pipeline.clips import FRONTEND, RATE_HZ, wave


def write_waves(path: Path, waves: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, samples in waves.items():
            file[name] = samples
    return path


def write_captions(path: Path, clips: dict[str, list]) -> Path:
    audios = [{"audio_id": name, "captions": rows} for name, rows in clips.items()]
    path.write_text(json.dumps({"audios": audios}))
    return path


def rows(*captions: str) -> list[dict]:
    return [
        {"caption": text, "cap_id": str(number), "tokens": text.lower()}
        for number, text in enumerate(captions, start=1)
    ]


@pytest.fixture
def two_files(tmp_path):
    """Four clips in two files, the table, and captions for three of them."""
    for number in range(2):
        names = [f"Y{2 * number}.wav", f"Y{2 * number + 1}.wav"]
        waves = {n: wave(int(n[1])).astype(np.float16) for n in names}
        write_waves(tmp_path / "hdf5" / f"{number}.h5", waves)
    lines = [f"Y{n}.wav\thdf5/{n // 2}.h5" for n in range(4)]
    table = tmp_path / "waveform.csv"
    table.write_text("\n".join(["audio_id\thdf5_path", *lines]) + "\n")
    clips = {
        "Y3.wav": rows("A dog barks", "A hound bays"),
        "Y0.wav": rows("Rain"),
        "1": [{"audio_id": "1", "tokens": "a bell rings"}],
    }
    captions = write_captions(tmp_path / "train.json", clips)
    return table, captions


def options(two_files) -> dict:
    table, captions = two_files
    return {"path": str(table), "captions": str(captions), "rate_hz": RATE_HZ}


def test_waves_come_with_their_captions(two_files):
    source = build_source("hdf5", "blat", options(two_files))
    assert [source.id(i) for i in range(len(source))] == ["Y3.wav", "Y0.wav", "1"]
    assert source.captions(0) == ["A dog barks", "A hound bays"]
    assert source.captions(2) == ["a bell rings"]  # made by a machine, tokens alone
    for index, number in enumerate((3, 0, 1)):
        example = source[index]
        samples, rate_hz = example["audio"]
        assert rate_hz == RATE_HZ and samples.dtype == np.float16
        np.testing.assert_array_equal(samples, wave(number).astype(np.float16))
        assert example["captions"] == source.captions(index)
        assert example["tags"] == source.tags(index) == []
        assert example["group"] == example["id"] == source.group(index)
    assert source.problems == []
    files = sorted(map(str, (two_files[0].parent / "hdf5").iterdir()))
    assert source.audio_files() == files
    assert source.description() == (
        f"blat: 3 clips of 2 HDF5 files, 1 waves without captions ({two_files[0]})"
    )


def test_the_pipeline_takes_them(two_files):
    clips = Clips(Hdf5Source(**options(two_files)), Prepare(FRONTEND))
    sound = Prepare(FRONTEND)((wave(3).astype(np.float16), RATE_HZ))
    np.testing.assert_array_equal(clips.load(0), sound)


@pytest.mark.parametrize("place", ["hdf5", "hdf5/{0..1}.h5", "hdf5/*.h5"])
def test_files_are_found_without_the_table(two_files, place):
    table, captions = two_files
    source = Hdf5Source(table.parent / place, captions)
    by_table = Hdf5Source(table, captions)
    assert source.digest() == by_table.digest()
    assert [source.id(i) for i in range(3)] == [by_table.id(i) for i in range(3)]
    assert source[0]["audio"][1] == 32_000
    np.testing.assert_array_equal(source[1]["audio"][0], by_table[1]["audio"][0])


def test_a_folder_of_hdf5_is_known_by_its_names(two_files):
    folder = str(two_files[0].parent / "hdf5")
    assert section(folder) == {"kind": "hdf5", "path": folder}


def test_urls(two_files):
    table, captions = two_files
    store = fsspec.filesystem("memory")
    for file in (table, captions, *(table.parent / "hdf5").iterdir()):
        store.pipe_file(f"/blat/{file.relative_to(table.parent)}", file.read_bytes())
    far = Hdf5Source("memory://blat/waveform.csv", "memory://blat/train.json")
    near = Hdf5Source(table, captions)
    np.testing.assert_array_equal(far[0]["audio"][0], near[0]["audio"][0])


def first_sample(job) -> float:
    source, index = job
    return float(source[index]["audio"][0][0])


def test_processes_and_threads_may_share_a_source(two_files):
    source = Hdf5Source(**options(two_files))
    expected = [first_sample((source, i % 3)) for i in range(12)]
    jobs = [(source, i % 3) for i in range(12)]
    assert pickle.loads(pickle.dumps(source)).digest() == source.digest()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(first_sample, jobs)) == expected
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert list(pool.map(first_sample, jobs[:3])) == expected[:3]


def test_digest_tells_data_apart(two_files):
    source = Hdf5Source(**options(two_files))
    assert Hdf5Source(**options(two_files) | {"rate_hz": 1}).digest() != source.digest()
    write_captions(two_files[1], {"Y3.wav": rows("A dog")})
    assert Hdf5Source(**options(two_files)).digest() != source.digest()


def test_what_is_broken_is_left_out_and_named(two_files, caplog):
    table, captions = two_files
    with open(table, "a") as file:
        file.write("Y9.wav\thdf5/1.h5\nY8.wav\thdf5/cut.h5\nY7.wav\thdf5/none.h5\n")
    whole = (table.parent / "hdf5" / "1.h5").read_bytes()
    (table.parent / "hdf5" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    content = json.loads(captions.read_text())
    content["audios"] += [
        {"audio_id": "Y2.wav", "captions": [{"caption": " "}]},
        {"audio_id": "Y9.wav", "captions": rows("no dataset")},
        {"audio_id": "Y8.wav", "captions": rows("in a truncated file")},
        {"audio_id": "Y3.wav", "captions": rows("again")},
        {"captions": rows("nameless")},
    ]
    captions.write_text(json.dumps(content))
    source = Hdf5Source(table, captions)
    assert len(source) == 3
    found = {
        (file.rsplit("/", 1)[1], clip): reason for file, clip, reason in source.problems
    }
    assert found.pop(("1.h5", "Y9.wav")) == "has no dataset of this name"
    assert "truncated file" in found.pop(("cut.h5", ""))
    assert "No such file" in found.pop(("none.h5", ""))
    assert found.pop(("train.json", "Y2.wav")) == "has no caption"
    assert "has no wave of this id" in found.pop(("train.json", "Y9.wav"))
    assert "has no wave of this id" in found.pop(("train.json", "Y8.wav"))
    assert "a second time" in found.pop(("train.json", "Y3.wav"))
    assert "clip 8 of the list has no audio_id" in found.pop(("train.json", ""))
    assert not found
    assert "8 problems" in caplog.text and "... and 3 more" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 100), np.float16), r"float16 of shape \(2, 100\), expected"),
        (np.array([b"a", b"b"]), r"\|S1 of shape \(2,\), expected numbers"),
        (np.float16(1), r"float16 of shape \(\), expected numbers"),
    ],
)
def test_what_is_no_wave_is_named(tmp_path, content, message):
    path = write_waves(tmp_path / "a.h5", {"a": content, "b": wave(0)})
    captions = write_captions(tmp_path / "a.json", {"a": rows("x"), "b": rows("y")})
    source = Hdf5Source(path, captions)
    with pytest.raises(io.AudioError, match=f"a.h5, clip a: holds {message}"):
        source[0]
    assert source[1]["audio"][0].dtype == np.float32


def test_a_group_is_no_wave(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("a")
    captions = write_captions(tmp_path / "a.json", {"a": rows("x")})
    with pytest.raises(io.AudioError, match="holds a group, expected numbers"):
        Hdf5Source(tmp_path / "a.h5", captions)[0]


@pytest.mark.parametrize(
    ("table", "captions", "message"),
    [
        (None, None, "waveform.csv: No such file"),
        (
            "path,caption\na,b\n",
            None,
            "has the columns path, caption, expected audio_id",
        ),
        (b"audio_id\thdf5_path\n\xff\ta.h5", None, "is not UTF-8 text"),
        ("audio_id\thdf5_path\n", None, "no .h5 or .hdf5 file there"),
        ("audio_id\thdf5_path\na\tnone.h5\n", '{"audios": []}', "none of its waves"),
        (
            "audio_id\thdf5_path\na\tnone.h5\n",
            "{",
            "train.json: is not JSON: Expecting",
        ),
        ("audio_id\thdf5_path\na\tnone.h5\n", "[]", 'expected an object {"audios"'),
        ("audio_id\thdf5_path\na\tnone.h5\n", None, "train.json: No such file"),
    ],
)
def test_unusable_files_are_sentences(tmp_path, table, captions, message):
    for name, content in (("waveform.csv", table), ("train.json", captions)):
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(raw)
    with pytest.raises(Hdf5Error) as error:
        Hdf5Source(tmp_path / "waveform.csv", tmp_path / "train.json")
    assert message in str(error.value)


def test_options_are_checked(two_files):
    with pytest.raises(Hdf5Error, match="rate_hz is 0, expected a positive number"):
        Hdf5Source(*two_files, rate_hz=0)
    with pytest.raises(ValueError, match="option 'captions' is missing"):
        build_source("hdf5", "blat", {"path": str(two_files[0])})
