"""Feature fusion: its formulas, the reference's quirks, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clap_jax.convert import fusion as tables
from clap_jax.convert import rules
from clap_jax.models import fusion
from clap_jax.models.tower import from_linen
from clap_jax.sharding import flatten
from tests.models.weights import fill

CHANNELS = 8
ATTENTIVE = ("aff_1d", "iaff_1d", "aff_2d", "iaff_2d")


def shape(kind: str, batch: int = 3) -> tuple[int, ...]:
    return (batch, *((7,) if kind.endswith("1d") else (4, 5)), CHANNELS)


def views(kind: str) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=(2, *shape(kind))), jnp.float32))


class Tower(fusion.nn.Module):
    """A fusion with the signature of a tower, called as towers call it."""

    kind: str
    dtype: type = jnp.float32

    @fusion.nn.compact
    def __call__(self, x, train):
        fused = fusion.Fusion(self.kind, dtype=self.dtype, name="fusion")
        return fused(*x, train), {}


@functools.lru_cache
def make(kind: str):
    """Variables, and `apply(variables, (global, local, longer), train) -> y, state`."""
    tower = from_linen(Tower(kind))

    @functools.partial(jax.jit, static_argnums=2)
    def apply(variables, x, train):
        (y, _), state = tower.apply(variables, x, train=train, key=jax.random.key(0))
        return y, state

    return fill(tower, (*views(kind), jnp.ones(3, bool))), apply


@functools.lru_cache
def training(kind: str):
    """`(params, x, longer) -> gradients of both, y, state`."""
    variables, apply = make(kind)

    def loss(params, x, longer):
        y, state = apply(
            variables | {"params": params}, (x, views(kind)[1], longer), True
        )
        return (y**3).sum(), (y, state)

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


def run(kind, longer, train=False, variables=None):
    made, apply = make(kind)
    return apply(variables or made, (*views(kind), jnp.asarray(longer)), train)


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_only_longer_clips_are_fused(kind):
    x, _ = views(kind)
    y, _ = run(kind, [False, True, False])
    np.testing.assert_array_equal(y[::2], x[::2])
    assert np.abs(y[1] - x[1]).max() > 0.1


@pytest.mark.parametrize(("kind", "factor"), [("aff_2d", 1.0), ("iaff_1d", 0.5)])
def test_aff_doubles_and_iaff_does_not(kind, factor):
    """With all weights one half AFF adds its inputs; iAFF takes their mean."""
    variables, _ = make(kind)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    y, _ = run(kind, [True] * 3, variables=variables | {"params": zeros})
    x, local = views(kind)
    np.testing.assert_allclose(y, factor * (x + local), rtol=1e-6)


def test_daf_adds():
    y, _ = run("daf_1d", [True] * 3)
    np.testing.assert_array_equal(y, sum(views("daf_1d")))


class Reference(torch.nn.Module):
    """AFF and iAFF as the reference trains them, in float64."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        axes = int(kind[-2])
        conv = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[axes]
        norm = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d}[axes]
        pool = {1: torch.nn.AdaptiveAvgPool1d, 2: torch.nn.AdaptiveAvgPool2d}[axes](1)
        branches = {"local_att": [], "global_att": [pool]}
        if kind.startswith("iaff"):
            branches |= {"local_att2": [], "global_att2": [pool]}
        inner = CHANNELS // 4
        for name, first in branches.items():
            layers = conv(CHANNELS, inner, 1), norm(inner), torch.nn.ReLU()
            layers = *first, *layers, conv(inner, CHANNELS, 1), norm(CHANNELS)
            setattr(self, name, torch.nn.Sequential(*layers))
        self.double()

    def forward(self, x, local):
        rows = len(x)
        if rows == 1:  # the batch is doubled
            x, local = (torch.cat([y, y]) for y in (x, local))
        weight = torch.sigmoid(self.local_att(x + local) + self.global_att(x + local))
        if self.kind.startswith("aff"):
            return (2 * x * weight + 2 * local * (1 - weight))[:rows]
        mixed = x * weight + local * (1 - weight)
        weight = torch.sigmoid(self.local_att2(mixed) + self.global_att(mixed))
        return (x * weight + local * (1 - weight))[:rows]


def to_torch(kind, variables):
    """The reference with our weights, by the converter's table."""
    table = tables.fusion_rules(kind, "")
    paths = {
        f"{side}/audio/{path}": np.asarray(x, np.float64)
        for side in ("params", "state")
        for path, x in flatten(variables[side]).items()
    }
    arrays = rules.invert(table, paths)
    arrays |= {
        f"{name}.num_batches_tracked": np.zeros((), np.int64)
        for name in tables.norms(kind, "")
    }
    reference = Reference(kind)
    reference.load_state_dict({k: torch.from_numpy(x) for k, x in arrays.items()})
    return reference


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1).copy())


