"""Captions from the logits of a next token: greedy, beam search and sampling.

Everything has static shapes and runs under jit, for all clips of a batch at once, in one
`lax.while_loop` that ends when the last caption has. The model is two things: the logits
that follow what it has heard, and `Steps`, which goes on from there.

Source of nucleus sampling: Holtzman et al. 2020 (arXiv 1904.09751).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models import beam
from clap_jax.models.decode_options import (
    Captions,
    Options,
    Steps,
    likeliest,
    log_probs,
)

__all__ = ["Captions", "Options", "Steps", "greedy", "write"]


def write(
    steps: Steps,
    first: Float[Array, "B C"],
    cache: Any,
    options: Options,
    key: jax.Array | None = None,
) -> Captions:
    """Captions of B clips.

    first, cache: logits of the first token of every clip, and what the model has read.
    A cache needs room for length - 1 tokens more. key: of a sampled caption: one key,
    or B of them, one a clip, with which a clip has the same captions in any batch.
    Errors: ValueError for a key that is missing or not one of `jax.random.key`, and for
    an end token that the model does not have.
    """
    classes = first.shape[1]
    if max(options.end_id or 0, options.pad_id) >= classes:
        raise ValueError(
            f"end_id {options.end_id}, pad_id {options.pad_id}: the model has {classes} "
            "tokens"
        )
    if options.method == "beam":
        return beam.search(steps, first, cache, options)
    keys = None
    if options.method == "sample":
        keys = _clip_keys(key, len(first))
    return _single(steps, first, cache, options, keys)


def greedy(caption: Callable[..., Captions]) -> Callable[..., Int[Array, "B length"]]:
    """`(variables, heard, length, prompt=None) -> ids [B, length]` of a captioner's
    `caption`: the likeliest token each time, which nothing ends."""

    def write_on(
        variables: Any, heard: Any, length: int, prompt: Any = None
    ) -> Int[Array, "B length"]:
        options = Options("greedy", length)
        return caption(variables, heard, options, prompt=prompt).ids[:, 0]

    return write_on


def _clip_keys(key: jax.Array | None, clips: int) -> jax.Array:
    """A key for each clip."""
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"sampling needs a key of jax.random.key, got {key!r}")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(clips))
    if key.shape != (clips,):
        raise ValueError(f"{key.shape} keys for {clips} clips; expected one or {clips}")
    return key


# --- one caption a row ----------------------------------------------------------------


class _Row(NamedTuple):
    """Captions so far, each on its own: as `Captions`, but for R rows, and the sums."""

    ids: Int[Array, "R L"]
    lengths: Int[Array, " R"]
    sums: Float[Array, " R"]
    ended: Bool[Array, " R"]


def _draw(
    scores: Float[Array, "R C"], keys: jax.Array | None, options: Options
) -> Int[Array, " R"]:
    """A token for each row: the likeliest, or one by chance."""
    if keys is None:
        return likeliest(scores)
    draw = jax.vmap(jax.random.categorical)
    if not options.top_k and options.top_p == 1:
        return draw(keys, scores).astype(jnp.int32)
    kept = min(options.top_k or scores.shape[1], scores.shape[1])
    likely, tokens = jax.lax.top_k(scores, kept)
    shares = jax.nn.softmax(likely, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    likely = jnp.where(before < options.top_p, likely, -jnp.inf)
    place = draw(keys, likely)
    return jnp.take_along_axis(tokens, place[:, None], axis=1)[:, 0].astype(jnp.int32)


def _single(
    steps: Steps,
    first: Float[Array, "B C"],
    cache: Any,
    options: Options,
    keys: jax.Array | None,
) -> Captions:
    clips, n, length = len(first), options.count, options.length
    if keys is not None:
        numbers = jnp.tile(jnp.arange(n), clips)
        keys = jax.vmap(jax.random.fold_in)(jnp.repeat(keys, n, axis=0), numbers)

    def add(row: _Row, logits: jax.Array, step: Any) -> _Row:
        own = keys
        if own is not None:
            own = jax.vmap(jax.random.fold_in, (0, None))(own, step)
        scores = log_probs(logits, row.ids, step, options)
        token = _draw(scores, own, options)
        gain = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
        stuck = gain == -jnp.inf
        token = jnp.where(row.ended | stuck, options.pad_id, token)
        end = False if options.end_id is None else token == options.end_id
        return _Row(
            ids=row.ids.at[:, step].set(token),
            lengths=row.lengths + ~(row.ended | stuck),
            sums=jnp.where(row.ended, row.sums, row.sums + gain),
            ended=row.ended | stuck | end,
        )

    def go_on(carry: Any) -> jax.Array:
        step, row, _ = carry
        return (step < length) & ~row.ended.all()

    def one(carry: Any) -> Any:
        step, row, cache = carry
        logits, cache = steps.step(cache, row.ids[:, step - 1])
        return step + 1, add(row, logits, step), cache

    rows = clips * n
    row = _Row(
        ids=jnp.full((rows, length), options.pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        sums=jnp.zeros(rows, jnp.float32),
        ended=jnp.zeros(rows, bool),
    )
    row = add(row, jnp.repeat(first, n, axis=0), 0)
    carry = (jnp.int32(1), row, steps.spread(cache, n))
    _, row, _ = jax.lax.while_loop(go_on, one, carry)
    scores = row.sums / jnp.maximum(row.lengths, 1) ** options.alpha
    return Captions(
        row.ids.reshape(clips, n, length),
        row.lengths.reshape(clips, n),
        scores.reshape(clips, n),
    )
