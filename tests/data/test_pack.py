"""Packing: the same audio and captions by every way, and the same bytes each time."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap_jax.pipeline import array_record
from clap_jax.pipeline.array_record import ArrayRecordSource
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.sources import build_source
from data import clips, jobs, listing, shards
from data.pack import main, pack
from tests.conftest import REPOSITORY
from tests.data import broken
from tests.pipeline.clips import RATE_HZ, wave


@pytest.fixture(scope="module")
def table(shared_data, tmp_path_factory) -> Path:
    """Two clips of each class of ESC-10, by paths into the shared folder."""
    with open(shared_data / "esc10" / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for n, row in enumerate(rows) if n % 16 == 0]
    assert len(kept) == 20
    path = tmp_path_factory.mktemp("tables") / "esc10.csv"
    with open(path, "w", newline="") as file:
        names = ("path", "caption", "label_text", "sample_rate")
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in kept:
            writer.writerow(row | {"path": shared_data / "esc10" / row["path"]})
    return path


@pytest.fixture(scope="module")
def tars(table, tmp_path_factory) -> Path:
    """The same clips as two of LAION's tar shards."""
    source = ManifestSource(table)
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for index in range(10 * shard, 10 * shard + 10):
                example = source[index]
                words = {"text": example["captions"], "tag": example["tags"]}
                for suffix, content in (
                    (".ogg", Path(example["audio"]).read_bytes()),
                    (".json", json.dumps(words).encode()),
                ):
                    info = tarfile.TarInfo(f"{index:05}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def query(kind: str, path: Path, **options) -> listing.Query:
    return listing.Query(kind, str(path), json.dumps(options))


def shard_files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.array_record"))}


def samples(content: bytes, dtype: str = "int16") -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(content), dtype=dtype, always_2d=True)


def test_manifest_and_tar_give_the_same_clips(table, tars, tmp_path):
    original = ManifestSource(table)
    pack(query("manifest", table), clips.Settings(), str(tmp_path / "table"), 3)
    cache = {"cache_folder": str(tmp_path / "cache")}
    pack(query("laion_tar", tars, **cache), clips.Settings(), str(tmp_path / "tar"), 3)
    by_table, by_tar = (ArrayRecordSource(tmp_path / name) for name in ("table", "tar"))
    assert len(by_table) == len(by_tar) == 20
    for index in range(20):
        content = Path(original[index]["audio"]).read_bytes()
        assert by_table[index]["audio"] == by_tar[index]["audio"] == content
        for packed in (by_table, by_tar):
            assert packed.captions(index) == original.captions(index)
            assert packed.tags(index) == original.tags(index)


def test_packing_what_is_packed_changes_nothing(table, tmp_path):
    pack(query("manifest", table), clips.Settings(), str(tmp_path / "one"), 2)
    again = query("array_record", tmp_path / "one")
    pack(again, clips.Settings(), str(tmp_path / "two"), 2)
    assert shard_files(tmp_path / "one") == shard_files(tmp_path / "two")


def test_flac_of_lossy_files_is_their_16_bits(table, tars, tmp_path):
    cache = {"cache_folder": str(tmp_path / "cache")}
    flac = clips.Settings("flac")
    pack(query("manifest", table), flac, str(tmp_path / "table"), 2)
    pack(query("laion_tar", tars, **cache), flac, str(tmp_path / "tar"), 2)
    by_table, by_tar = (ArrayRecordSource(tmp_path / name) for name in ("table", "tar"))
    original = ManifestSource(table)
    for index in range(20):
        assert by_table[index]["audio"] == by_tar[index]["audio"]
        decoded, rate_hz = soundfile.read(original[index]["audio"], always_2d=True)
        found, found_hz = samples(by_table[index]["audio"], "float64")
        assert found_hz == rate_hz
        assert np.abs(found - np.clip(decoded, -1, 1 - 2**-15)).max() <= 2**-16


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24"])
def test_flac_keeps_every_bit(subtype):
    noise = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    content = broken.encoded(noise, subtype=subtype)
    packed = clips.prepare({"audio": content}, clips.Settings("flac")).audio
    found, rate_hz = samples(packed, "int32")
    np.testing.assert_array_equal(found, samples(content, "int32")[0])
    assert rate_hz == RATE_HZ and soundfile.info(io.BytesIO(packed)).channels == 2


