"""Loops: sounds that go on for minutes, of a bar of a few seconds.

A bar is rendered twice and looped with small variations, so that minutes take
milliseconds. What a bar holds is made of the sounds of `clap_jax.pipeline.sounds`.
"""

from collections.abc import Callable

import numpy as np

from clap_jax.pipeline import sounds

Bar = Callable[[np.random.Generator, int, int], np.ndarray]
"""(rng, samples, rate_hz) -> float32 [samples], of any level."""

BAR_SECONDS = 4.0
OVERLAP_SECONDS = 0.05
VARIANTS = 2  # renderings of a bar in a section
GAIN_SPREAD_DB = 1.0  # from one bar to the next

PENTATONIC = 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
BELL_PARTIALS = np.array([1, 1.2, 2.0, 2.74, 4.07, 5.4])  # as of `sounds.bell`


def loop(bar: Bar, rng: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """A section at unit level (see `sounds.level`), faded at both ends.

    The same generator gives the same beginning whatever the length. Returns float32
    [samples].
    """
    overlap = int(OVERLAP_SECONDS * rate_hz)
    length = int(BAR_SECONDS * rate_hz)
    rise = np.linspace(0, 1, overlap, dtype=np.float32)
    variants = []
    for _ in range(VARIANTS):
        variant = bar(rng, length + overlap, rate_hz).astype(np.float32)
        variant /= np.float32(sounds.level(variant, rate_hz))
        variant[:overlap] *= rise
        variant[length:] *= rise[::-1]
        variants.append(variant)
    count = -(-samples // length)
    wave = np.zeros(count * length + overlap, np.float32)
    for i in range(count):
        which, gain_db = rng.integers(VARIANTS), rng.uniform(-1, 1) * GAIN_SPREAD_DB
        gain = np.float32(10 ** (gain_db / 20))
        wave[i * length : (i + 1) * length + overlap] += gain * variants[which]
    return sounds.fade(wave[:samples], rate_hz)


# --- how bars are made ---


def sustained(kind: Callable, low: float = 0.0, high: float = 0.0) -> Bar:
    """A sound of `sounds` that fills its time; low, high: the range of its amount."""
    return lambda rng, samples, rate_hz: kind(
        rng, samples, rate_hz, rng.uniform(low, high)
    )


def beat(strike: Callable, low: float, high: float, jitter: float = 0.01) -> Bar:
    """A strike so often a second; jitter: of the time between two, as a share of it."""

    def bar(rng, samples, rate_hz):
        period = rate_hz / rng.uniform(low, high)
        starts = np.arange(0, samples - 0.02 * rate_hz, period)
        starts += rng.uniform(0, 2 * jitter, len(starts)) * period
        strikes = [
            np.float32(rng.uniform(0.8, 1)) * strike(rng, rate_hz) for _ in starts
        ]
        return sounds.place(samples, np.minimum(starts, samples - 1), strikes)

    return bar


def hit(kind: Callable, length_seconds: float) -> Callable:
    """One strike of a sound of `sounds` that is counted."""
    return lambda rng, rate_hz: kind(rng, int(length_seconds * rate_hz), rate_hz, 1)


def bell(low_hz: float, high_hz: float, ring_seconds: float) -> Callable:
    def strike(rng, rate_hz):
        partials = rng.uniform(low_hz, high_hz) * BELL_PARTIALS
        partials = partials[partials < 0.45 * rate_hz]
        return sounds.modes(
            rng, int(4 * ring_seconds * rate_hz), rate_hz, partials, ring_seconds
        )

    return strike


def pluck(low_hz: float, harmonics: int, ring_seconds: float) -> Callable:
    """A plucked string on a note of the pentatonic scale above `low_hz`."""

    def strike(rng, rate_hz):
        length = int(3 * ring_seconds * rate_hz)
        pitch_hz = low_hz * rng.choice(PENTATONIC)
        phase = sounds.cycles(pitch_hz, length, rate_hz)
        wave = sounds.harmonics(phase, 1 / np.arange(1, harmonics + 1))
        return wave * sounds.decay(length, rate_hz, ring_seconds)

    return strike


def melody(kind: Callable, low_hz: float, note_seconds: float) -> Bar:
    """Notes of a pentatonic scale above `low_hz`, each a sustained sound."""

    def bar(rng, samples, rate_hz):
        length = int(note_seconds * rate_hz)
        notes = [
            sounds.fade(kind(rng, length, rate_hz, low_hz * ratio), rate_hz)
            for ratio in rng.choice(PENTATONIC, -(-samples // length))
        ]
        return np.concatenate(notes)[:samples]

    return bar


def sweeps(kind: Callable, middle_hz: float, seconds: float, noise: float = 0) -> Bar:
    """A sweep again and again, over so much noise."""

    def bar(rng, samples, rate_hz):
        length = int(seconds * rate_hz)
        sweep = sounds.fade(kind(rng, length, rate_hz, middle_hz), rate_hz)
        wave = np.tile(sweep, -(-samples // length))[:samples]
        return wave + np.float32(noise) * sounds.noise(rng, samples)

    return bar
