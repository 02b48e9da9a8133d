"""Conversion tables: both directions, strict accounting, all errors in one."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.convert import rules
from clap_jax.convert.rules import Ignore, Rule

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
IGNORED = [Ignore(r"head\..*", "not used")]


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
    filled = rules.apply(TABLE, IGNORED, source, target)
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
    source["layer.0.qkv.weight"] = np.zeros((7, 4), np.float32)
    source["layer.7.fc.weight"] = np.zeros((2, 2), np.float32)
    source["scale"] = np.zeros((), np.int64)
    source["stem.weight"] = np.zeros((6, 1, 3, 3), np.float32)
    source["surprise"] = np.zeros(3, np.float32)
    del source["layer.12.qkv.weight"]
    with pytest.raises(rules.ConversionError) as caught:
        rules.apply(TABLE, IGNORED, source, target)
    text = str(caught.value)
    assert len(caught.value.errors) == 8
    for sentence in (
        "layer.0.qkv.weight (7, 4)",
        "layer.7.fc.weight -> b7/fc/kernel: the model has no such parameter",
        "scale -> scale: dtype int64, the model has float32",
        "stem.weight -> stem/kernel: shape (3, 3, 1, 6), the model has (3, 2, 1, 6)",
        "surprise: no rule for this source tensor",
        *(f"b12/{name}/kernel: nothing in the source fills it" for name in "qkv"),
    ):
        assert sentence in text


def test_a_target_is_filled_once(source, target):
    table = [*TABLE, Rule(r"again", "scale")]
    source["again"] = np.zeros((), np.float32)
    with pytest.raises(rules.ConversionError, match="filled already, from scale"):
        rules.apply(table, IGNORED, source, target)


def test_invert_reports_everything(source, target):
    filled = rules.apply(TABLE, IGNORED, source, target)
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
        filled = rules.apply(
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
    filled = rules.apply(table, [], {"a.weight": np.ones(1)}, {"first": shape})
    assert list(filled) == ["first"]
    assert list(rules.invert(table, filled)) == ["a.weight"]