def test_int16_is_wav_of_16_bits():
    loud = np.array([-1.5, -1, 0, 0.5, 1.5], np.float32)
    content = broken.encoded(np.tile(loud, 100), subtype="FLOAT")
    packed = clips.prepare({"audio": content}, clips.Settings("int16")).audio
    info = soundfile.info(io.BytesIO(packed))
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    assert samples(packed)[0][:5, 0].tolist() == [-32768, -32768, 0, 16384, 32767]


@pytest.mark.parametrize(("encoding", "rate_hz"), [("ogg", 11_025), ("opus", 12_000)])
def test_lossy_encodings(encoding, rate_hz):
    tone = wave(3, 1.0, 11_025)
    file = io.BytesIO()
    soundfile.write(file, tone, 11_025, format="WAV")
    first = clips.prepare({"audio": file.getvalue()}, clips.Settings(encoding))
    time.sleep(1.1)  # libsndfile takes serial numbers from the clock
    again = clips.prepare({"audio": file.getvalue()}, clips.Settings(encoding))
    assert first == again
    found, found_hz = samples(first.audio, "float32")
    info = soundfile.info(io.BytesIO(first.audio))
    assert (info.format, found_hz) == ("OGG", rate_hz)
    assert info.subtype == ("OPUS" if encoding == "opus" else "VORBIS")
    assert abs(len(found) - rate_hz) <= 1
    assert len(first.audio) < len(tone)  # a quarter of float32
    if encoding == "ogg":
        assert np.corrcoef(found[:, 0], tone)[0, 1] > 0.99


def test_long_clips_are_encoded():
    """In one piece, libsndfile's Vorbis encoder would end the process."""
    minutes = np.tile(wave(1, 1.0), 150)
    packed = clips.prepare({"audio": (minutes, 44_100)}, clips.Settings("ogg"))
    assert soundfile.info(io.BytesIO(packed.audio)).frames == len(minutes)
    longer = np.tile(minutes, 6)
    packed = clips.prepare({"audio": (longer, 44_100)}, clips.Settings("ogg"))
    assert soundfile.info(io.BytesIO(packed.audio)).frames == len(longer)


def test_rate_channels_and_length():
    stereo = np.stack([wave(1, 1.0), wave(2, 1.0)], axis=1)
    content = broken.encoded(stereo)
    settings = clips.Settings("flac", rate_hz=16_000, mono=True, cut_seconds=0.5)
    packed = clips.prepare({"audio": content}, settings)
    found, rate_hz = samples(packed.audio, "float32")
    assert found.shape == (8000, 1) and rate_hz == 16_000 and packed.seconds == 0.5
    expected = np.repeat(stereo.mean(axis=1)[:4000], 2)
    assert np.corrcoef(found[:, 0], expected)[0, 1] > 0.98


def test_waves_in_no_file_keep_every_bit_as_they_are(tmp_path):
    samples16 = wave(1).astype(np.float16)
    packed = clips.prepare({"audio": (samples16, RATE_HZ)}, clips.Settings()).audio
    found, _ = samples(packed, "float32")
    np.testing.assert_array_equal(found[:, 0], samples16.astype(np.float32))


def test_hdf5_goes_into_shards(tmp_path):
    options = broken.write_hdf5(tmp_path / "in")
    pack(
        query("hdf5", tmp_path / "in", **options), clips.Settings("flac"), str(tmp_path)
    )
    packed = build_source("array_record", "blat", {"path": str(tmp_path)})
    assert packed.captions(0) == ["a whole"]
    found, rate_hz = samples(packed[0]["audio"], "float32")
    assert rate_hz == RATE_HZ
    assert np.abs(found[:, 0] - wave(70).astype(np.float16)).max() <= 2**-16


