"""The optimizer from its config section: optax pieces under one regex mechanism."""

import math
from collections import Counter
from typing import Any

import jax
import optax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.train import layers

# Optimizers whose first moment may be bfloat16.
_WITH_MOMENTUM_DTYPE = ("adamw", "adam", "lion")


def make_schedule(optim: ConfigDict, warmup: int, total: int) -> optax.Schedule:
    """Linear warm-up, then cosine to zero or constant, per step.

    LAION-CLAP starts its warm-up at rate/warmup, not at zero (`(step + 1) / warmup`).
    """
    peak = optim.learning_rate
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(total - warmup, 1))
    elif optim.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        raise config_lib.ConfigError(
            f"optim.schedule is cosine or constant, not {optim.schedule!r}"
        )
    if warmup == 0:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    optim: ConfigDict, params: Any, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clip, precondition, decay (decoupled), scale by rate and multiplier.

    Parameters with multiplier 0 get no update, no optimizer state, and no share in
    the gradient norm.
    """
    multipliers = rate_multipliers(optim, params)
    decays = _factors(optim, "decay_multipliers", params)
    _log_table(params, multipliers, decays)
    clip = optim.clip_norm
    labels = jax.tree.map(lambda factor: "trained" if factor else "frozen", multipliers)
    direction = optax.chain(
        optax.clip_by_global_norm(clip) if clip > 0 else optax.identity(),
        _precondition(optim),
    )
    return optax.chain(
        optax.partition({"trained": direction, "frozen": optax.set_to_zero()}, labels),
        # Plain adam decays nothing, whatever the config says.
        _decay(0.0 if optim.name == "adam" else optim.weight_decay, decays),
        _scale_by_tree(multipliers),
        optax.scale_by_learning_rate(schedule),
    )


def rate_multipliers(optim: ConfigDict, params: Any) -> Any:
    """What the rate of every parameter is multiplied by: `lr_multipliers` times the
    decay of its layer, as a tree. params: parameters, or their shapes."""
    multipliers = _factors(optim, "lr_multipliers", params)
    if optim.layer_decay == 1:
        return multipliers
    by_layer = layers.factors(params, optim.layer_decay)
    return jax.tree.map(lambda one, other: one * other, multipliers, by_layer)


def _factors(optim: ConfigDict, key: str, params: Any) -> Any:
    """The factor of every parameter, by the rules of `optim.<key>`."""
    factors = sharding.match(list(optim[key]), params, f"optim.{key}")
    for _, factor in optim[key]:
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise config_lib.ConfigError(
                f"optim.{key}: {factor!r} is no factor, expected a number, 0 or more"
            )
    return factors


def _log_table(params: Any, multipliers: Any, decays: Any) -> None:
    """What the rules came to: values of parameters for each pair of factors."""
    sizes: Counter = Counter()
    for leaf, multiplier, decay in zip(
        *map(jax.tree.leaves, (params, multipliers, decays)), strict=True
    ):
        sizes[multiplier, decay] += leaf.size
    for (multiplier, decay), size in sorted(sizes.items(), reverse=True):
        logging.info(
            "optimizer: %d values at rate x %g, decay x %g", size, multiplier, decay
        )


def _precondition(optim: ConfigDict) -> optax.GradientTransformation:
    beta1, beta2, epsilon = optim.beta1, optim.beta2, optim.epsilon
    momentum = _momentum_dtype(optim)
    match optim.name:
        case "adamw" | "adam":
            return optax.scale_by_adam(beta1, beta2, epsilon, mu_dtype=momentum)
        case "lion":
            return optax.scale_by_lion(beta1, beta2, mu_dtype=momentum)
        case "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
            )
        case "muon":
            # Matrices by orthogonalised momentum, the rest by Adam. The rate is
            # applied by the chain, so here it is -1 against muon's own minus.
            return optax.contrib.muon(
                learning_rate=-1.0, adam_b1=beta1, adam_b2=beta2, eps=epsilon
            )
    raise config_lib.ConfigError(
        f"optim.name is adamw, adam, lion, adafactor or muon, not {optim.name!r}"
    )


def _momentum_dtype(optim: ConfigDict) -> str:
    """What first moments are kept in. Raises ConfigError where there is no choice.

    Second moments are float32 always: what a step adds to them, 1 - beta2 = 0.001 of a
    value, can be less than half of the last of bfloat16's eight bits.
    """
    dtype = optim.momentum_dtype
    if dtype not in ("float32", "bfloat16"):
        raise config_lib.ConfigError(
            f"optim.momentum_dtype is float32 or bfloat16, not {dtype!r}"
        )
    if dtype != "float32" and optim.name not in _WITH_MOMENTUM_DTYPE:
        raise config_lib.ConfigError(
            f"optim.momentum_dtype={dtype} is offered for "
            f"{', '.join(_WITH_MOMENTUM_DTYPE)}, not for optim.name={optim.name}"
        )
    return dtype


def _decay(strength: float, factors: Any) -> optax.GradientTransformation:
    """Decoupled weight decay with a factor for each parameter."""

    def update(updates, state, params=None):
        decayed = jax.tree.map(
            lambda update, param, factor: update + strength * factor * param,
            updates,
            params,
            factors,
        )
        return decayed, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiply every update by its own constant."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda value, by: value * by, updates, factors), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
