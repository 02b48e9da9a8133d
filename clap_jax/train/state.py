"""What a training step carries from one to the next."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.metrics import Mean
from clap_jax.models.dual import Dual
from clap_jax.train import optim

# Accumulated on the device between two lines of the log, by every task.
METRICS = ("loss", "grad_norm", "param_norm")


class TrainState(NamedTuple):
    """Everything that a killed run needs back, but for the data iterator."""

    step: jax.Array  # int32 scalar: updates made
    params: Any
    model_state: Any  # batch statistics
    opt_state: optax.OptState
    average: Any  # average of params over steps; {} when off
    totals: dict[str, Mean]  # metric sums since the last line of the log
    clips: Mean  # uint32: bad clips, clips seen (modulo 2^32), since the start


def zero_totals(params: Any) -> dict[str, Mean]:
    """What a step of a model with these parameters adds its metrics to."""
    names = list(METRICS)
    names += ["logit_scale"] if "logit_scale_a" in params else []
    names += ["logit_bias"] if "logit_bias" in params else []
    names += head_metrics(params.get("heads", ()))
    names += ["token_accuracy"] if "decoder" in params else []
    names += ["contrastive_loss", "caption_loss"] if "caption" in params else []
    return {name: Mean(jnp.float32(0), jnp.float32(0)) for name in names}


def head_metrics(heads: Iterable[str]) -> list[str]:
    """Names of what a classifier with these heads is measured by, beside its loss."""
    heads = list(heads)
    of_each = [f"loss_{name}" for name in heads] if len(heads) > 1 else []
    return ["accuracy", *of_each] if heads else []


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
        totals=zero_totals(params),
        clips=Mean(jnp.uint32(0), jnp.uint32(0)),
    )


def averages(config: ConfigDict) -> bool:
    """Whether the run keeps an average of the parameters.

    Raises ConfigError where it would be two.
    """
    ema, swa = config.train.ema_decay > 0, config.train.swa_percent > 0
    if ema and swa:
        raise config_lib.ConfigError(
            "set only one of train.ema_decay and train.swa_percent"
        )
    return ema or swa


def abstract_variables(dual: Dual, config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a model's variables; nothing is computed."""
    shapes = jax.eval_shape(lambda: dual.init(jax.random.key(0)))
    return _placed(shapes, config, mesh)


def abstract_state(
    dual: Dual,
    config: ConfigDict,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of a state, as `jax.ShapeDtypeStruct`s.

    Nothing is computed, and the mesh's devices need not be there. optimizer: that of
    the config unless given. Raises ValueError where `mesh.rules` do not fit the model.
    """
    variables = abstract_variables(dual, config, mesh)
    if optimizer is None:
        params = variables["params"]
        optimizer = optim.make_optimizer(config.optim, params, lambda step: 0.0)
    return _abstract(variables, optimizer, config, mesh)


def fresh_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step, on the mesh; it takes `variables` over.

    Moments and averages are made where they live, never whole on one device.
    """
    state = _abstract(variables, optimizer, config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    placed = {"params": shardings.params, "state": shardings.model_state}
    make = jax.jit(
        lambda variables: make_state(variables, optimizer, bool(state.average)),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return make(sharding.put(variables, placed))


def _abstract(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainState:
    state = jax.eval_shape(
        lambda variables: make_state(variables, optimizer, averages(config)),
        variables,
    )
    return _placed(state, config, mesh)


def _placed(tree: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """Shapes and dtypes with the shardings that the config gives them."""
    shardings = sharding.state_sharding(tree, mesh, config_lib.plain(config.mesh.rules))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        shardings,
    )


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
    """The newest checkpoint in the shape of `state`, which may be an abstract one.

    The iterator is moved along.
    """
    return from_items(
        checkpoints.restore(checkpoints.latest_step(), to_items(state), iterator)
    )


def reset_totals(state: TrainState, mesh: Mesh) -> TrainState:
    """Begin a new line of the log."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.totals)
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), zeros)
    return state._replace(totals=sharding.put(zeros, everywhere))
