"""Training on segments and sentences: the same on any mesh, in parts, by any loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio.augment import Augment
from clap_jax.losses import contrastive
from clap_jax.models import zoo
from clap_jax.models.segments import Segments
from clap_jax.train import step, tasks
from tests.models.test_long import FRAMES, LONG, MELS, TINY, model, weights

SPEC = zoo.get_spec("small_conv", TINY | LONG)
BATCH = 8


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    begin = np.arange(4.0) * 0.5
    seconds = np.stack([np.stack([begin, begin + 0.62], -1)] * BATCH)
    count = rng.integers(1, 5, BATCH)
    heard = np.arange(4) < count[:, None]
    spans = np.array([[1, 5], [5, 9], [9, 11]]) * (np.arange(3) < 2)[:, None]
    return {
        "mel": np.float32(rng.normal(-40, 20, (BATCH, 4, FRAMES, MELS))),
        "seconds": np.float32(seconds * heard[..., None]),
        "heard": heard,
        "ids": np.int32(rng.integers(3, 20, (BATCH, 12))),
        "mask": np.ones((BATCH, 12), bool),
        "spans": np.int32(np.stack([spans] * BATCH)),
        "group": np.arange(BATCH, dtype=np.int32),
        "bad": np.zeros(BATCH, bool),
    }


@pytest.fixture(scope="module")
def variables():
    return weights(model())


def gradient(variables, batch, shape, impl, parts=1):
    """Loss and gradients of a batch, off the mesh."""
    config = config_lib.default()
    config.train.batch_size, config.train.accumulate = BATCH, parts
    config.loss.impl = impl
    mesh = sharding.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
    function = step.make_gradient(config, SPEC, zoo.build(SPEC), mesh, Augment())
    placed = sharding.put(variables, sharding.state_sharding(variables, mesh))
    (loss, _), found = jax.jit(function)(
        placed["params"],
        placed["state"],
        sharding.to_global(batch, mesh),
        jax.random.key(0),
    )
    return jax.device_get((loss, found))


@pytest.fixture(scope="module")
def plain(variables, batch):
    return gradient(variables, batch, (1, 1), "global")


def test_the_loss_of_the_scores(variables, batch, plain):
    long = model()
    clips = Segments(batch["mel"], batch["seconds"], batch["heard"])
    texts = batch["ids"], batch["mask"], batch["spans"]

    @jax.jit
    def scores(variables):
        (song, _), _ = long.encode_audio(variables, clips)
        (story, _), _ = long.encode_text(variables, *map(jnp.asarray, texts))
        return long.score(variables["params"], song, story)

    total, count = contrastive.softmax_pair_loss(scores(variables))
    np.testing.assert_allclose(plain[0], total / count, rtol=1e-5)


@pytest.mark.parametrize("impl, parts", [("ring", 1), ("gather", 2)])
def test_on_devices_and_in_parts(variables, batch, plain, impl, parts):
    value, found = gradient(variables, batch, (2, 2), impl, parts)
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(plain[1]), strict=True
    ):
        name = jax.tree_util.keystr(path)
        # Keys' biases have no gradient but rounding.
        atol = 1e-4 * np.abs(y).max() + 1e-6
        np.testing.assert_allclose(x, y, atol=atol, err_msg=name)


def test_what_is_chosen_knows_of_segments():
    config = config_lib.default()
    config.train.batch_size = 1024
    mesh = sharding.make_mesh(4, 2, jax.devices())
    spec = zoo.get_spec("collap_roberta")
    reason = tasks.loss_facts(config, spec, mesh)["reason"]
    # 30 segments, 16 sentences, 8 heads.
    assert "1024 x 1024 scores of 3840 numbers over 8 device(s)" in reason


def test_mixup_is_refused():
    make = functools.partial(tasks.make, config_lib.default(), SPEC, model())
    with pytest.raises(config_lib.ConfigError, match="mixup_alpha is 0.5, expected 0"):
        make(sharding.make_mesh(1, 1, jax.devices()[:1]), Augment(mixup_alpha=0.5))
