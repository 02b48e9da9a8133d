"""Augmentation: what it keeps, what it changes, how often."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import augment

KEY = jax.random.key(0)
FILL_DB = -100.0
EVERYTHING = augment.Augment(
    gain_db=10,
    time_shift=0.5,
    time_stretch=0.28,
    mel_shift_bins=2,
    mixup_alpha=0.4,
    time_stripes=2,
    time_stripe_frames=16,
    mel_stripes=2,
)
ALONE = {
    field.name: augment.Augment(**{field.name: getattr(EVERYTHING, field.name)})
    for field in dataclasses.fields(augment.Augment)
    if not field.name.endswith(("stripe_frames", "stripe_bins"))
}


@pytest.fixture(scope="module")
def mel():
    return jax.random.uniform(KEY, (8, 50, 24), minval=-80, maxval=10)


def power(mel):
    return 10 ** (np.asarray(mel, np.float64) / 10)


def test_nothing_happens_by_default(mel):
    result, mix = augment.augment(KEY, mel, augment.Augment(), FILL_DB)
    assert result is mel and mix is None


@pytest.mark.parametrize(
    "name", [*sorted(ALONE.keys() - {"mixup_alpha"}), "everything"]
)
def test_shape_dtype_and_key(mel, name):
    config = ALONE.get(name, EVERYTHING)
    run = jax.jit(lambda key, mel: augment.augment(key, mel, config, FILL_DB))
    result, mix = run(KEY, mel)
    assert result.shape == mel.shape and result.dtype == mel.dtype
    assert np.isfinite(result).all()
    # Every example is treated in a way of its own, and every key gives another one.
    assert not np.array_equal(result, mel)
    assert not np.array_equal(result, run(jax.random.key(1), mel)[0])
    np.testing.assert_array_equal(result, run(KEY, mel)[0])
    assert (mix is not None) == bool(config.mixup_alpha)


# Not mixup: a mixture of a clip with itself is that clip.
@pytest.mark.parametrize("name", sorted(ALONE.keys() - {"mixup_alpha"}))
def test_examples_are_treated_differently(mel, name):
    same = jnp.broadcast_to(mel[:1], mel.shape)
    result, _ = augment.augment(KEY, same, ALONE[name], FILL_DB)
    assert len(np.unique(np.asarray(result).reshape(8, -1), axis=0)) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"gain_db": -1}, "gain_db is -1"), ({"time_stretch": 1}, "expected below 1")],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        augment.Augment(**change)


def test_spec_augment_stripes_follow_torchlibrosa():
    """Width uniform in 0 .. width - 1, start uniform in 0 .. size - width - 1."""
    mel = jnp.ones((4000, 100, 20))
    result = augment.spec_augment(KEY, mel, 1, 8, 0, 0, value=-7.0)
    hit = np.asarray(result[:, :, 0] == -7)
    widths = hit.sum(1)
    shares = np.bincount(widths, minlength=8) / len(widths)
    assert len(shares) == 8
    np.testing.assert_allclose(shares, 1 / 8, atol=0.02)
    starts = hit.argmax(1)[widths == 7]
    assert starts.min() == 0 and starts.max() == 92
    assert abs(starts.mean() - 46) < 4
    # One stripe: nothing between its ends is spared.
    assert (np.abs(np.diff(hit.astype(int), axis=1)).sum(1) <= 2).all()


def test_spec_augment_covers_whole_frames_and_bands(mel):
    result = augment.spec_augment(KEY, mel, 2, 10, 2, 5, value=0.0)
    hit = np.asarray(result != mel)
    frames, bands = hit.all(axis=2), hit.all(axis=1)
    np.testing.assert_array_equal(hit, frames[:, :, None] | bands[:, None, :])
    assert (np.asarray(result)[hit] == 0).all()
    assert frames.sum(1).max() <= 18 and bands.sum(1).max() <= 8
    assert 0 < frames.mean() < 0.3 and 0 < bands.mean() < 0.3


def test_spec_augment_is_the_same_for_all_views_of_a_clip(mel):
    views = jnp.stack([mel, mel + 1, mel + 2], axis=1)
    result = augment.spec_augment(KEY, views, value=500.0, time_width=10)
    hit = np.asarray(result == 500)
    assert hit.any()
    for view in (1, 2):
        np.testing.assert_array_equal(hit[:, view], hit[:, 0])
    alone = augment.spec_augment(KEY, mel, value=500.0, time_width=10)
    np.testing.assert_array_equal(result[:, 0], alone)


def test_stripes_wider_than_the_mel_leave_something():
    result = augment.spec_augment(KEY, jnp.ones((64, 10, 4)), 1, 64, 1, 8)
    assert np.asarray(result).any(axis=(1, 2)).all()


def test_gain_moves_all_but_silence(mel):
    quiet = mel.at[:, :5].set(FILL_DB)
    change = np.asarray(augment.gain(KEY, quiet, 10) - quiet)
    assert (change[:, :5] == 0).all()
    assert np.ptp(change[:, 5:], axis=(1, 2)).max() < 1e-4
    assert np.abs(change).max() <= 10 and np.abs(change[:, 5, 0]).std() > 1
    near = jnp.full((64, 2, 2), FILL_DB + 1)
    assert augment.gain(KEY, near, 10).min() == FILL_DB


def test_time_shift_is_a_roll(mel):
    result = np.asarray(augment.time_shift(KEY, mel, 0.5))
    shifts = set()
    for before, after in zip(np.asarray(mel), result, strict=True):
        rolls = [
            shift for shift in range(50) if (np.roll(before, shift, 0) == after).all()
        ]
        shifts.update(rolls)
        assert len(rolls) == 1
    assert len(shifts) > 4
    little = np.asarray(augment.time_shift(KEY, mel, 0.04))
    for before, after in zip(np.asarray(mel), little, strict=True):
        assert any((np.roll(before, s, 0) == after).all() for s in range(-2, 3))


def test_time_stretch_scales_time_around_the_middle():
    """On a mel that rises by one dB a frame, the slope is the speed."""
    ramp = jnp.broadcast_to(jnp.arange(101.0)[None, :, None], (64, 101, 3))
    result = np.asarray(augment.time_stretch(KEY, ramp, 0.28))
    np.testing.assert_allclose(result[:, 50], 50, atol=1e-4)
    speed = result[:, 51, 0] - result[:, 50, 0]
    assert speed.min() > 0.72 and speed.max() < 1.28 and speed.std() > 0.1
    expected = 50 + (np.arange(101) - 50) * speed[:, None]
    inside = (expected > 0.01) & (expected < 99.99)
    np.testing.assert_allclose(result[inside][:, 0], expected[inside], atol=0.02)
    outside = (expected < -0.01) | (expected > 100.01)
    assert outside.any() and (result[outside] == FILL_DB).all()


def test_time_stretch_of_nothing_changes_nothing(mel):
    np.testing.assert_array_equal(augment.time_stretch(KEY, mel, 0), mel)


def test_mel_shift_moves_bands_and_fills(mel):
    result = np.asarray(augment.mel_shift(KEY, jnp.tile(mel, (8, 1, 1)), 2))
    found = set()
    for before, after in zip(np.tile(mel, (8, 1, 1)), result, strict=True):
        for shift in range(-2, 3):
            moved = np.full_like(before, FILL_DB)
            to, since = max(shift, 0), max(-shift, 0)
            moved[:, to : 24 - since] = before[:, since : 24 - to]
            if (moved == after).all():
                found.add(shift)
                break
        else:
            raise AssertionError("not a shift by -2 .. 2 bands")
    assert found == {-2, -1, 0, 1, 2}


@pytest.fixture(scope="module")
def mixed():
    """(mel, mixed mel, lam, partner) of 2000 clips, every fifth of them silent."""
    mel = jax.random.uniform(KEY, (2000, 6, 4), minval=-80, maxval=10)
    mel = (mel - jnp.arange(2000)[:, None, None] % 30).at[::5].set(FILL_DB)
    mix = jax.jit(lambda key, mel: augment.mixup(key, mel, 0.4))
    return tuple(map(np.asarray, (mel, *mix(KEY, mel))))


def test_mixup_keeps_levels_and_weighs_by_lam(mixed):
    mel, result, lam, partner = mixed
    before = power(mel)
    level = before.mean((1, 2), keepdims=True)
    both = ((level > 1e-9) & (level[partner] > 1e-9))[:, 0, 0]
    weight = lam[:, None, None].astype(np.float64)
    matched = before[partner] / level[partner] * level
    expected = (weight * before + (1 - weight) * matched)[both]
    np.testing.assert_allclose(power(result[both]), expected, rtol=1e-3, atol=1e-10)
    loudness = power(result[both]).mean((1, 2))
    np.testing.assert_allclose(loudness, level[both, 0, 0], rtol=1e-4)


def test_mixup_weights_are_beta_distributed(mixed):
    _, _, lam, partner = mixed
    assert ((lam >= 0) & (lam <= 1)).all()
    assert abs(lam.mean() - 0.5) < 0.03
    assert abs(lam.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # of Beta(0.4, 0.4)
    assert sorted(partner) == list(range(2000))
    assert (partner != np.arange(2000)).mean() > 0.99


def test_mixup_does_not_turn_silence_into_noise(mixed):
    """A silent partner is raised by 40 dB at most: a clip just gets quieter."""
    mel, result, lam, partner = mixed
    assert np.isfinite(result).all() and result.min() >= FILL_DB - 1e-4
    index = np.arange(2000)
    chosen = (index % 5 > 0) & (partner % 5 == 0) & (lam > 0.1)
    assert chosen.sum() > 100
    expected = mel[chosen] + 10 * np.log10(lam[chosen])[:, None, None]
    loud = mel[chosen] > -30
    np.testing.assert_allclose(result[chosen][loud], expected[loud], atol=0.05)


def test_half_precision_mels_stay_so(mel):
    config = dataclasses.replace(EVERYTHING, mixup_alpha=0)
    result, _ = augment.augment(KEY, mel.astype(jnp.float16), config, FILL_DB)
    assert result.dtype == jnp.float16 and np.isfinite(result).all()


# --- four views of a clip ---

BY_NAME = pytest.mark.parametrize("name", [*sorted(ALONE), "everything"])


@BY_NAME
def test_equal_views_stay_equal_and_are_what_one_would_be(mel, name):
    config = ALONE.get(name, EVERYTHING)
    run = jax.jit(lambda mel: augment.augment(KEY, mel, config, FILL_DB)[0])
    alone, views = run(mel), run(jnp.repeat(mel[:, None], 4, axis=1))
    for view in range(4):
        np.testing.assert_allclose(views[:, view], alone, rtol=0, atol=2e-4)


def test_views_are_mixed_at_the_levels_of_the_global_one(mel):
    """One gain for a pair: what is loud in one window stays loud."""
    views = jnp.stack([mel, mel + 7, mel - 3, mel - 11], axis=1)
    mixed, lam, partner = augment.mixup(KEY, views, 0.4)
    before = power(views)
    level = before[:, 0].mean((1, 2))
    match = (level / level[partner])[:, None, None, None]
    weight = np.asarray(lam, np.float64)[:, None, None, None]
    expected = weight * before + (1 - weight) * match * before[partner]
    np.testing.assert_allclose(power(mixed), expected, rtol=1e-3, atol=1e-10)


# --- clips of unequal lengths ---

LENGTHS = np.array([50, 10, 25, 49, 2, 33, 50, 17], np.int32)
FRAMES = jnp.asarray(LENGTHS)
SILENT = np.arange(50) >= LENGTHS[:, None]


@pytest.fixture(scope="module")
def unequal(mel):
    return jnp.where(SILENT[:, :, None], FILL_DB, mel)


@BY_NAME
def test_padding_stays_silent(unequal, name):
    config = ALONE.get(name, EVERYTHING)
    result, mix = augment.augment(KEY, unequal, config, FILL_DB, FRAMES)
    silent = SILENT
    if mix is not None:
        silent = np.arange(50) >= np.asarray(mix.longest(FRAMES))[:, None]
    np.testing.assert_allclose(np.asarray(result)[silent], FILL_DB, atol=1e-4)
    assert np.isfinite(result).all()


def test_a_short_clip_is_shifted_within_itself(unequal):
    result = np.asarray(augment.time_shift(KEY, unequal, 0.5, FRAMES))
    moved = 0
    for before, after, frames in zip(np.asarray(unequal), result, LENGTHS, strict=True):
        before, after = before[:frames], after[:frames]
        rolls = [s for s in range(frames) if (np.roll(before, s, 0) == after).all()]
        assert len(rolls) == 1
        moved += rolls[0] > 0
    assert moved >= 5


def test_a_short_clip_is_stretched_around_its_own_middle():
    ramp = jnp.broadcast_to(jnp.arange(101.0)[None, :, None], (64, 101, 3))
    frames = jnp.full(64, 41)
    result = np.asarray(augment.time_stretch(KEY, ramp, 0.28, FILL_DB, frames))
    np.testing.assert_allclose(result[:, 20], 20, atol=1e-4)
    speed = result[:, 21, 0] - result[:, 20, 0]
    assert speed.std() > 0.1 and (result[:, 41:] == FILL_DB).all()
    expected = 20 + (np.arange(41) - 20) * speed[:, None]
    inside = (expected > 0.01) & (expected < 39.99)
    np.testing.assert_allclose(
        result[:, :41][inside][:, 0], expected[inside], atol=0.02
    )


def test_levels_of_short_clips_do_not_count_padding(unequal):
    """As if each clip were cut to its length."""
    mixed, lam, partner = augment.mixup(KEY, unequal, 0.4, FRAMES)
    before = power(unequal)
    before[SILENT] = 0
    level = np.array([x[:n].mean() for x, n in zip(before, LENGTHS, strict=True)])
    match = (level / level[partner])[:, None, None]
    weight = np.asarray(lam, np.float64)[:, None, None]
    expected = weight * before + (1 - weight) * match * before[partner]
    expected = np.maximum(expected, 1e-10)
    np.testing.assert_allclose(power(mixed), expected, rtol=1e-3)


def test_a_mixture_is_as_long_as_the_longer_of_the_two():
    mix = augment.Mix(jnp.ones(3), jnp.array([1, 2, 0]))
    assert mix.longest(jnp.array([5, 2, 9])).tolist() == [5, 9, 9]
    longer = mix.either(jnp.array([True, False, False]))
    assert longer.tolist() == [True, False, True]
