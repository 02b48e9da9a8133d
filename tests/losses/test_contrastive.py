"""The loss against float64 numpy, its gradient against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.losses import contrastive


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def cross_entropy(logits, targets):
    """Row by row in float64: -sum_j p_j log softmax(logits)_j."""
    shifted = logits - logits.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    weights = targets / targets.sum(1, keepdims=True)
    return -(weights * log_probability).sum(1)


def reference(logits, targets):
    rows, columns = cross_entropy(logits, targets), cross_entropy(logits.T, targets.T)
    return (rows.sum() + columns.sum()) / (len(rows) + len(columns))


def mean_loss(logits, targets=None):
    total, count = contrastive.softmax_pair_loss(logits, targets)
    return total / count


@pytest.mark.parametrize("kind", ["identity", "groups", "soft"])
def test_value_and_gradient(rng, kind):
    n = 7
    logits = rng.normal(size=(n, n)) * 10
    targets = {
        "identity": np.eye(n),
        "groups": np.asarray(contrastive.positives(jnp.array([0, 1, 1, 2, 3, 3, 3]))),
        "soft": rng.uniform(size=(n, n)),
    }[kind]
    given = None if kind == "identity" else jnp.asarray(targets, jnp.float32)
    loss = jax.value_and_grad(mean_loss)
    value, gradient = loss(jnp.asarray(logits, jnp.float32), given)
    assert value == pytest.approx(reference(logits, targets), rel=1e-6)
    # d CE / d logits = softmax - target, in each direction.
    rows = np.exp(logits - logits.max(1, keepdims=True))
    columns = np.exp(logits - logits.max(0, keepdims=True))
    want = rows / rows.sum(1, keepdims=True) - targets / targets.sum(1, keepdims=True)
    want += columns / columns.sum(0) - targets / targets.sum(0)
    np.testing.assert_allclose(gradient, want / (2 * n), atol=1e-6)


def test_identity_needs_a_square():
    with pytest.raises(ValueError, match="square"):
        contrastive.softmax_pair_loss(jnp.zeros((2, 3)))


def test_rows_without_targets_take_no_part(rng):
    """A clip without any text counts in neither direction's own mean."""
    logits = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    targets = jnp.array([[1.0, 0], [0, 1], [0, 0]])
    total, count = contrastive.softmax_pair_loss(logits, targets)
    wide = np.asarray(logits, np.float64)
    rows = cross_entropy(wide[:2], np.eye(2))
    columns = cross_entropy(wide.T, np.asarray(targets.T))
    assert count == 2
    assert total == pytest.approx((rows.sum() + columns.sum()) / 2, rel=1e-6)


def test_sums_and_counts_merge(rng):
    """(sum, count) of two batches add up to the mean over all rows and columns."""
    blocks = [jnp.asarray(rng.normal(size=(n, n)), jnp.float32) for n in (3, 5)]
    pairs = [contrastive.softmax_pair_loss(block) for block in blocks]
    total, count = (sum(values) for values in zip(*pairs, strict=True))
    means = [reference(np.asarray(b, np.float64), np.eye(len(b))) for b in blocks]
    assert total / count == pytest.approx((3 * means[0] + 5 * means[1]) / 8, rel=1e-6)


def test_float32_inside_for_bfloat16_scores(rng):
    logits = jnp.asarray(rng.normal(size=(4, 4)) * 30, jnp.bfloat16)
    total, count = contrastive.softmax_pair_loss(logits)
    assert total.dtype == count.dtype == jnp.float32
    want = reference(np.asarray(logits, np.float64), np.eye(4))
    assert total / count == pytest.approx(want, rel=1e-5)


def test_large_scores_stay_finite():
    value, gradient = jax.value_and_grad(mean_loss)(1e4 * jnp.eye(4)[::-1])
    assert value == pytest.approx(1e4)
    assert np.isfinite(gradient).all()


def test_mix_targets():
    targets = contrastive.positives(jnp.array([0, 0, 1]))
    mixed = contrastive.mix_targets(
        targets, jnp.array([0.75, 1.0, 0.5]), jnp.array([2, 0, 1])
    )
    want = [[0.375, 0.375, 0.25], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    np.testing.assert_allclose(mixed, want)
