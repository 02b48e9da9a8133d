"""The training step: same numbers on any mesh, exact totals, averages, augmentation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio.augment import Augment
from clap_jax.evals import hear
from clap_jax.metrics import Mean
from clap_jax.models import zoo
from clap_jax.train import optim, tasks
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from tests import whole_mel_models

BATCH = 16
PLAIN = Augment()
SPEC = zoo.get_spec(
    "small_transformer",
    {"audio.options.depth": 1, "text.options.depth": 1, "vocab_size": 64},
)


@pytest.fixture(scope="module")
def variables():
    return zoo.build(SPEC).init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    frontend = SPEC.frontend
    ids = rng.integers(5, 64, (BATCH, SPEC.text_length)).astype(np.int32)
    return {
        "mel": rng.normal(-40, 20, (BATCH, frontend.clip_frames, frontend.mels)).astype(
            np.float16
        ),
        "ids": ids,
        "mask": np.arange(SPEC.text_length) < rng.integers(4, 20, (BATCH, 1)),
        "group": (np.arange(BATCH) // 2).astype(np.int32),
        "bad": np.arange(BATCH) == 3,
    }


def with_waves(batch):
    """The batch with 16-bit noise in place of the mels."""
    wave = np.random.default_rng(1).normal(0, 3000, (BATCH, SPEC.frontend.clip_samples))
    others = {key: value for key, value in batch.items() if key != "mel"}
    return others | {"wave": wave.astype(np.int16)}


# Plain gradient descent: Adam would turn rounding noise in gradients that are zero in
# theory (key biases) into whole steps.
DESCENT = optax.sgd(0.1)


def settings(**changes):
    """A config; `changes` are dotted keys."""
    config = config_lib.default()
    config.train.batch_size = BATCH
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def run(
    variables,
    batch,
    mesh,
    steps=2,
    augment=PLAIN,
    optimizer=DESCENT,
    spec=SPEC,
    **changes,
):
    dual, config = zoo.build(spec), settings(**changes)
    variables = jax.tree.map(jnp.copy, variables)  # the state takes them over
    state = state_lib.fresh_state(variables, optimizer, config, mesh)
    update = step_lib.make_update(config, spec, dual, optimizer, mesh, augment)
    arrays = sharding.to_global(batch, mesh)
    compiled = step_lib.compile_step(update, state, arrays, mesh)
    for _ in range(steps):
        state = compiled(state, arrays)
    return jax.device_get(state)


def make_gradient(spec=SPEC, augment=PLAIN, dual=None, **changes):
    """The loss and its gradient on one device, compiled."""
    one = sharding.make_mesh(devices=jax.devices()[:1])
    dual = dual or zoo.build(spec)
    return jax.jit(
        step_lib.make_gradient(settings(**changes), spec, dual, one, augment)
    )


def make_loss(*arguments):
    """The loss alone, compiled."""
    gradient = make_gradient(*arguments)
    return jax.jit(lambda *given: gradient(*given)[0][0])


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_equal_one(variables, batch, fsdp):
    augment = Augment(gain_db=6.0, mixup_alpha=0.4, time_stripes=1)
    assert_eight_devices_equal_one(variables, batch, fsdp, augment=augment)


def test_eight_devices_equal_one_from_waves(variables, batch):
    assert_eight_devices_equal_one(variables, with_waves(batch), fsdp=4)


def test_eight_devices_equal_one_with_adamw(variables, batch):
    config = config_lib.default().optim
    # Far above the rounding noise of gradients that are zero in theory.
    config.epsilon = 1e-3
    schedule = optim.make_schedule(config, warmup=1, total=2)
    optimizer = optim.make_optimizer(config, variables["params"], schedule)
    assert_eight_devices_equal_one(variables, batch, fsdp=4, optimizer=optimizer)


def assert_eight_devices_equal_one(variables, batch, fsdp, **options):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    eight = sharding.make_mesh(fsdp=fsdp)
    single = run(variables, batch, one, **options)
    spread = run(variables, batch, eight, **options)
    assert single.totals["loss"].compute() == pytest.approx(
        spread.totals["loss"].compute(), rel=1e-5
    )
    for path, a, b in zip(
        _paths(single.params),
        jax.tree.leaves(single.params),
        jax.tree.leaves(spread.params),
    ):
        scale = max(np.abs(a).max(), 1e-3)
        assert np.abs(a - b).max() / scale < 1e-5, path


def _paths(tree):
    paths = []
    sharding.map_with_path(lambda path, _: paths.append(path), tree)
    return paths


def test_int16_waves_give_the_loss_of_their_mels(variables, batch):
    from clap_jax.audio import frontend as frontend_lib

    waves = with_waves(batch)
    mel = frontend_lib.log_mel(waves["wave"], SPEC.frontend)
    loss = make_loss()
    arguments = variables["params"], variables["state"]
    key = jax.random.key(0)
    from_wave = loss(*arguments, waves, key)
    from_mel = loss(*arguments, batch | {"mel": mel}, key)
    assert float(from_wave) == pytest.approx(float(from_mel), rel=1e-5)


def test_every_device_hears_its_own_waves_only(batch):
    """The compiler alone would send all waves to all devices for the transform."""
    mesh = sharding.make_mesh()
    waves = sharding.to_global({"wave": with_waves(batch)["wave"]}, mesh)
    heard = jax.jit(lambda batch: hear.sound(batch, SPEC.frontend, mesh).mel)
    assert "all-gather" not in heard.lower(waves).compile().as_text()
    alone = hear.sound(jax.device_get(waves), SPEC.frontend).mel
    np.testing.assert_allclose(heard(waves), alone, atol=1e-3)


def test_totals_count_steps_and_bad_clips(variables, batch):
    state = run(variables, batch, sharding.make_mesh(), steps=3)
    assert state.step == 3
    assert state.totals["grad_norm"].count == 3
    assert state.clips == Mean(3, 3 * BATCH)


def test_scale_stays_clamped(variables, batch):
    params = variables["params"] | {"logit_scale_a": jnp.log(jnp.float32(150.0))}
    state = run(variables | {"params": params}, batch, sharding.make_mesh(), steps=1)
    assert np.exp(state.params["logit_scale_a"]) <= 100.001


def test_running_mean_is_the_mean_of_the_last_steps():
    """Before them the newest; then every one has the same share."""
    average, rows = {"w": jnp.zeros(2)}, np.random.default_rng(0).normal(size=(7, 2))
    for step, row in enumerate(rows):
        params = {"w": jnp.asarray(row, jnp.float32)}
        average = step_lib.running_mean(average, params, jnp.int32(step - 3))
        wanted = row if step < 4 else rows[3 : step + 1].mean(0)
        np.testing.assert_allclose(average["w"], wanted, rtol=0, atol=1e-6)


def test_moving_average_follows_the_parameters():
    average, params = {"w": jnp.float32(0)}, {"w": jnp.float32(1)}
    young = step_lib.moving_average(average, params, 0.99, jnp.int32(0))
    assert float(young["w"]) == pytest.approx(0.9)
    old = step_lib.moving_average(average, params, 0.99, jnp.int32(100_000))
    assert float(old["w"]) == pytest.approx(0.01, rel=1e-4)
    assert step_lib.moving_average({}, params, 0.0, jnp.int32(0)) == {}


def test_average_is_what_evaluation_uses(variables, batch):
    state = run(variables, batch, sharding.make_mesh(), train__ema_decay=0.9)
    used = state_lib.evaluation_variables(state)["params"]
    for a, b in zip(jax.tree.leaves(used), jax.tree.leaves(state.average)):
        np.testing.assert_array_equal(a, b)
    different = [
        np.abs(a - b).max() > 0
        for a, b in zip(jax.tree.leaves(used), jax.tree.leaves(state.params))
    ]
    assert any(different)


def test_state_survives_the_trip_through_items(variables, batch):
    state = run(variables, batch, sharding.make_mesh(), train__ema_decay=0.9)
    again = state_lib.from_items(state_lib.to_items(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)


# --- models that need the mel of whole clips ---

AUGMENT = Augment(
    gain_db=6.0,
    time_shift=0.5,
    time_stretch=0.2,
    mel_shift_bins=1,
    mixup_alpha=0.4,
    time_stripes=1,
    mel_stripes=1,
    mel_stripe_bins=3,
)


def whole_mel_spec(kind):
    """Without dropout and stripes of the tower's own, whose draws a mesh may change."""
    spec = whole_mel_models.SPECS[kind]
    options = {
        "fused": {"drop_path": 0.0, "spec_augment": False},
        "whole": {"dropout": 0.0, "fc_dropout": 0.0, "spec_augment": "none"},
    }
    spec = whole_mel_models.with_options(spec, **options[kind])
    text = dataclasses.replace(spec.text, options=spec.text.options | {"dropout": 0.0})
    return dataclasses.replace(spec, text=text)


