"""The sound generators of the procedural corpus: one pure function per kind of sound.

A generator is `render(rng, samples, rate_hz, amount) -> float32 [samples]`, of any
level. `amount` is the number that the kind's attribute stands for: Hz for "pitch",
events or cycles a second for "rate", how many for "count", 0 where there is none.
Whatever is not an attribute (timbre, decay, jitter) is drawn from `rng`, so that no two
clips are alike. Everything is vectorised over samples; only events are looped over.
"""

import functools

import numpy as np
from scipy.signal import lfilter

TABLE_SIZE = 4096
HARMONICS = 16
FADE_SECONDS = 0.008
BLOCK_SECONDS = 0.01


# --- building blocks ---


def cycles(frequency_hz, samples: int, rate_hz: int) -> np.ndarray:
    """Phase in cycles modulo 1, float32 [samples], of a constant or per-sample Hz."""
    if np.ndim(frequency_hz) == 0:
        phase = np.arange(samples) * (frequency_hz / rate_hz)
    else:
        phase = np.cumsum(frequency_hz, dtype=np.float64) / rate_hz
    return (phase - np.floor(phase)).astype(np.float32)


def sine(phase: np.ndarray) -> np.ndarray:
    return np.sin(phase * np.float32(2 * np.pi))


@functools.lru_cache(maxsize=1)
def harmonic_tables() -> np.ndarray:
    order = np.arange(1, HARMONICS + 1)[:, None]
    return np.sin(2 * np.pi * order * np.arange(TABLE_SIZE) / TABLE_SIZE)


def harmonics(phase: np.ndarray, amplitudes) -> np.ndarray:
    """A periodic wave with the given amplitudes of harmonics 1, 2, ... by table."""
    weights = np.asarray(amplitudes)[:, None]
    table = (weights * harmonic_tables()[: len(weights)]).sum(axis=0)
    index = (phase * np.float32(TABLE_SIZE)).astype(np.int32) % TABLE_SIZE
    return table.astype(np.float32)[index]


def seconds(samples: int, rate_hz: int) -> np.ndarray:
    return np.arange(samples, dtype=np.float32) / np.float32(rate_hz)


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return rng.standard_normal(samples, dtype=np.float32)


def biquad(
    wave: np.ndarray, shape: str, frequency_hz: float, q: float, rate_hz: int
) -> np.ndarray:
    """Second-order "low", "high" or "band" pass (R. Bristow-Johnson's formulas)."""
    omega = 2 * np.pi * min(frequency_hz, 0.45 * rate_hz) / rate_hz
    cosine, alpha = np.cos(omega), np.sin(omega) / (2 * q)
    if shape == "band":
        b = np.array([alpha, 0.0, -alpha])
    elif shape == "low":
        b = np.array([0.5, 1.0, 0.5]) * (1 - cosine)
    else:
        b = np.array([0.5, -1.0, 0.5]) * (1 + cosine)
    a = np.array([1 + alpha, -2 * cosine, 1 - alpha])
    return lfilter(b / a[0], a / a[0], wave).astype(np.float32)


def wander(
    rng: np.random.Generator, samples: int, rate_hz: int, per_second: float
) -> np.ndarray:
    """A slow curve within [-1, 1] that changes about `per_second` times a second."""
    time = seconds(samples, rate_hz)
    fast, slow = per_second * rng.uniform([0.8, 0.35], [1.2, 0.5])
    phase = rng.uniform(0, 2 * np.pi, 2)
    turn = np.float32(2 * np.pi)
    curve = np.sin(turn * np.float32(fast) * time + np.float32(phase[0]))
    return (curve + np.sin(turn * np.float32(slow) * time + np.float32(phase[1]))) / 2


def decay(samples: int, rate_hz: int, constant: float) -> np.ndarray:
    """exp(-t / constant) with an attack of one millisecond, float32 [samples]."""
    time = seconds(samples, rate_hz)
    return np.exp(time / np.float32(-constant)) * np.minimum(time * 1000, 1)


