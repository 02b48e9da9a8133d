"""The four views of a fused model: which clips have them, where they are cut, resizing."""

import numpy as np
import pytest

from clap_jax.audio import views

FRAMES = 20


def clip(frames, dtype=np.float32):
    """A mel whose cells tell their frame and their band."""
    mel = np.arange(frames)[:, None] + np.arange(3) / 4
    return mel.astype(dtype)


def starts_of(stacked):
    """First frames of the three windows."""
    return tuple(stacked[1:, 0, 0].astype(int))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_clip_of_one_window_comes_four_times(dtype):
    mel = clip(FRAMES, dtype)
    stacked, longer = views.views(mel, FRAMES, rng=np.random.default_rng(0))
    assert longer is False and stacked.dtype == dtype
    np.testing.assert_array_equal(stacked, [mel] * 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_global_comes_first_then_front_middle_back(dtype):
    mel = clip(100, dtype)
    stacked, longer = views.views(mel, FRAMES, starts=(3, 31, 80))
    assert longer is True and stacked.dtype == dtype
    np.testing.assert_array_equal(stacked[0], views.resize(mel, FRAMES))
    for view, start in zip(stacked[1:], (3, 31, 80), strict=True):
        np.testing.assert_array_equal(view, mel[start : start + FRAMES])


@pytest.mark.parametrize("legal", range(2, 12))
def test_thirds_are_those_of_array_split(legal):
    """Larger parts first: 81 starts are 27, 27, 27; 80 are 27, 27, 26."""
    parts = views.thirds(FRAMES + legal - 1, FRAMES)
    assert np.concatenate(parts).tolist() == list(range(legal))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


def test_one_frame_too_many_leaves_the_back_at_the_start():
    """The quirk: of two legal starts, none is left for the last third, which takes 0."""
    stacked, longer = views.views(clip(FRAMES + 1), FRAMES)
    assert longer and starts_of(stacked) == (0, 1, 0)
    stacked, _ = views.views(clip(FRAMES + 1), FRAMES, rng=np.random.default_rng(0))
    assert starts_of(stacked) == (0, 1, 0)


def test_fixed_views_are_the_ends_and_the_centre():
    assert starts_of(views.views(clip(100), FRAMES)[0]) == (0, 40, 80)
    assert starts_of(views.views(clip(101), FRAMES)[0]) == (0, 41, 81)
    assert starts_of(views.views(clip(22), FRAMES)[0]) == (0, 1, 2)


def test_random_views_are_uniform_in_their_thirds():
    rng = np.random.default_rng(0)
    drawn = [starts_of(views.views(clip(49), FRAMES, rng=rng)[0]) for _ in range(3000)]
    for column, third in zip(np.transpose(drawn), (0, 10, 20), strict=True):
        shares = np.bincount(column - third, minlength=10) / len(drawn)
        assert len(shares) == 10
        np.testing.assert_allclose(shares, 0.1, atol=0.025)
    again = np.random.default_rng(0)
    assert starts_of(views.views(clip(49), FRAMES, rng=again)[0]) == drawn[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="19 frames, expected 20 or more"):
        views.views(clip(19), FRAMES)
    for starts in ((0, 1), (0, 40, 81), (-1, 40, 80)):
        with pytest.raises(ValueError, match="expected 3 from 0 to 80"):
            views.views(clip(100), FRAMES, starts=starts)


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@pytest.mark.parametrize("frames", [1002, 1003, 1701, 2602, 9999, 30_001])
def test_resize_is_that_of_torch(frames, antialias):
    import torch

    mel = np.random.default_rng(frames).normal(-40, 20, (frames, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(mel)[None, None],
        size=(1001, 8),
        mode="bilinear",
        align_corners=False,
        antialias=antialias,
    )[0, 0]
    ours = views.resize(mel, 1001, antialias)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_resizing_is_not_just_any():
    """Half-pixel centres; antialias hears all frames, plain resizing every other pair."""
    mel = clip(40)
    plain, smooth = (views.resize(mel, 10, antialias) for antialias in (False, True))
    np.testing.assert_allclose(plain[:, 0], 4 * np.arange(10) + 1.5)
    np.testing.assert_allclose(smooth[1:-1], plain[1:-1], atol=1e-5)
    click = np.zeros((40, 1), np.float32)
    click[19] = 1
    assert not views.resize(click, 10).any()
    np.testing.assert_allclose(views.resize(click, 10, antialias=True).sum(), 0.25)


def test_a_mel_of_the_same_size_stays():
    mel = clip(FRAMES)
    for antialias in (False, True):
        np.testing.assert_array_equal(views.resize(mel, FRAMES, antialias), mel)
