"""Augmentation of log-mel batches on the device.

Every function is pure, takes a key, draws for each example by itself and keeps the shape,
so that all of it lives inside the compiled training step. Mels are in dB.

Mels may be [B, V, N, F], views of one clip: they all get what the example drew, so that
equal views stay equal. A shift or a stretch is then one of each window, not of the clip
behind them; that the global view is faster does not matter for what is heard. Where
`frames` [B] says how many frames are of the clip, time is shifted and stretched within
these, and the padding behind them stays as it is.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from clap_jax.audio import frontend

Key = PRNGKeyArray
Number = float | int
Mel = Float[Array, "B *views N F"]
Frames = Int[Array, " B"] | None

MAX_MIXUP_GAIN = 1e4
"""Power gain or loss (40 dB) of a partner in mixup at most: silence is not a sound."""


class Mix(NamedTuple):
    """What mixup did: example b is lam[b] of itself and the rest of partner[b]."""

    lam: Float[Array, " B"]
    partner: Int[Array, " B"]

    def either(self, flags: Bool[Array, " B"]) -> Bool[Array, " B"]:
        """Whether one of the two is: a mixture is longer than the window if one is."""
        return flags | flags[self.partner]

    def longest(self, frames: Int[Array, " B"]) -> Int[Array, " B"]:
        """The larger number of the two: a mixture ends when both have ended."""
        return jnp.maximum(frames, frames[self.partner])


@dataclasses.dataclass(frozen=True)
class Augment:
    """Which augmentations run, and how strongly. All are off by default.

    gain_db: loudness changes by up to this, up or down.
    time_shift: roll by up to this fraction of the clip, either way (0.5: anywhere).
    time_stretch: speed changes by up to this fraction, pitch does not.
    mel_shift_bins: spectrum moves by up to this many mel bands, up or down.
    mixup_alpha: weights of the two mixed clips come from Beta(alpha, alpha).
    time_stripes, time_stripe_frames: how many stripes of silence, each narrower than
        so many frames.
    mel_stripes, mel_stripe_bins: the same over mel bands.
    """

    gain_db: Number = 0.0
    time_shift: Number = 0.0
    time_stretch: Number = 0.0
    mel_shift_bins: int = 0
    mixup_alpha: Number = 0.0
    time_stripes: int = 0
    time_stripe_frames: int = 64
    mel_stripes: int = 0
    mel_stripe_bins: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                value = getattr(self, field.name)
                raise ValueError(f"{field.name} is {value}, expected 0 or more")
        if self.time_stretch >= 1:
            raise ValueError(f"time_stretch is {self.time_stretch}, expected below 1")


def augment(
    key: Key,
    mel: Mel,
    config: Augment,
    fill_db: Number = frontend.FLOOR_DB,
    frames: Frames = None,
) -> tuple[Mel, Mix | None]:
    """All augmentations that `config` turns on, in a fixed order.

    mel: [B, N, F] or [B, V, N, F] in dB; fill_db: the mel of silence; frames: int32 [B],
    see above, all when None.
    Returns the mel and, when mixup is on, who was mixed with whom.
    """
    keys = jax.random.split(key, 6)
    mix = None
    if config.time_stretch:
        mel = time_stretch(keys[0], mel, config.time_stretch, fill_db, frames)
    if config.time_shift:
        mel = time_shift(keys[1], mel, config.time_shift, frames)
    if config.mel_shift_bins:
        mel = mel_shift(keys[2], mel, config.mel_shift_bins, fill_db)
    if config.gain_db:
        mel = gain(keys[3], mel, config.gain_db, fill_db)
    if config.mixup_alpha:
        mel, *mixed = mixup(keys[4], mel, config.mixup_alpha, frames)
        mix = Mix(*mixed)
    if config.time_stripes or config.mel_stripes:
        mel = spec_augment(
            keys[5],
            mel,
            time_stripes=config.time_stripes,
            time_width=config.time_stripe_frames,
            mel_stripes=config.mel_stripes,
            mel_width=config.mel_stripe_bins,
            value=fill_db,
        )
    return mel, mix


def spec_augment(
    key: Key,
    mel: Float[Array, "B *views N F"],
    time_stripes: int = 2,
    time_width: int = 64,
    mel_stripes: int = 2,
    mel_width: int = 8,
    value: Number = 0.0,
) -> Float[Array, "B *views N F"]:
    """Overwrite random stripes of frames and of mel bands with `value`.

    torchlibrosa's rule, which LAION-CLAP and MS-CLAP train with: each stripe is
    0 .. width - 1 wide, uniformly, and starts uniformly in 0 .. size - its width - 1.
    All views of one example get the same stripes.
    """
    time_key, mel_key = jax.random.split(key)
    batch, frames, mels = mel.shape[0], mel.shape[-2], mel.shape[-1]
    drop_frames = _stripes(time_key, batch, frames, time_stripes, time_width)
    drop_mels = _stripes(mel_key, batch, mels, mel_stripes, mel_width)
    drop = drop_frames[:, :, None] | drop_mels[:, None, :]
    views = mel.ndim - 3
    drop = drop.reshape(batch, *(1,) * views, frames, mels)
    return jnp.where(drop, jnp.asarray(value, mel.dtype), mel)


def gain(
    key: Key, mel: Mel, gain_db: Number, fill_db: Number = frontend.FLOOR_DB
) -> Mel:
    """Change loudness by U(-gain_db, gain_db); silence stays silence."""
    change = _per_example(_uniform(key, mel, gain_db), mel).astype(mel.dtype)
    return jnp.where(mel <= fill_db, mel, jnp.maximum(mel + change, fill_db))


def time_shift(key: Key, mel: Mel, fraction: Number, frames: Frames = None) -> Mel:
    """Roll along time by a uniform shift of up to `fraction` of the clip either way."""
    place, length = _places(mel, frames)
    shift = jnp.round(_uniform(key, mel, fraction) * length[:, 0]).astype(jnp.int32)
    index = jnp.where(place < length, (place - shift[:, None]) % length, place)
    return _frames_at(mel, index)


def time_stretch(
    key: Key,
    mel: Mel,
    fraction: Number,
    fill_db: Number = frontend.FLOOR_DB,
    frames: Frames = None,
) -> Mel:
    """Play faster or slower by up to `fraction` around the middle of the clip.

    Frames are linearly interpolated; those from outside the clip are `fill_db`.
    """
    place, length = _places(mel, frames)
    speed = 1 + _uniform(key, mel, fraction)[:, None]
    middle = (length - 1) / 2
    position = middle + (place - middle) * speed
    inside = (position >= 0) & (position <= length - 1) & (place < length)
    left = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, length - 1)
    weight = _per_frame(position - left, mel).astype(mel.dtype)
    before = _frames_at(mel, left)
    after = _frames_at(mel, jnp.minimum(left + 1, length - 1))
    stretched = before + weight * (after - before)
    silence = jnp.asarray(fill_db, mel.dtype)
    return jnp.where(_per_frame(inside, mel), stretched, silence)


def mel_shift(
    key: Key, mel: Mel, bins: int, fill_db: Number = frontend.FLOOR_DB
) -> Mel:
    """Move the spectrum by -bins .. bins mel bands; uncovered bands are `fill_db`."""
    batch, mels = mel.shape[0], mel.shape[-1]
    shift = jax.random.randint(key, (batch,), -bins, bins + 1)
    index = _per_example(jnp.arange(mels) - shift[:, None], mel)
    inside = (index >= 0) & (index < mels)
    moved = jnp.take_along_axis(mel, jnp.clip(index, 0, mels - 1), axis=-1)
    return jnp.where(inside, moved, jnp.asarray(fill_db, mel.dtype))


def mixup(
    key: Key, mel: Mel, alpha: Number, frames: Frames = None
) -> tuple[Mel, Float[Array, " B"], Int[Array, " B"]]:
    """Mix the power of every clip with that of a random other clip of the batch.

    The partner is brought to the clip's own mean power first (by 40 dB at most), so that
    lam says how much of each is heard and the loudness of the clip stays. With views,
    each is mixed with its counterpart, all at the levels of the first, the global one.
    Returns the mel, lam [B] ~ Beta(alpha, alpha), the weight of the clip itself, and
    partner [B], a permutation of the batch: the targets of the loss mix the same way.
    """
    batch = mel.shape[0]
    lam_key, partner_key = jax.random.split(key)
    lam = jax.random.beta(lam_key, alpha, alpha, (batch,), jnp.float32)
    partner = jax.random.permutation(partner_key, batch)
    power = 10 ** (mel.astype(jnp.float32) / 10)
    if frames is not None:
        # Not even the floor: it would be raised with the partner, by 40 dB perhaps.
        place, length = _places(mel, frames)
        power = jnp.where(_per_frame(place < length, mel), power, 0)
    level = _level(power, frames)
    match = jnp.clip(level / level[partner], 1 / MAX_MIXUP_GAIN, MAX_MIXUP_GAIN)
    own, other = _per_example(lam, mel), _per_example((1 - lam) * match, mel)
    mixed = own * power + other * power[partner]
    mixed = 10 * jnp.log10(jnp.maximum(mixed, frontend.FLOOR_POWER))
    return mixed.astype(mel.dtype), lam, partner


def _level(power: Mel, frames: Frames) -> Float[Array, " B"]:
    """Mean power of each clip, of its first view."""
    power = power if power.ndim == 3 else power[:, 0]
    if frames is None:
        return power.mean(axis=(1, 2))
    place, length = _places(power, frames)
    return power.mean(axis=(1, 2), where=(place < length)[:, :, None])


def _places(mel: Mel, frames: Frames) -> tuple[Int[Array, " N"], Int[Array, "B 1"]]:
    """Numbers of the frames, and how many of them are of each clip."""
    batch, size = mel.shape[0], mel.shape[-2]
    if frames is None:
        frames = jnp.full(batch, size)
    return jnp.arange(size), frames[:, None]


def _frames_at(mel: Mel, index: Int[Array, "B N"]) -> Mel:
    """Frame index[b, n] of each view of example b, in the place of frame n."""
    return jnp.take_along_axis(mel, _per_frame(index, mel), axis=-2)


def _per_frame(values: Array, mel: Mel) -> Array:
    """[B, N] so that it broadcasts to `mel`."""
    return jnp.expand_dims(values, (*range(1, mel.ndim - 2), mel.ndim - 1))


def _per_example(values: Array, mel: Mel) -> Array:
    """[B] or [B, F] so that it broadcasts to `mel`."""
    return jnp.expand_dims(values, tuple(range(1, mel.ndim + 1 - values.ndim)))


def _uniform(key: Key, mel: Mel, limit: Number) -> Float[Array, " B"]:
    """One number per example, uniform in [-limit, limit)."""
    return jax.random.uniform(
        key, (mel.shape[0],), jnp.float32, minval=-limit, maxval=limit
    )


def _stripes(
    key: Key, batch: int, size: int, stripes: int, width: int
) -> Bool[Array, "B size"]:
    """Which of `size` positions lie in one of the random stripes of each example."""
    if not stripes or not width:
        return jnp.zeros((batch, size), bool)
    width_key, begin_key = jax.random.split(key)
    widths = jax.random.randint(width_key, (batch, stripes), 0, min(width, size))
    begins = jax.random.randint(begin_key, (batch, stripes), 0, size - widths)
    position = jnp.arange(size)[:, None]
    inside = (position >= begins[:, None]) & (position < (begins + widths)[:, None])
    return inside.any(axis=-1)
