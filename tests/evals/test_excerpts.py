"""Pieces of sounds: the loudest part, as MP3, within a budget."""

import base64
import io

import numpy as np
import pytest
import soundfile

from clap_jax.evals import excerpts
from clap_jax.evals.excerpts import RATE_HZ, SECONDS, Excerpts
from tests.evals.some_results import SoundSource


def decoded(uri):
    head, _, data = uri.partition(",")
    assert head == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def peak_hz(wave, rate_hz):
    return np.abs(np.fft.rfft(wave)).argmax() * rate_hz / len(wave)


@pytest.fixture
def source():
    return SoundSource([[]] * 20, broken=(3,))


def test_a_short_clip_is_whole_and_sounds_the_same(source):
    excerpt = Excerpts().make(source, 4)
    assert (excerpt.begin, excerpt.end, excerpt.total) == (0, 2.5, 2.5)
    wave, rate_hz = decoded(excerpt.uri)
    assert rate_hz == RATE_HZ and len(wave) == pytest.approx(2.5 * RATE_HZ, rel=0.05)
    assert peak_hz(wave, rate_hz) == pytest.approx(400, abs=2)
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.1)


def test_of_a_long_clip_the_loudest_part_is_taken():
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.001, 30_000)
    wave[12_300:17_300] = rng.normal(0, 0.2, 5_000)
    assert excerpts.loudest(wave, 5_000) == pytest.approx(12_300, abs=250)
    assert excerpts.loudest(wave[:17_300], 5_000) == 12_300  # the very end
    assert excerpts.loudest(wave, 30_000) == excerpts.loudest(wave, 40_000) == 0
    assert excerpts.loudest(np.zeros(9_000), 5_000) == 0


def test_a_long_clip_is_cut(source):
    excerpt = Excerpts().make(source, 19)
    assert excerpt.total == 10 and excerpt.end - excerpt.begin == SECONDS
    wave, rate_hz = decoded(excerpt.uri)
    assert len(wave) == pytest.approx(SECONDS * rate_hz, rel=0.05)
    assert len(excerpt.uri) < 60_000


def test_full_scale_is_no_error():
    wave = np.sign(np.sin(np.arange(RATE_HZ) / 20)).astype(np.float32) * 1.5
    decoded(excerpts.mp3_uri(wave))


def test_a_clip_that_cannot_be_read_is_said_to_be(source):
    excerpt = Excerpts().make(source, 3)
    assert excerpt.uri == "" and excerpt.problem == "cannot be read"


def test_the_budget_counts_every_place(source):
    size = len(Excerpts().make(source, 2).uri)
    few = Excerpts(2 * size)
    assert few.make(source, 2).uri and few.make(source, 2).uri
    left_out = few.make(source, 2)
    assert left_out.uri == "" and "too large" in left_out.problem


def test_equal_clips_give_equal_text(source):
    assert Excerpts().make(source, 1) == Excerpts().make(source, 1)
