"""The procedural corpus: scenes, captions, held-out combinations, and their truth."""

import hashlib
import itertools
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from clap_jax.pipeline import scenes, sounds, synthetic
from clap_jax.pipeline.synthetic import CATALOGUE, KINDS, SyntheticSource

RATE_HZ, SAMPLES = 16_000, 40_960
FORMS = ("single", "then", "over")


def decibels(wave):
    return 20 * np.log10(sounds.level(wave, RATE_HZ))


def layers_of(form, clips):
    """Scenes of a form from the training split, with their parts and their mix."""
    source, found = SyntheticSource(examples=20 * clips), 0
    for index in range(len(source)):
        scene, rng = source.scene(index)
        if scene.form == form and found < clips:
            found += 1
            layers = synthetic.stems(scene, rng, RATE_HZ, SAMPLES)
            yield scene, layers, synthetic.mix(layers, rng)
    assert found == clips


@pytest.fixture(scope="module")
def training_scenes():
    source = SyntheticSource(examples=16_000)
    return [source.scene(index)[0] for index in range(len(source))]


@pytest.fixture(scope="module")
def every_scene():
    return [scene for form in FORMS for scene in scenes.scenes(form)]


# --- examples ---


@pytest.mark.parametrize("split", ["train", "test", "kinds"])
def test_examples_have_the_fields_of_a_source(split):
    source = SyntheticSource(split, examples=60)
    ids = set()
    for example in (source[index] for index in range(len(source))):
        assert set(example) == {"audio", "captions", "tags", "id", "group"}
        wave, rate_hz = example["audio"]
        assert wave.dtype == np.float32 and wave.shape == (SAMPLES,)
        assert rate_hz == RATE_HZ and np.isfinite(wave).all()
        assert 0.003 < np.abs(wave).max() < 1
        assert set(example["tags"]) <= set(KINDS)
        assert len(set(example["captions"])) == len(example["captions"]) >= 7
        ids.add(example["id"])
    assert len(ids) == 60
    assert source.name == f"synthetic_{split}" and source.name in source.description()


def test_an_example_depends_on_split_seed_and_index_alone():
    source = SyntheticSource(examples=100, seed=3)
    wave = source[7]["audio"][0]
    other = pickle.loads(pickle.dumps(SyntheticSource(examples=9, seed=3)))
    for index in (0, 8, 7):
        repeated = other[np.int64(index)]
    np.testing.assert_array_equal(repeated["audio"][0], wave)
    assert repeated["captions"] == source[7]["captions"]
    assert repeated["id"] == source[7]["id"]
    for different in (
        source[8],
        SyntheticSource(examples=100, seed=4)[7],
        SyntheticSource("kinds", examples=100, seed=3)[7],
    ):
        assert not np.array_equal(different["audio"][0], wave)
        assert different["id"] != source[7]["id"]


def test_another_process_makes_the_same_bits():
    program = (
        "import hashlib; from clap_jax.pipeline.synthetic import SyntheticSource as S\n"
        "for s in ('train', 'test', 'kinds'):\n"
        "    e = S(s, examples=30)[29]\n"
        "    print(e['group'], hashlib.md5(e['audio'][0].tobytes()).hexdigest())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONHASHSEED": "12",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = ""
    for split in ("train", "test", "kinds"):
        example = SyntheticSource(split, examples=30)[29]
        digest = hashlib.md5(example["audio"][0].tobytes()).hexdigest()
        expected += f"{example['group']} {digest}\n"
    assert printed == expected


def test_other_rates_and_lengths_keep_the_scene():
    for index in range(12):
        small = SyntheticSource(examples=12)[index]
        large = SyntheticSource(examples=12, rate_hz=48_000, seconds=5)[index]
        assert large["group"] == small["group"]
        assert large["audio"][0].shape == (240_000,) and large["audio"][1] == 48_000
        assert np.abs(large["audio"][0]).max() < 1


@pytest.mark.parametrize("index", [-1, 5, 1000])
def test_an_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError, match=f"5 examples, no {index}"):
        SyntheticSource(examples=5)[index]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"split": "dev"}, "'dev'; expected one of train, test, kinds"),
        ({"examples": 0}, "examples is 0"),
        ({"split": "test", "examples": 100_000}, "distinct test scenes"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test", "seed": -1}, "seed is -1"),
        ({"rate_hz": 8000}, "rate_hz is 8000; expected >= 16000"),
        ({"seconds": 1.0}, "seconds is 1.0; expected >= 2.5"),
    ],
)
def test_settings_that_cannot_be_met_are_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SyntheticSource(**settings)


# --- splits ---


def test_catalogue_is_large_and_its_words_are_distinct():
    assert len(KINDS) == len(set(KINDS)) >= 24
    assert len({kind.noun for kind in CATALOGUE}) == len(CATALOGUE)
    assert {kind.attribute for kind in CATALOGUE} == {"pitch", "rate", "count", ""}


