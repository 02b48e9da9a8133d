"""Losses over split batches: exactly the dense float64 definition, gradients too."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.losses import contrastive, sharded
from clap_jax.losses.contrastive import Options
from tests.losses import cases
from tests.losses.cases import EVERYTHING

IMPLEMENTATIONS = ("global", "gather", "ring")


def make_mesh(data, fsdp=1):
    return sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", contrastive.NAMES)
def test_eight_devices(name, impl):
    """With nothing, and with everything at once, rows by three of five."""
    mesh = make_mesh(4, 2)
    cases.check(Options(name, impl), mesh, cases.data(24))
    options = Options(name, impl, chunk=3, **EVERYTHING)
    cases.check(options, mesh, cases.data(40, mixup=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("name", contrastive.NAMES)
def test_fewer_devices(name, shape):
    mesh = make_mesh(*shape)
    cases.check(Options(name, "ring", **EVERYTHING), mesh, cases.data(24, mixup=True))
    cases.check(Options(name, "gather", chunk=4), mesh, cases.data(24))
    cases.check(Options(name, "global"), mesh, cases.data(24))


@pytest.mark.parametrize("name", contrastive.NAMES)
@pytest.mark.parametrize(
    "change, mixup",
    [({"label_smoothing": 0.2}, False), ({"hard_negatives": 1.0}, False), ({}, True)],
    ids=["smoothing", "hard", "mixup"],
)
def test_one_thing_at_a_time(name, change, mixup):
    """On a ring of another order, rows by two of five."""
    options = Options(name, "ring", chunk=2, **change)
    cases.check(options, make_mesh(1, 8), cases.data(40, mixup=mixup))


@pytest.mark.parametrize("impl", ["gather", "ring"])
@pytest.mark.parametrize("name", contrastive.NAMES)
def test_more_texts_than_clips(name, impl):
    options = Options(name, impl, chunk=2, **EVERYTHING)
    cases.check(options, make_mesh(2, 2), [cases.make_case(3, 12, 20, "uneven")])


@pytest.mark.parametrize("impl", ["gather", "ring"])
@pytest.mark.parametrize("name", contrastive.NAMES)
def test_the_written_gradient_is_the_derived_one(name, impl):
    """In float64, nothing but the order of sums differs from the dense definition."""
    mesh = make_mesh(2, 2)
    with jax.enable_x64(True):
        case = cases.make_case(7, 20, groups="uneven", mixup=True)
        arguments = case.arguments(np.float64)
        options = Options(name, impl, chunk=2, **EVERYTHING)

        def dense(*arguments):
            scores = cases.score(*arguments)
            total, count = contrastive.pair_loss(scores, case.labels(), options)
            return total / count

        def split(*arguments):
            return cases.mean_loss(options, mesh)(*arguments, case.labels())

        want = jax.jit(jax.value_and_grad(dense, (0, 1, 2)))(*arguments)
        found = jax.jit(jax.value_and_grad(split, (0, 1, 2)))(*arguments)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert x.dtype == jnp.float64
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)


def test_any_score_of_any_trees():
    """Embeddings in parts, parameters that are matrices; sums need not be divided."""
    mesh, rng = make_mesh(2, 2), np.random.default_rng(0)

    def score(params, audio, text):
        rotated = jnp.tanh(audio["frames"] @ params["mixing"]).mean(1)
        return params["scale"] * rotated @ text["words"].T + text["prior"]

    params = {"mixing": rng.normal(size=(6, 4)), "scale": np.array(3.0)}
    audio = {"frames": rng.normal(size=(8, 5, 6))}
    text = {"words": rng.normal(size=(8, 4)), "prior": rng.normal(size=8)}
    arguments = jax.tree.map(np.float32, (params, audio, text))
    labels = cases.make_case(0, 8, groups="uneven").labels()

    def total(*arguments):
        return sharded.pair_loss(score, *arguments, labels, options, mesh)[0]

    found = {}
    for impl in IMPLEMENTATIONS:
        options = Options("softmax", impl)
        found[impl] = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*arguments)
    for impl in ("gather", "ring"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6),
            found[impl],
            found["global"],
        )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_bfloat16_embeddings_are_scored_in_float32(impl):
    mesh, options = make_mesh(2, 2), Options("softmax", impl)
    case = cases.make_case(0, 16)

    def half(x):
        return x.astype(jnp.bfloat16)

    audio, text = half(case.audio), half(case.text)
    case = case._replace(audio=audio.astype(float), text=text.astype(float))
    want, (_, *gradients) = cases.expected(case, options)
    program = jax.jit(jax.value_and_grad(cases.mean_loss(options, mesh), (1, 2)))
    value, found = program(case.arguments()[0], audio, text, case.labels())
    assert value.dtype == jnp.float32
    assert value == pytest.approx(want, rel=1e-6)
    for x, y in zip(found, gradients, strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(float), y, rtol=2**-8, atol=1e-6)


def test_inside_a_scan():
    """Several steps in one program, as a fused training loop has them."""
    mesh, options = make_mesh(2, 2), Options("softmax", "ring")
    case = cases.make_case(0, 16, groups="uneven")
    params, audio, text = case.arguments()
    slope = jax.value_and_grad(cases.mean_loss(options, mesh), 1)

    @jax.jit
    def steps(audio):
        def one(audio, _):
            value, gradient = slope(params, audio, text, case.labels())
            return audio - gradient, value

        return jax.lax.scan(one, audio, None, length=3)

    _, values = steps(audio)
    for value in values:
        want, (_, gradient, _) = cases.expected(case, options)
        assert value == pytest.approx(want, rel=1e-5)
        case = case._replace(audio=case.audio - gradient)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_counts(impl):
    """Rows and columns that have a partner (softmax), all rows (sigmoid)."""
    mesh = make_mesh(4, 2)
    case = cases.make_case(0, 24, groups="uneven")
    paired = cases.target(case, "softmax") > 0
    want = (paired.any(0).sum() + paired.any(1).sum()) / 2
    assert want < 24
    for name, count in (("softmax", want), ("sigmoid", 24)):
        found = jax.jit(
            lambda *arguments, name=name: sharded.pair_loss(
                cases.score, *arguments, Options(name, impl), mesh
            )
        )(*case.arguments(), case.labels())
        assert [x.dtype for x in found] == [jnp.float32] * 2
        assert found[1] == count


def test_what_does_not_divide():
    mesh, case = make_mesh(4, 2), cases.make_case(0, 12)
    with pytest.raises(ValueError, match="12 clips are not divisible by 8 devices"):
        sharded.pair_loss(
            cases.score, *case.arguments(), case.labels(), Options(), mesh
        )
    params, audio, text = case.arguments()
    with pytest.raises(ValueError, match=r"12 labels for \[11\] texts"):
        sharded.pair_loss(
            cases.score, params, audio, text[:11], case.labels(), Options(), mesh
        )


@pytest.mark.parametrize(
    "batch, devices, impl, chunk",
    [
        (64, 1, "global", 0),
        (4096, 8, "global", 0),
        (8192, 8, "gather", 1024),
        (8192, 1, "gather", 2048),
        (32_768, 8, "gather", 512),
        (65_536, 8, "ring", 2048),
        (65_536, 64, "ring", 1024),
        (65_536, 256, "ring", 256),
        (262_144, 256, "ring", 1024),
    ],
)
def test_the_choice(batch, devices, impl, chunk):
    options, reason = sharded.choose(Options(), batch, devices, 512)
    assert (options.impl, options.chunk) == (impl, chunk)
    assert reason.startswith(f"softmax loss, {impl}: {batch} x {batch} scores over")
    # Deciding again changes nothing.
    assert sharded.choose(options, batch, devices, 512)[0] == options
    rows = batch // devices
    columns = rows if impl == "ring" else batch
    assert 4 * (chunk or rows) * columns <= 64 * 2**20


def test_what_is_asked_for_is_what_one_gets():
    for impl, chunk in itertools.product(IMPLEMENTATIONS, (0, 24)):
        asked = Options("sigmoid", impl, chunk)
        options, reason = sharded.choose(asked, 64, 4, 512)
        rows = chunk or (0 if impl == "global" else 16)
        assert options == dataclasses.replace(asked, chunk=rows)
        assert f"{impl}, as loss.impl says" in reason
    # Rows that have no good divisor: a last chunk is smaller.
    assert sharded.choose(Options("softmax", "ring"), 8 * 5003, 8, 512)[0].chunk == 3352
    assert "all rows at once" in sharded.choose(Options(), 64, 1, 512)[1]
