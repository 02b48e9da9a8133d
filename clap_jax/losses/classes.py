"""Losses of heads that name classes, row by row, in float32.

Targets may be mixtures (mixup): both losses are linear in them, so that the loss of a
mixture is the mixture of the losses. `mass` is the share of a row that is labelled for
the head at all; a row of another head has none, and no loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_entropy(
    scores: Float[Array, "B C"],
    target: Float[Array, "B C"],
    mass: Float[Array, " B"],
    smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Softmax cross entropy; classes compete.

    target: rows sum to `mass`. smoothing: share of it that is spread over all classes.
    """
    even = mass[:, None] / scores.shape[1]
    target = (1 - smoothing) * target + smoothing * even
    return -jnp.sum(target * jax.nn.log_softmax(scores.astype(jnp.float32)), axis=1)


def binary_cross_entropy(
    scores: Float[Array, "B C"],
    target: Float[Array, "B C"],
    mass: Float[Array, " B"],
    smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Mean over classes of the cross entropy of each by itself.

    target: 0 to `mass`. smoothing: share of it that is spread over yes and no.
    """
    mass = mass[:, None]
    target = (1 - smoothing) * target + smoothing * mass / 2
    scores = scores.astype(jnp.float32)
    return jnp.mean(mass * jax.nn.softplus(scores) - target * scores, axis=1)


LOSSES = {"ce": cross_entropy, "bce": binary_cross_entropy}


def is_right(
    scores: Float[Array, "B C"], target: Float[Array, "B C"]
) -> Float[Array, " B"]:
    """1 where the class with the best score has the largest target, else 0."""
    best = jnp.take_along_axis(target, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    return (best >= target.max(axis=1)).astype(jnp.float32)
