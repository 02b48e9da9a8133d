"""Gradient caching: the gradient of a whole batch, encoded in parts, exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clap_jax import sharding
from clap_jax.audio.augment import Augment
from clap_jax.losses import contrastive
from clap_jax.models import dual as dual_lib
from clap_jax.models import zoo
from clap_jax.train import accumulate, tasks
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests import whole_mel_models
from tests.train.test_step import BATCH, PLAIN, SPEC, settings, whole_mel_batch

PARTS = 4
KEY = jax.random.key(7)


def mesh_of(devices, fsdp=1):
    return sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])


def small_batch(spec=SPEC, seed=0):
    """Noise; two neighbours are of one group."""
    rng, frontend = np.random.default_rng(seed), spec.frontend
    shape = (BATCH, frontend.clip_frames, frontend.mels)
    return {
        "mel": rng.normal(-40, 20, shape).astype(np.float16),
        "ids": rng.integers(5, 64, (BATCH, spec.text_length)).astype(np.int32),
        "mask": np.arange(spec.text_length) < rng.integers(4, 20, (BATCH, 1)),
        "group": (np.arange(BATCH) // 2).astype(np.int32),
        "bad": np.zeros(BATCH, bool),
    }


def gradient(spec, variables, batch, mesh, augment=PLAIN, **changes):
    """Loss, new model state and gradient, from a program for this mesh."""
    config = settings(**changes)
    dual = zoo.build(spec)
    function = step_lib.make_gradient(config, spec, dual, mesh, augment)
    placed = sharding.put(
        variables, sharding.state_sharding(variables, mesh, config.mesh.rules)
    )
    arguments = placed["params"], placed["state"], sharding.to_global(batch, mesh), KEY
    (value, (found, state)), gradients = jax.jit(function)(*arguments)
    assert float(found["loss"].compute()) == pytest.approx(float(value))
    return jax.device_get((value, state, gradients))


def assert_close(found, expected, relative=1e-5):
    """Leaf by leaf, relative to its largest; in theory biases of keys have none."""

    def check(path, a, b):
        scale = max(np.abs(b).max(initial=0), 1e-2)
        assert np.abs(a - b).max(initial=0) / scale < relative, path

    jax.tree_util.tree_map_with_path(
        lambda path, a, b: check(sharding.path_of(path), a, b), found, expected
    )


# --- four parts equal one pass ---

IMPLEMENTATIONS = [
    {"loss__impl": "ring", "loss__chunk": 2},
    {"loss__name": "sigmoid", "loss__impl": "gather"},
]
BIASED = dataclasses.replace(SPEC, logit_bias_init=-1.0)


@pytest.mark.parametrize("changes", IMPLEMENTATIONS, ids=str)
def test_four_parts_equal_one_pass(changes):
    """Of a model that draws nothing and looks at no other clip."""
    name = changes.get("loss__name", "softmax")
    spec = BIASED if name == "sigmoid" else SPEC
    variables = zoo.build(spec).init(jax.random.key(0))
    once = gradient(spec, variables, small_batch(), mesh_of(1), loss__name=name)
    parts = gradient(
        spec,
        variables,
        small_batch(),
        mesh_of(4, fsdp=2),
        train__accumulate=PARTS,
        **changes,
    )
    assert float(parts[0]) == pytest.approx(float(once[0]), rel=1e-5)
    assert_close(parts[2], once[2])


# --- with everything that draws or looks at others: the same parts, encoded at once ---

AUGMENT = Augment(gain_db=6.0, mixup_alpha=0.4, time_stripes=1)


def drawing():
    """BLAT's small model: dropout in both towers, batch norm in every layer."""
    spec = whole_mel_models.with_options(whole_mel_models.SPECS["whole"], widths=(8,))
    text = dataclasses.replace(spec.text, options=spec.text.options | {"dropout": 0.1})
    return dataclasses.replace(spec, text=text)


