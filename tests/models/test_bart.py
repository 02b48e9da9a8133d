"""BART's encoder: masks, the two means, positions, padding without a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import bart
from clap_jax.models.tower import complete
from tests.models.weights import fill

SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp": 16, "position_table": 14}


def make(**options):
    return bart.tower(complete("bart", SMALL | options, bart.DEFAULTS), 30)


@pytest.fixture(scope="module")
def texts():
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 30, (3, 7)), jnp.int32)
    mask = jnp.arange(7) < jnp.array([[7], [4], [2]])
    return jnp.where(mask, ids, 1), mask


@pytest.fixture(scope="module")
def variables(texts):
    return fill(make(), texts, std=0.5)


def run(variables, ids, mask, **options):
    (pooled, aux), _ = jax.jit(make(**options).apply)(variables, (ids, mask))
    return np.asarray(pooled), np.asarray(aux["hidden"])


def test_padding_is_inert(texts, variables):
    ids, mask = texts
    want, hidden = run(variables, ids, mask)
    np.testing.assert_allclose(want[2], hidden[2, :2].mean(0), atol=1e-6)
    np.testing.assert_array_equal(
        run(variables, jnp.where(mask, ids, 23), mask)[0], want
    )
    longer = jnp.pad(ids, ((0, 0), (0, 4))), jnp.pad(mask, ((0, 0), (0, 4)))
    np.testing.assert_allclose(run(variables, *longer)[0], want, atol=1e-5)
    # Both directions are seen: the last word changes the state of the first.
    _, changed = run(variables, ids.at[1, 3].set(9), mask)
    assert np.abs(changed - hidden)[1, 0].max() > 1e-3


def test_mean_over_all_positions_depends_on_padding(texts, variables):
    """LAION-CLAP's mean of BART counts padding like words."""
    ids, mask = texts
    pooled, hidden = run(variables, ids, mask, pool="mean_all")
    np.testing.assert_allclose(pooled, hidden.mean(1), atol=1e-6)
    want, _ = run(variables, ids, mask)
    np.testing.assert_allclose(pooled[0], want[0], atol=1e-6)  # nothing is padding
    assert np.abs(pooled - want)[1:].max(axis=1).min() > 1e-2
    longer = jnp.pad(ids, ((0, 0), (0, 4))), jnp.pad(mask, ((0, 0), (0, 4)))
    assert np.abs(run(variables, *longer, pool="mean_all")[0] - pooled).max() > 1e-2


def test_the_first_two_positions_are_never_used(texts, variables):
    params = variables["params"]
    table = params["positions"]["embedding"]

    def changed(row):
        positions = {"embedding": table.at[row].set(-table[row])}
        return {"params": params | {"positions": positions}, "state": {}}

    want, _ = run(variables, *texts)
    for row in (0, 1, 9):
        np.testing.assert_array_equal(run(changed(row), *texts)[0], want)
    assert np.abs(run(changed(2), *texts)[0] - want).max() > 1e-2


def test_the_padding_vector_has_no_gradient(texts, variables):
    """torch's table has none for its padding id, even where a mean counts padding."""
    tower = make(pool="mean_all")

    def loss(params):
        (pooled, _), _ = tower.apply({"params": params, "state": {}}, texts)
        return (pooled**3).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])["tokens"]["embedding"]
    assert not np.any(gradient[1])
    assert np.abs(gradient[texts[0][0, 0]]).max() > 1e-3


def test_errors(texts):
    with pytest.raises(ValueError, match="texts of 7 tokens; this tower takes 6"):
        make(position_table=8).init(jax.random.key(0), texts)
    with pytest.raises(ValueError, match="unknown pool of bart 'max'.*mean"):
        make(pool="max").init(jax.random.key(0), texts)