def test_duplicates_are_reported(tmp_path):
    (tmp_path / "in").mkdir()
    one, other = ((wave(n) * 32767).astype(np.int16) for n in (1, 2))
    files = {
        "a.wav": broken.encoded(one),
        "b.wav": broken.encoded(other),
        "c.wav": broken.encoded(one),
        "d.flac": broken.encoded(one, "FLAC"),
        "e.flac": broken.encoded(one, "FLAC"),
    }
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    folder, out = query("manifest", tmp_path / "in"), tmp_path / "out"
    done = pack(folder, clips.Settings(), str(out), 3)
    assert (done["duplicates_by_bytes"], done["duplicates_by_samples"]) == (2, 1)
    rows = list(csv.reader((out / "duplicates.csv").read_text().splitlines()))[1:]
    place = str(tmp_path / "in")
    names = [[row[0].removeprefix(place), *row[1:]] for row in rows]
    assert [[os.path.basename(a), os.path.basename(b), how] for a, b, how in names] == [
        ["c.wav", "a.wav", "bytes"],
        ["d.flac", "a.wav", "samples"],
        ["e.flac", "d.flac", "bytes"],
    ]
    # The list of ids leaves them out.
    wanted = folder._replace(exclude=str(out / "duplicates.txt"))
    done = pack(wanted, clips.Settings(), str(tmp_path / "once"))
    assert done["clips"] == 2 and done["excluded"] == 3


# --- the same bytes ---


def pack_all(plan: shards.Plan) -> None:
    shards.begin(plan)
    for shard in range(plan.shards):
        shards.pack(plan, shard)


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(table, tmp_path):
    wanted, settings = query("manifest", table), clips.Settings("flac")
    found = listing.read(wanted)
    plans = [
        shards.Plan(wanted, settings, str(tmp_path / name), 8, 20, found.digest, 20)
        for name in ("whole", "killed")
    ]
    for plan in plans:
        os.makedirs(os.path.join(plan.out, shards.PARTS))
    begin = time.monotonic()
    pack_all(plans[0])
    seconds = time.monotonic() - begin
    context = get_context("forkserver")  # processes that begin fast, without threads
    context.set_forkserver_preload(["data.shards", "tests.data.test_pack"])
    rng, killed, visible = np.random.default_rng(0), 0, set()
    for life in range(8):  # the first ones short: once all is done, nobody is killed
        process = context.Process(target=pack_all, args=(plans[1],))
        process.start()
        process.join(rng.uniform(0, seconds * (life + 1) / 16))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for name in shard_files(tmp_path / "killed"):
            ArrayRecordSource(tmp_path / "killed" / name)  # whole, or it raises
            visible.add(name)
    assert killed >= 2
    pack_all(plans[1])
    assert shard_files(tmp_path / "killed") == shard_files(tmp_path / "whole")
    left = {p.name for p in (tmp_path / "killed" / "parts").iterdir()}
    assert left == {p.name for p in (tmp_path / "whole" / "parts").iterdir()}


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "data.pack", *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_two_workers_one_of_them_killed(table, tmp_path):
    """The command with two processes is killed when one shard is there, and run again."""
    alone = tmp_path / "alone"
    pack(query("manifest", table), clips.Settings("ogg"), str(alone), 10)
    out = tmp_path / "out"
    command = [str(table), str(out), "--encoding=ogg", "--shards=10", "--workers=2"]
    process = start(*command)
    while process.poll() is None and not shard_files(out):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = shard_files(out)
    assert process.returncode == -signal.SIGKILL and 0 < len(before) < 10
    times = {name: os.stat(out / name).st_mtime_ns for name in before}
    process = start(*command)
    said, _ = process.communicate()
    assert process.returncode == 0, said.decode()
    assert "of them are there already" in said.decode()
    assert all(os.stat(out / name).st_mtime_ns == at for name, at in times.items())
    assert shard_files(out) == shard_files(alone)
    for name in ("report.json", "rejects.csv", "duplicates.csv", "report.txt"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def test_a_shard_that_was_damaged_is_made_again(table, tmp_path):
    wanted, settings = query("manifest", table), clips.Settings()
    pack(wanted, settings, str(tmp_path), 2)
    whole = shard_files(tmp_path)
    damaged = tmp_path / "clips-00001-of-00002.array_record"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "clips-00000-of-00002.array_record").unlink()
    pack(wanted, settings, str(tmp_path), 2)
    assert shard_files(tmp_path) == whole


