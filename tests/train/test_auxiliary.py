"""A decoder of captions that learns beside the contrast."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clap_jax
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.convert.models import Converted
from clap_jax.models import zoo
from clap_jax.models.spec import Spec, TowerSpec
from clap_jax.train import loop, specs, starts, tasks
from tests.train.test_accumulate import assert_close, gradient, mesh_of, small_batch
from tests.train.test_step import SPEC, settings

DECODER = TowerSpec(
    "caption_decoder",
    {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "dropout": 0.0},
)
WRITING = dataclasses.replace(SPEC, caption=DECODER)
WEIGHT = 0.5


@pytest.fixture(scope="module")
def variables():
    return zoo.build(WRITING).init(jax.random.key(0))


@pytest.fixture(scope="module")
def both(variables):
    """Loss, state and gradient with both losses."""
    return gradient(
        WRITING, variables, small_batch(), mesh_of(1), task__caption_weight=WEIGHT
    )


@pytest.fixture(scope="module")
def plain(variables):
    """Those of the contrast alone."""
    pair = {
        kind: {name: tree for name, tree in trees.items() if name != "caption"}
        for kind, trees in variables.items()
    }
    return gradient(SPEC, pair, small_batch(), mesh_of(1))


def caption_loss(params, state, batch):
    """Mean cross entropy of all tokens but the first."""
    dual, variables = zoo.build(WRITING), {"params": params, "state": state}
    (_, aux), _ = dual.encode_audio(variables, jnp.asarray(batch["mel"], jnp.float32))
    logits = dual.caption_logits(variables, aux, batch["ids"], batch["mask"])
    own = jax.nn.one_hot(batch["ids"][:, 1:], logits.shape[-1])
    losses = -(jax.nn.log_softmax(logits) * own).sum(-1)
    return losses[batch["mask"][:, 1:]].mean()


@pytest.fixture(scope="module")
def of_captions(variables):
    """The loss of the captions alone, and its gradient."""
    state, batch = variables["state"], small_batch()
    found = jax.value_and_grad(lambda params: caption_loss(params, state, batch))
    return found(variables["params"])


def test_the_loss_is_the_weighted_sum(both, plain, of_captions):
    want = plain[0] + WEIGHT * of_captions[0]
    assert float(both[0]) == pytest.approx(float(want), rel=1e-5)


def test_captions_teach_what_hears_and_not_what_reads(both, plain, of_captions):
    for name in ("text", "text_projection", "audio_projection", "logit_scale_a"):
        assert_close(both[2][name], plain[2][name])
    more = jax.tree.map(lambda x: WEIGHT * x, of_captions[1])
    assert_close(both[2]["caption"], more["caption"])
    whole = jax.tree.map(jnp.add, plain[2]["audio"], more["audio"])
    assert_close(both[2]["audio"], whole, relative=1e-4)
    assert max(np.abs(x).max() for x in jax.tree.leaves(more["audio"])) > 1e-4


def test_parts_equal_one_pass(variables, both):
    parts = gradient(
        WRITING,
        variables,
        small_batch(),
        mesh_of(4, fsdp=2),
        train__accumulate=4,
        task__caption_weight=WEIGHT,
    )
    assert float(parts[0]) == pytest.approx(float(both[0]), rel=1e-5)
    assert_close(parts[2], both[2])


def test_padding_and_what_comes_later_are_not_read(variables):
    dual, batch = zoo.build(WRITING), small_batch()
    mel = jnp.asarray(batch["mel"][:2], jnp.float32)
    (_, aux), _ = dual.encode_audio(variables, mel)
    ids, mask = batch["ids"][:2], np.ones_like(batch["mask"][:2])
    other = ids.copy()
    other[:, 5:] = 7
    logits = [dual.caption_logits(variables, aux, x, mask) for x in (ids, other)]
    np.testing.assert_array_equal(logits[0][:, :5], logits[1][:, :5])
    assert np.abs(logits[0][:, 5:] - logits[1][:, 5:]).max() > 1e-3
    mask &= np.arange(mask.shape[1]) < 5
    hidden = [dual.caption_logits(variables, aux, x, mask) for x in (ids, other)]
    np.testing.assert_array_equal(hidden[0][:, :5], hidden[1][:, :5])


def test_a_config_says_whether_there_is_a_decoder():
    made = specs.for_captions(SPEC, 0.5)
    assert made.caption.options["position_table"] >= SPEC.text_length
    assert Spec.from_json(made.to_json()) == made
    assert specs.for_captions(WRITING, 0.5) == WRITING
    assert specs.for_captions(WRITING, 0.0) == SPEC
    with pytest.raises(config_lib.ConfigError, match="caption_weight is -1"):
        specs.for_captions(SPEC, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "event"}, "caption.guide is 'event'"),
        ({"position_table": 3}, "caption.position_table is 3"),
    ],
)
def test_decoders_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, caption=TowerSpec("caption_decoder", options))


def test_a_run_may_start_from_a_plain_pair(variables):
    pair = jax.device_get(zoo.build(SPEC).init(jax.random.key(5)))
    start = starts.Start("it", Converted(SPEC, pair))
    filled = starts.fill(variables, [start], WRITING, ".*")
    jax.tree.map(
        np.testing.assert_array_equal,
        filled["params"]["audio"],
        pair["params"]["audio"],
    )
    own = filled["params"]["caption"], variables["params"]["caption"]
    jax.tree.map(np.testing.assert_array_equal, *own)


def test_mixup_has_no_caption():
    config = settings(task__caption_weight=1.0)
    with pytest.raises(config_lib.ConfigError, match="mixup_alpha is 0.4"):
        tasks.contrast(
            config, WRITING, zoo.build(WRITING), mesh_of(1), Augment(mixup_alpha=0.4)
        )


def test_a_run_learns_to_write_and_is_loaded(tmp_path):
    config = config_lib.default()
    config.model = "small_transformer"
    shallow = {"options": {"depth": 1}}
    decoder = {"kind": DECODER.kind, "options": dict(DECODER.options)}
    config.model_overrides = {"audio": shallow, "text": shallow, "caption": decoder}
    config.task.caption_weight = 1.0
    config.train.batch_size = 8
    config.train.total_steps = 30
    config.train.log_steps = 10
    config.optim.learning_rate = 3e-3
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 16},)
    config.data.mel = "host"
    config.data.text_buckets = ()
    loop.train(config, tmp_path)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["train/caption_loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    clap = clap_jax.load(tmp_path)
    assert clap.spec.caption.options["width"] == 16
    assert clap.embed_text(["a dog"]).shape == (1, clap.spec.embed_dim)
