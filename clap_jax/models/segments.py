"""Audio towers over the segments of long clips, some at a time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clap_jax.models.dual import heard as as_arrays
from clap_jax.models.tower import Sound, Tower, rows


class Segments(NamedTuple):
    """B long clips in S segments each, as long as the front end's window.

    sound: as one segment is heard, each array with the axes [B, S] in front: a mel
        float32 [B, S, N, F], or a `tower.Sound` of such.
    seconds: float32 [B, S, 2], where each begins and ends; zeros for padding.
    heard: bool [B, S], false for padding and for what is left out, such as silence.
        A clip of which nothing is heard is heard as a whole, but for its padding.
    """

    sound: Any
    seconds: Any
    heard: Any


def as_segments(audio: Any) -> Segments:
    """Arrays; what is one window, a mel or a `Sound`, as a clip of one segment that
    begins at 0 and has no length."""
    if not isinstance(audio, Segments):
        sound = jax.tree.map(lambda x: x[:, None], as_arrays(audio))
        batch = rows(sound)
        # What the seconds are does not matter to a clip of one segment.
        return Segments(
            sound, jnp.zeros((batch, 1, 2)), jnp.ones((batch, 1), jnp.bool_)
        )
    seconds, heard = jnp.asarray(audio.seconds), jnp.asarray(audio.heard)
    there = seconds[..., 1] > 0
    heard = jnp.where(heard.any(1, keepdims=True), heard, there)
    return Segments(as_arrays(audio.sound), seconds.astype(jnp.float32), heard)


def chunks(segments: int, chunk: int) -> tuple[int, int]:
    """As few chunks of at most `chunk` as hold all segments, and their equal size."""
    count = -(-segments // chunk)
    return count, -(-segments // count)


def over(tower: Tower, chunk: int) -> Callable[..., Any]:
    """A tower over segments: `(variables, sound, *, train, key) -> (embeddings
    [B, S, D], new_state)`, `sound` as in `Segments`.

    chunk: segments of each clip at a time. The backward pass computes each chunk again,
    so that memory is what one chunk takes, however long the clips are, and not more
    than the mels for all others. Running statistics go from chunk to chunk; where
    chunks do not come out even, some segments are heard twice for them.
    Raises ValueError for a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"segments at a time: {chunk}, expected 1 or more")

    def apply(
        variables: Mapping[str, Any],
        sound: Sound,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        batch, segments = jax.tree.leaves(sound)[0].shape[:2]
        count, size = chunks(segments, chunk)

        def one(state: Any, part: Any) -> tuple[Any, jax.Array]:
            sound, number = part
            sound = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sound)
            (embedding, _), state = tower.apply(
                {"params": variables["params"], "state": state},
                sound,
                train=train,
                key=None if key is None else jax.random.fold_in(key, number),
            )
            return state, embedding.reshape(batch, size, -1)

        def cut(x: jax.Array) -> jax.Array:
            more = x[:, : count * size - segments]
            x = jnp.concatenate([x, more], axis=1) if more.size else x
            return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

        if count == 1:
            state, embeddings = one(variables["state"], (sound, 0))
            return embeddings, state
        parts = jax.tree.map(cut, sound), jnp.arange(count)
        step = jax.checkpoint(one, prevent_cse=False)
        state, embeddings = jax.lax.scan(step, variables["state"], parts)
        embeddings = jnp.moveaxis(embeddings, 0, 1).reshape(batch, count * size, -1)
        return embeddings[:, :segments], state

    return apply