def test_training_reaches_every_kind_and_value_in_every_place(training_scenes):
    seen = {
        (scene.form, place, part.kind.name, part.value)
        for scene in training_scenes
        for place, part in enumerate(scene.parts)
    }
    for kind in CATALOGUE:
        for value in kind.values:
            places = [("single", 0), ("then", 0), ("then", 1), ("over", 0)]
            places += [("over", 1)] if kind.sustained else []
            for form, place in places:
                if form == "single" and all(
                    scene.held_out
                    for scene in scenes.scenes("single")
                    if (scene.parts[0].kind, scene.parts[0].value) == (kind, value)
                ):
                    continue  # both loudnesses of this single sound are held out
                assert (form, place, kind.name, value) in seen


def test_shares_of_the_forms(training_scenes):
    shares = [np.mean([s.form == form for s in training_scenes]) for form in FORMS]
    np.testing.assert_allclose(shares, [0.3, 0.35, 0.35], atol=0.015)


def test_a_tenth_of_all_scenes_is_held_out(every_scene):
    assert np.mean([s.held_out for s in every_scene]) == pytest.approx(0.1, abs=0.01)


def test_test_scenes_are_new_combinations_of_known_parts(training_scenes):
    trained = {scene.key for scene in training_scenes}
    known = {part for scene in training_scenes for part in scene.parts}
    source = SyntheticSource("test")
    tested = [source.scene(index)[0] for index in range(len(source))]
    assert len({scene.key for scene in tested}) == len(tested) == 250
    for scene in tested:
        assert scene.held_out and scene.key not in trained
        assert set(scene.parts) <= known
    counts = [sum(scene.form == form for scene in tested) for form in FORMS]
    assert counts == [6, 122, 122]
    assert {part.kind.name for scene in tested for part in scene.parts} == set(KINDS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_test_description_entails_another(seed):
    tested = scenes.held_out_scenes(seed)
    singles = [scene.parts[0] for scene in tested if scene.form == "single"]
    assert len(singles) == 6
    for scene in tested:
        for part, single in itertools.product(scene.parts, singles):
            if scene.form != "single":
                assert (part.kind, part.value) != (single.kind, single.value)


def test_a_shorter_test_split_is_a_prefix():
    short, long = SyntheticSource("test", examples=30), SyntheticSource("test")
    for index in range(30):
        assert short.scene(index)[0] == long.scene(index)[0]


def test_kinds_are_spread_evenly():
    source = SyntheticSource("kinds", examples=2 * len(KINDS))
    tags = [source[index]["tags"] for index in range(len(source))]
    assert tags == [[name] for name in KINDS] * 2


def test_the_hash_is_pinned():
    """Another hash would move scenes between training and test unnoticed."""
    assert scenes.stable_hash("rain:loud") == pytest.approx(0.3562220689927983)


# --- captions ---


def test_captions_read_well(every_scene):
    plurals = {f"{kind.noun}s" for kind in CATALOGUE if kind.attribute == "count"}
    for scene in every_scene:
        for caption in scenes.captions(scene) + scenes.partial_captions(scene):
            assert re.fullmatch(r"[a-z]+([ -][a-z]+|, [a-z]+)*", caption), caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            for count in re.findall(
                r"(?:two|three) (?:loud |quiet |soft )?(.*)", caption
            ):
                assert any(count.startswith(noun) for noun in plurals), caption


def test_full_captions_say_all_of_the_key_and_partial_ones_only_the_kind(every_scene):
    for scene in every_scene:
        for (_, wording), caption in zip(
            scenes.TEMPLATES[scene.form], scenes.captions(scene), strict=True
        ):
            words = scenes.WORDINGS[wording]
            for part in scene.parts:
                for value in filter(None, (part.value, part.loudness)):
                    assert words.get(value, value) in caption
                assert part.kind.noun in caption
        for caption in scenes.partial_captions(scene):
            assert scene.parts[0].kind.name in caption
            assert not set(caption.split()) & {"loud", "quiet", "low", "high", "one"}


def test_captions_of_different_scenes_differ(every_scene):
    owner = {}
    for scene in every_scene:
        for caption in scenes.captions(scene):
            assert owner.setdefault(caption, scene.key) == scene.key
    assert len({scene.key for scene in every_scene}) == len(every_scene)


def test_partial_captions_are_for_single_training_sounds():
    for split in ("train", "test", "kinds"):
        source = SyntheticSource(split, examples=40)
        for index in range(40):
            example, (scene, _) = source[index], source.scene(index)
            bare = scene.form == "single" and split != "test"
            assert (example["tags"][0] in example["captions"]) == bare


@pytest.mark.parametrize(
    "form, parts, expected",
    [
        ("single", [("engine hum", "low", "loud")], "a loud low engine hum"),
        ("single", [("drum", "three", "quiet")], "three quiet drum hits"),
        (
            "then",
            [("siren", "fast", "quiet"), ("footsteps", "slow", "loud")],
            "a quiet fast siren, then loud slow footsteps",
        ),
        (
            "over",
            [("clicking", "one", ""), ("organ chord", "high", "")],
            "one click over a high organ chord",
        ),
    ],
)
def test_examples_of_captions(form, parts, expected):
    parts = tuple(
        scenes.Part(CATALOGUE[KINDS.index(name)], value, loudness)
        for name, value, loudness in parts
    )
    assert scenes.captions(scenes.Scene(form, parts))[0] == expected


# --- truth of the captions, measured ---


def test_loud_and_quiet_are_fifteen_decibels_apart():
    levels = {"loud": [], "quiet": []}
    for scene, _, wave in layers_of("single", 120):
        levels[scene.parts[0].loudness].append(decibels(wave))
    assert len(levels["loud"]) > 40 < len(levels["quiet"])
    assert min(levels["loud"]) > max(levels["quiet"]) + 15


def test_then_keeps_order_and_loudness():
    for scene, (first, second), wave in layers_of("then", 80):
        end, start = np.flatnonzero(first)[-1], np.flatnonzero(second)[0]
        assert end < 0.5 * SAMPLES < start or 0 < start - end < 0.06 * SAMPLES
        halves = wave[: start - 1], wave[end + 1 :]
        for part, half in zip(scene.parts, halves, strict=True):
            low, high = {"loud": (-23, -17), "quiet": (-45, -39)}[part.loudness]
            assert low < decibels(half) < high


def test_over_has_a_lower_background_that_runs_throughout():
    for _, (front, back), wave in layers_of("over", 80):
        sounding = np.flatnonzero(front)
        assert sounding[0] > 0.14 * SAMPLES and sounding[-1] < 0.89 * SAMPLES
        assert np.flatnonzero(back)[0] < 0.12 * SAMPLES  # a slow tick may wait
        assert np.flatnonzero(back)[-1] > 0.78 * SAMPLES
        assert 9.9 < decibels(front) - decibels(back) < 16.1
        assert decibels(wave[: sounding[0]]) > -45  # the background by itself


@pytest.mark.parametrize("form", FORMS)
def test_the_clip_is_its_parts_and_a_faint_noise(form):
    for _, layers, wave in layers_of(form, 30):
        assert decibels(wave - layers.sum(axis=0)) < -58
        assert np.abs(wave).max() < 0.99  # nothing was scaled down


def log_bands(wave):
    """Power in dB of some 40 bands every 20 ms. (A mel by BLAS waits for other threads.)"""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::320]
    power = np.abs(np.fft.rfft(frames * np.hanning(512), axis=1)) ** 2
    edges = np.unique(np.geomspace(1, 240, 60).astype(int))
    return 10 * np.log10(np.add.reduceat(power, edges, axis=1) + 1e-6)


