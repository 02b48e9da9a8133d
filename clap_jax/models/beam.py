"""Beam search over the captions of many clips at once.

Sources of the two rules: wsntxxn/AudioCaption `captioning/models/base.py` ("leave");
MS-CLAP `CLAPWrapper.py`, after ClipCap ("stay").
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models.decode_options import (
    Captions,
    Options,
    Steps,
    likeliest,
    log_probs,
)


class _Leave(NamedTuple):
    """Unfinished captions, likeliest first, and the best of the finished ones.

    sums: -inf in places that are empty. found: how many have finished.
    """

    ids: Int[Array, "B K L"]
    sums: Float[Array, "B K"]
    finished: Captions
    found: Int[Array, " B"]
    done: Bool[Array, " B"]


class _Stay(NamedTuple):
    """Captions, best first, finished (`ended`) or not; sums are -inf in empty places."""

    ids: Int[Array, "B K L"]
    sums: Float[Array, "B K"]
    lengths: Int[Array, "B K"]
    ended: Bool[Array, "B K"]
    done: Bool[Array, " B"]


def _start(clips: int, options: Options) -> tuple[jax.Array, jax.Array]:
    """Empty ids, and sums that let the first place alone go on."""
    ids = jnp.full((clips, options.beams, options.length), options.pad_id, jnp.int32)
    sums = jnp.where(jnp.arange(options.beams) == 0, 0.0, -jnp.inf)
    return ids, jnp.broadcast_to(sums, ids.shape[:2])


# Up to so many, one maximum after another is faster than `top_k`, which sorts on CPUs:
# with it 3 beams over 1024 tokens took 10 times as long as greedy, without it 4 times.
_FEW = 8


def _best(scores: Float[Array, "B K C"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The K best of all continuations: values, which place each goes on from, token."""
    clips, beams, classes = scores.shape
    rest = scores.reshape(clips, -1)
    if beams > _FEW:
        values, index = jax.lax.top_k(rest, beams)
        return values, index // classes, index % classes
    found = []
    for _ in range(beams):
        best = likeliest(rest)
        found.append((jnp.take_along_axis(rest, best[:, None], axis=1)[:, 0], best))
        rest = jnp.where(jnp.arange(beams * classes) == best[:, None], -jnp.inf, rest)
    values, index = (jnp.stack(column, axis=1) for column in zip(*found))
    return values, index // classes, index % classes


def _gather(x: jax.Array, places: Int[Array, "B k"]) -> jax.Array:
    """Places of every clip."""
    return jax.vmap(lambda row, place: row[place])(x, places)


def _start_leave(clips: int, options: Options) -> _Leave:
    ids, sums = _start(clips, options)
    finished = Captions(
        ids, jnp.zeros(sums.shape, jnp.int32), jnp.full(sums.shape, -jnp.inf)
    )
    return _Leave(
        ids, sums, finished, jnp.zeros(clips, jnp.int32), jnp.zeros(clips, bool)
    )


def _leave(
    beams: _Leave, logp: Float[Array, "B K C"], step: Any, options: Options
) -> tuple[_Leave, Int[Array, "B K"]]:
    """One token more; also which place each caption goes on from."""
    sums, places, token = _best(beams.sums[..., None] + logp)
    ids = _gather(beams.ids, places).at[:, :, step].set(token)
    ended = jnp.broadcast_to(step == options.length - 1, token.shape)
    if options.end_id is not None:
        ended = ended | (token == options.end_id)
    ended = ended & (sums > -jnp.inf)
    scores = jnp.where(ended, sums / (step + 1) ** options.alpha, -jnp.inf)
    new = Captions(ids, jnp.full(token.shape, step + 1, jnp.int32), scores)
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), beams.finished, new)
    # Of equal ones the earlier come first.
    _, best = jax.lax.top_k(both.scores, token.shape[1])
    finished = jax.tree.map(lambda x: _gather(x, best), both)
    found = beams.found + ended.sum(1, dtype=jnp.int32)
    sums = jnp.where(ended, -jnp.inf, sums)
    # No unfinished caption can get a better score than this: sums only fall.
    bound = sums.max(1) / options.length**options.alpha
    surpassed = finished.scores[:, options.count - 1] >= bound
    done = (found >= options.beams) | surpassed
    return _Leave(ids, sums, finished, found, done), places


