"""Log-mels in numpy and in jax.numpy; those of the references are in `parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import frontend as front
from clap_jax.audio import io, mel

NAMESPACES = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])


@pytest.mark.parametrize("name", mel.FRONTENDS)
def test_numpy_and_jax_agree(name):
    frontend = mel.FRONTENDS[name]
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, (2, 3, 20_011)).astype(np.float32)
    wave[0, 0] = np.sin(np.arange(20_011) * 0.3)
    wave[1, 2, 4000:] = 0
    ours = front.log_mel(wave, frontend, np)
    device = jax.jit(lambda x: front.log_mel(x, frontend, jnp))(wave)
    assert ours.shape == device.shape == (2, 3, frontend.frames(20_011), frontend.mels)
    assert ours.dtype == device.dtype == np.float32
    if frontend.is_kaldi:
        # No floor hides what float32 leaves beside a frame's loudest band.
        power, loudest = 10 ** (ours / 10), 10 ** (ours.max(-1, keepdims=True) / 10)
        error = np.abs(10 ** (device / 10) - power)
        assert (error <= 2.3e-5 * power + 1e-8 * loudest).all()
        return
    np.testing.assert_allclose(device, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [257, 513, 640, 1023, 40_960])
def test_framing_is_that_of_indices(samples):
    frontend = mel.FRONTENDS["small_16k"]
    wave = np.random.default_rng(0).normal(size=(2, samples)).astype(np.float32)
    padded = np.pad(wave, ((0, 0), (256, 256)), mode="reflect")
    starts = 320 * np.arange(frontend.frames(samples))
    expected = padded[:, starts[:, None] + np.arange(512)]
    np.testing.assert_array_equal(front.frame(wave, frontend), expected)
    np.testing.assert_array_equal(
        front.frame(jnp.asarray(wave), frontend, jnp), expected
    )


def test_hop_may_exceed_the_window():
    frontend = mel.Frontend(8000, 1.0, 64, 64, 100, 8, 0.0, 4000.0, "htk", "pad")
    wave = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    assert front.frame(wave, frontend).shape == (81, 64)


@NAMESPACES
def test_silence_is_minus_100_db(xp):
    frontend = mel.FRONTENDS["small_16k"]
    log_mel = front.log_mel(xp.zeros((1, 4000), xp.float32), frontend, xp)
    np.testing.assert_allclose(log_mel, front.FLOOR_DB, rtol=0, atol=1e-5)


def test_what_is_not_silent_is_never_skipped(monkeypatch):
    """Blocks of digital silence are skipped: every sample decides whether one is."""
    for hop in (80, 100, 256, 300):
        monkeypatch.setattr(front, "BLOCK_FRAMES", 10_000)
        frontend = mel.Frontend(8000, 1.0, 256, 256, hop, 8, 0.0, 4000.0, "htk", "pad")
        samples = 30 * hop
        for place in range(0, samples, 41):
            wave = np.zeros(samples, np.float32)
            wave[place : place + 3] = 0.5
            expected = front.log_mel(wave, frontend)
            monkeypatch.setattr(front, "BLOCK_FRAMES", 8)
            found = front.log_mel(wave, frontend)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
            monkeypatch.setattr(front, "BLOCK_FRAMES", 10_000)


def test_gradient_is_finite_even_in_silence():
    frontend = mel.FRONTENDS["small_16k"]
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype(np.float32)
    wave[0, 1500:] = 0
    total = jax.jit(jax.grad(lambda x: front.log_mel(x, frontend, jnp).sum()))
    gradient = total(wave)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() > 0
    # A tenth more amplitude is 0.83 dB more, in every cell.
    slope = jax.jvp(lambda x: front.log_mel(x, frontend, jnp), (wave,), (0.1 * wave,))
    np.testing.assert_allclose(slope[1][1], 2 / np.log(10), rtol=1e-3)


def test_too_short_a_wave_is_refused():
    with pytest.raises(ValueError, match="256 samples, expected more than 256"):
        front.log_mel(np.zeros(256, np.float32), mel.FRONTENDS["small_16k"])


@NAMESPACES
def test_int16_waves(xp):
    whole = xp.asarray([-32767, 0, 16384, 32767], xp.int16)
    wave = front.from_int16(whole, xp)
    assert wave.dtype == xp.float32
    np.testing.assert_allclose(wave, [-1, 0, 16384 / 32767, 1], rtol=1e-7)
    np.testing.assert_array_equal(io.to_int16(np.asarray(wave)), whole)
    frontend = mel.FRONTENDS["small_16k"]
    noise = np.random.default_rng(0).normal(0, 3000, (2, 4000)).astype(np.int16)
    noise = xp.asarray(noise)
    np.testing.assert_array_equal(
        front.log_mel(noise, frontend, xp),
        front.log_mel(front.from_int16(noise, xp), frontend, xp),
    )
