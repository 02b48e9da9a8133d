"""The BERT family: masks, positions, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import bert
from clap_jax.models.tower import complete
from tests.models.weights import fill

SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp": 16, "position_table": 20}


def make(**options):
    return bert.tower(complete("bert", SMALL | options, bert.DEFAULTS), 30)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(5, 30, (3, 7)), jnp.int32)
    mask = jnp.arange(7) < jnp.array([[7], [4], [2]])
    return jnp.where(mask, ids, 1), mask


def embed(tower, variables, texts):
    (z, _), _ = jax.jit(tower.apply)(variables, texts)
    return np.asarray(z)


@pytest.mark.parametrize(
    "norm, pool, positions",
    [
        ("post", "pooler", "roberta"),
        ("post", "mean", "bert"),
        ("pre", "mean", "roberta"),
        ("post", "first", "bert"),
    ],
)
def test_padding_is_inert(texts, norm, pool, positions):
    ids, mask = texts
    tower = make(norm=norm, pool=pool, positions=positions)
    variables = fill(tower, texts, std=1.0)
    apply = jax.jit(tower.apply)

    def run(ids, mask):
        return np.asarray(apply(variables, (ids, mask))[0][0])

    want = run(ids, mask)
    np.testing.assert_array_equal(run(jnp.where(mask, ids, 23), mask), want)
    longer = run(jnp.pad(ids, ((0, 0), (0, 4))), jnp.pad(mask, ((0, 0), (0, 4))))
    np.testing.assert_allclose(longer, want, atol=1e-5)
    # What is visible does count.
    assert np.abs(run(ids.at[:, 1].set(9), mask) - want).max() > 1e-3


def test_positions(texts):
    """RoBERTa counts from pad_id + 1, BERT from 0: shifted tables, the same result."""
    roberta, plain = make(position_table=12), make(positions="bert", position_table=10)
    variables = fill(roberta, texts, std=1.0)
    params = variables["params"]
    table = params["positions"]["embedding"]
    shifted = params | {"positions": {"embedding": table[2:]}}
    np.testing.assert_allclose(
        embed(roberta, variables, texts),
        embed(plain, {"params": shifted, "state": {}}, texts),
        atol=1e-6,
    )


def test_pooler_reads_the_first_token_and_mean_the_visible_ones(texts):
    tower = make(pool="mean")
    variables = fill(tower, texts, std=1.0)
    (z, aux), _ = jax.jit(tower.apply)(variables, texts)
    assert aux["hidden"].shape == (3, 7, 8)
    np.testing.assert_allclose(z[2], aux["hidden"][2, :2].mean(0), atol=1e-5)
    assert "pooler" not in variables["params"]
    np.testing.assert_array_equal(
        embed(make(pool="first"), variables, texts), aux["hidden"][:, 0]
    )
    tower = make()
    variables = fill(tower, texts, std=1.0)
    (z, aux), _ = jax.jit(tower.apply)(variables, texts)
    dense = variables["params"]["pooler"]
    want = np.tanh(aux["hidden"][:, 0] @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(z, want, atol=1e-5)


def test_dropout_is_fixed_by_the_key(texts):
    tower = make(dropout=0.3)
    variables = fill(tower, texts, std=1.0)

    train = jax.jit(lambda key: tower.apply(variables, texts, train=True, key=key))

    def draw(seed):
        return np.asarray(train(jax.random.key(seed))[0][0])

    np.testing.assert_array_equal(draw(1), draw(1))
    assert np.abs(draw(1) - draw(2)).max() > 0.01
    assert np.abs(draw(1) - embed(tower, variables, texts)).max() > 0.01


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"position_table": 8}, "texts of 7 tokens; this tower takes 6"),
        ({"positions": "rotary"}, "positions must be roberta or bert"),
        ({"pool": "max"}, "pool must be pooler, first or mean"),
    ],
)
def test_errors(texts, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options).init(jax.random.key(0), texts)
