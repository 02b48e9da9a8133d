"""Wrapping of linen modules: keys, state, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clap_jax.models import layers, tower


class Probe(nn.Module):
    """Draws from every stream and keeps running statistics."""

    width: int = 3
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x, train):
        x = layers.BatchNorm(name="norm")(x, train)
        aux = {"normed": x}
        for stream in tower.STREAMS if train else ():
            aux[stream] = jax.random.normal(self.make_rng(stream), (4,))
        return nn.Dense(self.width, name="dense")(x), aux


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (16, 5)), jnp.float32)


def test_collections_become_params_and_state(x):
    probe = tower.from_linen(Probe())
    variables = probe.init(jax.random.key(0), x)
    assert set(variables) == {"params", "state"}
    assert set(variables["params"]) == {"norm", "dense"}
    assert set(variables["state"]["norm"]) == {"mean", "var"}
    # Initialising does not count as having seen data.
    np.testing.assert_array_equal(variables["state"]["norm"]["mean"], np.zeros(5))


def test_state_moves_in_training_only(x):
    probe = tower.from_linen(Probe())
    variables = probe.init(jax.random.key(0), x)
    _, state = probe.apply(variables, x, train=False, key=None)
    assert state is variables["state"]
    _, state = probe.apply(variables, x, train=True, key=jax.random.key(1))
    assert np.abs(state["norm"]["mean"]).min() > 0.1


def test_streams_are_independent_and_fixed_by_the_key(x):
    probe = tower.from_linen(Probe())
    variables = probe.init(jax.random.key(0), x)

    def draw(seed):
        (_, aux), _ = probe.apply(variables, x, train=True, key=jax.random.key(seed))
        return np.stack([aux[stream] for stream in tower.STREAMS])

    first = draw(1)
    np.testing.assert_array_equal(first, draw(1))
    assert len(np.unique(np.concatenate([first, draw(2)]))) == 2 * first.size


def test_training_needs_a_key(x):
    probe = tower.from_linen(Probe())
    variables = probe.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="needs a key"):
        probe.apply(variables, x, train=True)


def test_options():
    known = tower.defaults(Probe)
    assert known == {"width": 3, "rate": 0.5, "sizes": (1, 2)}
    given = {"rate": 1, "sizes": [3, 4]}
    options = tower.complete("probe", given, known)
    assert options == {"width": 3, "rate": 1.0, "sizes": (3, 4)}
    assert type(options["rate"]) is float


def test_wrong_options_are_all_reported():
    with pytest.raises(ValueError) as caught:
        tower.complete(
            "probe",
            {"widht": 1, "sizes": 7, "width": True},
            {
                "width": 3,
                "sizes": (1, 2),
            },
        )
    text = str(caught.value)
    assert "unknown option of probe 'widht' (did you mean 'width'?" in text
    assert "option sizes of probe must be tuple, got 7" in text
    assert "option width of probe must be int, got True" in text
