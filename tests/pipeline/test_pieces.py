"""Procedural pieces: what galleries hold equal, captions that are true, speed, limits."""

import collections
import pickle
import time

import numpy as np
import pytest

from clap_jax.pipeline import textures
from clap_jax.pipeline.pieces import PiecesSource, gallery_textures
from clap_jax.pipeline.sources import build_source
from clap_jax.pipeline.textures import TEXTURES

RATE_HZ = 16_000


def gallery(kind, **options):
    style = "order" if kind == "order" else "timing"
    options = {"sections": 5, "seconds": (50, 50), "style": style} | options
    return PiecesSource("test", gallery=kind, **options)


def test_an_example_has_the_fields_of_a_source():
    options = {"seconds": (60, 70), "examples": 3}
    source = build_source("pieces", "mine", options)
    example = source[2]
    assert set(example) == {"audio", "captions", "tags", "id", "group"}
    wave, rate_hz = example["audio"]
    assert rate_hz == RATE_HZ and wave.dtype == np.float32
    assert 60 <= len(wave) / RATE_HZ <= 70 and np.isfinite(wave).all()
    assert 0.05 < np.abs(wave).max() < 1
    assert len(set(example["captions"])) == 4
    assert 4 <= len(example["tags"]) <= 8 and len(set(example["tags"])) >= 4
    with pytest.raises(IndexError, match="3 examples, no 3"):
        source[3]


def test_a_piece_depends_on_split_seed_and_index_alone():
    options = {"seconds": (60, 70)}
    source = PiecesSource(seed=3, **options)
    other = pickle.loads(pickle.dumps(PiecesSource(seed=3, examples=9, **options)))
    other[1]
    np.testing.assert_array_equal(other.wave(7), source.wave(7))
    assert other.captions(np.int64(7)) == source.captions(7)
    seen = [
        source.group(8),
        PiecesSource(seed=4, **options).group(7),
        PiecesSource("test", seed=3, **options).group(7),
    ]
    assert source.group(7) not in seen
    assert source.digest() != other.digest()


def test_captions_are_long_and_say_what_is_played_in_order():
    source = PiecesSource(style="order", examples=400)
    openings = collections.Counter()
    for index in range(len(source)):
        for caption in source.captions(index):
            assert len(caption.split()) >= 100
            lower, place = caption.lower(), 0
            for name in source.tags(index):
                texture = TEXTURES[textures.NAMES.index(name)]
                found = [lower.find(p, place) for p in texture.phrases]
                assert max(found) > 0, (name, caption)
                place = min(at for at in found if at > 0)
            openings[caption[:20]] += 1
        caption = source.captions(index)[0]
        assert all(words in caption for *_, words in source.sections(index))
    assert len(openings) >= 4


@pytest.mark.parametrize("style", ["timing", "percent"])
def test_captions_say_when_as_it_is(style):
    source = PiecesSource(style=style, examples=20)
    for index in range(len(source)):
        edges = source.piece(index).edges
        for begin, end, words in source.sections(index):
            clock = [f"{int(t) // 60}:{int(t) % 60:02}" for t in (begin, end)]
            percent = [f"{round(100 * t / edges[-1])}%" for t in (begin, end)]
            for said in clock if style == "timing" else percent:
                assert said in words


def test_an_order_gallery_differs_in_nothing_but_order():
    source = gallery("order")
    assert len(source) == 120 and len({source.group(i) for i in range(120)}) == 120
    sentences = {frozenset(s for *_, s in source.sections(i)) for i in range(120)}
    lengths = {end - begin for i in range(120) for begin, end, _ in source.sections(i)}
    words = {" ".join(sorted(source.captions(i)[0].split())) for i in range(120)}
    assert len(sentences) == len(lengths) == len(words) == 1
    assert len({source.captions(i)[0] for i in range(120)}) == 120
    # Even the sound of a section is the same, but for the faint noise under it.
    first, second = source.wave(0), source.wave(1)
    each = len(first) // 5
    for place, name in enumerate(source.tags(0)):
        other = source.tags(1).index(name)
        a = first[place * each : (place + 1) * each]
        b = second[other * each : (other + 1) * each]
        assert np.abs(a - b).max() < 0.01 < np.abs(a).max()


