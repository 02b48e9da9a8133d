"""Cross entropy of tokens, against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.losses import tokens

BATCH, LENGTH, CLASSES = 3, 5, 11


@pytest.fixture
def case():
    """Scores, tokens, and which of them count: some, none and all of a row."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (BATCH, LENGTH, CLASSES)).astype(np.float32)
    ids = rng.integers(0, CLASSES, (BATCH, LENGTH)).astype(np.int32)
    own = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    return logits, ids, own


def by_definition(logits, ids, own, smoothing):
    """Token by token, from probabilities."""
    total, count = 0.0, 0
    for row, place in zip(*np.nonzero(own)):
        scores = logits[row, place].astype(np.float64)
        probabilities = np.exp(scores) / np.exp(scores).sum()
        for token in range(CLASSES):
            share = smoothing / CLASSES
            share += (1 - smoothing) * (token == ids[row, place])
            total -= share * np.log(probabilities[token])
        count += 1
    return total, count


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_it_is_the_definition(case, smoothing):
    total, count = tokens.cross_entropy(*map(jnp.asarray, case), smoothing)
    expected = by_definition(*case, smoothing)
    np.testing.assert_allclose((total, count), expected, rtol=1e-6)
    assert total.dtype == count.dtype == jnp.float32


def test_only_own_tokens_count(case):
    """Neither the value nor the gradient knows of prompt and padding, be they wild."""
    logits, ids, own = case
    wild = np.where(own[..., None], logits, np.float32(1e30))
    value = lambda x: tokens.cross_entropy(x, jnp.asarray(ids), jnp.asarray(own))[0]
    assert value(jnp.asarray(wild)) == value(jnp.asarray(logits))
    gradient = np.asarray(jax.grad(value)(jnp.asarray(wild)))
    assert np.isfinite(gradient).all()
    assert (gradient[~own] == 0).all() and (np.abs(gradient[own]).sum(-1) > 0).all()


def test_half_precision_is_summed_in_float32(case):
    logits, ids, own = map(jnp.asarray, case)
    half = logits.astype(jnp.bfloat16)
    total, _ = tokens.cross_entropy(half, ids, own)
    assert total.dtype == jnp.float32
    expected, _ = by_definition(*map(np.asarray, (half, ids, own)), 0.0)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_nothing_to_count(case):
    logits, ids, own = map(jnp.asarray, case)
    assert tokens.cross_entropy(logits, ids, own & False) == (0, 0)
