"""Projection heads against torch's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clap_jax.models import heads
from tests.models.weights import fill

WIDTH, EMBED = 7, 5


@pytest.fixture(scope="module")
def embedding():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, WIDTH)), jnp.float32)


def to_torch(layer, ours):
    """`layer` with the parameters of one of ours, named as torch names them."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    state = {names[name]: torch.tensor(np.asarray(x.T)) for name, x in ours.items()}
    layer.load_state_dict(state)
    return layer


def references(params):
    """The heads as torch modules with the same parameters."""
    from torch import nn

    def dense(name, bias=True):
        ours = params[name]
        width, features = ours["kernel"].shape
        return to_torch(nn.Linear(width, features, bias=bias), ours)

    def mlp(activation):
        return nn.Sequential(dense("linear1"), activation, dense("linear2"))

    def residual(x):
        first = dense("linear1", bias=False)(x)
        second = dense("linear2", bias=False)(nn.functional.gelu(first))
        return to_torch(nn.LayerNorm(EMBED), params["norm"])(first + second)

    return {
        "linear": lambda x: dense("linear")(x),
        "laion_mlp": lambda x: mlp(nn.ReLU())(x),
        "laion_mlp_gelu": lambda x: mlp(nn.GELU())(x),
        "msclap": residual,
    }


@pytest.mark.parametrize("kind", heads.HEADS)
def test_as_in_torch(kind, embedding):
    head = heads.tower(kind, EMBED)
    variables = fill(head, embedding, std=0.5)
    (projection, aux), _ = head.apply(variables, embedding)
    with torch.no_grad():
        want = references(variables["params"])[kind](
            torch.tensor(np.asarray(embedding))
        )
    np.testing.assert_allclose(projection, want.numpy(), atol=1e-5)
    assert aux == {}


def test_dropout_of_msclap_is_on_the_second_layer_only(embedding):
    """Dropped values leave LayerNorm(first layer), never zeros."""
    head = heads.tower("msclap", 512)
    variables = fill(head, embedding, std=0.5)
    (want, _), _ = head.apply(variables, embedding)
    (got, _), _ = head.apply(variables, embedding, train=True, key=jax.random.key(0))
    assert np.abs(got - want).max() > 0.1
    # With nothing from the second layer there is nothing to drop.
    params = variables["params"]
    nothing = params | {"linear2": jax.tree.map(jnp.zeros_like, params["linear2"])}
    variables = {"params": nothing, "state": {}}
    (want, _), _ = head.apply(variables, embedding)
    (got, _), _ = head.apply(variables, embedding, train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(got, want)


def test_unknown_head():
    with pytest.raises(ValueError, match="unknown head 'mlp'"):
        heads.tower("mlp", EMBED)
