"""The bidirectional GRU, against torch's on packed sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.convert import captioner as tables
from clap_jax.convert import rules
from clap_jax.models import recurrent

WIDTH, DEPTH, INPUT = 6, 3, 5
FRAMES = [7, 4, 1]


@pytest.fixture(scope="module")
def pair():
    """torch's GRU and ours with its weights, in float32, and features of three clips."""
    import torch

    torch.manual_seed(0)
    theirs = torch.nn.GRU(INPUT, WIDTH, DEPTH, batch_first=True, bidirectional=True)
    ours = recurrent.tower({"width": WIDTH, "depth": DEPTH, "dropout": 0.5})
    x = np.random.default_rng(0).normal(size=(3, 7, INPUT)).astype(np.float32)
    sequence = recurrent.Sequence(jnp.asarray(x), jnp.asarray(FRAMES, jnp.int32))
    shapes = sharding.flatten(jax.eval_shape(ours.init, jax.random.key(0), sequence))
    weights = {key: value.numpy() for key, value in theirs.state_dict().items()}
    table = tables.gru_rules("", "params", DEPTH)
    filled, _ = rules.apply(table, [], weights, shapes)
    back = rules.invert(table, filled)
    assert sorted(back) == sorted(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    return (
        theirs,
        ours,
        {"params": sharding.unflatten(filled)["params"], "state": {}},
        x,
    )


def sequences(x, frames):
    return recurrent.Sequence(jnp.asarray(x), jnp.asarray(frames, jnp.int32))


def test_as_torch_on_packed_sequences(pair):
    import torch

    theirs, ours, variables, x = pair
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), FRAMES, batch_first=True
    )
    with torch.no_grad():
        want = torch.nn.utils.rnn.pad_packed_sequence(
            theirs(packed)[0], batch_first=True
        )[0].numpy()
    (got, _), _ = jax.jit(ours.apply)(variables, sequences(x, FRAMES))
    assert got.shape == (3, 7, 2 * WIDTH) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_gradients_as_torch(pair):
    import torch

    theirs, ours, variables, x = pair
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), FRAMES, batch_first=True
    )
    theirs.zero_grad()
    (theirs(packed)[0].data ** 2).sum().backward()

    def loss(params):
        (out, _), _ = ours.apply({"params": params, "state": {}}, sequences(x, FRAMES))
        return (out**2).sum()

    gradients = {"params": jax.jit(jax.grad(loss))(variables["params"])}
    table = tables.gru_rules("", "params", DEPTH)
    back = rules.invert(table, sharding.flatten(jax.device_get(gradients)))
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(
            back[name], parameter.grad.numpy(), atol=2e-5, err_msg=name
        )


def test_padding_has_no_influence(pair):
    _, ours, variables, x = pair
    run = jax.jit(ours.apply)
    (whole, _), _ = run(variables, sequences(x, FRAMES))
    noisy = x.copy()
    noisy[1, 4:], noisy[2, 1:] = 50.0, -50.0
    (other, _), _ = run(variables, sequences(noisy, FRAMES))
    np.testing.assert_array_equal(other, whole)
    (alone, _), _ = run(variables, sequences(x[1:2, :4], [4]))
    np.testing.assert_allclose(alone[0], whole[1, :4], atol=1e-6)
    assert not np.asarray(whole)[1, 4:].any() and not np.asarray(whole)[2, 1:].any()


def test_dropout_between_layers_alone(pair):
    _, ours, variables, x = pair
    train = jax.jit(
        lambda key: ours.apply(variables, sequences(x, FRAMES), train=True, key=key)[0]
    )
    (first, _), (again, _), (other, _) = (train(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    one = recurrent.tower({"width": WIDTH, "depth": 1, "dropout": 0.5})
    layer = {
        "params": {k: v for k, v in variables["params"].items() if k.endswith("0")},
        "state": {},
    }
    run = jax.jit(one.apply, static_argnames="train")
    (plain, _), _ = run(layer, sequences(x, FRAMES), train=False)
    (trained, _), _ = run(
        layer, sequences(x, FRAMES), train=True, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(plain, trained)


def test_weights_at_the_start():
    """U(-1/sqrt(width), 1/sqrt(width)), as torch's."""
    tower = recurrent.tower({"width": 16, "depth": 1, "dropout": 0.0})
    tree = tower.init(jax.random.key(0), sequences(np.zeros((1, 1, 30)), [1]))["params"]
    flat = sharding.flatten(tree)
    assert sorted(flat) == sorted(
        f"{way}0/{layer}/{part}"
        for way in ("forward", "backward")
        for layer in ("input", "state")
        for part in ("kernel", "bias")
    )
    for path, leaf in flat.items():
        assert 0.9 * 0.25 < np.abs(leaf).max() <= 0.25, path
        assert abs(np.std(leaf) - 0.25 / 3**0.5) < 0.03, path


def test_bfloat16(pair):
    _, ours, variables, x = pair
    half = recurrent.tower(
        {"width": WIDTH, "depth": DEPTH, "dropout": 0.5}, dtype="bfloat16"
    )
    (want, _), _ = jax.jit(ours.apply)(variables, sequences(x, FRAMES))
    (got, _), _ = jax.jit(half.apply)(variables, sequences(x, FRAMES))
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - want).max() < 0.03
