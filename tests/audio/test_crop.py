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


def test_even_parts():
    """As few as fit, of about one length: no useless remainder."""
    assert [len(part) for part in crop.even_parts(np.arange(21), 10)] == [7, 7, 7]
    assert [len(part) for part in crop.even_parts(np.arange(20), 10)] == [10, 10]
    parts = crop.even_parts(np.zeros((23, 2)), 10)
    assert [part.shape for part in parts] == [(8, 2), (8, 2), (7, 2)]
    x = np.arange(7)
    (whole,) = crop.even_parts(x, 7)
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(np.concatenate(crop.even_parts(x, 2)), x)


def test_pad():
    padded = crop.pad(np.ones((2, 3), np.float16), 4, -100.0)
    assert padded.dtype == np.float16 and padded.shape == (4, 3)
    assert (padded[:2] == 1).all() and (padded[2:] == -100).all()


def test_static_lengths_are_few_and_near():
    found = [crop.static_length(length) for length in range(1, 30_002)]
    wasted = [size / length - 1 for length, size in enumerate(found, 1)]
    assert min(wasted) == 0 and max(wasted[31:]) <= 0.25
    assert np.mean(wasted[31:]) < 0.11
    assert found[0] == 32 and found[-1] == 32_768 and found[1000] == 1024
    assert len(set(found)) == 41
    assert all(crop.static_length(size) == size for size in set(found))
