"""The contrastive model of long clips and long texts, as pure functions.

A `Dual` whose embeddings are a `temporal.Song` and a `temporal.Story`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from clap_jax.models import dual, segments, temporal
from clap_jax.models.dual import Dual, l2_normalise
from clap_jax.models.temporal import Song, Story, Temporal
from clap_jax.models.tower import Tower


def make(
    audio: Tower,
    text: Tower,
    audio_projection: Tower,
    text_projection: Tower,
    *,
    options: Temporal,
    embed_dim: int,
    examples: tuple[Any, Any],
    chunk: int,
    score: str = "cosine",
    **scales: Any,
) -> Dual:
    """Join towers and heads to a `Dual` of long clips; see `dual.make`.

    encode_audio: takes `segments.Segments`, or one window as `Dual` does, and gives a
        `Song`. Its whole is the mean of the projections of what is heard, before L2.
    encode_text: `(variables, ids, mask, spans=None, *, train, key)` gives a `Story`.
        spans: int32 [B, M, 2], of which token to before which each sentence goes, equal
        numbers for padding. A sentence is the mean of the states of its tokens, behind
        a head of its own. None, or a model with `options.sentences` 0: the whole text is
        the one sentence.
    score: of `Song` and `Story`, see `temporal`; the plain score is `dual.SCORES[score]`.

    chunk: segments of a clip at a time, see `segments.over`. aux has "embedding"
    [B, S, D] and "projection" [B, S, E] of audio, and of text what a `Dual` has.
    """
    plain = dual.make(
        audio,
        text,
        audio_projection,
        text_projection,
        examples=examples,
        score=score,
        **scales,
    )
    over_segments = segments.over(audio, chunk)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        variables = plain.init(key)
        params = dict(variables["params"])
        keys = jax.random.split(jax.random.fold_in(key, len(params)))
        params["temporal"] = temporal.init(keys[0], options, embed_dim)
        if options.sentences:
            (_, aux), _ = jax.eval_shape(
                lambda v, example: text.apply(v, example, train=False),
                {"params": params["text"], "state": variables["state"]["text"]},
                examples[1],
            )
            state = jnp.zeros((1, aux["hidden"].shape[-1]))
            head = text_projection.init(keys[1], state)
            params["sentence_projection"] = head["params"]
        return {"params": params, "state": variables["state"]}

    def encode_audio(
        variables: Mapping[str, Any],
        audio: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[tuple[Song, dict[str, Any]], dict[str, Any]]:
        params, state = variables["params"], variables["state"]
        clip = segments.as_segments(audio)
        keys = (None, None) if key is None else jax.random.split(key)
        embedding, new_state = over_segments(
            {"params": params["audio"], "state": state["audio"]},
            clip.sound,
            train=train,
            key=keys[0],
        )
        projection = _project(
            audio_projection, params["audio_projection"], embedding, train, keys[1]
        )
        aux = {"embedding": embedding, "projection": projection}
        song = Song(
            l2_normalise(_mean(projection, clip.heard)),
            _unit(projection),
            clip.seconds,
            clip.heard,
        )
        return (song, aux), {**state, "audio": new_state}

    def encode_text(
        variables: Mapping[str, Any],
        ids: Int[Any, "B L"],
        mask: Bool[Any, "B L"],
        spans: Int[Any, "B M 2"] | None = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[tuple[Story, dict[str, Any]], dict[str, Any]]:
        (whole, aux), new_state = plain.encode_text(
            variables, ids, mask, train=train, key=key
        )
        if spans is None or not options.sentences:
            said = jnp.ones((whole.shape[0], 1), jnp.bool_)
            return (Story(whole, whole[:, None], said), aux), new_state
        spans = jnp.asarray(spans)
        states = _spans_mean(aux["hidden"], spans)
        projection = _project(
            text_projection,
            variables["params"]["sentence_projection"],
            states,
            train,
            None if key is None else jax.random.fold_in(key, 1),
        )
        said = spans[..., 1] > spans[..., 0]
        return (Story(whole, _unit(projection), said), aux), new_state

    return Dual(
        init,
        encode_audio,
        encode_text,
        temporal.score(options, dual.SCORES[score]),
        plain.constrain,
    )


def _project(
    head: Tower, params: Any, x: jax.Array, train: bool, key: jax.Array | None
) -> jax.Array:
    """A head on every vector of [B, S, D]."""
    rows = x.reshape(-1, x.shape[-1])
    (z, _), _ = head.apply({"params": params, "state": {}}, rows, train=train, key=key)
    return z.reshape(*x.shape[:2], -1)


def _unit(x: jax.Array) -> jax.Array:
    """Every vector of [B, S, E] with length one."""
    return l2_normalise(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, S, E] to [B, E]: the mean where `mask` is true, zeros if it never is."""
    total = jnp.where(mask[..., None], x, 0.0).sum(1)
    return total / jnp.maximum(mask.sum(1, keepdims=True), 1)


def _spans_mean(hidden: jax.Array, spans: jax.Array) -> jax.Array:
    """The mean of `hidden` [B, L, D] over each of the spans [B, M, 2]."""
    place = jnp.arange(hidden.shape[1])
    inside = (place >= spans[..., :1]) & (place < spans[..., 1:])
    total = jnp.einsum(
        "bml,bld->bmd", inside.astype(jnp.float32), hidden.astype(jnp.float32)
    )
    return total / jnp.maximum(inside.sum(-1, keepdims=True), 1)
