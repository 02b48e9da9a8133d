"""Sound generators: building blocks, and every attribute measured from the sound."""

import numpy as np
import pytest

from clap_jax.pipeline import sounds
from clap_jax.pipeline.scenes import CATALOGUE, KINDS, render

RATE_HZ = 16_000
SAMPLES = 40_960  # 2.56 s


def named(name):
    return CATALOGUE[KINDS.index(name)]


def renders(kind, value, clips=6, samples=SAMPLES):
    for seed in range(clips):
        yield render(kind, value, np.random.default_rng(seed), samples, RATE_HZ)


def spectrum(wave, window=4096):
    """Mean power spectrum and its frequencies in Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[:: window // 4]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    return power.mean(axis=0), np.fft.rfftfreq(window, 1 / RATE_HZ)


def fundamental_hz(wave):
    """Frequency of the lowest spectral peak within 12 dB of the highest."""
    power, frequency = spectrum(wave)
    strong = np.flatnonzero(power > power.max() * 10**-1.2)
    edge = strong[0]
    while power[edge + 1] > power[edge]:
        edge += 1
    return frequency[edge]


def frequency_track(wave, window=512, hop=160):
    """Strongest frequency of each 10 ms, in Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    padded = np.fft.rfft(frames * np.hanning(window), n=2048, axis=1)
    return np.abs(padded).argmax(axis=1) * RATE_HZ / 2048


def envelope_db(wave, window=320, hop=80):
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    return 10 * np.log10((frames.astype(np.float64) ** 2).mean(axis=1) + 1e-9)


def onsets(wave, rise_db=5.0, rest=18):
    """Blocks of 5 ms at which the level climbs by `rise_db` within 50 ms."""
    level = envelope_db(np.pad(wave, (1600, 0)))
    found = []
    for block in range(10, len(level)):
        climbed = level[block] - level[block - 10 : block].min() > rise_db
        rested = not found or block - found[-1] > rest
        if climbed and rested and level[block] > level.max() - 16:
            found.append(block)
    return found


def strongest_rate_hz(curve, step_seconds, low_hz, high_hz):
    power = np.abs(np.fft.rfft((curve - curve.mean()) * np.hanning(len(curve)), 8192))
    frequency = np.fft.rfftfreq(8192, step_seconds)
    inside = (frequency > low_hz) & (frequency < high_hz)
    return frequency[inside][power[inside].argmax()]


# --- building blocks ---


def test_cycles_of_constant_and_of_changing_frequency_agree():
    constant = sounds.cycles(440.0, 1000, RATE_HZ)
    changing = sounds.cycles(np.full(1000, 440.0), 1000, RATE_HZ)
    turn = np.float32(440 / RATE_HZ)  # a running sum starts one step later
    difference = changing - constant - turn
    assert np.abs(difference - np.round(difference)).max() < 1e-5
    assert constant.dtype == np.float32 and 0 <= constant.min() <= constant.max() <= 1


def test_harmonics_are_the_sum_of_sines():
    phase = sounds.cycles(123.4, 2000, RATE_HZ)
    expected = 0.8 * sounds.sine(phase) + 0.3 * np.sin(6 * np.pi * phase)
    wave = sounds.harmonics(phase, [0.8, 0, 0.3])
    np.testing.assert_allclose(wave, expected, atol=5e-3)


@pytest.mark.parametrize(
    "shape, passed_hz, stopped_hz",
    [("low", 100, 6000), ("high", 6000, 100), ("band", 1000, 60)],
)
def test_biquad_passes_and_stops(shape, passed_hz, stopped_hz):
    def gain(frequency_hz):
        tone = sounds.sine(sounds.cycles(frequency_hz, 8000, RATE_HZ))
        filtered = sounds.biquad(tone, shape, 1000, 0.7, RATE_HZ)
        assert filtered.dtype == np.float32
        return np.std(filtered[2000:]) / np.std(tone)

    assert gain(passed_hz) == pytest.approx(1, abs=0.1)
    assert gain(stopped_hz) < 0.1


def test_level_is_the_loudest_twenty_milliseconds():
    tone = np.sqrt(2) * sounds.sine(sounds.cycles(1000, 16_000, RATE_HZ))
    assert sounds.level(tone, RATE_HZ) == pytest.approx(1, rel=1e-3)
    burst = np.zeros(16_000, np.float32)
    burst[3200:3520] = tone[:320]
    assert sounds.level(burst, RATE_HZ) == pytest.approx(1, rel=1e-3)


def test_fade_leaves_the_middle_and_silences_the_ends():
    wave = np.ones(2000, np.float32)
    faded = sounds.fade(wave, RATE_HZ)
    assert faded[0] == faded[-1] == 0 and (faded[128:-128] == 1).all()
    assert (wave == 1).all()