def whole_mel_batch(spec, seed=0):
    """Views of which some are of longer clips, or clips of which some are shorter."""
    rng, frontend = np.random.default_rng(seed), spec.frontend
    shape = (frontend.clip_frames, frontend.mels)
    mel = rng.normal(-40, 20, (BATCH, 4, *shape)).astype(np.float16)
    ids = rng.integers(5, 64, (BATCH, spec.text_length)).astype(np.int32)
    batch = {
        "ids": ids,
        "mask": np.arange(spec.text_length) < rng.integers(4, 12, (BATCH, 1)),
        "group": np.arange(BATCH, dtype=np.int32),
        "bad": np.zeros(BATCH, bool),
    }
    if frontend.views > 1:
        longer = rng.random(BATCH) < 0.5
        mel[~longer] = mel[~longer, :1]
        return batch | {"mel": mel, "longer": longer}
    frames = rng.integers(20, frontend.clip_frames + 1, BATCH).astype(np.int32)
    frames[0] = frontend.clip_frames
    silent = np.arange(frontend.clip_frames) >= frames[:, None]
    mel = np.where(silent[:, :, None], np.float16(-100), mel[:, 0])
    return batch | {"mel": mel, "frames": frames}


@pytest.fixture(scope="module", params=["fused", "whole"])
def whole_mel(request):
    spec = whole_mel_spec(request.param)
    variables = whole_mel_models.random_variables(zoo.build(spec))
    return spec, variables, whole_mel_batch(spec)


