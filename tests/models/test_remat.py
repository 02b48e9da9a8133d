"""What the backward pass keeps, and bfloat16: values, gradients, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import (
    bart,
    bert,
    clip_text,
    conv_transformer,
    convnet,
    gpt2,
    htsat,
    layers,
    pann,
    zoo,
)
from clap_jax.models.tower import Sound, Tower, complete
from tests.models.weights import fill

RNG = np.random.default_rng(0)
MEL = jnp.asarray(RNG.normal(-30, 15, (2, 64, 16)), jnp.float32)
TEXT = (jnp.asarray(RNG.integers(5, 29, (2, 16)), jnp.int32), jnp.ones((2, 16), bool))
TRANSFORMER = {"width": 16, "depth": 1, "heads": 2, "mlp": 32}
IMAGE = {"width": 8, "depths": (2,), "heads": (2,), "window": 4, "patch": 4}
KEY = jax.random.key(3)

TOWERS = {
    "htsat": (htsat, IMAGE | {"image": 32}),
    "htsat_fusion": (htsat, IMAGE | {"image": 32, "fusion": "aff_2d"}),
    "pann": (pann, {"widths": (8, 8)}),
    "conv_transformer": (conv_transformer, TRANSFORMER),
    "convnet": (convnet, {"widths": (8, 16)}),
    "bert": (bert, TRANSFORMER),
    "gpt2": (gpt2, TRANSFORMER),
    "clip_text": (clip_text, TRANSFORMER),
    "bart": (bart, TRANSFORMER),
}


def example(kind):
    if kind == "htsat_fusion":
        return Sound(
            jnp.stack([MEL, MEL + 9, MEL - 9, MEL], 1), jnp.array([True, True])
        )
    return TEXT if kind in zoo.TEXT_TOWERS else MEL


@functools.cache
def make(kind, remat="none", dtype="float32"):
    module, options = TOWERS[kind]
    options = complete(kind, options, module.DEFAULTS)
    vocab_size = (30,) if kind in zoo.TEXT_TOWERS else ()
    return module.tower(options, *vocab_size, dtype=dtype, remat=remat)


def loss(tower, variables, x):
    """A function of the parameters that draws from every random stream."""

    def run(params):
        both = variables | {"params": params}
        (z, _), state = tower.apply(both, x, train=True, key=KEY)
        return (z * jnp.sin(jnp.arange(z.size).reshape(z.shape))).sum(), state

    return run


def kept_bytes(tower, variables, x):
    """Bytes that the backward pass keeps of one more example."""

    def of(batch):
        def backward(params, x):
            return jax.vjp(loss(tower, variables, x), params, has_aux=True)[1]

        more = jax.tree.map(lambda y: jnp.concatenate([y] * batch), x)
        kept = jax.tree.leaves(jax.eval_shape(backward, variables["params"], more))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    return (of(2) - of(1)) / len(jax.tree.leaves(x)[0])


@pytest.mark.parametrize("kind", TOWERS)
def test_less_is_kept(kind):
    variables = fill(make(kind), example(kind))
    none, dots, blocks = (
        kept_bytes(make(kind, remat), variables, example(kind))
        for remat in layers.REMAT
    )
    assert 0 < blocks < dots < none, (none, dots, blocks)
    # Of a transformer's block, the inputs against all that is computed in it.
    if kind not in ("pann", "convnet", "conv_transformer"):
        assert blocks < none / 2, (none, blocks)


@pytest.mark.parametrize("kind", ["htsat_fusion", "pann", "convnet", "bert"])
def test_dots_changes_no_value_and_no_gradient(kind):
    x = example(kind)
    variables = fill(make(kind), x)

    def run(remat):
        function = loss(make(kind, remat), variables, x)
        return jax.jit(jax.value_and_grad(function, has_aux=True))(variables["params"])

    want, got = run("none"), run("dots")
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want[1]))
    for a, b in zip(*map(jax.tree.leaves, (want, got)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, scale))


def equations(jaxpr):
    """Every equation of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.fixture(scope="module")
def small_spec():
    """HTSAT and RoBERTa with LAION's head, shrunk."""
    htsat_options = IMAGE | {"image": 128, "depths": (1, 1), "heads": (2, 2)}
    return zoo.get_spec(
        "laion_htsat_tiny_roberta",
        {
            "audio.options": htsat_options,
            "text.options": TRANSFORMER,
            "vocab_size": 64,
            "frontend.clip_seconds": 1.0,
        },
    )


def test_bfloat16_stays_out_of_softmax_norms_and_heads(small_spec):
    """Of the forward pass in training; gradients arrive as float32."""
    model = zoo.build(small_spec, dtype="bfloat16", remat="blocks")

    def encode(variables, sound, ids, mask):
        (za, _), _ = model.encode_audio(variables, sound, train=True, key=KEY)
        (zt, _), _ = model.encode_text(variables, ids, mask, train=True, key=KEY)
        return za, zt

    inputs = zoo.examples(small_spec)
    variables = jax.eval_shape(model.init, KEY)
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32
    found = list(equations(jax.make_jaxpr(encode)(variables, *inputs).jaxpr))
    seen = {}
    for equation in found:
        for operand in equation.invars:
            kind = getattr(operand.aval, "dtype", None)
            seen.setdefault(equation.primitive.name, set()).add(str(kind))
    wide = ("exp", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "square")
    for name in wide:
        assert "bfloat16" not in seen.get(name, ()), name
    assert {"exp", "rsqrt", "reduce_sum", "reduce_max"} <= set(seen)
    # And the towers' products, but not those of the heads, do run in bfloat16.
    products = [e for e in found if e.primitive.name == "dot_general"]
    halves = [e for e in products if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(halves) > 10
    for equation in products:
        if equation.invars[1].aval.shape[-1] == small_spec.embed_dim:
            assert {v.aval.dtype for v in equation.invars} == {np.dtype("f4")}

    def total(params, state, *inputs):
        za, zt = encode({"params": params, "state": state}, *inputs)
        return (za * zt).sum()

    gradient = jax.eval_shape(
        jax.grad(total), variables["params"], variables["state"], *inputs
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("f4")}


def test_bfloat16_embeddings_are_close(small_spec):
    model = zoo.build(small_spec)
    variables = fill(Tower(lambda key, _: model.init(key), None), None)
    frontend = small_spec.frontend
    shape = (4, frontend.clip_frames, frontend.mels)
    mel = RNG.normal(-30, 15, shape).astype(np.float32)
    ids = RNG.integers(5, 64, (4, small_spec.text_length)).astype(np.int32)

    def embed(dtype):
        model = zoo.build(small_spec, dtype=dtype)
        (za, _), _ = jax.jit(model.encode_audio)(variables, mel)
        (zt, _), _ = jax.jit(model.encode_text)(variables, ids, ids > 0)
        return za, zt

    for full, half in zip(embed("float32"), embed("bfloat16"), strict=True):
        assert half.dtype == jnp.float32
        cosine = (full * half).sum(1)
        assert cosine.min() > 0.99 and np.abs(full - half).max() > 0