def reference(spec, variables, batch, parts, devices):
    """Plain differentiation through all parts; rows as `accumulate` deals them out."""
    dual, size = zoo.build(spec), BATCH // (parts * devices)
    rows = np.arange(BATCH).reshape(devices, parts, size)
    order = [rows[:, part].ravel() for part in range(parts)]

    # Compiled once for all parts; everything around it is differentiated as it stands.
    encode = jax.jit(tasks.make_encode(dual, spec.frontend, AUGMENT, mesh_of(1)))

    def loss(params):
        both, labels, states = [], [], []
        for part, chosen in enumerate(order):
            rows = {name: jnp.asarray(x[chosen]) for name, x in batch.items()}
            embeddings, (of_rows, state) = encode(
                params,
                variables["state"],
                rows | {"label": rows["group"]},
                jax.random.fold_in(KEY, part),
            )
            both.append(embeddings[0])
            labels.append(of_rows)
            states.append(state)
        # Whatever their order: a loss over all pairs does not see it.
        za, zt = (jnp.concatenate(side) for side in zip(*both))
        labels = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *labels)
        scores = dual.score(dual_lib.score_params(params), za, zt)
        total, count = contrastive.pair_loss(scores, labels)
        mean = jax.tree.map(lambda *leaves: sum(leaves) / parts, *states)
        return total / count, mean

    found = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    (value, state), gradients = jax.device_get(found)
    return value, state, gradients


def test_parts_draw_what_they_drew():
    spec, parts, devices = drawing(), 2, 2
    variables = whole_mel_models.random_variables(zoo.build(spec))
    batch = whole_mel_batch(spec)
    batch["group"] //= 2
    found = gradient(
        spec, variables, batch, mesh_of(devices), AUGMENT, train__accumulate=parts
    )
    expected = reference(spec, variables, batch, parts, devices)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert_close(found[1], expected[1])
    assert_close(found[2], expected[2], relative=5e-5)
    for new, old in zip(jax.tree.leaves(found[1]), jax.tree.leaves(variables["state"])):
        assert np.any(new != old)


# --- in the step, and in memory ---


def compiled(parts, mesh):
    """The whole step, in half precision and with blocks rematerialised."""
    config = settings(train__accumulate=parts, train__batch_size=64)
    dual, optimizer = zoo.build(SPEC, dtype="bfloat16", remat="blocks"), optax.sgd(0.1)
    state = state_lib.abstract_state(dual, config, mesh, optimizer)
    batch = {
        name: jax.ShapeDtypeStruct((64, *values.shape[1:]), values.dtype)
        for name, values in small_batch().items()
    }
    update = step_lib.make_update(config, SPEC, dual, optimizer, mesh, PLAIN)
    return step_lib.compile_step(update, state, batch, mesh)


def test_memory_falls_with_the_number_of_parts():
    """And nothing but shapes was needed to know."""
    mesh = mesh_of(4, fsdp=4)
    once, parts = (
        compiled(parts, mesh).memory_analysis().temp_size_in_bytes for parts in (1, 4)
    )
    assert parts < 0.6 * once


def test_split_keeps_rows_on_their_devices():
    mesh = mesh_of(4)
    rows = sharding.to_global({"x": np.arange(16)}, mesh)["x"]
    parts = jax.jit(lambda x: accumulate.split(x, 2, mesh))(rows)
    assert parts.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    for number, shard in enumerate(parts.addressable_shards):
        own = np.arange(16).reshape(4, 4)[number]
        assert set(shard.data.ravel().tolist()) == set(own)
    back = jax.jit(lambda x: accumulate.joined(x, mesh))(parts)
    np.testing.assert_array_equal(back, rows)
    text = jax.jit(lambda x: accumulate.split(x, 2, mesh)).lower(rows).compile()
    assert not any(
        name in text.as_text() for name in ("all-gather", "all-to-all", "permute")
    )