def test_a_timing_gallery_differs_in_nothing_but_times():
    source = gallery("timing", seconds=(100, 100))
    assert len({tuple(source.tags(i)) for i in range(120)}) == 1
    edges = np.array([source.piece(i).edges for i in range(120)])
    assert set(edges[:, -1]) == {100} and np.diff(edges, axis=1).min() >= 10
    distance = np.abs(edges[:, None] - edges).sum(axis=-1)
    assert distance[~np.eye(120, dtype=bool)].min() >= 10
    assert len({source.captions(i)[0] for i in range(120)}) == 120


def test_training_never_has_the_textures_of_a_gallery():
    for sections in (4, 5):
        source = PiecesSource(sections=(4, 8), examples=3000, seed=1)
        held_out = {textures.NAMES[i] for i in gallery_textures(1)[:sections]}
        assert set(gallery("order", seed=1, examples=24).tags(0)) >= held_out
        assert not any(held_out <= set(source.tags(i)) for i in range(3000))


def test_neighbours_are_alike_where_asked():
    source = PiecesSource(alike=4, style="order", examples=40)
    for group in np.arange(40).reshape(-1, 4):
        assert len({frozenset(source.tags(i)) for i in group}) == 1
    orders = {tuple(source.tags(i)) for i in range(40)}
    assert len(orders) > 35
    timed = PiecesSource(alike=2, style="timing", examples=80)
    same = [timed.tags(i) == timed.tags(i + 1) for i in range(0, 80, 2)]
    assert 10 < sum(same) < 35
    assert len({timed.group(i) for i in range(80)}) == 80


def test_textures_sound_different():
    """Each rendering is nearest to another of its own texture, by spectrum and pulse."""

    def features(wave):
        frames = np.lib.stride_tricks.sliding_window_view(wave, 1024)[::256]
        power = np.abs(np.fft.rfft(frames * np.hanning(1024), axis=1)) ** 2
        edges = np.unique(np.geomspace(3, 500, 24).astype(int))
        bands = np.add.reduceat(power, edges, axis=1) / np.diff([*edges, 513])
        decibels = 10 * np.log10(bands + 1e-4)
        return np.concatenate([decibels.mean(axis=0), decibels.std(axis=0)])

    rows = np.array(
        [
            features(
                textures.render(t, np.random.default_rng(seed), 8 * RATE_HZ, RATE_HZ)
            )
            for t in TEXTURES
            for seed in (1, 2, 3)
        ]
    )
    distance = np.linalg.norm(rows[:, None] - rows, axis=-1)
    np.fill_diagonal(distance, np.inf)
    which = np.arange(len(rows)) // 3
    assert (which[distance.argmin(axis=1)] == which).mean() > 0.95


def test_a_section_begins_the_same_whatever_its_length():
    for texture in TEXTURES[:3]:
        short, long = (
            textures.render(texture, np.random.default_rng(0), n, RATE_HZ)
            for n in (5 * RATE_HZ, 9 * RATE_HZ)
        )
        np.testing.assert_array_equal(short[:70_000], long[:70_000])


def test_three_minutes_take_little_time():
    source = PiecesSource(seconds=(180, 180), examples=4)
    source.wave(0)
    start = time.process_time()
    for index in range(4):
        source.wave(index)
    assert (time.process_time() - start) / 4 < 0.3  # 0.03 s on an idle machine


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "dev"}, "split is 'dev'; expected train, test"),
        ({"sections": 3}, r"sections is \(3, 3\); expected 4 to 8"),
        ({"seconds": (20, 30)}, r"seconds is \(20, 30\); .* 48 or more for 8"),
        ({"gallery": "order"}, "train pieces are free"),
        ({"split": "test", "gallery": "timing"}, "style is 'order'; captions of a"),
        (
            {"split": "test", "gallery": "order", "sections": 4},
            "examples is 120; 4 sections have 24 orders",
        ),
        ({"alike": 0}, "alike is 0; expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_met(options, message):
    with pytest.raises(ValueError, match=message):
        PiecesSource(**options)
