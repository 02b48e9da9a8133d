"""Conversion tables: both directions, strict accounting, all errors in one."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.convert import rules
from clap_jax.convert.rules import Extra, Rule

TABLE = [
    Rule(r"layer\.(\d+)\.(fc|proj)\.weight", "b{0}/{1}/kernel", rules.LINEAR),
    Rule(
        r"layer\.(\d+)\.qkv\.weight",
        ("b{0}/q/kernel", "b{0}/k/kernel", "b{0}/v/kernel"),
        rules.LINEAR_THIRDS,
    ),
    Rule(r"stem\.weight", "stem/kernel", rules.CONV),
    Rule("scale", "scale"),
]
EXTRAS = [Extra(r"head\..*", "not used")]


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    shapes = {
        "layer.0.fc.weight": (5, 4),
        "layer.12.proj.weight": (3, 4),
        "layer.12.qkv.weight": (12, 4),
        "stem.weight": (6, 1, 3, 2),
        "scale": (),
        "head.weight": (2, 2),
    }
    return {
        key: np.asarray(rng.normal(size=shape), np.float32)
        for key, shape in shapes.items()
    }


@pytest.fixture
def target():
    shapes = {
        "b0/fc/kernel": (4, 5),
        "b12/proj/kernel": (4, 3),
        "b12/q/kernel": (4, 4),
        "b12/k/kernel": (4, 4),
        "b12/v/kernel": (4, 4),
        "stem/kernel": (3, 2, 1, 6),
        "scale": (),
    }
    return {
        path: SimpleNamespace(shape=shape, dtype=np.dtype(np.float32))
        for path, shape in shapes.items()
    }


def test_round_trip(source, target):
    filled, extra = rules.apply(TABLE, EXTRAS, source, target)
    assert list(extra) == ["head.weight"]
    assert extra["head.weight"] is source["head.weight"]
    assert list(filled) == list(target)
    assert {path: x.shape for path, x in filled.items()} == {
        path: x.shape for path, x in target.items()
    }
    stacked = source["layer.12.qkv.weight"]
    np.testing.assert_array_equal(filled["b12/k/kernel"], stacked[4:8].T)
    back = rules.invert(TABLE, filled)
    assert set(back) == set(source) - {"head.weight"}
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key], strict=True)


@pytest.mark.parametrize(
    "transform, shape",
    [
        (rules.IDENTITY, (3, 4)),
        (rules.LINEAR, (3, 4)),
        (rules.CONV, (8, 3, 2, 5)),
        (rules.THIRDS, (9,)),
        (rules.LINEAR_THIRDS, (9, 4)),
        (rules.conv_patches(3, 2, 5), (8, 3, 2, 5)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_transforms_invert(transform, shape):
    x = np.random.default_rng(0).normal(size=shape)
    parts = transform.forward(x)
    assert len(parts) == transform.parts
    np.testing.assert_array_equal(transform.inverse(*parts), x, strict=True)


def test_conv_patches_is_the_convolution():
    """Kernel = stride: the same as a matrix product over cut-out patches."""
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(4, 6, 3)), rng.normal(size=(5, 3, 2, 2))
    (kernel,) = rules.conv_patches(3, 2, 2).forward(weight)
    patch = image[2:4, 4:6].reshape(-1)
    want = np.einsum("hwi,oihw->o", image[2:4, 4:6], weight)
    np.testing.assert_allclose(patch @ kernel, want)


def test_every_error_is_reported_at_once(source, target):
    source["layer.0.fc.weight"] = source["layer.0.fc.weight"].astype(np.int64)
    source["layer.12.proj.weight"] = np.zeros((3, 5), np.float32)
    source["stem.weight"] = np.zeros((6, 1, 3, 3), np.float32)
    source["layer.0.qkv.weight"] = np.zeros((7, 4), np.float32)
    source["layer.7.fc.weight"] = np.zeros((2, 2), np.float32)
    source["surprise"] = np.zeros(3, np.float32)
    del source["layer.12.qkv.weight"], source["scale"]
    target["odd"] = target["scale"]
    with pytest.raises(rules.ConversionError) as caught:
        rules.apply(TABLE, EXTRAS, source, target)
    thirds = "b{}/q/kernel, b{}/k/kernel, b{}/v/kernel"
    assert caught.value.errors == [
        "layer.0.fc.weight: dtype int64, expected float32",
        "layer.12.proj.weight: shape (3, 5), expected (3, 4)",
        "stem.weight: shape (6, 1, 3, 3), expected (6, 1, 3, 2)",
        f"layer.0.qkv.weight: the model has no parameter {thirds.format(*[0] * 3)}",
        "layer.7.fc.weight: the model has no parameter b7/fc/kernel",
        "surprise: no rule for this source tensor",
        # One tensor that fills three.
        f"layer.12.qkv.weight: missing; it fills {thirds.format(*[12] * 3)}",
        "scale: missing; it fills scale",
        "odd: no rule fills this parameter",
    ]
    assert str(caught.value).startswith("9 tensors do not fit:\n  layer.0.fc")


def test_a_target_is_filled_once(source, target):
    table = [*TABLE, Rule(r"again", "scale")]
    source["again"] = np.zeros((), np.float32)
    with pytest.raises(rules.ConversionError, match="again: scale is filled already"):
        rules.apply(table, EXTRAS, source, target)


def test_invert_reports_everything(source, target):
    filled, _ = rules.apply(TABLE, EXTRAS, source, target)
    del filled["b12/v/kernel"]
    filled["extra/kernel"] = np.zeros(2, np.float32)
    with pytest.raises(rules.ConversionError) as caught:
        rules.invert(TABLE, filled)
    assert caught.value.errors == [
        "layer.12.qkv.weight: needs b12/v/kernel",
        "extra/kernel: no rule for this parameter",
    ]


def test_half_precision_sources_are_cast(target):
    for dtype in (np.float16, jnp.bfloat16, np.float64):
        filled, _ = rules.apply(
            [Rule("scale", "scale")],
            [],
            {"scale": np.asarray(1.5, dtype)},
            {"scale": target["scale"]},
        )
        assert filled["scale"] == np.float32(1.5)
        assert filled["scale"].dtype == np.float32


def test_rules_are_checked_when_made():
    with pytest.raises(ValueError, match="1 targets for 3 parts"):
        Rule("x", "y", rules.THIRDS)
    with pytest.raises(ValueError, match="each of the 1 groups once"):
        Rule(r"x\.(\d+)", "y")


def test_the_first_rule_wins():
    table = [Rule(r"a\.weight", "first"), Rule(r"(\w)\.weight", "{0}/second")]
    shape = SimpleNamespace(shape=(1,), dtype=np.dtype(np.float32))
    filled, _ = rules.apply(table, [], {"a.weight": np.ones(1)}, {"first": shape})
    assert list(filled) == ["first"]
    assert list(rules.invert(table, filled)) == ["a.weight"]


def test_what_is_filled_are_views(source, target):
    filled, _ = rules.apply(TABLE, EXTRAS, source, target)
    for path, key in (
        ("b0/fc/kernel", "layer.0.fc.weight"),
        ("b12/k/kernel", "layer.12.qkv.weight"),
        ("stem/kernel", "stem.weight"),
    ):
        assert np.shares_memory(filled[path], source[key]), path


def test_other_names_of_a_tensor():
    """Equal copies are left to be made again, others are kept."""
    table = [Rule(r"shared\.weight", "table")]
    entry = Extra(r"(en|de)coder\.embed\.weight", "tied", same_as="shared.weight")
    assert entry.names == ["encoder.embed.weight", "decoder.embed.weight"]
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = {
        "shared.weight": values,
        "encoder.embed.weight": values.copy(),
        "decoder.embed.weight": values + 1,
    }
    target = {"table": SimpleNamespace(shape=(2, 3), dtype=np.dtype(np.float32))}
    _, extra = rules.apply(table, [entry], source, target)
    assert list(extra) == ["decoder.embed.weight"]
    source["encoder.embed.weight"] = values.astype(np.float16)
    _, extra = rules.apply(table, [entry], source, target)
    assert len(extra) == 2


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_casting_back_is_exact_or_refused(dtype):
    values = np.array([1.5, -0.0, np.inf, np.nan], np.float32)
    back = rules.back_cast("x", values, dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.astype(np.float32), values)
    if dtype is np.float64:
        return
    bad = np.array([1.5, 1.0001, 1e30], np.float32)
    bad = bad[:2] if dtype is jnp.bfloat16 else bad
    name = np.dtype(dtype).name
    with pytest.raises(ValueError, match=f"x: . of {len(bad)} values .* {name}"):
        rules.back_cast("x", bad, dtype)


def test_steps_back_make_nothing_yet(source, target):
    filled, _ = rules.apply(TABLE, EXTRAS, source, target)
    steps = rules.steps_back(TABLE, filled)
    assert steps["layer.12.qkv.weight"].paths == (
        "b12/q/kernel",
        "b12/k/kernel",
        "b12/v/kernel",
    )
    made = steps["layer.12.qkv.weight"].make(filled)
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, source["layer.12.qkv.weight"])
