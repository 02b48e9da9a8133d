"""LAION-CLAP models with HTSAT as a whole: conversion, one pass, comparisons."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.convert import laion_clap, rules, trees
from clap_jax.losses import contrastive
from clap_jax.models import htsat, zoo

STAGES = ("patch_embed", *(f"stage{i}" for i in range(4)))


def check_round_trip(check, table, extras, shapes):
    """The reference's weights in the tree of `shapes`; they come back unchanged."""
    weights = check.reference.weights()
    tree, extra = trees.fill(table, extras, weights, shapes)
    back = rules.invert(table, sharding.flatten(tree)) | extra
    assert sorted(back) == sorted(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    check.note("tensors", len(weights))
    return tree


def exact_bicubic_matrix(out, size):
    """HTSAT's resize with places in float64, as their float64 models find them."""
    place = np.arange(out) * (size - 1) / (out - 1)
    left = np.floor(place).astype(int)
    matrix, a = np.zeros((out, size)), htsat.BICUBIC_A
    for tap in (-1, 0, 1, 2):
        x = np.abs(place - (left + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(left + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(out), column), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def run(check, spec, sound):
    """Variables, outputs, loss and, where the reference has them, gradients."""
    dual = zoo.build(spec)
    table, extras = laion_clap.table(spec)
    variables = check_round_trip(check, table, extras, trees.shapes(spec))
    ids = check.reference.io["in/input_ids"].astype(np.int32)
    mask = check.reference.io["in/attention_mask"].astype(bool)

    def loss(params, matrix):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(htsat, "bicubic_matrix", lambda out, size: matrix)
            return traced(params)

    def traced(params):
        both = {"params": params, "state": variables["state"]}
        (za, audio), _ = dual.encode_audio(both, sound)
        (zt, text), _ = dual.encode_text(both, ids, mask)
        logits = dual.score(params, za, zt)
        total, count = contrastive.softmax_pair_loss(logits)
        audio |= {"embed": za, "proj": audio["projection"]}
        text |= {"embed": zt, "proj": text["projection"], "pooled": text["embedding"]}
        return total / count, (audio, text, logits)

    params = jax.tree.map(jnp.asarray, variables["params"])
    gradients = None
    shape = 1024, spec.frontend.clip_frames
    matrix = htsat.bicubic_matrix(*shape)
    if "grad" in check.reference.spec:
        both = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, outputs), gradients = jax.device_get(both(params, matrix))
        if spec.frontend.views > 1:
            # Theirs are in float64. Which ReLU of a fusion is open depends on the fifth
            # digit of what it gets.
            gradients = jax.device_get(both(params, exact_bicubic_matrix(*shape))[1])
        gradients = rules.invert(table, sharding.flatten({"params": gradients}))
    else:
        value, outputs = jax.device_get(jax.jit(loss)(params, matrix))
    audio, text, logits = outputs
    return SimpleNamespace(
        check=check,
        dual=dual,
        variables=variables,
        loss=value,
        audio=audio,
        text=text,
        logits=logits,
        gradients=gradients,
    )


def check_tower(check, outputs, tolerance=5e-6):
    """Everything along the way through HTSAT."""
    check.check("tower", "audio/bn0", outputs["bn0"], 1e-6)
    for stage in STAGES:
        check.check("tower", f"audio/{stage}", outputs[stage], tolerance)
    check_time(check, outputs, tolerance)


def check_time(check, outputs, tolerance=1e-5):
    """The last map and what is read from it, which the reference repeats 32 times."""
    check.check("tower", "audio/norm", outputs["tokens"], tolerance)
    for key in ("fine_grained", "framewise"):
        in_time = np.repeat(outputs[key], 32, axis=1)
        check.check("tower", f"audio/{key}", in_time, tolerance)
    check.check("tower", "audio/clipwise", outputs["clipwise"], 1e-5)


def check_embedding(model, side, names):
    """Embedding, projection and so on of a side, also in float64 where it is stored."""
    outputs, io = getattr(model, side), model.check.reference.io
    for name in names:
        for key in (f"{side}/{name}", f"{side}/{name}_f64"):
            if key == f"{side}/{name}" or key in io:
                model.check.check("embedding", key, outputs[name], 1e-5)


def check_loss(model):
    """Logits; where the reference has a gradient part, loss and gradients."""
    check, grad = model.check, model.check.reference.spec.get("grad")
    check.check("logits", "logits_per_audio", model.logits, 1e-5)
    if grad is not None:
        check.check_close("loss", model.loss, grad["loss"], 1e-6)
        # A key bias shifts all scores of a query alike: its gradient is rounding.
        check.check_gradients(model.gradients, absolute=["attention.self.key.bias"])
