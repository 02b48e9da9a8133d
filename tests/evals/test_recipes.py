"""Heads on fixed vectors: the optimum against scikit-learn, Adam's recipes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clap_jax.evals import Probe, bootstrap, fitting
from clap_jax.evals.recipes import RECIPES, Recipe
from tests.evals.fakes import FakeSource

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0, 1, (3, 6))
TRUTH = np.repeat(np.arange(3), 30)
VECTORS = (CENTRES[TRUTH] + RNG.normal(0, 1, (90, 6))).astype(np.float32)
VECTORS[:, 5] = 7.0  # the same for all
TARGETS = np.eye(3, dtype=bool)[TRUTH]
TRAIN = np.arange(90) % 3 > 0


def standardised():
    x = VECTORS[:, :5].astype(float)
    return (x - x[TRAIN].mean(0)) / x[TRAIN].std(0)


class Numbers(FakeSource):
    """Some of the rows of `VECTORS` as clips."""

    def __init__(self, rows, name):
        tags = [[str(TRUTH[row])] for row in rows]
        super().__init__([[]] * len(rows), tags=tags, name=name)
        self.rows = rows

    def id(self, index):
        return str(self.rows[index])

    def digest(self):
        return self.name


class Vectors:
    """An encoder that knows them."""

    def audio(self, source):
        return VECTORS[source.rows], np.ones(len(source), bool)


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_the_optimum_is_scikit_learns(strength):
    head = fitting.fit(RECIPES["linear"], VECTORS, TARGETS, TRAIN, "ce", strength)
    x = standardised()
    other = LogisticRegression(C=1 / (strength * TRAIN.sum()), tol=1e-10, max_iter=9999)
    other.fit(x[TRAIN], TRUTH[TRAIN])
    scores = np.exp(head.scores(VECTORS))
    shares = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, other.predict_proba(x), atol=2e-4)


def test_the_optimum_of_sigmoids_is_scikit_learns():
    """Its mean over classes makes the penalty of each class so many times stronger."""
    targets = np.stack([VECTORS[:, 0] > 0, VECTORS[:, 1] + VECTORS[:, 2] > 0.5], 1)
    head = fitting.fit(RECIPES["linear"], VECTORS, targets, TRAIN, "bce", 1e-2)
    shares, x = 1 / (1 + np.exp(-head.scores(VECTORS))), standardised()
    for column in range(2):
        other = LogisticRegression(C=1 / (2e-2 * TRAIN.sum()), tol=1e-10, max_iter=9999)
        other.fit(x[TRAIN], targets[TRAIN, column])
        expected = other.predict_proba(x)[:, 1]
        np.testing.assert_allclose(shares[:, column], expected, atol=2e-4)


def test_a_probe_and_its_interval_are_scikit_learns():
    """Of an optimum there is one: clip by clip, and in every draw of the clips."""
    names = ("train", "test")
    parts = {
        name: Numbers(np.flatnonzero(TRAIN == (name == "train")), name)
        for name in names
    }
    probe = Probe(parts, test=("test",), options={"strengths": (1e-1,)})
    result = probe.run(Vectors())
    x = standardised()
    other = LogisticRegression(C=1 / (1e-1 * TRAIN.sum()), tol=1e-10, max_iter=9999)
    hits = other.fit(x[TRAIN], TRUTH[TRAIN]).predict(x[~TRAIN]) == TRUTH[~TRAIN]
    found = result.per_clip["probe_acc"]
    np.testing.assert_array_equal(found[:, 0] / found[:, 1], hits)
    (weights,) = bootstrap.draws(len(hits), part_of=result.parts)
    drawn = [np.repeat(hits, own.astype(int)).mean() for own in weights.T]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(result.intervals["probe_acc"], expected, atol=1e-9)
    assert 0.7 < expected[0] < result.metrics["probe_acc"] < 1


def test_adam_learns_with_hidden_layers_and_the_same_twice():
    recipe = Recipe(
        solver="adam",
        strengths=(0.0,),
        hidden=(16,),
        dropout=0.1,
        learning_rate=1e-2,
        epochs=40,
        batch_size=16,
    )
    first, second = (
        fitting.fit(recipe, VECTORS, TARGETS, TRAIN, "ce", 0.0) for _ in range(2)
    )
    np.testing.assert_array_equal(first.scores(VECTORS), second.scores(VECTORS))
    right = first.scores(VECTORS[~TRAIN]).argmax(1) == TRUTH[~TRAIN]
    assert right.mean() > 0.7
    # Nothing is learnt from the clips that are held out.
    other = np.where(TRAIN[:, None], VECTORS, 99.0).astype(np.float32)
    third = fitting.fit(recipe, other, TARGETS, TRAIN, "ce", 0.0)
    np.testing.assert_allclose(third.scores(VECTORS), first.scores(VECTORS), rtol=1e-5)


def test_the_papers_recipes():
    """LAION-CLAP's scripts; MS-CLAP's appendix."""
    laion, msclap = RECIPES["laion_mlp"], RECIPES["msclap_linear"]
    assert (laion.learning_rate, laion.epochs, laion.batch_size) == (1e-4, 100, 160)
    assert (laion.hidden, laion.dropout) == ((1024,), 0.1)
    assert (msclap.learning_rate, msclap.epochs, msclap.hidden) == (1e-3, 30, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "sgd"}, "unknown solver 'sgd'"),
        ({"hidden": (8,)}, "'lbfgs' fits linear heads"),
        ({"strengths": ()}, "expected one or more"),
        ({"epochs": 0}, "epochs 0 and batch_size 64 must be 1 or more"),
    ],
)
def test_recipes_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)
