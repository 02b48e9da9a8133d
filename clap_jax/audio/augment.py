"""Augmentation of log-mel batches on the device.

Every function is pure, takes a key, draws for each example by itself and keeps the shape,
so that all of it lives inside the compiled training step. Mels are in dB.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from clap_jax.audio import frontend

Key = PRNGKeyArray
Number = float | int
Mel = Float[Array, "B N F"]

MAX_MIXUP_GAIN = 1e4
"""Power gain or loss (40 dB) of a partner in mixup at most: silence is not a sound."""


class Mix(NamedTuple):
    """What mixup did: example b is lam[b] of itself and the rest of partner[b]."""

    lam: Float[Array, " B"]
    partner: Int[Array, " B"]


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
    key: Key, mel: Mel, config: Augment, fill_db: Number = frontend.FLOOR_DB
) -> tuple[Mel, Mix | None]:
    """All augmentations that `config` turns on, in a fixed order.

    mel: [B, N, F] in dB; fill_db: the mel of silence.
    Returns the mel and, when mixup is on, who was mixed with whom.
    """
    keys = jax.random.split(key, 6)
    mix = None
    if config.time_stretch:
        mel = time_stretch(keys[0], mel, config.time_stretch, fill_db)
    if config.time_shift:
        mel = time_shift(keys[1], mel, config.time_shift)
    if config.mel_shift_bins:
        mel = mel_shift(keys[2], mel, config.mel_shift_bins, fill_db)
    if config.gain_db:
        mel = gain(keys[3], mel, config.gain_db, fill_db)
    if config.mixup_alpha:
        mel, *mixed = mixup(keys[4], mel, config.mixup_alpha)
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
    change = _uniform(key, mel, gain_db)[:, None, None].astype(mel.dtype)
    return jnp.where(mel <= fill_db, mel, jnp.maximum(mel + change, fill_db))


def time_shift(key: Key, mel: Mel, fraction: Number) -> Mel:
    """Roll along time by a uniform shift of up to `fraction` of the clip either way."""
    frames = mel.shape[1]
    shift = jnp.round(_uniform(key, mel, fraction) * frames).astype(jnp.int32)
    index = (jnp.arange(frames) - shift[:, None]) % frames
    return jnp.take_along_axis(mel, index[:, :, None], axis=1)


def time_stretch(
    key: Key, mel: Mel, fraction: Number, fill_db: Number = frontend.FLOOR_DB
) -> Mel:
    """Play faster or slower by up to `fraction` around the middle of the clip.

    Frames are linearly interpolated; those from outside the clip are `fill_db`.
    """
    frames = mel.shape[1]
    speed = 1 + _uniform(key, mel, fraction)[:, None]
    middle = (frames - 1) / 2
    position = middle + (jnp.arange(frames) - middle) * speed
    inside = (position >= 0) & (position <= frames - 1)
    left = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, frames - 1)
    weight = (position - left)[:, :, None].astype(mel.dtype)
    right = jnp.minimum(left + 1, frames - 1)
    before = jnp.take_along_axis(mel, left[:, :, None], axis=1)
    after = jnp.take_along_axis(mel, right[:, :, None], axis=1)
    stretched = before + weight * (after - before)
    return jnp.where(inside[:, :, None], stretched, jnp.asarray(fill_db, mel.dtype))


def mel_shift(
    key: Key, mel: Mel, bins: int, fill_db: Number = frontend.FLOOR_DB
) -> Mel:
    """Move the spectrum by -bins .. bins mel bands; uncovered bands are `fill_db`."""
    batch, _, mels = mel.shape
    shift = jax.random.randint(key, (batch,), -bins, bins + 1)
    index = jnp.arange(mels) - shift[:, None]
    inside = ((index >= 0) & (index < mels))[:, None, :]
    index = jnp.clip(index, 0, mels - 1)[:, None, :]
    moved = jnp.take_along_axis(mel, index, axis=2)
    return jnp.where(inside, moved, jnp.asarray(fill_db, mel.dtype))


def mixup(
    key: Key, mel: Mel, alpha: Number
) -> tuple[Mel, Float[Array, " B"], Int[Array, " B"]]:
    """Mix the power of every clip with that of a random other clip of the batch.

    The partner is brought to the clip's own mean power first (by 40 dB at most), so that
    lam says how much of each is heard and the loudness of the clip stays.
    Returns the mel, lam [B] ~ Beta(alpha, alpha), the weight of the clip itself, and
    partner [B], a permutation of the batch: the targets of the loss mix the same way.
    """
    batch = mel.shape[0]
    lam_key, partner_key = jax.random.split(key)
    lam = jax.random.beta(lam_key, alpha, alpha, (batch,), jnp.float32)
    partner = jax.random.permutation(partner_key, batch)
    power = 10 ** (mel.astype(jnp.float32) / 10)
    level = power.mean(axis=(1, 2))
    match = jnp.clip(level / level[partner], 1 / MAX_MIXUP_GAIN, MAX_MIXUP_GAIN)
    mixed = (
        lam[:, None, None] * power + ((1 - lam) * match)[:, None, None] * power[partner]
    )
    mixed = 10 * jnp.log10(jnp.maximum(mixed, frontend.FLOOR_POWER))
    return mixed.astype(mel.dtype), lam, partner


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
