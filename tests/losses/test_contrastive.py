"""The dense losses against float64 numpy, and that against the formulas' meaning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import config as config_lib
from clap_jax.losses import contrastive
from clap_jax.losses.contrastive import Labels, Options
from tests.losses import cases

LOSSES = {
    "softmax": contrastive.softmax_pair_loss,
    "sigmoid": contrastive.sigmoid_pair_loss,
}


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


def mean_loss(logits, targets=None, **options):
    total, count = contrastive.softmax_pair_loss(logits, targets, **options)
    return total / count


def groups(*numbers):
    """Targets in which clips and texts of the same number belong together."""
    numbers = jnp.array(numbers)
    return contrastive.targets(Labels(numbers, numbers), normalised=False)


@pytest.mark.parametrize("kind", ["identity", "groups", "soft"])
def test_value_and_gradient(rng, kind):
    n = 7
    logits = rng.normal(size=(n, n)) * 10
    targets = {
        "identity": np.eye(n),
        "groups": np.asarray(groups(0, 1, 1, 2, 3, 3, 3)),
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


@pytest.mark.parametrize("name", LOSSES)
def test_float32_inside_for_bfloat16_scores(rng, name):
    logits = jnp.asarray(rng.normal(size=(4, 4)) * 30, jnp.bfloat16)
    loss = LOSSES[name]
    total, count = loss(logits)
    assert total.dtype == count.dtype == jnp.float32
    want, _ = loss(logits.astype(jnp.float32))
    assert total == pytest.approx(float(want), rel=1e-6)


def test_large_scores_stay_finite():
    value, gradient = jax.value_and_grad(mean_loss)(1e4 * jnp.eye(4)[::-1])
    assert value == pytest.approx(1e4)
    assert np.isfinite(gradient).all()


def test_targets_of_mixed_clips():
    labels = Labels(
        clip=jnp.array([0, 0, 1]),
        text=jnp.array([0, 0, 1]),
        partner=jnp.array([1, 0, 0]),
        share=jnp.array([0.75, 1.0, 0.5]),
    )
    mixed = contrastive.targets(labels, normalised=True)
    want = [[0.375, 0.375, 0.25], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    np.testing.assert_allclose(mixed, want)
    whole = contrastive.targets(labels, normalised=False)
    want = [[0.75, 0.75, 0.25], [1, 1, 0], [0.5, 0.5, 0.5]]
    np.testing.assert_allclose(whole, want)


def test_even_hardness_changes_nothing():
    """Negatives of equal scores all count once, whatever beta is."""

    @jax.jit
    def losses(logits):
        return [
            loss(logits, hard_negatives=beta)[0]
            for loss in LOSSES.values()
            for beta in (0.0, 2.0)
        ]

    logits = 3 * jnp.eye(5) - 1
    softmax, same_softmax, sigmoid, same_sigmoid = losses(logits)
    assert same_softmax == pytest.approx(float(softmax), rel=1e-6)
    assert same_sigmoid == pytest.approx(float(sigmoid), rel=1e-6)
    # A harder negative counts more, and the loss is larger.
    softmax, harder_softmax, sigmoid, harder_sigmoid = losses(logits.at[0, 1].set(1.5))
    assert harder_softmax > 1.05 * softmax
    assert harder_sigmoid > 1.05 * sigmoid


def test_all_positive_leaves_no_negative():
    """Nothing is divided by the number of negatives, which is zero here."""
    logits, every = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))

    @jax.jit
    def slopes(logits):
        return [
            jax.value_and_grad(
                lambda x, loss=loss, beta=beta: loss(x, every, hard_negatives=beta)[0]
            )(logits)
            for loss in LOSSES.values()
            for beta in (0.0, 1.0)
        ]

    found = slopes(logits)
    for plain, weighted in (found[:2], found[2:]):
        for x, y in zip(plain, weighted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_sigmoid_is_exact_where_it_is_near_zero():
    """-log sigmoid(20) is 2e-9, not the 0 of 20 - log(1 + exp(20)) in float32."""
    terms = contrastive.binary_cross_entropy(
        jnp.array([[20.0, -20.0, 60.0]]), jnp.array([[1.0, 0.0, 1.0]])
    )
    want = [[np.log1p(np.exp(-20)), np.log1p(np.exp(-20)), np.exp(-60)]]
    np.testing.assert_allclose(terms, want, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_tests_own_definition(name):
    """Its gradients are those of its values; without hard negatives, by differences."""
    case = cases.make_case(0, 9, 6, "uneven", mixup=True, scale=4.0)
    options = Options(name, label_smoothing=0.1)
    _, (params, audio, text) = cases.expected(case, options)
    step = 1e-5

    def slope(**change):
        values = [
            cases.expected(
                case._replace(
                    **{
                        key: getattr(case, key) + sign * step * np.asarray(direction)
                        for key, direction in change.items()
                    }
                ),
                options,
            )[0]
            for sign in (1, -1)
        ]
        return (values[0] - values[1]) / (2 * step)

    rng = np.random.default_rng(1)
    for key, gradient in {**params, "audio": audio, "text": text}.items():
        direction = rng.normal(size=np.shape(gradient))
        want = (direction * gradient).sum()
        assert slope(**{key: direction}) == pytest.approx(want, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "hinge"}, "loss.name is 'hinge', expected one of softmax, sigmoid"),
        ({"impl": "rings"}, "loss.impl is 'rings', expected one of auto, global"),
        ({"chunk": -1}, "loss.chunk is -1, expected 0 or more rows"),
        (
            {"label_smoothing": 1.0},
            "loss.label_smoothing is 1.0, expected 0 to below 1",
        ),
        ({"hard_negatives": -0.5}, "loss.hard_negatives is -0.5, expected 0 or more"),
        ({"hard_negatives": float("nan")}, "loss.hard_negatives is nan"),
    ],
)
def test_options_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_options_are_the_keys_of_the_config():
    loss = config_lib.plain(config_lib.default().loss)
    assert dataclasses.asdict(Options()) == loss
