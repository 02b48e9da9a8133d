"""The training step: one pure jitted function from (state, batch) to state."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio import augment as augment_lib
from clap_jax.metrics import Mean
from clap_jax.train import accumulate, tasks
from clap_jax.train.state import TrainState
from clap_jax.train.tasks import Batch


def make_gradient(
    config: ConfigDict,
    spec: tasks.Spec,
    model: tasks.Model,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Callable:
    """The loss and its gradient: a function of `(params, model_state, batch, key)`.

    Returns `((mean loss, (metrics as sum and count, new model_state)), gradients)`. The
    batch is encoded in `train.accumulate` parts (see `clap_jax.train.accumulate`), and
    the loss is that of the whole batch whatever their number.
    """
    task = tasks.make(config, spec, model, mesh, augment)
    rules = config_lib.plain(config.mesh.rules)

    def place(gradients: Any) -> Any:
        """Gradients live where their parameters do, before they are summed over
        devices: each then sums its own share."""
        if mesh.shape["fsdp"] == 1:
            return gradients
        shardings = sharding.state_sharding({"params": gradients}, mesh, rules)
        return jax.lax.with_sharding_constraint(gradients, shardings["params"])

    value_and_grad = accumulate.value_and_grad(
        task.encode,
        task.loss,
        config.train.accumulate,
        mesh,
        place,
    )

    def gradient(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        return value_and_grad(params, model_state, task.rows(batch), key)

    return gradient


def make_update(
    config: ConfigDict,
    spec: tasks.Spec,
    model: tasks.Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    augment: augment_lib.Augment,
    total_steps: int = 0,
) -> Callable[[TrainState, Batch], TrainState]:
    """One update, `(state, batch) -> state`, to be compiled by `compile_step`.

    Keys are folded from the seed and the step, so a resumed run draws what the first
    one would have drawn. total_steps: of the run, for what depends on how much of it is
    done; 0: nothing is known of it.
    """
    gradient = make_gradient(config, spec, model, mesh, augment)
    seed = config.train.seed

    def update(state: TrainState, batch: Batch) -> TrainState:
        batch = tasks.timed(config, batch, state.step, total_steps)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (_, (found, model_state)), gradients = gradient(
            state.params, state.model_state, batch, key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = model.constrain(optax.apply_updates(state.params, updates))
        one = jnp.float32(1)
        measured = found | {
            "grad_norm": Mean(optax.tree.norm(gradients), one),
            "param_norm": Mean(optax.tree.norm(params), one),
        }
        if "logit_scale_a" in params:
            measured["logit_scale"] = Mean(jnp.exp(params["logit_scale_a"]), one)
        if "logit_bias" in params:
            measured["logit_bias"] = Mean(params["logit_bias"], one)
        return TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            average=averaged(state, params, config.train, total_steps),
            totals=jax.tree.map(jnp.add, state.totals, measured),
            clips=Mean(
                state.clips.sum + batch["bad"].sum(dtype=jnp.uint32),
                state.clips.count + jnp.uint32(batch["bad"].shape[0]),
            ),
        )

    return update


def averaged(
    state: TrainState, params: Any, settings: ConfigDict, total_steps: int
) -> Any:
    """The average of the parameters, `params` included; {} where there is none.

    settings: the config's `train`.
    """
    if settings.swa_percent:
        start = total_steps - math.ceil(total_steps * settings.swa_percent / 100)
        return running_mean(state.average, params, state.step - start)
    return moving_average(state.average, params, settings.ema_decay, state.step)


def running_mean(average: Any, params: Any, place: jax.Array) -> Any:
    """The mean of the parameters from place 0 on, all alike; before it the newest."""
    rate = 1 / jnp.maximum(place + 1, 1).astype(jnp.float32)
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Exponential moving average; a young run averages over fewer steps.

    The decay rises as (1 + n) / (10 + n), so that the random start is soon forgotten.
    """
    if not average:
        return average
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def compile_step(
    update: Callable[[TrainState, Batch], TrainState],
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
) -> jax.stages.Compiled:
    """Compile ahead of time, with explicit shardings and the state donated.

    state, batch: arrays, or `jax.ShapeDtypeStruct`s with shardings (of the batch they
    are not needed), for which nothing has to be computed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch_shardings = {key: sharding.batch_sharding(mesh) for key in batch}
    jitted = jax.jit(
        update,
        in_shardings=(shardings, batch_shardings),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return jitted.lower(state, batch).compile()