def fade(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """The wave with both ends ramped, so that it starts and stops with no click."""
    ramp = np.linspace(0, 1, max(2, int(FADE_SECONDS * rate_hz)), dtype=np.float32)
    faded = np.array(wave, np.float32)
    faded[: len(ramp)] *= ramp
    faded[-len(ramp) :] *= ramp[::-1]
    return faded


def level(wave: np.ndarray, rate_hz: int) -> float:
    """RMS of the loudest 20 ms: the same idea of level for a click and for a hum."""
    block = int(BLOCK_SECONDS * rate_hz)
    whole = wave[: len(wave) // block * block].reshape(-1, block)
    energy = np.einsum("bt,bt->b", whole, whole)
    return float(np.sqrt((energy[:-1] + energy[1:]).max() / (2 * block)))


def place(samples: int, starts, strikes: list[np.ndarray]) -> np.ndarray:
    """Sum of short waves at the given starts, cut at the end of the clip."""
    wave = np.zeros(samples, np.float32)
    for start, strike in zip(starts, strikes, strict=True):
        kept = strike[: samples - int(start)]
        wave[int(start) : int(start) + len(kept)] += kept
    return wave


def counted(rng, samples: int, rate_hz: int, count: float, strike: np.ndarray):
    """`count` times a strike, about evenly spaced, anywhere in the clip."""
    number = round(count)
    gaps = rng.uniform(0.27, 0.34) * rng.uniform(0.95, 1.05, number - 1)
    offsets = np.concatenate([[0.0], np.cumsum(gaps)]) * rate_hz
    first = 0.02 * rate_hz
    room = samples - first - offsets[-1] - min(len(strike), 0.25 * rate_hz)
    offsets += first + rng.uniform(0, max(room, 1.0))
    gains = rng.uniform(0.85, 1.0, number).astype(np.float32)
    return place(samples, offsets, [gain * strike for gain in gains])


def pulse_starts(rng, samples: int, rate_hz: int, per_second: float) -> np.ndarray:
    """Starts of a regular train with 3 % of jitter, in samples."""
    period = rate_hz / per_second
    starts = np.arange(rng.uniform(0.02, 0.5) * period, samples, period)
    starts += rng.uniform(-0.03, 0.03, len(starts)) * period
    return np.clip(starts, 0, samples - 1)


def gate(rng, samples: int, rate_hz: int, per_second: float, duty: float):
    """A smooth on-off envelope, `per_second` times a second, float32 [samples]."""
    phase = cycles(per_second, samples, rate_hz) + np.float32(rng.uniform())
    phase -= np.floor(phase)
    edge = np.minimum(phase, duty - phase) * np.float32(rate_hz / per_second)
    return np.clip(edge / np.float32(0.006 * rate_hz), 0, 1)


# --- sounds with a pitch: amount is the fundamental in Hz ---


def pure_tone(rng, samples, rate_hz, amount):
    wave = sine(cycles(amount, samples, rate_hz))
    return wave * (1 + 0.1 * wander(rng, samples, rate_hz, 1.5))


def buzzer(rng, samples, rate_hz, amount):
    amplitudes = np.zeros(7)
    amplitudes[::2] = 1 / np.array([1, 3, 5, 7]) ** rng.uniform(0.4, 0.8)
    wave = harmonics(cycles(amount, samples, rate_hz), amplitudes)
    return wave * (1 + 0.35 * sine(cycles(rng.uniform(24, 30), samples, rate_hz)))


def whistle(rng, samples, rate_hz, amount):
    time = seconds(samples, rate_hz)
    vibrato = sine(cycles(rng.uniform(4.5, 6.5), samples, rate_hz))
    bend = 1 + rng.uniform(0.03, 0.05) * vibrato - 0.15 * np.exp(time / -0.06)
    breath = biquad(noise(rng, samples), "high", 2500, 0.7, rate_hz)
    tone = sine(cycles(amount * bend, samples, rate_hz))
    return tone + np.float32(rng.uniform(0.06, 0.12)) * breath


def organ_chord(rng, samples, rate_hz, amount):
    amplitudes = np.array([1, 0.7, 0.15, 0.5]) * rng.uniform(0.7, 1.3, 4)
    third = rng.choice([2 ** (3 / 12), 2 ** (4 / 12)])
    wave = np.zeros(samples, np.float32)
    for ratio in (1.0, third, 2 ** (7 / 12)):
        detune = ratio * rng.uniform(0.998, 1.002)
        wave += harmonics(cycles(amount * detune, samples, rate_hz), amplitudes)
    return wave * (1 + 0.15 * sine(cycles(rng.uniform(5, 7), samples, rate_hz)))


def engine_hum(rng, samples, rate_hz, amount):
    pitch = amount * (1 + 0.04 * wander(rng, samples, rate_hz, 2.0))
    phase = cycles(pitch, samples, rate_hz)
    amplitudes = np.arange(1, 15) ** -rng.uniform(0.6, 0.9)
    amplitudes *= rng.uniform(0.6, 1.4, 14)
    wave = harmonics(phase, amplitudes)
    puff = 1 + 0.3 * sine(cycles(rng.uniform(9, 13), samples, rate_hz))
    hiss = biquad(noise(rng, samples), "low", 6 * amount, 0.7, rate_hz)
    return wave * puff + np.float32(0.25) * hiss


def rising_sweep(rng, samples, rate_hz, amount):
    span = rng.uniform(3.6, 4.4) ** 0.5
    frequency = np.geomspace(amount / span, amount * span, samples)
    return harmonics(cycles(frequency, samples, rate_hz), [1, rng.uniform(0.05, 0.2)])


def falling_sweep(rng, samples, rate_hz, amount):
    span = rng.uniform(3.6, 4.4) ** 0.5
    frequency = np.geomspace(amount * span, amount / span, samples)
    return harmonics(cycles(frequency, samples, rate_hz), [1, rng.uniform(0.05, 0.2)])


# --- sounds with a rate: amount is cycles or events a second ---


def siren(rng, samples, rate_hz, amount):
    phase = cycles(amount, samples, rate_hz) + np.float32(rng.uniform())
    middle_hz, width = rng.uniform(850, 1000), rng.uniform(0.4, 0.5)
    frequency = middle_hz * np.exp2(width * sine(phase))
    return harmonics(cycles(frequency, samples, rate_hz), [1, 0.3, 0.35, 0.15])


def ticking_clock(rng, samples, rate_hz, amount):
    length = int(0.05 * rate_hz)
    envelope = decay(length, rate_hz, rng.uniform(0.006, 0.009))
    tick_hz = rng.uniform(3300, 4200)
    tick = sine(cycles(tick_hz, length, rate_hz)) * envelope
    tock = sine(cycles(tick_hz * 0.72, length, rate_hz)) * envelope
    starts = pulse_starts(rng, samples, rate_hz, amount)
    return place(samples, starts, [(tick, tock)[i % 2] for i in range(len(starts))])


def helicopter(rng, samples, rate_hz, amount):
    phase = cycles(amount, samples, rate_hz) + np.float32(rng.uniform())
    phase -= np.floor(phase)
    chop = np.exp(phase * np.float32(-rng.uniform(3.0, 4.0)))
    chop *= np.minimum(phase * np.float32(12), 1)
    air = biquad(noise(rng, samples), "band", rng.uniform(170, 240), 0.8, rate_hz)
    return chop * biquad(air, "low", 500, 0.7, rate_hz)


def cricket_trill(rng, samples, rate_hz, amount):
    tone = sine(cycles(rng.uniform(4300, 5200), samples, rate_hz))
    flutter = np.float32(0.6) + np.float32(0.4) * sine(
        cycles(rng.uniform(55, 65), samples, rate_hz)
    )
    return tone * flutter * gate(rng, samples, rate_hz, amount, 0.55)


def beeping_alarm(rng, samples, rate_hz, amount):
    phase = cycles(rng.uniform(900, 1150), samples, rate_hz)
    wave = harmonics(phase, [1, 0, 0.5, 0, 0.3])
    return wave * gate(rng, samples, rate_hz, amount, rng.uniform(0.45, 0.55))


def footsteps(rng, samples, rate_hz, amount):
    length = int(0.12 * rate_hz)
    thump = biquad(noise(rng, length), "low", rng.uniform(160, 230), 0.9, rate_hz)
    scuff = biquad(noise(rng, length), "band", rng.uniform(1500, 2200), 1.0, rate_hz)
    step = thump * decay(length, rate_hz, 0.035)
    step += np.float32(0.12) * scuff * decay(length, rate_hz, 0.03)
    starts = pulse_starts(rng, samples, rate_hz, amount)
    gains = rng.uniform(0.8, 1.0, len(starts)).astype(np.float32)
    return place(samples, starts, [gain * step for gain in gains])


# --- sounds that are counted: amount is how many ---


def modes(rng, length, rate_hz, frequencies_hz, constant):
    """Damped sines; higher ones die sooner, as in struck metal and wood."""
    wave = np.zeros(length, np.float32)
    for order, frequency_hz in enumerate(frequencies_hz):
        gain = np.float32(rng.uniform(0.5, 1.0) / (1 + 0.35 * order))
        envelope = decay(length, rate_hz, constant / (1 + 0.3 * order))
        wave += gain * envelope * sine(cycles(frequency_hz, length, rate_hz))
    return wave


def bell(rng, samples, rate_hz, amount):
    # Hum, prime, tierce, nominal and two upper partials of a church bell.
    partials = rng.uniform(620, 850) * np.array([1, 1.2, 2.0, 2.74, 4.07, 5.4])
    strike = modes(rng, int(0.8 * rate_hz), rate_hz, partials, rng.uniform(0.12, 0.2))
    return counted(rng, samples, rate_hz, amount, strike)


def drum(rng, samples, rate_hz, amount):
    length = int(0.3 * rate_hz)
    time = seconds(length, rate_hz)
    pitch = rng.uniform(70, 100) * (1 + 1.2 * np.exp(time / -0.02))
    strike = sine(cycles(pitch, length, rate_hz))
    strike *= decay(length, rate_hz, rng.uniform(0.07, 0.1))
    skin = noise(rng, length) * decay(length, rate_hz, 0.006)
    return counted(rng, samples, rate_hz, amount, strike + np.float32(0.15) * skin)


def clicking(rng, samples, rate_hz, amount):
    length = int(0.02 * rate_hz)
    burst = np.tanh(2 * noise(rng, length))
    strike = biquad(burst, "high", rng.uniform(300, 900), 0.7, rate_hz)
    strike *= decay(length, rate_hz, rng.uniform(0.004, 0.006))
    return counted(rng, samples, rate_hz, amount, strike)


def knocking(rng, samples, rate_hz, amount):
    length = int(0.15 * rate_hz)
    resonances = rng.uniform(380, 480) * np.array([1, 1.62, 2.4])
    strike = modes(rng, length, rate_hz, resonances, rng.uniform(0.018, 0.028))
    return counted(rng, samples, rate_hz, amount, strike)


def hand_clapping(rng, samples, rate_hz, amount):
    length = int(0.2 * rate_hz)
    burst = decay(length, rate_hz, 0.004)
    envelope = decay(length, rate_hz, rng.uniform(0.03, 0.045)) * np.float32(0.7)
    for delay in rng.uniform([0.007, 0.016], [0.011, 0.022]):
        shift = int(delay * rate_hz)
        envelope[shift:] += burst[:-shift]
    hands = biquad(noise(rng, length), "band", rng.uniform(1200, 1700), 1.6, rate_hz)
    return counted(rng, samples, rate_hz, amount, hands * (envelope + burst))


def laser(rng, samples, rate_hz, amount):
    length = int(rng.uniform(0.16, 0.2) * rate_hz)
    pitch = np.geomspace(rng.uniform(5000, 6000), rng.uniform(350, 500), length)
    strike = harmonics(cycles(pitch, length, rate_hz), [1, 0.25])
    strike = fade(strike * decay(length, rate_hz, 0.12), rate_hz)
    return counted(rng, samples, rate_hz, amount, strike)


def bird(rng, samples, rate_hz, amount):
    length = int(rng.uniform(0.12, 0.16) * rate_hz)
    shape = np.sin(np.linspace(0, np.pi, length, dtype=np.float32))
    pitch = rng.uniform(2600, 3200) * (1 + rng.uniform(0.6, 0.8) * shape)
    strike = sine(cycles(pitch, length, rate_hz)) * shape
    return counted(rng, samples, rate_hz, amount, strike)


def frog(rng, samples, rate_hz, amount):
    length = int(rng.uniform(0.17, 0.2) * rate_hz)
    glottis = cycles(rng.uniform(50, 65), length, rate_hz)
    swell = np.sin(np.linspace(0, np.pi, length, dtype=np.float32))
    throat = np.exp(glottis * np.float32(-4)) * swell
    lower = sine(cycles(rng.uniform(480, 600), length, rate_hz))
    upper = sine(cycles(rng.uniform(1300, 1600), length, rate_hz))
    strike = throat * (lower + np.float32(0.6) * upper)
    return counted(rng, samples, rate_hz, amount, strike)


# --- sounds with no attribute but loudness ---


def white_noise(rng, samples, rate_hz, amount):
    return noise(rng, samples)


def rumble(rng, samples, rate_hz, amount):
    low = biquad(noise(rng, samples), "low", rng.uniform(70, 110), 0.8, rate_hz)
    swell = 1 + 0.5 * wander(rng, samples, rate_hz, 3.0)
    return swell * biquad(low, "low", 160, 0.7, rate_hz)


def wind(rng, samples, rate_hz, amount):
    source = noise(rng, samples)
    gust = np.float32(0.5) + np.float32(0.5) * wander(rng, samples, rate_hz, 1.2)
    lower = biquad(source, "band", rng.uniform(380, 460), 3.0, rate_hz)
    upper = biquad(source, "band", rng.uniform(800, 1000), 3.0, rate_hz)
    return (1 - gust) * lower + gust * upper


def running_water(rng, samples, rate_hz, amount):
    """Bubbles (short tones that rise as they die) by the dozen, over a soft hiss."""
    bubbles = int(rng.uniform(40, 55) * samples / rate_hz)
    time = seconds(int(0.05 * rate_hz), rate_hz)
    pitch = np.exp(rng.uniform(np.log(500), np.log(2800), (bubbles, 1)))
    turns = pitch.astype(np.float32) * (time + 5 * time**2)
    gains = rng.uniform(0.2, 1.0, (bubbles, 1)).astype(np.float32)
    waves = gains * decay(len(time), rate_hz, 0.015) * sine(turns - np.floor(turns))
    starts = rng.integers(0, samples, bubbles)
    hiss = biquad(noise(rng, samples), "high", 1500, 0.7, rate_hz)
    return place(samples, starts, list(waves)) + np.float32(0.06) * hiss


def rain(rng, samples, rate_hz, amount):
    """Hundreds of drops a second, each a short high knock, over a high hiss."""
    count = int(rng.uniform(700, 1000) * samples / rate_hz)
    impulses = np.float32(0.05) * noise(rng, samples)
    impulses[rng.integers(0, samples, count)] += rng.uniform(-1, 1, count)
    drops = biquad(impulses, "high", rng.uniform(3200, 4200), 1.2, rate_hz)
    return biquad(drops, "low", 7000, 0.7, rate_hz)
