"""Layers that towers share, against formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import layers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_batch_norm_follows_torch(rng):
    """Biased variance for the batch, unbiased for the running one, momentum 0.1."""
    x = rng.normal(2.0, 3.0, (4, 5, 6))
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.zeros((1, 6)), False)
    x32 = jnp.asarray(x, jnp.float32)
    y, updates = norm.apply(variables, x32, True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1)), x.var((0, 1))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * 20 / 19, rtol=1e-5)
    y = norm.apply({"params": variables["params"], **updates}, x32, False)
    want = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var * 20 / 19 + 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_attention_is_the_formula(rng):
    x = rng.normal(size=(2, 5, 6))
    bias = rng.normal(size=(1, 3, 5, 5))
    attention = layers.Attention(heads=3)
    x32, bias32 = jnp.asarray(x, jnp.float32), jnp.asarray(bias, jnp.float32)
    params = attention.init(jax.random.key(0), x32, None, False)["params"]
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype("f4"), params)

    def dense(name, y):
        return y @ np.float64(params[name]["kernel"]) + params[name]["bias"]

    def heads(y):
        return y.reshape(2, 5, 3, 2).transpose(0, 2, 1, 3)

    query, key, value = (heads(dense(n, x)) for n in ("query", "key", "value"))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(2) + bias
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(2, 5, 6)
    got = attention.apply({"params": params}, x32, bias32, False)
    np.testing.assert_allclose(got, dense("out", mixed), rtol=1e-4, atol=1e-4)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 6 is not divisible by 4 heads"):
        layers.Attention(heads=4).init(
            jax.random.key(0), jnp.zeros((1, 2, 6)), None, False
        )


def test_drop_path_drops_whole_examples():
    x = jnp.ones((2000, 2, 3))
    drop = layers.DropPath(0.25)
    y = drop.apply({}, x, True, rngs={"droppath": jax.random.key(0)})
    kept = np.asarray(y[:, 0, 0])
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None], y.shape))
    assert abs(kept.mean() - 1) < 0.04
    np.testing.assert_array_equal(drop.apply({}, x, False), x)


def test_patches_are_a_strided_convolution(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 2, 3, 5)), jnp.float32)
    want = jax.lax.conv_general_dilated(
        x, kernel, (4, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = layers.patches(x, (4, 2)) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    "frames, fitted", [(129, 128), (251, 256), (128, 128), (3, 16)]
)
def test_fit_rounds_to_whole_cells(frames, fitted):
    x = jnp.ones((1, frames, 10))
    y = layers.fit(x, 16, 4, -100.0)
    assert y.shape == (1, fitted, 12)
    assert (y[:, :frames, :10] == 1).all()
    assert (y[:, frames:] == -100).all() and (y[:, :, 10:] == -100).all()


def test_mean_over_a_mask():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(layers.mean_over(x, mask), [[1, 2], [0, 0]])


def test_unknown_arrangements():
    x = jnp.zeros((1, 2, 4))
    with pytest.raises(ValueError, match="norm must be pre or post"):
        layers.Block(heads=2, mlp=4, norm="mid").init(jax.random.key(0), x, None, False)
    with pytest.raises(
        ValueError, match="unknown remat .all. .known: blocks, dots, none"
    ):
        layers.rematerialised(layers.Block, "all")