@pytest.mark.parametrize("kind", ATTENTIVE)
@pytest.mark.parametrize("longer", [[True, False, True], [False, True, False]])
def test_training_as_the_reference(kind, longer):
    """Output, gradients and running statistics; with one row its batch is doubled."""
    variables, _ = make(kind)
    x, local = views(kind)
    gradients, (y, state) = training(kind)(variables["params"], x, jnp.asarray(longer))
    reference = to_torch(kind, variables).train()
    rows = np.flatnonzero(longer)
    theirs = channels_first(x)[rows].requires_grad_()
    want = reference(theirs, channels_first(local)[rows])
    (want**3).sum().backward()

    def check(ours, torch_tensor, tolerance=2e-5):
        ours = np.moveaxis(np.asarray(ours), -1, 1)[rows]
        torch_array = torch_tensor.detach().numpy()
        np.testing.assert_allclose(ours, torch_array, tolerance, tolerance)

    check(y, want)
    check(gradients[1], theirs.grad, 1e-3)
    # Statistics and gradients by the reference's own names.
    after = {"params": gradients[0], "state": state}
    after = {f"{k}/audio/{p}": x for k in after for p, x in flatten(after[k]).items()}
    after = rules.invert(tables.fusion_rules(kind, ""), after)
    for name, buffer in reference.named_buffers():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(after[name], buffer, 1e-5, 1e-6, name)
    # A bias before a norm has no gradient but rounding.
    largest = max(np.abs(x).max() for name, x in after.items())
    for name, parameter in reference.named_parameters():
        want = 0 if parameter.grad is None else parameter.grad
        assert (parameter.grad is None) == name.startswith("global_att2")
        np.testing.assert_allclose(after[name], want, 1e-3, 1e-5 * largest, name)


def test_the_doubled_batch_shows_in_the_unbiased_variance():
    """n/(n - 1) with n = 2 * 20 places of one row, not 20."""
    x, local = views("aff_2d")
    variables, _ = make("aff_2d")
    _, state = run("aff_2d", [True, False, False], train=True)
    branch = variables["params"]["fusion"]["local_att"]
    down = (x + local)[0].reshape(-1, CHANNELS) @ branch["down"]["kernel"]
    var = np.var(down + branch["down"]["bias"], axis=0)
    before = variables["state"]["fusion"]["local_att"]["norm_down"]["var"]
    want = 0.9 * before + 0.1 * var * 40 / 39
    got = state["fusion"]["local_att"]["norm_down"]["var"]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["iaff_1d", "iaff_2d"])
def test_the_second_global_branch_of_iaff_is_kept_but_unused(kind):
    variables, _ = make(kind)
    y, state = run(kind, [True] * 3, train=True)
    changed = jax.tree.map(lambda x: x, variables)
    changed["params"]["fusion"]["global_att2"] = jax.tree.map(
        jnp.ones_like, variables["params"]["fusion"]["global_att2"]
    )
    again, _ = run(kind, [True] * 3, train=True, variables=changed)
    np.testing.assert_array_equal(y, again)
    before, after = variables["state"]["fusion"], state["fusion"]
    jax.tree.map(
        np.testing.assert_array_equal, before["global_att2"], after["global_att2"]
    )
    # The first one sees two rounds: two steps of 0.1.
    step = after["global_att"]["norm_down"]["mean"]
    assert np.abs(step - before["global_att"]["norm_down"]["mean"]).min() > 1e-4


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_training_without_a_longer_clip(kind):
    """Nothing is fused or counted, and the gradients are finite."""
    variables, _ = make(kind)
    x, _ = views(kind)
    (gradients, _), (y, state) = training(kind)(
        variables["params"], x, jnp.zeros(3, bool)
    )
    np.testing.assert_array_equal(y, x)
    jax.tree.map(np.testing.assert_array_equal, variables["state"], state)
    assert not any(np.any(g) for g in jax.tree.leaves(gradients))


def test_bfloat16_comes_back():
    variables, _ = make("aff_2d")
    x = tuple(y.astype(jnp.bfloat16) for y in views("aff_2d"))
    half = Tower("aff_2d", dtype=jnp.bfloat16)
    collections = {"params": variables["params"], "batch_stats": variables["state"]}
    y, _ = jax.jit(half.apply, static_argnums=2)(
        collections, (*x, jnp.ones(3, bool)), False
    )
    full, _ = run("aff_2d", [True] * 3)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, full, atol=0.1)


def test_unknown_kinds():
    with pytest.raises(ValueError, match="unknown kind of fusion 'aff'.*aff_2d"):
        run("aff", [True] * 3)
    with pytest.raises(ValueError, match="unknown fusion 'add'.*channel_map.*none"):
        fusion.check("add")
