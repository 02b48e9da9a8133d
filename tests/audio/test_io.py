"""Reading audio of every kind, and saying what is wrong with the rest."""

import io as streams
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from clap_jax.audio import io

RATE_HZ = 16_000
SINE = (0.5 * np.sin(np.arange(RATE_HZ) * 0.2)).astype(np.float32)


def encoded(kind: str, samples=SINE, subtype: str | None = None) -> bytes:
    stream = streams.BytesIO()
    soundfile.write(stream, samples, RATE_HZ, format=kind, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "atol"), [("WAV", 4e-5), ("FLAC", 4e-5), ("OGG", 0.05), ("MP3", 0.05)]
)
def test_formats(kind, atol, tmp_path):
    data = encoded(kind)
    path = tmp_path / f"sine.{kind.lower()}"
    path.write_bytes(data)
    from_path, rate_hz = io.read(path)
    assert rate_hz == RATE_HZ and from_path.dtype == np.float32
    np.testing.assert_allclose(from_path, SINE, rtol=0, atol=atol)
    with path.open("rb") as file:
        from_file = io.read(file)[0]
    for other in (io.read(str(path))[0], io.read(data)[0], from_file):
        np.testing.assert_array_equal(other, from_path)


def test_stereo_becomes_the_mean_of_its_channels():
    """Not channel 0 (LAION's loader), not one after the other (MS-CLAP's)."""
    stereo = np.stack([SINE, 0.5 * SINE], axis=1)
    wave, _ = io.read(encoded("WAV", stereo, "FLOAT"))
    np.testing.assert_allclose(wave, 0.75 * SINE, rtol=1e-6)


def test_flac_stream_of_unknown_length_is_refused():
    """What an encoder writes into a pipe: libsndfile cannot read it to its end."""
    data = bytearray(encoded("FLAC"))
    assert data[:4] == b"fLaC"
    data[21] &= 0xF0  # the total of samples: 36 bits, here zero
    data[22:26] = bytes(4)
    with pytest.raises(io.AudioError, match="does not give its length"):
        io.read(bytes(data))


@pytest.mark.parametrize("shape", ["t", "tc", "ct"])
@pytest.mark.parametrize(
    ("dtype", "scale", "offset", "atol"),
    [
        (np.float32, 1, 0, 1e-7),
        (np.float64, 1, 0, 1e-7),
        (np.float16, 1, 0, 3e-4),
        (jnp.bfloat16, 1, 0, 2e-3),
        (np.int16, 2**15, 0, 2**-15),
        (np.int32, 2**31, 0, 1e-7),
        (np.uint8, 2**7, 2**7, 2**-7),
    ],
)
def test_arrays(shape, dtype, scale, offset, atol):
    array = (SINE.astype(np.float64) * scale + offset).astype(dtype)
    array = {"t": array, "tc": array[:, None], "ct": np.stack([array, array])}[shape]
    wave = io.load((array, RATE_HZ), RATE_HZ)
    assert wave.dtype == np.float32 and wave.shape == SINE.shape
    np.testing.assert_allclose(wave, SINE, rtol=0, atol=atol)
    np.testing.assert_array_equal(io.load((jnp.asarray(wave), RATE_HZ), RATE_HZ), wave)


def test_resampling():
    """A tone keeps its pitch and level; what the new rate cannot carry is gone."""
    seconds = np.arange(44_100) / 44_100
    low = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    high = np.sin(2 * np.pi * 12_000 * seconds).astype(np.float32)
    wave = io.load((0.5 * low + 0.4 * high, 44_100), 16_000)
    assert len(wave) == 16_000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(wave[500:-500], expected[500:-500], atol=1e-3)
    np.testing.assert_array_equal(
        io.load((0.5 * low + 0.4 * high, 44_100), 16_000), wave
    )
    assert io.resample(wave, 16_000, 16_000) is wave


@pytest.mark.parametrize("rates_hz", [(8000, 48_000), (48_000, 8000), (96_000, 44_100)])
def test_shortest_clip_survives_resampling(rates_hz):
    found_hz, wanted_hz = rates_hz
    wave = np.full(round(io.MIN_SECONDS * found_hz), 0.1, np.float32)
    assert len(io.load((wave, found_hz), wanted_hz)) >= io.MIN_SECONDS * wanted_hz - 1


