"""Losses of class heads against torch, mixtures, and rows of other heads."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from clap_jax.losses import classes

RNG = np.random.default_rng(0)
SCORES = jnp.asarray(RNG.normal(0, 2, (6, 5)), jnp.float32)
ONES = jnp.ones(6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    truth = RNG.integers(0, 5, 6)
    found = classes.cross_entropy(SCORES, jnp.eye(5)[truth], ONES, smoothing)
    expected = functional.cross_entropy(
        torch.tensor(np.array(SCORES), dtype=torch.float64),
        torch.tensor(truth),
        label_smoothing=smoothing,
        reduction="none",
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_binary_cross_entropy_is_torchs():
    target = jnp.asarray(RNG.integers(0, 2, (6, 5)), jnp.float32)
    found = classes.binary_cross_entropy(SCORES, target, ONES)
    expected = functional.binary_cross_entropy_with_logits(
        torch.tensor(np.array(SCORES), dtype=torch.float64),
        torch.tensor(np.array(target), dtype=torch.float64),
        reduction="none",
    )
    np.testing.assert_allclose(found, expected.mean(1), rtol=1e-5)
    smooth = classes.binary_cross_entropy(SCORES, target, ONES, 0.2)
    same = classes.binary_cross_entropy(SCORES, 0.8 * target + 0.1, ONES)
    np.testing.assert_allclose(smooth, same, rtol=1e-5)


@pytest.mark.parametrize("loss", list(classes.LOSSES))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(loss, smoothing):
    """Also where one of the two clips has no label for the head."""
    own, other = (jnp.eye(5)[RNG.integers(0, 5, 6)] for _ in range(2))
    share, function = 0.3, classes.LOSSES[loss]
    mixed = function(SCORES, share * own + 0.7 * other, ONES, smoothing)
    parts = [function(SCORES, target, ONES, smoothing) for target in (own, other)]
    np.testing.assert_allclose(mixed, share * parts[0] + 0.7 * parts[1], rtol=1e-5)
    alone = function(SCORES, share * own, share * ONES, smoothing)
    np.testing.assert_allclose(alone, share * parts[0], rtol=1e-5)
    nothing = function(SCORES, 0 * own, 0 * ONES, smoothing)
    np.testing.assert_array_equal(nothing, 0)


def test_the_best_class_is_right_when_it_is_one_of_the_clips():
    scores = jnp.array([[1.0, 2.0, 0.0]] * 3)
    targets = jnp.array([[0, 1, 1], [1, 0, 0], [0.2, 0.5, 0.3]])
    np.testing.assert_array_equal(classes.is_right(scores, targets), [1, 0, 1])
