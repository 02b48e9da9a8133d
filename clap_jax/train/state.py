"""What a training step carries from one to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.metrics import Mean

# Accumulated on the device between two lines of the log.
METRICS = ("loss", "grad_norm", "param_norm", "logit_scale")


class TrainState(NamedTuple):
    """Everything that a killed run needs back, but for the data iterator."""

    step: jax.Array  # int32 scalar: updates made
    params: Any
    model_state: Any  # batch statistics
    opt_state: optax.OptState
    average: Any  # moving average of params; {} when off
    totals: dict[str, Mean]  # metric sums since the last line of the log
    clips: Mean  # uint32: bad clips, clips seen, since the start


def zero_totals() -> dict[str, Mean]:
    return {name: Mean(jnp.float32(0), jnp.float32(0)) for name in METRICS}


def make_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, average: bool
) -> TrainState:
    """The state before the first step.

    `variables` are final (weights already loaded), since some optimizers look at them.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=variables["state"],
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else {},
        totals=zero_totals(),
        clips=Mean(jnp.uint32(0), jnp.uint32(0)),
    )


def shard_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Parameters, averages and optimizer state over `fsdp`; the rest replicated."""
    return jax.device_put(state, sharding.fsdp_sharding(state, mesh))


def evaluation_variables(state: TrainState) -> dict[str, Any]:
    """The variables that evaluation and export use: averaged when there is an average."""
    return {"params": state.average or state.params, "state": state.model_state}


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as checkpoint items (see `clap_jax.checkpoint`)."""
    items = {
        "model": {"params": state.params, "state": state.model_state},
        "training": {
            "step": state.step,
            "opt_state": state.opt_state,
            "totals": state.totals,
            "clips": state.clips,
        },
    }
    return items | ({"average": {"params": state.average}} if state.average else {})


def from_items(items: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    return TrainState(
        params=items["model"]["params"],
        model_state=items["model"]["state"],
        average=items["average"]["params"] if "average" in items else {},
        **items["training"],
    )


def count_parameters(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def restored(state: TrainState, checkpoints: Any, iterator: Any) -> TrainState:
    """The newest checkpoint in the shape of `state`; the iterator is moved along."""
    return from_items(
        checkpoints.restore(checkpoints.latest_step(), to_items(state), iterator)
    )


def reset_totals(state: TrainState, mesh: Mesh) -> TrainState:
    """Begin a new line of the log."""
    zeros = jax.device_put(zero_totals(), sharding.replicated(mesh))
    return state._replace(totals=zeros)
