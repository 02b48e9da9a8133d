"""LAION-CLAP's other text towers, CLIP's transformer and BART, with their heads."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.convert import bart, clip_text, parts, rules
from clap_jax.convert.rules import Extra
from clap_jax.models import heads, zoo
from clap_jax.models.dual import l2_normalise

# Oracle: model, options of what LAION trained, table of the tower.
MODELS = {
    "laion_text_transformer": ("laion_htsat_tiny_clip", {}, clip_text, ""),
    "laion_text_bart": (
        "laion_htsat_tiny_bart",
        {"text.options.pool": "mean_all"},
        bart,
        "text_branch.",
    ),
}
OTHERS = [
    Extra("logit_scale_[at]", "the audio tower is not in this oracle"),
    Extra(r"text_transform\..*", "heads of the MLP loss"),
]


@pytest.fixture(scope="module", params=list(MODELS))
def model(request, parity):
    """Weights, outputs and gradients, computed once."""
    check = parity(request.param)
    name, options, tables, prefix = MODELS[request.param]
    spec = zoo.get_spec(name, options)
    text = zoo.TEXT_TOWERS[spec.text.kind].tower(spec.text.options, spec.vocab_size)
    head = heads.tower(spec.head, spec.embed_dim)
    io = check.reference.io
    ids = jnp.asarray(io["in/input_ids"], jnp.int32)
    # What clip_text's mask says has no influence.
    mask = jnp.asarray(io.get("in/attention_mask", io["in/input_ids"]), bool)
    table = tables.rules(spec.text.options, prefix)
    for place, ours in enumerate(("linear1", "linear2")):
        source = rf"text_projection\.{2 * place}"
        table += parts.linear(source, f"params/text_projection/{ours}")

    def embed(params):
        (pooled, aux), _ = text.apply(
            {"params": params["text"], "state": {}}, (ids, mask)
        )
        projection = {"params": params["text_projection"], "state": {}}
        (projected, _), _ = head.apply(projection, pooled)
        return {
            "hidden": aux["hidden"],
            "pooled": pooled,
            "proj": projected,
            "embed": l2_normalise(projected),
        }

    def loss(params):
        outputs = embed(params)
        z = outputs["embed"]
        return (z * jnp.linspace(-1.0, 1.0, z.size).reshape(z.shape)).mean(), outputs

    width = jax.ShapeDtypeStruct((4, spec.text.options["width"]), jnp.float32)
    shapes = {
        "text": jax.eval_shape(text.init, jax.random.key(0), (ids, mask))["params"],
        "text_projection": jax.eval_shape(head.init, jax.random.key(0), width)[
            "params"
        ],
    }
    extras = OTHERS + tables.extras(prefix)
    filled, extra = rules.apply(
        table, extras, check.reference.weights(), sharding.flatten({"params": shapes})
    )
    params = sharding.unflatten(filled)["params"]
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), gradients = jax.device_get(run(params))
    gradients = rules.invert(table, sharding.flatten({"params": gradients}))
    return SimpleNamespace(
        check=check,
        spec=spec,
        prefix=prefix,
        tables=tables,
        table=table,
        filled=filled,
        extra=extra,
        extras=extras,
        outputs=outputs,
        loss=value,
        gradients=gradients,
    )


def test_every_tensor_is_used_and_comes_back(model):
    weights = model.check.reference.weights()
    back = rules.invert(model.table, model.filled) | model.extra
    back |= other_names(model.extras, back)
    assert sorted(back) == sorted(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    model.check.note("tensors", len(weights))


def other_names(extras, source):
    """Tied weights under their other names."""
    tied = (extra for extra in extras if extra.same_as)
    return {key: source[extra.same_as] for extra in tied for key in extra.names}


def test_a_strict_load_has_all_keys(model):
    """For a model that does not come from LAION: rules, buffers and tied names."""
    weights = model.check.reference.weights()
    made = model.tables.buffers(model.spec.text.options, model.prefix)
    source = rules.invert(model.table, model.filled) | made
    source |= other_names(model.extras, source)
    others = {key for key in weights if key.startswith(("logit", "text_transform"))}
    assert set(weights) == set(source) | others
    for key in made:
        assert source[key].shape == weights[key].shape, key


def test_embedding(model):
    model.check.check("tower", "text/hidden", model.outputs["hidden"], 1e-5)
    for key in ("pooled", "proj", "embed"):
        column = "embedding" if key == "embed" else "tower"
        for name in (f"text/{key}", f"text/{key}_f64"):
            model.check.check(column, name, model.outputs[key], 1e-5)


def test_loss_and_gradients(model):
    # The loss is a small difference of sums: 1e-4 of it is less than 1e-6 of them.
    want = model.check.reference.spec["grad"]["loss"]
    model.check.check_close("loss", model.loss, want, 1e-4)
    model.check.check_gradients(model.gradients, absolute=["k_proj.bias"])
