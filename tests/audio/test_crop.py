"""Filling, cropping and windows."""

import numpy as np
import pytest

from clap_jax.audio import crop

WAVE = np.arange(1, 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("repeatpad", [1, 2, 3, 1, 2, 3, 0, 0]),
        ("pad", [1, 2, 3, 0, 0, 0, 0, 0]),
        ("repeat", [1, 2, 3, 1, 2, 3, 1, 2]),
    ],
)
def test_fill(mode, expected):
    filled = crop.fill(WAVE, 8, mode)
    np.testing.assert_array_equal(filled, expected)
    assert filled.dtype == np.float32
    stacked = crop.fill(np.stack([WAVE, -WAVE], axis=1), 8, mode)
    np.testing.assert_array_equal(stacked[:, 1], np.negative(expected))


@pytest.mark.parametrize("mode", ["repeatpad", "pad", "repeat"])
def test_fill_leaves_long_waves_alone(mode):
    assert crop.fill(WAVE, 3, mode) is WAVE
    assert crop.fill(WAVE, 2, mode) is WAVE
    np.testing.assert_array_equal(crop.fill(WAVE.astype(np.int16), 4, mode)[:3], WAVE)


def test_fill_refuses_nonsense():
    with pytest.raises(ValueError, match="fill mode is 'tile'"):
        crop.fill(WAVE, 8, "tile")
    with pytest.raises(ValueError, match="no samples"):
        crop.fill(WAVE[:0], 8, "repeat")


def test_center_crop():
    x = np.arange(10)
    np.testing.assert_array_equal(crop.center_crop(x, 4), [3, 4, 5, 6])
    np.testing.assert_array_equal(crop.center_crop(x, 20), x)
    assert crop.center_crop(np.zeros((9, 3)), 4).shape == (4, 3)


def test_random_crop_reaches_every_start_and_repeats():
    x = np.arange(10)
    rng = np.random.default_rng(0)
    starts = [crop.random_crop(x, 4, rng)[0] for _ in range(500)]
    assert set(starts) == set(range(7))
    again = np.random.default_rng(0)
    assert starts == [crop.random_crop(x, 4, again)[0] for _ in range(500)]
    assert len(crop.random_crop(x, 4, rng)) == 4
    np.testing.assert_array_equal(crop.random_crop(x, 10, rng), x)
    np.testing.assert_array_equal(crop.random_crop(x, 11, rng), x)


def test_windows_cover_all_of_a_wave():
    waves, weights = crop.windows(np.arange(10.0), 4, 3, "pad")
    np.testing.assert_array_equal(waves, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
    np.testing.assert_array_equal(weights, [4, 4, 4])
    waves, weights = crop.windows(np.arange(10.0), 4, 4, "pad")
    np.testing.assert_array_equal(waves[-1], [8, 9, 0, 0])
    np.testing.assert_array_equal(weights, [4, 4, 2])
    assert weights.dtype == np.float32


def test_one_window_for_a_short_wave():
    waves, weights = crop.windows(WAVE, 8, 8, "repeatpad")
    np.testing.assert_array_equal(waves, [[1, 2, 3, 1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(weights, [3])
    assert len(crop.windows(np.arange(8.0), 8, 2, "pad")[0]) == 1


@pytest.mark.parametrize("hop_samples", [0, 5])
def test_windows_with_gaps_are_refused(hop_samples):
    with pytest.raises(ValueError, match="expected 1 to 4"):
        crop.windows(np.arange(10.0), 4, hop_samples, "pad")