def test_a_shard_of_rejects_alone_is_empty(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(broken.encoded(wave(1)))
    (tmp_path / "c.wav").write_bytes(b"")
    (tmp_path / "clips.csv").write_text("path,caption\na.wav,a\nc.wav,c\nb.wav,b\n")
    out = tmp_path / "out"
    pack(query("manifest", tmp_path / "clips.csv"), clips.Settings(), str(out), 3)
    source = ArrayRecordSource(out)
    assert [source.id(i) for i in range(len(source))] == ["a.wav", "b.wav"]
    assert source[1]["captions"] == ["b"] and len(list(out.glob("*.array_record"))) == 3


# --- what the command says ---


def test_the_command(table, tmp_path, capsys):
    arguments = [
        str(table),
        str(tmp_path),
        "--encoding=flac",
        "--rate_hz=16000",
        "--mono",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "packed             20 of 20 clips" in said.out
    assert f"20 clips into 1 shards in {tmp_path}" in said.err and "done in" in said.err
    done = json.loads((tmp_path / "report.json").read_text())
    assert done["clips"] == 20 and done["settings"]["rate_hz"] == 16_000
    assert done["shards"][0]["file"] == "clips-00000-of-00001.array_record"
    assert 0.02 < done["hours"] < 0.03
    (content,) = shard_files(tmp_path).values()
    assert main(arguments) == 0
    assert "1 of them are there already" in capsys.readouterr().err
    assert list(shard_files(tmp_path).values()) == [content]


def test_exclude_leaves_ids_out(table, tmp_path):
    ids = [row.split(",")[0] for row in table.read_text().splitlines()[1:]]
    (tmp_path / "ids.txt").write_text("\n".join([*ids[:15], "unknown", ""]))
    exclude = f"--exclude={tmp_path / 'ids.txt'}"
    assert main([str(table), str(tmp_path / "out"), exclude]) == 0
    source = ArrayRecordSource(tmp_path / "out")
    assert [source.id(i) for i in range(len(source))] == ids[15:]
    by_manifest = ManifestSource(table, exclude=str(tmp_path / "ids.txt"))
    assert [by_manifest.id(i) for i in range(len(by_manifest))] == ids[15:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ecoding=flac"], "unknown option --ecoding=flac (nor is it one of Apache"),
        (["--encoding=mp3"], "invalid choice: 'mp3'"),
        (["--rate_hz=16000"], "rate_hz needs an encoding, as_is copies files"),
        (["--encoding=opus", "--rate_hz=44100"], "rate_hz is 44100, Opus has 8000"),
        (["--min_seconds=-1"], "min_seconds is -1.0, expected 0 or more"),
        (
            ["--min_seconds=3", "--max_seconds=2"],
            "max_seconds is 2.0, expected min_sec",
        ),
        (["--workers=0"], "--workers is 0, expected 1 or more"),
        (["--shards=-1"], "--shards is -1, expected 1 or more"),
        (["--max_bad_fraction=2"], "--max_bad_fraction is 2.0, expected 0 to 1"),
        (["--options=[]"], "--options is [], expected a JSON object"),
        (["--options={"], "--options is {, expected a JSON object"),
    ],
)
def test_options_that_cannot_be_understood(table, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main([str(table), str(tmp_path), *arguments])
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_what_cannot_be_packed_is_a_sentence(table, tmp_path, capsys):
    def said(*arguments: str) -> str:
        assert main(list(arguments)) == 1
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "none.csv: No such file" in said(str(tmp_path / "none.csv"), out)
    assert "unknown kind of source 'cvs'" in said(str(table), out, "--kind=cvs")
    assert "shards is 21, expected 20 (clips)" in said(str(table), out, "--shards=21")
    inside = str(table.parent / "packed")
    assert "lies within" in said(str(table.parent), inside, "--kind=manifest")
    assert "No such file" in said(str(table), out, "--exclude=none.txt")
    (tmp_path / "all.txt").write_text(table.read_text().replace(",", "\n"))
    every = f"--exclude={tmp_path / 'all.txt'}"
    assert "no clip is left to be packed" in said(str(table), out, every)
    unknown = said(str(table), out, "--runner=Unknown")
    assert "Unexpected pipeline runner: Unknown" in unknown
    assert main([str(table), out]) == 0
    capsys.readouterr()
    assert "holds shards of other clips" in said(str(table), out, "--encoding=flac")
    plan = shards.Plan(query("manifest", table), clips.Settings(), out, 1, 20, "", 0)
    with shards.locked(plan):
        assert "another run is packing into" in said(str(table), out)


def test_a_source_that_changes_meanwhile_is_noticed(table, tmp_path):
    wanted = query("manifest", table)
    plan = shards.Plan(wanted, clips.Settings(), str(tmp_path), 1, 20, "other", 0)
    with pytest.raises(shards.PackError, match="esc10.csv changed since packing began"):
        shards.pack(plan, 0)


def test_a_shard_is_read_back_before_it_gets_its_name(table, tmp_path, monkeypatch):
    """A disk that loses a bit between writing and reading."""
    read = array_record.ArrayRecordSource.__getitem__

    def damaged(source, index):
        example = read(source, index)
        audio = bytearray(example["audio"])
        audio[100] ^= index == 3
        return example | {"audio": bytes(audio)}

    monkeypatch.setattr(array_record.ArrayRecordSource, "__getitem__", damaged)
    out = tmp_path / "out"
    with pytest.raises(jobs.JobError, match="reads back with other clips than were"):
        pack(query("manifest", table), clips.Settings(), str(out))
    assert shard_files(out) == {} and not list((out / "parts").glob("unfinished*"))


def test_a_table_that_changes_between_runs_is_read_again(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(broken.encoded(wave(1)))
    rows, out = tmp_path / "rows.csv", tmp_path / "out"
    rows.write_text("path,caption\na.wav,a\n")
    assert main([str(rows), str(out)]) == 0
    rows.write_text("path,caption\na.wav,a\nb.wav,b\n")
    assert main([str(rows), str(out)]) == 1
    assert "holds shards of other clips" in capsys.readouterr().err


def test_a_store(table, tmp_path):
    """OUT by URL: the same bytes, and what is there is kept."""
    import fsspec

    out = "memory://packed/esc10"
    wanted, settings = query("manifest", table), clips.Settings("flac")
    pack(wanted, settings, out, 2)
    pack(wanted, settings, str(tmp_path), 2)
    store = fsspec.filesystem("memory")
    name = "clips-00001-of-00002.array_record"
    assert store.cat(f"/packed/esc10/{name}") == shard_files(tmp_path)[name]
    created = store.info(f"/packed/esc10/{name}")["created"]
    pack(wanted, settings, out, 2)
    assert store.info(f"/packed/esc10/{name}")["created"] == created
    report = json.loads(store.cat("/packed/esc10/report.json"))
    assert report["clips"] == 20