def test_int16_trip_truncates():
    """LAION's quirk: times 32767 and cut toward zero, not rounded."""
    wave = np.array([-2, -1, -0.99999, 0, 1.9 / 32767, 0.5, 1, 3], np.float32)
    whole = io.to_int16(wave)
    assert whole.dtype == np.int16
    np.testing.assert_array_equal(
        whole, [-32767, -32767, -32766, 0, 1, 16383, 32767, 32767]
    )
    np.testing.assert_allclose(io.quantise(wave), whole / 32767, rtol=1e-6)
    assert np.abs(io.quantise(SINE) - SINE).max() <= 1 / 32767
    np.testing.assert_array_equal(io.quantise(io.quantise(SINE)), io.quantise(SINE))


def flac_cut_in_half() -> bytes:
    data = encoded("FLAC", np.random.default_rng(0).normal(0, 0.1, RATE_HZ))
    return data[: len(data) // 2]


def with_bad_samples() -> np.ndarray:
    bad = SINE.copy()
    bad[[3, 5]], bad[9] = np.nan, -np.inf
    return bad


BAD_FILES = {
    "empty.wav": (b"", "empty"),
    "letter.wav": (b"Dear all, this is a text.\n" * 40, r"b'Dear all, this i'"),
    "cut.flac": (flac_cut_in_half(), "not decodable|truncated"),
    "no_samples.wav": (encoded("WAV", SINE[:0]), "no samples"),
    "one_sample.wav": (encoded("WAV", SINE[:1]), r"1 samples at 16000 Hz .* 0.001 s"),
    "nan.wav": (encoded("WAV", with_bad_samples(), "FLOAT"), "3 of 16000 samples"),
    "headerless.raw": (bytes(1000), "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name, tmp_path):
    data, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(io.AudioError, match=message) as error:
        io.load(path, RATE_HZ)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("; export it again or remove the clip")
    with pytest.raises(io.AudioError, match="^clip 7: "):
        io.load(data, RATE_HZ, name="clip 7")


def test_cut_mp3_is_what_is_left():
    """The length in an MP3 is an estimate: nothing can be held against it."""
    data = encoded("MP3")
    assert 0 < len(io.read(data[: len(data) * 3 // 4])[0]) < len(SINE)


def test_fewer_frames_than_promised_is_an_error(monkeypatch):
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda *args, **kwargs: read(*args, **kwargs)[:100]
    )
    with pytest.raises(io.AudioError, match="100 frames.* promises 16000; export it"):
        io.read(encoded("FLAC"))


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(io.AudioError, match="nowhere.wav: No such file"):
        io.load(tmp_path / "nowhere.wav", RATE_HZ)
    with pytest.raises(io.AudioError, match="directory"):
        io.load(tmp_path, RATE_HZ)
    with pytest.raises(io.AudioError, match="''"):
        io.load("", RATE_HZ)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "no bytes"),
        (None, "NoneType, expected a path"),
        (SINE, "ndarray, expected a path"),
        (streams.StringIO("text"), "StringIO, expected a path"),
        ((SINE,), "tuple of 1"),
        ((SINE, 0), "rate is 0"),
        ((SINE, "48k"), "rate is '48k'"),
        ((SINE, True), "rate is True"),
        ((SINE[:0], RATE_HZ), "no samples"),
        ((np.zeros((0, 2), np.float32), RATE_HZ), "no samples"),
        ((SINE[:1], RATE_HZ), "0.000063 s"),
        ((np.float32(1.0), RATE_HZ), r"shape \(\)"),
        ((np.zeros((2, 2, 100)), RATE_HZ), r"shape \(2, 2, 100\)"),
        ((np.zeros((50, 50)), RATE_HZ), "does not tell"),
        ((SINE.astype(complex), RATE_HZ), "complex128, expected numbers"),
        ((SINE > 0, RATE_HZ), "bool, expected numbers"),
        ((["a", "b"], RATE_HZ), "expected numbers"),
        ((with_bad_samples(), RATE_HZ), "3 of 16000 samples are not finite"),
        ((SINE.astype(np.float64) * 1e300, RATE_HZ), "not finite"),
    ],
)
def test_bad_sources_are_explained(source, message):
    with pytest.raises(io.AudioError, match=message):
        io.load(source, RATE_HZ)
    assert issubclass(io.AudioError, ValueError)


def test_real_recordings(shared_data):
    paths = sorted(Path(shared_data, "esc10", "audio").glob("*.ogg"))[:3]
    paths += sorted(Path(shared_data, "sonicpi_cc0", "audio").glob("*.flac"))[:3]
    for path in paths:
        info = soundfile.info(path)
        wave = io.load(path, 22_050)
        assert abs(len(wave) / 22_050 - info.duration) < 0.001
        assert 0 < np.abs(wave).max() < 1.5
