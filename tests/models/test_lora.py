"""Low-rank changes to the decoder of a captioner."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clap_jax
from clap_jax import config as config_lib
from clap_jax import convert, sharding
from clap_jax.audio.augment import Augment
from clap_jax.convert.models import Converted
from clap_jax.models import captioner, decode, lora
from clap_jax.train import tasks
from tests import small_models

PLAIN = small_models.captioner_spec("prefix", 30)
RANK = 2
SPEC = dataclasses.replace(PLAIN, lora_rank=RANK)
CHANGED = re.compile(r"block\d/attention/(query|value)/kernel")


@pytest.fixture(scope="module")
def start():
    return captioner.build(SPEC).init(jax.random.key(0))


@pytest.fixture(scope="module")
def learnt(start):
    """Variables whose factors are no zeros."""
    rng = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32),
        start["params"]["lora"],
    )
    return {**start, "params": start["params"] | {"lora": factors}}


def without(variables):
    params = {k: v for k, v in variables["params"].items() if k != "lora"}
    return {**variables, "params": params}


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, SPEC.embed_dim)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(rng.integers(0, PLAIN.vocab_size, (2, 5)))


def test_factors_are_of_queries_and_values(start):
    decoder = sharding.flatten(start["params"]["decoder"])
    wanted = {path for path in decoder if CHANGED.fullmatch(path)}
    factors = sharding.flatten(start["params"]["lora"])
    assert {path.rpartition("/")[0] for path in factors} == wanted
    for path in wanted:
        rows, columns = decoder[path].shape
        assert factors[f"{path}/down"].shape == (rows, RANK)
        assert factors[f"{path}/up"].shape == (RANK, columns)


def test_it_starts_as_the_plain_captioner(start, asked):
    own, plain = captioner.build(SPEC), captioner.build(PLAIN)
    np.testing.assert_array_equal(
        own.token_logits(start, *asked), plain.token_logits(without(start), *asked)
    )


def test_merged_weights_say_the_same(learnt, asked):
    own, plain = captioner.build(SPEC), captioner.build(PLAIN)
    spec, merged = lora.merged(SPEC, learnt)
    assert spec == PLAIN
    assert jax.tree.structure(merged) == jax.tree.structure(without(learnt))
    want = own.token_logits(learnt, *asked)
    np.testing.assert_allclose(plain.token_logits(merged, *asked), want, atol=1e-6)
    assert np.abs(want - plain.token_logits(without(learnt), *asked)).max() > 1e-3
    options = decode.Options("greedy", 4)
    written = own.caption(learnt, asked[0], options)
    np.testing.assert_array_equal(
        written.ids, plain.caption(merged, asked[0], options).ids
    )


def test_the_factors_learn_and_the_decoder_does_not(learnt):
    config = config_lib.default()
    config.task.name = "caption"
    config.optim.lr_multipliers = (("(mapper|lora)/.*", 1.0), (".*", 0.0))
    task = tasks.make(
        config,
        SPEC,
        captioner.build(SPEC),
        sharding.make_mesh(devices=jax.devices()[:1]),
        Augment(),
    )
    rng = np.random.default_rng(2)
    frontend = SPEC.frontend
    shape = (2, frontend.clip_frames, frontend.mels)
    batch = {
        "mel": jnp.asarray(rng.normal(-40, 20, shape), jnp.float16),
        "ids": jnp.asarray(rng.integers(0, PLAIN.vocab_size, (2, 6)), jnp.int32),
        "mask": jnp.ones((2, 6), bool),
        "answer": jnp.ones((2, 6), bool),
    }

    @jax.jit
    @jax.grad
    def gradient(params):
        encoded, (labels, _) = task.encode(
            params, learnt["state"], batch, jax.random.key(0)
        )
        return task.loss(params, encoded, labels)[0]

    found = gradient(learnt["params"])
    for name, learns in {"lora": True, "mapper": True, "decoder": False}.items():
        largest = max(np.abs(x).max() for x in jax.tree.leaves(found[name]))
        assert (largest > 0) == learns, name


def test_it_is_loaded_with_plain_weights(learnt, tmp_path):
    variables = jax.tree.map(np.asarray, learnt)
    convert.write(Converted(SPEC, variables), tmp_path / "model")
    found = clap_jax.load(tmp_path / "model")
    assert found.spec == PLAIN
    _, merged = lora.merged(SPEC, learnt)
    jax.tree.map(np.testing.assert_array_equal, found.variables, merged)


def test_ranks_that_cannot_be():
    with pytest.raises(ValueError, match="lora_rank is -1, expected 0 or more"):
        dataclasses.replace(PLAIN, lora_rank=-1)