def _start_stay(clips: int, options: Options) -> _Stay:
    ids, sums = _start(clips, options)
    none = jnp.zeros(sums.shape, bool)
    return _Stay(ids, sums, none.astype(jnp.int32), none, jnp.zeros(clips, bool))


def _stay(
    beams: _Stay, logp: Float[Array, "B K C"], step: Any, options: Options
) -> tuple[_Stay, Int[Array, "B K"]]:
    """As `_leave`."""
    only_pad = jnp.where(jnp.arange(logp.shape[-1]) == options.pad_id, 0.0, -jnp.inf)
    logp = jnp.where(beams.ended[..., None], only_pad, logp)
    lengths = beams.lengths + ~beams.ended
    sums = beams.sums[..., None] + logp
    best, places, token = _best(sums / lengths[..., None] ** options.alpha)
    sums = jax.vmap(lambda x, place, c: x[place, c])(sums, places, token)
    sums = jnp.where(best > -jnp.inf, sums, -jnp.inf)
    ended = _gather(beams.ended, places) | (sums == -jnp.inf)
    if options.end_id is not None:
        ended = ended | (token == options.end_id)
    ids = _gather(beams.ids, places).at[:, :, step].set(token)
    done = ended.all(1)
    return _Stay(ids, sums, _gather(lengths, places), ended, done), places


def _finished_leave(beams: _Leave, options: Options) -> Captions:
    return beams.finished


def _finished_stay(beams: _Stay, options: Options) -> Captions:
    scores = beams.sums / beams.lengths**options.alpha
    _, best = jax.lax.top_k(scores, options.beams)
    found = Captions(beams.ids, beams.lengths, scores)
    return jax.tree.map(lambda x: _gather(x, best), found)


_RULES = {
    "leave": (_start_leave, _leave, _finished_leave),
    "stay": (_start_stay, _stay, _finished_stay),
}


def search(
    steps: Steps, first: Float[Array, "B C"], cache: Any, options: Options
) -> Captions:
    start, advance, finished = _RULES[options.rule]
    (clips, classes), k = first.shape, options.beams

    def add(beams: Any, logits: jax.Array, step: Any) -> tuple[Any, jax.Array]:
        logp = log_probs(logits, beams.ids.reshape(clips * k, -1), step, options)
        new, places = advance(beams, logp.reshape(clips, k, classes), step, options)

        def keep(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(beams.done.reshape(-1, *[1] * (old.ndim - 1)), old, new)

        # A clip that is done stays as it is, so that it does not matter who waits.
        return jax.tree.map(keep, beams, new), places

    def go_on(carry: Any) -> jax.Array:
        step, beams, _, _ = carry
        return (step < options.length) & ~beams.done.all()

    def one(carry: Any) -> Any:
        step, beams, places, cache = carry
        rows = (jnp.arange(clips)[:, None] * k + places).reshape(-1)
        last = beams.ids[:, :, step - 1].reshape(-1)
        logits, cache = steps.step(steps.take(cache, rows), last)
        return step + 1, *add(beams, logits, step), cache

    beams, places = add(start(clips, options), jnp.repeat(first, k, axis=0), 0)
    carry = (jnp.int32(1), beams, places, steps.spread(cache, k))
    _, beams, _, _ = jax.lax.while_loop(go_on, one, carry)
    found = jax.tree.map(lambda x: x[:, : options.count], finished(beams, options))
    there = found.scores > -jnp.inf
    return Captions(
        jnp.where(there[..., None], found.ids, options.pad_id),
        jnp.where(there, found.lengths, 0),
        found.scores,
    )
