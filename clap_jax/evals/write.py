"""What a captioner writes, and what it thinks of other answers: programs of a device."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clap_jax.evals import hear
from clap_jax.losses import tokens
from clap_jax.models import decode
from clap_jax.models.captioner import Captioner, CaptionerSpec


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


def captions(
    spec: CaptionerSpec,
    model: Captioner,
    mesh: Mesh,
    variables: Any,
    batch: Mapping[str, jax.Array],
    options: decode.Options,
) -> decode.Captions:
    """Captions of B clips.

    batch: their sound, "draw" uint32 [B, 2], a seed and a number, which decide what is
    sampled for a clip, and of a guided captioner "tags" float32 [B, C].
    """
    sound = hear.sound(batch, spec.frontend, mesh)
    (heard, _), _ = model.encode_audio(variables, sound, tags=batch.get("tags"))
    keys = jax.vmap(lambda draw: jax.random.fold_in(jax.random.key(draw[0]), draw[1]))
    return model.caption(variables, heard, options, keys(batch["draw"]))


def caption_losses(
    spec: CaptionerSpec,
    model: Captioner,
    mesh: Mesh,
    variables: Any,
    batch: Mapping[str, jax.Array],
) -> jax.Array:
    """How unlikely people's captions are, float32 [B, K]: the sum over their tokens of
    the negative log-likelihood, each after the true ones before it.

    batch: as of `captions`, and "ids" int32 [B, K, L] and "own" bool [B, K, L], which
    tokens are theirs. One caption of all clips at a time.
    """
    sound = hear.sound(batch, spec.frontend, mesh)
    (heard, _), _ = model.encode_audio(variables, sound, tags=batch.get("tags"))

    def one(text: tuple[jax.Array, jax.Array]) -> jax.Array:
        ids, own = text
        losses = tokens.token_losses(model.token_logits(variables, heard, ids), ids)
        return jnp.where(own, losses, 0).sum(axis=1)

    texts = (batch["ids"].swapaxes(0, 1), batch["own"].swapaxes(0, 1))
    return jax.lax.map(one, texts).T