def test_eight_devices_equal_one_with_whole_mels(whole_mel):
    """Lengths and flags are split with their rows, statistics are those of all rows."""
    spec, variables, batch = whole_mel
    assert_eight_devices_equal_one(
        variables, batch, fsdp=1, steps=1, spec=spec, augment=AUGMENT
    )


def test_one_program_for_all_batches(whole_mel):
    """Which clips are longer, and how long they are, is data. In bfloat16 and with
    recomputation the loss is about the same, and it has a gradient."""
    spec, variables, _ = whole_mel

    loss = make_loss(spec, AUGMENT)
    half = zoo.build(spec, dtype="bfloat16", remat="blocks")
    half = make_gradient(spec, AUGMENT, half)
    found = set()
    for seed in range(3):
        batch = whole_mel_batch(spec, seed)
        arguments = variables["params"], variables["state"], batch, jax.random.key(0)
        value = loss(*arguments)
        (half_value, _), gradient = half(*arguments)
        assert float(half_value) == pytest.approx(float(value), rel=0.05)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        found.add(float(value))
    assert loss._cache_size() == half._cache_size() == 1
    assert len(found) == 3 and np.isfinite(list(found)).all()


def test_what_the_tower_hears(whole_mel):
    """Float32 mels, flags and lengths as they came; those of mixtures are joined."""
    spec, _, batch = whole_mel
    heard = hear.sound(jax.tree.map(jnp.asarray, batch), spec.frontend)
    assert heard.mel.dtype == jnp.float32
    np.testing.assert_array_equal(heard.mel, batch["mel"])
    key, known = jax.random.key(3), "longer" if spec.frontend.views > 1 else "frames"
    np.testing.assert_array_equal(getattr(heard, known), batch[known])
    same, mix = tasks.augmented(key, heard, Augment(gain_db=3.0))
    assert mix is None
    np.testing.assert_array_equal(getattr(same, known), batch[known])
    mixed, mix = tasks.augmented(key, heard, Augment(mixup_alpha=0.4))
    partner = np.asarray(mix.partner)
    expected = np.maximum(batch[known], batch[known][partner])
    np.testing.assert_array_equal(getattr(mixed, known), expected)
    assert not np.array_equal(expected, batch[known])
