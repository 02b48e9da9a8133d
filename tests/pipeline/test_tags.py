"""Which tags guide a captioner."""

import numpy as np
import pytest

from clap_jax.pipeline import tags
from clap_jax.pipeline.tags import TagRule

PROBABILITIES = np.array([[0.9, 0.2, 0.4, 0.4], [0.1, 0.05, 0.0, 0.2]])


@pytest.mark.parametrize(
    "text, want",
    [
        ("0.3", [[1, 0, 1, 1], [0, 0, 0, 0]]),
        ("0.4", [[1, 0, 1, 1], [0, 0, 0, 0]]),
        ("top2", [[1, 0, 1, 0], [1, 0, 0, 1]]),
        ("0.15_top2", [[1, 0, 1, 0], [0, 0, 0, 1]]),
        ("top9", [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_rules(text, want):
    rule = TagRule.parse(text)
    np.testing.assert_array_equal(rule(PROBABILITIES), want)
    hard = tags.guide(PROBABILITIES, rule)
    soft = tags.guide(PROBABILITIES, rule, soft=True)
    assert hard.dtype == soft.dtype == np.float32
    np.testing.assert_array_equal(hard, want)
    np.testing.assert_allclose(soft, np.where(want, PROBABILITIES, 0))
    # A clip alone is chosen from in the same way.
    np.testing.assert_array_equal(rule(PROBABILITIES[0]), want[0])


@pytest.mark.parametrize(
    "text", ["", "top", "5top", "0.3top5", "1.5", "0.3_top5_top2", "_top5", "0..3"]
)
def test_bad_rules(text):
    with pytest.raises(ValueError, match="such as 0.3, top5 or 0.3_top5"):
        TagRule.parse(text)


def test_bad_numbers():
    with pytest.raises(ValueError, match="most is -1"):
        TagRule(most=-1)
    with pytest.raises(ValueError, match="whole is 2, expected a share"):
        tags.drop(PROBABILITIES, np.random.default_rng(0), whole=2)


def test_tags_are_left_out():
    some = np.tile(np.array([0, 1, 0.5, 1], np.float32), (4000, 1))
    rng = np.random.default_rng(0)
    kept = tags.drop(some, rng, each=0.25)
    assert ((kept == some) | (kept == 0)).all() and kept.dtype == np.float32
    np.testing.assert_allclose((kept[:, 1:] > 0).mean(0), 0.75, atol=0.03)
    whole = tags.drop(some, rng, whole=0.3)
    alive = whole.any(1)
    np.testing.assert_allclose(alive.mean(), 0.7, atol=0.03)
    np.testing.assert_array_equal(whole[alive], some[alive])
    np.testing.assert_array_equal(tags.drop(some, rng), some)
    first, again = (
        tags.drop(some, np.random.default_rng(1), each=0.5, whole=0.1) for _ in "ab"
    )
    np.testing.assert_array_equal(first, again)