def test_place_cuts_at_the_end():
    strikes = [np.ones(4, np.float32)] * 3
    wave = sounds.place(10, [0, 2, 9], strikes)
    np.testing.assert_array_equal(wave, [1, 1, 2, 2, 1, 1, 0, 0, 0, 1])


# --- every kind ---


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.name)
def test_renders_at_unit_level_with_silent_ends(kind):
    for rate_hz, samples in ((16_000, 17_000), (22_050, 50_001), (48_000, 122_880)):
        for value in kind.values:
            rng = np.random.default_rng(samples)
            wave = render(kind, value, rng, samples, rate_hz)
            assert wave.dtype == np.float32 and wave.shape == (samples,)
            assert np.isfinite(wave).all()
            assert sounds.level(wave, rate_hz) == pytest.approx(1, rel=1e-3)
            assert wave[0] == wave[-1] == 0
            assert np.abs(wave).max() < 7.5  # -18 dBFS and 0.5 dB stay below 1


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.name)
def test_no_two_renders_are_alike(kind):
    first, second = renders(kind, kind.values[-1], clips=2)
    similarity = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(similarity) < 0.98


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.name)
def test_sustained_kinds_sound_throughout(kind):
    if kind.sustained:
        for value in kind.values:
            for wave in renders(kind, value, clips=3):
                level = envelope_db(wave, window=12_800, hop=1600)  # slow ticks fit
                assert level.min() > level.max() - 12


def test_an_unknown_value_is_an_error():
    with pytest.raises(KeyError, match="slow"):
        render(named("bell"), "slow", np.random.default_rng(0), SAMPLES, RATE_HZ)


@pytest.mark.parametrize(
    "name", ["pure tone", "buzzer", "whistle", "organ chord", "engine hum"]
)
@pytest.mark.parametrize("value", ["low", "high"])
def test_pitch_is_the_fundamental(name, value):
    kind = named(name)
    low_hz, high_hz = kind.ranges[value]
    for wave in renders(kind, value):
        assert low_hz * 0.93 < fundamental_hz(wave) < high_hz * 1.07


@pytest.mark.parametrize("name, sign", [("rising sweep", 1), ("falling sweep", -1)])
@pytest.mark.parametrize("value", ["low", "high"])
def test_sweeps_move_their_way_around_their_pitch(name, sign, value):
    kind = named(name)
    low_hz, high_hz = kind.ranges[value]
    for wave in renders(kind, value):
        octaves = np.log2(frequency_track(wave)[2:-2])
        assert sign * (octaves[-1] - octaves[0]) > 1.5
        assert low_hz * 0.9 < 2 ** octaves.mean() < high_hz * 1.1


def test_values_of_an_attribute_are_an_octave_apart():
    for kind in CATALOGUE:
        if kind.attribute in ("pitch", "rate"):
            below, above = kind.ranges.values()
            assert above[0] >= 2 * below[1]


@pytest.mark.parametrize(
    "name", ["ticking clock", "cricket trill", "beeping alarm", "footsteps"]
)
@pytest.mark.parametrize("value", ["slow", "fast"])
def test_rate_is_events_a_second(name, value):
    kind = named(name)
    low, high = kind.ranges[value]
    for wave in renders(kind, value):
        found = onsets(wave, rest=12)[1:-1]  # a pulse may be cut at either end
        measured = (len(found) - 1) / ((found[-1] - found[0]) * 0.005)
        assert low * 0.93 < measured < high * 1.07


@pytest.mark.parametrize("value", ["slow", "fast"])
def test_rate_of_the_helicopter_is_chops_a_second(value):
    kind = named("helicopter")
    low, high = kind.ranges[value]
    for wave in renders(kind, value):
        envelope = 10 ** (envelope_db(wave) / 20)
        measured = strongest_rate_hz(envelope, 0.005, 3, 25)
        assert low * 0.93 < measured < high * 1.07


@pytest.mark.parametrize("value", ["slow", "fast"])
def test_rate_of_the_siren_is_turns_a_second(value):
    kind = named("siren")
    low, high = kind.ranges[value]
    for wave in renders(kind, value):
        measured = strongest_rate_hz(np.log2(frequency_track(wave)), 0.01, 0.6, 8)
        assert low * 0.85 < measured < high * 1.15


@pytest.mark.parametrize(
    "name", [kind.name for kind in CATALOGUE if kind.attribute == "count"]
)
@pytest.mark.parametrize("value, number", [("one", 1), ("two", 2), ("three", 3)])
def test_count_is_the_number_of_onsets(name, value, number):
    for samples in (SAMPLES, int(1.1 * RATE_HZ)):
        for wave in renders(named(name), value, samples=samples):
            assert len(onsets(wave)) == number
