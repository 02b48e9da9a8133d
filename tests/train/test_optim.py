"""Schedules, optimizers, freezing and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.train import optim

PARAMS = {
    "audio": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full(4, 2.0)},
    "text": {"kernel": jnp.full((4, 4), 2.0)},
}
GRADIENTS = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), PARAMS)


def section(**changes):
    config = config_lib.default().optim
    for key, value in changes.items():
        config[key] = value
    return config


def update(config, steps=1, params=PARAMS):
    optimizer = optim.make_optimizer(config, params, lambda _: config.learning_rate)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_schedule_rises_from_rate_over_warmup_then_falls_to_zero():
    schedule = optim.make_schedule(section(learning_rate=1.0), warmup=10, total=110)
    assert float(schedule(0)) == pytest.approx(0.1)
    assert float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.5, abs=1e-3)
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-6)


def test_schedule_without_warmup_and_constant():
    config = section(learning_rate=0.5, schedule="constant")
    assert float(optim.make_schedule(config, 0, 10)(7)) == 0.5
    with pytest.raises(config_lib.ConfigError, match="cosine or constant"):
        optim.make_schedule(section(schedule="linear"), 0, 10)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "adafactor", "muon"])
def test_every_optimizer_goes_downhill(name):
    params, _ = update(section(name=name, weight_decay=0.0, clip_norm=0.0))
    for before, after in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(params)):
        assert np.all(np.asarray(after) < np.asarray(before))


def test_unknown_optimizer():
    with pytest.raises(config_lib.ConfigError, match="not 'sgd'"):
        update(section(name="sgd"))


def test_adamw_equals_optax():
    config = section(clip_norm=0.0, decay_multipliers=((".*", 1.0),))
    reference = optax.adamw(
        config.learning_rate,
        config.beta1,
        config.beta2,
        config.epsilon,
        weight_decay=config.weight_decay,
    )
    expected, state = PARAMS, reference.init(PARAMS)
    for _ in range(3):
        updates, state = reference.update(GRADIENTS, state, expected)
        expected = optax.apply_updates(expected, updates)
    params, _ = update(config, steps=3)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_multiplier_zero_freezes_without_optimizer_state():
    config = section(lr_multipliers=(("audio/.*", 0.0), (".*", 1.0)), weight_decay=0.5)
    params, state = update(config, steps=2)
    np.testing.assert_array_equal(params["audio"]["kernel"], PARAMS["audio"]["kernel"])
    assert not np.allclose(params["text"]["kernel"], PARAMS["text"]["kernel"])
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert len(moments) == 2  # both moments of text/kernel, none of audio/kernel


def test_multipliers_scale_the_rate():
    config = section(
        lr_multipliers=(("audio/.*", 0.1), (".*", 1.0)), weight_decay=0.0, clip_norm=0.0
    )
    params, _ = update(config)
    audio = float(PARAMS["audio"]["kernel"][0, 0] - params["audio"]["kernel"][0, 0])
    text = float(PARAMS["text"]["kernel"][0, 0] - params["text"]["kernel"][0, 0])
    assert audio == pytest.approx(0.1 * text, rel=1e-3)


def test_biases_are_not_decayed():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    config = section(weight_decay=0.5)
    optimizer = optim.make_optimizer(config, PARAMS, lambda _: 1.0)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["audio"]["bias"], 0)
    np.testing.assert_allclose(updates["audio"]["kernel"], -1.0)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion"])
def test_bfloat16_momentum(name):
    """Only first moments; the parameters go about the same way."""
    config = section(name=name, learning_rate=0.1, momentum_dtype="bfloat16")
    half, state = update(config, steps=3)
    whole, _ = update(section(name=name, learning_rate=0.1), steps=3)
    dtypes = {}
    sharding.map_with_path(
        lambda path, leaf: (
            dtypes.setdefault(path.split("/")[-3], set()).add(leaf.dtype.name)
            if path.endswith("audio/kernel")
            else None
        ),
        state,
    )
    assert dtypes.pop("mu") == {"bfloat16"}
    assert dtypes == ({} if name == "lion" else {"nu": {"float32"}})
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(whole)):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=5e-3)


def test_momentum_that_is_not_offered():
    for name in ("adafactor", "muon"):
        with pytest.raises(
            config_lib.ConfigError,
            match=f"offered for adamw, adam, lion, not for optim.name={name}",
        ):
            update(section(name=name, momentum_dtype="bfloat16"))
    with pytest.raises(config_lib.ConfigError, match="float32 or bfloat16, not 'half'"):
        update(section(momentum_dtype="half"))


@pytest.mark.parametrize("factor", ["half", None, -1.0, float("nan")])
def test_a_factor_that_is_no_number(factor):
    with pytest.raises(config_lib.ConfigError, match="lr_multipliers: .* is no factor"):
        update(section(lr_multipliers=((".*", factor),)))
