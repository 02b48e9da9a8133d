"""What a captioner writes, and what it thinks of other answers: programs of a device."""

from typing import Any

import jax
import jax.numpy as jnp

from clap_jax.losses import tokens
from clap_jax.models.captioner import Captioner


def write(
    model: Captioner, variables: Any, z: jax.Array, prompt: jax.Array, length: int
) -> jax.Array:
    """The likeliest token each time behind a prompt int32 [Q], int32 [B, length]."""
    return model.greedy(variables, z, length, prompt)


def answer_scores(
    model: Captioner, variables: Any, z: jax.Array, ids: jax.Array, answer: jax.Array
) -> jax.Array:
    """Log-likelihood of C texts about B clips, float32 [B, C]: the sum over the tokens
    of `ids` [C, L] that are `answer` [C, L]. One text at a time."""

    def one(text: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, own = (jnp.broadcast_to(x, (len(z), *x.shape)) for x in text)
        losses = tokens.token_losses(model.token_logits(variables, z, row), row)
        return -jnp.where(own, losses, 0).sum(axis=1)

    return jax.lax.map(one, (ids, answer)).T
