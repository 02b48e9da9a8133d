"""Broken clips of many kinds, beside whole ones, for the tests of packing."""

import io
import json
import struct
from pathlib import Path

import h5py
import numpy as np
import soundfile

from tests.pipeline.clips import RATE_HZ, wave
from tests.pipeline.shards import pair, shard, sound, tar_bytes


def encoded(samples: np.ndarray, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """The bytes of an audio file of these samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, subtype, format=kind)
    return file.getvalue()


def wav_header(channels: int, data_bytes: int) -> bytes:
    """A WAV whose header says what it likes, with 800 bytes of samples."""
    fmt = struct.pack("<HHIIHH", 1, channels, RATE_HZ, 2 * RATE_HZ, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt
    samples = wave(1)[:400] * 32767
    body += b"data" + struct.pack("<I", data_bytes) + samples.astype("<i2").tobytes()
    return b"RIFF" + struct.pack("<I", len(body)) + body


def nan() -> np.ndarray:
    samples = wave(2)
    samples[10:13] = np.nan
    return samples


SOUNDS = {
    # name of the file: content, kind of the reject, words of its reason
    "empty.wav": (b"", "empty_file", "the file is empty"),
    "cut.flac": (sound(1)[:3000], "truncated", "cannot be decoded to its end"),
    "cut.wav": (
        encoded(wave(1))[:4000],
        "truncated",
        "bytes of samples, 6400 promised",
    ),
    "cut.ogg": (encoded(wave(1, 5), "OGG", "VORBIS")[:9000], "truncated", "Ogg page"),
    "headless.wav": (encoded(wave(1))[:40], "truncated", "a WAV without samples"),
    "text.mp3": (b"<html>404 Not Found</html>" * 9, "not_audio", "cannot be decoded"),
    "flac.wav": (sound(2), "wrong_extension", "is FLAC, but its name ends in .wav"),
    "nan.wav": (encoded(nan(), subtype="FLOAT"), "not_finite", "3 of 3200 samples"),
    "silent.wav": (encoded(np.zeros(3200)), "silent", "digital silence"),
    "faint.flac": (encoded(wave(1) * 5e-5, "FLAC"), "silent", "its peak is -9"),
    "short.wav": (encoded(wave(3, 0.1)), "too_short", "too short: 0.1 s, expected 0.2"),
    "long.wav": (encoded(wave(4, 3.5)), "too_long", "too long: 3.5 s, expected 3 s"),
    "none.wav": (encoded(np.zeros(0)), "no_samples", "has no samples"),
    "mute.wav": (wav_header(0, 800), "no_channels", "0 channels"),
    "rate.wav": (
        encoded(wave(5)),
        "other_rate",
        "has 8000 Hz, but its table says 44100",
    ),
    "stream.flac": (b"", "no_length", "no length"),
    "gone.wav": (None, "missing_file", "there is no such file"),
    "folder.wav": (None, "directory", "is a directory"),
}


def endless_flac() -> bytes:
    """A FLAC as a program writes it that cannot go back to the header."""
    content = bytearray(sound(3))
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    return bytes(content)


ROWS = {
    # id: the row of the table, kind, words
    "row_blank_caption": ("{id},ok_0.wav,  ,8000", "no_caption", "empty caption"),
    "row_no_path": (
        "{id},,a sound,8000",
        "empty_field",
        "expected the path of an audio",
    ),
    "ok_0": ("{id},ok_1.wav,again,8000", "duplicate_id", "'ok_0' is in line 2 already"),
    "row_fields": ("{id},ok_1.wav", "broken_row", "2 fields, but the header has 4"),
    "row_latin": ("{id},ok_1.wav,Glöckchen,8000", "not_utf8", "is not UTF-8 text"),
}


def write_table(folder: Path) -> Path:
    """A table of three whole clips and of everything that is broken."""
    folder.mkdir(parents=True)
    lines = ["id,path,caption,sample_rate"]
    for number in range(3):
        (folder / f"ok_{number}.wav").write_bytes(encoded(wave(20 + number)))
        lines.append(f"ok_{number},ok_{number}.wav,sound {number},8000")
    for name, (content, _, _) in SOUNDS.items():
        if name == "stream.flac":
            content = endless_flac()
        if content is not None:
            (folder / name).write_bytes(content)
        rate = 44100 if name == "rate.wav" else 8000
        lines.append(f"{name},{name},the sound of {name},{rate}")
    (folder / "folder.wav").mkdir()
    lines += [row.format(id=name) for name, (row, _, _) in ROWS.items()]
    path = folder / "clips.csv"
    path.write_bytes("\n".join([*lines, ""]).encode("latin1"))
    return path


TARS = {
    # id, or name of the member: kind, words
    "no_json.flac": ("no_caption", "no .json or .txt"),
    "wordless.flac": ("no_caption", "its JSON has no text"),
    "broken.json": ("broken_json", "is not JSON"),
    "latin.json": ("not_utf8", "is not UTF-8"),
    "list.json": ("broken_json", "holds a list"),
    "text.json": ("no_audio", "there is no audio of this name"),
    "hollow.flac": ("empty_file", "the audio is empty"),
    "2/damaged": ("not_audio", "cannot be decoded"),
}


def write_tars(folder: Path) -> Path:
    """Tar shards: a whole one, a mixed one, a truncated one, and a text file."""
    folder.mkdir(parents=True)
    members = pair(50) | {
        "no_json.flac": sound(51),
        "wordless.flac": sound(52),
        "wordless.json": b'{"tag": ["x"]}',
        "broken.flac": sound(53),
        "broken.json": b'{"text": ',
        "latin.flac": sound(54),
        "latin.json": '{"text": "Glöckchen"}'.encode("latin1"),
        "list.flac": sound(55),
        "list.json": b'["a"]',
        "text.json": b'{"text": "a text alone"}',
        "hollow.flac": b"",
        "hollow.json": b'{"text": "nothing"}',
        "damaged.flac": b"fLaC" + bytes(500),
        "damaged.json": b'{"text": "damaged"}',
    }
    (folder / "1.tar").write_bytes(shard(40, 3))
    (folder / "2.tar").write_bytes(tar_bytes(members))
    (folder / "3.tar").write_bytes(shard(60, 3)[:-12_000])
    (folder / "4.tar").write_bytes(b"this is no tar file, but a text" * 40)
    return folder


HDF5 = {
    "wordless": ("no_caption", "has no caption"),
    "absent": ("no_audio", "has no wave of this id"),
    "square": ("unreadable", "float16 of shape (40, 80), expected"),
    "endless": ("not_finite", "not finite"),
}


def write_hdf5(folder: Path) -> dict:
    """Waves as BLAT packs them; returns the source's options."""
    folder.mkdir(parents=True)
    waves = {name: wave(70) for name in ("whole", "wordless", "square", "endless")}
    waves["square"] = waves["square"].reshape(40, 80)
    waves["endless"][7] = np.inf
    with h5py.File(folder / "0.h5", "w") as file:
        for name, samples in waves.items():
            file[name] = samples.astype(np.float16)
    whole = (folder / "0.h5").read_bytes()
    (folder / "1.h5").write_bytes(whole[: len(whole) // 2])
    audios = [
        {"audio_id": n, "captions": [] if n == "wordless" else [{"caption": f"a {n}"}]}
        for n in (*waves, "absent")
    ]
    (folder / "captions.json").write_text(json.dumps({"audios": audios}))
    return {"captions": str(folder / "captions.json"), "rate_hz": RATE_HZ}
