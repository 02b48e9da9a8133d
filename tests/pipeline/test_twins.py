"""Twins: sections that change places, in the sound and in the caption."""

import numpy as np
import pytest

from clap_jax.pipeline import twins
from clap_jax.pipeline.pieces import PiecesSource
from clap_jax.text import sections

RATE_HZ = 16_000


@pytest.mark.parametrize("style", ["order", "timing", "percent"])
def test_a_twin_is_a_true_pair(style):
    source = PiecesSource(style=style, seconds=(50, 60), examples=6)
    for index in range(6):
        wave, caption = source.wave(index), source.captions(index)[0]
        known = source.sections(index)
        new, words, now = twins.twin(
            wave, RATE_HZ, caption, known, np.random.default_rng(index)
        )
        assert new.shape == wave.shape and new.dtype == np.float32
        assert words != caption and len(words.split()) == len(caption.split())
        # Every section sounds as before, and its words name what plays where it is now.
        names = source.tags(index)
        order = []
        for begin, end, said in now:
            part = new[round(begin * RATE_HZ) : round(end * RATE_HZ)]
            match = [
                len(part) == round((e - b) * RATE_HZ)
                and np.abs(part - wave[round(b * RATE_HZ) :][: len(part)])[
                    200:-200
                ].max()
                == 0
                for b, e, _ in known
            ]
            assert sum(match) == 1
            order.append(match.index(True))
            clause = known[order[-1]][2].rstrip(".").split(" ")[-6:]
            assert " ".join(clause) in said
        assert sorted(order) == list(range(len(names))) != order
        assert words.find(now[0][2]) < words.find(now[1][2])
        if style == "timing":
            assert sections.timed(words, len(wave) / RATE_HZ) == now


def test_the_same_generator_gives_the_same_twin():
    wave = np.arange(100, dtype=np.float32)
    parts = [(0.0, 4.0, "A."), (5.0, 7.0, "B."), (7.0, 9.0, "C.")]
    made = [
        twins.twin(wave, 10, "A. B. C.", parts, np.random.default_rng(s))
        for s in (0, 0)
    ]
    np.testing.assert_array_equal(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]
    orders = {
        twins.twin(wave, 10, "A. B. C.", parts, np.random.default_rng(s))[1]
        for s in range(60)
    }
    assert len(orders) == 5 and "A. B. C." not in orders


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0.0, 9.0, "A.")],
        [(0.0, 5.0, "A."), (4.0, 9.0, "B.")],
        [(0.0, 5.0, "A."), (5.0, 19.0, "B.")],
        [(0.0, 5.0, "A."), (5.0, 9.0, "D.")],
    ],
)
def test_clips_without_a_twin(parts):
    wave = np.ones(100, np.float32)
    assert twins.twin(wave, 10, "A. B.", parts, np.random.default_rng(0)) is None
