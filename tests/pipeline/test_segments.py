"""Segments of long clips: where they are, what is heard, how many there are."""

import dataclasses

import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.audio.mel import FRONTENDS
from clap_jax.pipeline.segments import Segmenter

FRONTEND = dataclasses.replace(
    FRONTENDS["small_16k"], rate_hz=1000, clip_seconds=10.0, fmax_hz=500.0
)
SEGMENTER = Segmenter(FRONTEND, hop_seconds=5.0, longest_seconds=60.0, shorter=(1, 4))


def noise(seconds, seed=0):
    wave = 0.1 * np.random.default_rng(seed).normal(size=round(seconds * 1000))
    return wave.astype(np.float32)


def test_windows_in_time():
    wave = noise(22)
    clip = SEGMENTER(wave)
    np.testing.assert_array_equal(
        clip["seconds"], [[0, 10], [5, 15], [10, 20], [15, 22]]
    )
    assert clip["heard"].all() and clip["start_seconds"] == 0
    assert clip["wave"].shape == (4, 10_000) and clip["wave"].dtype == np.float32
    np.testing.assert_array_equal(clip["wave"][1], wave[5000:15_000])
    np.testing.assert_array_equal(clip["wave"][3, :7000], wave[15_000:])
    assert (clip["wave"][3, 7000:] == 0).all()
    rounded = SEGMENTER(io.to_int16(wave))
    np.testing.assert_array_equal(rounded.pop("wave"), io.to_int16(clip.pop("wave")))
    for name, values in clip.items():
        np.testing.assert_array_equal(rounded[name], values)


@pytest.mark.parametrize("seconds", [0.2, 3, 10])
def test_a_short_clip_is_one_segment(seconds):
    clip = SEGMENTER(noise(seconds))
    np.testing.assert_allclose(clip["seconds"], [[0, seconds]])
    assert clip["heard"].tolist() == [True]


def test_silence_and_remainders_are_not_heard():
    wave = noise(30.5)
    wave[10_000:20_000] = 1e-4
    for clip in (SEGMENTER(wave), SEGMENTER(io.to_int16(wave))):
        assert clip["heard"].tolist() == [True, True, False, True, True, True]
    # Of the last, half a second is left, which is too little; and then enough.
    short = Segmenter(FRONTEND, hop_seconds=10.0, longest_seconds=60.0)
    assert short(noise(30.5))["heard"].tolist() == [True, True, True, False]
    assert short(noise(31.5))["heard"].tolist() == [True] * 4


def test_of_longer_clips_a_part():
    wave = noise(100)
    middle = SEGMENTER(wave)
    assert middle["start_seconds"] == 20
    assert middle["seconds"][-1].tolist() == [50, 60]
    np.testing.assert_array_equal(middle["wave"][0], wave[20_000:30_000])
    rng = np.random.default_rng(0)
    starts = [float(SEGMENTER(wave, rng)["start_seconds"]) for _ in range(20)]
    assert 0 <= min(starts) < 5 and 35 < max(starts) <= 40
    longer = dataclasses.replace(SEGMENTER, longest_seconds=1200.0)
    assert longer(wave)["seconds"][-1, 1] == 100


def test_static_counts():
    assert SEGMENTER.counts == (1, 4, 11)
    for seconds in (0.5, 10, 10.01, 15, 22, 60, 100):  # the longest always fits
        found = len(SEGMENTER(noise(seconds))["heard"])
        assert found == SEGMENTER.count(min(seconds, 60)) <= SEGMENTER.counts[-1]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"hop_seconds": 11.0}, "hop_seconds is 11.0, .* a window of 10.0 s: gaps"),
        ({"hop_seconds": 0.0}, "hop_seconds is 0.0"),
        ({"longest_seconds": 9.0}, "longest_seconds is 9.0, expected a window"),
    ],
)
def test_errors(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SEGMENTER, **change)
