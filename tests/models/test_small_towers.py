"""The two small audio towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import conv_transformer, convnet
from clap_jax.models.tower import complete
from tests.models.weights import fill

TOWERS = {
    "conv_transformer": (conv_transformer, {"width": 16, "depth": 2, "mlp": 32}, 16),
    "convnet": (convnet, {"widths": (8, 16)}, 16),
}


@pytest.fixture(params=list(TOWERS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def mel():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(-40, 20, (4, 129, 64)), jnp.float32)


def make(kind, dtype="float32", remat="none", **options):
    module, small, _ = TOWERS[kind]
    options = complete(kind, small | options, module.DEFAULTS)
    return module.tower(options, dtype=dtype, remat=remat)


def test_shapes(kind, mel):
    tower = make(kind)
    variables = fill(tower, mel)
    assert variables["state"] == {}
    (z, aux), state = jax.jit(tower.apply)(variables, mel)
    width = TOWERS[kind][2]
    assert state == {} and z.shape == (4, width) and z.dtype == jnp.float32
    time = aux["fine_grained"]
    np.testing.assert_allclose(time.mean(1), aux["tokens"].mean(1), atol=1e-5)
    want = time.mean(1) + (time.max(1) if kind == "convnet" else 0)
    np.testing.assert_allclose(z, want, atol=1e-5)


def test_the_transformer_has_64_tokens(mel):
    tower = conv_transformer.tower(conv_transformer.DEFAULTS)
    variables = jax.eval_shape(tower.init, jax.random.key(0), mel)
    assert variables["params"]["positions"].shape == (64, 96)


def test_fine_grained_follows_time(kind, mel):
    tower = make(kind)
    variables = fill(tower, mel)

    @jax.jit
    def positions(x):
        (_, aux), _ = tower.apply(variables, x)
        return aux["fine_grained"]

    moved = positions(mel.at[:, 96:].add(10.0)) - positions(mel)
    moved = np.abs(moved).sum((0, 2))
    late = len(moved) * 3 // 4
    assert moved[late:].mean() > 2 * moved[: late - 1].mean()


def test_the_conv_transformer_hears_loudness(mel):
    """Constants, not the clip's own statistics, normalise its input."""
    tower = make("conv_transformer")
    variables = fill(tower, mel)
    embed = jax.jit(lambda x: tower.apply(variables, x)[0][0])
    assert np.abs(embed(mel) - embed(mel - 20.0)).max() > 1e-2


def test_silence_is_finite(kind, mel):
    tower = make(kind)
    variables = fill(tower, mel)

    def loss(params):
        silence = jnp.full_like(mel, -100.0)
        (z, _), _ = tower.apply({"params": params, "state": {}}, silence)
        return (z**2).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_dropout_is_fixed_by_the_key(kind, mel):
    tower = make(kind, dropout=0.3)
    variables = fill(tower, mel)
    run = jax.jit(lambda k: tower.apply(variables, mel, train=True, key=k)[0][0])
    first = run(jax.random.key(1))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert np.abs(first - run(jax.random.key(2))).max() > 1e-3


def test_bfloat16_and_remat_agree_with_float32(kind, mel):
    variables = fill(make(kind), mel)

    def run(**settings):
        tower = make(kind, **settings)

        def loss(params):
            both = {"params": params, "state": {}}
            (z, _), _ = tower.apply(both, mel, train=True, key=jax.random.key(1))
            return z.std(), z

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        return gradient(variables["params"])

    gradient, z = run()
    recomputed, _ = run(remat="blocks")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, recomputed
    )
    _, half = run(dtype="bfloat16")
    assert half.dtype == jnp.float32
    assert np.abs(half - z).max() < 0.05 * np.abs(z).max()


def test_unknown_pool(mel):
    with pytest.raises(ValueError, match="pool must be mean or mean_max, got 'max'"):
        make("convnet", pool="max").init(jax.random.key(0), mel)


def test_the_convnet_takes_any_length():
    tower = make("convnet")
    variables = fill(tower, jnp.zeros((1, 129, 64)))
    for frames in (16, 192, 501):
        clips = jax.ShapeDtypeStruct((2, frames, 64), jnp.float32)
        (z, _), _ = jax.eval_shape(tower.apply, variables, clips)
        assert z.shape == (2, 16)


def test_the_convnet_hears_levels_against_the_loudest(mel):
    tower = make("convnet")
    variables = fill(tower, mel)

    def embed(x):
        (z, _), _ = tower.apply(variables, x)
        return z

    loud = jnp.maximum(mel, -50.0)  # all within the range, before and after
    np.testing.assert_allclose(embed(loud), embed(loud - 6.0), atol=1e-4)
    silence = jnp.full_like(mel, -100.0)
    assert np.abs(embed(silence) - embed(jnp.full_like(mel, -20.0))).max() > 1e-3