def test_kinds_are_told_apart_by_a_linear_classifier():
    """Ridge regression on levels and changes of bands, trained on other clips."""

    def features(seed, clips_per_kind):
        source = SyntheticSource("kinds", clips_per_kind * len(KINDS), seed)
        waves = (source[index]["audio"][0] for index in range(len(source)))
        mels = np.stack([log_bands(wave) for wave in waves])
        top = mels.max(axis=(1, 2), keepdims=True)
        mels = np.maximum(mels, top - 50) - top
        late = np.linspace(-1, 1, mels.shape[1])[None, :, None] * 10 ** (mels / 10)
        changes = np.abs(np.diff(mels, axis=1)).mean(axis=1)
        parts = [mels.mean(axis=1), mels.max(axis=1), changes, late.mean(axis=1) * 100]
        return np.concatenate([*parts, np.ones((len(mels), 1))], axis=1)

    seen, new = features(0, 30), features(1, 6)
    targets = np.tile(np.eye(len(KINDS)), (30, 1))
    spread = seen.std(axis=0) + 1
    seen, new = seen / spread, new / spread
    gram = seen.T @ seen + 10 * np.eye(seen.shape[1])
    guessed = (new @ np.linalg.solve(gram, seen.T @ targets)).argmax(axis=1)
    assert np.mean(guessed == np.tile(np.arange(len(KINDS)), 6)) > 0.9


def test_digest_tells_settings_apart():
    options = [
        {},
        {"split": "test"},
        {"examples": 9},
        {"seed": 1},
        {"rate_hz": 22_050},
        {"seconds": 3.0},
    ]
    assert len({SyntheticSource(**option).digest() for option in options}) == 6
    assert SyntheticSource().digest() == SyntheticSource(examples=16_000).digest()
