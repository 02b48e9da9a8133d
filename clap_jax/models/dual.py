"""Two towers, two heads and a temperature: the contrastive model as pure functions."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models.tower import Sound, Tower, as_sound

# LAION and CLIP keep the scale between 1 and 100 after every step.
LOG_SCALE_MAX = math.log(100.0)


class Dual(NamedTuple):
    """A contrastive language-audio model.

    init: `init(key) -> variables`, `{"params": {"audio", "text", "audio_projection",
        "text_projection", "logit_scale_a"}, "state": {"audio", "text"}}`; with a bias,
        "logit_bias" as well.
    encode_audio: `(variables, audio, *, train=False, key=None) ->
        ((za, aux), new_state)`; `audio` is the front end's log-mel in dB, f32
        [B, N, F], or a `tower.Sound`; `za` float32 [B, E] has rows of length one.
        `new_state` is the whole of `variables["state"]` with the audio part renewed.
    encode_text: `(variables, ids i32 [B, L], mask bool [B, L], *, train=False,
        key=None) -> ((zt, aux), new_state)`, likewise.
    score: `(params, za [A, E], zt [T, E]) -> float32 [A, T]`, the scaled score. Of the
        parameters it reads those that `score_params` gives.
    constrain: `(params) -> params`, to apply after every optimizer step.
    caption_logits: of a model that learns to write captions beside (`auxiliary`),
        `(variables, aux, ids [B, L], mask [B, L], *, train=False, key=None) -> float32
        [B, L - 1, C]`, at i those of `ids[:, i + 1]` after the tokens before it, from
        the aux of `encode_audio`; else None.

    aux has the tower's intermediates, "embedding" (what the tower gave) and
    "projection" (what the head made of it, before L2). Errors: ValueError when `train`
    is true and `key` is None.
    """

    init: Callable[..., dict[str, Any]]
    encode_audio: Callable[..., Any]
    encode_text: Callable[..., Any]
    score: Callable[..., jax.Array]
    constrain: Callable[..., dict[str, Any]]
    caption_logits: Callable[..., jax.Array] | None = None


def l2_normalise(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Rows of length one in float32; a zero row stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def cosine_score(
    params: Mapping[str, Any], za: Float[Array, "A E"], zt: Float[Array, "T E"]
) -> Float[Array, "A T"]:
    """exp(logit_scale_a) * za @ zt.T + logit_bias, in full float32 on every device.

    LAION's models hold a second scale, `logit_scale_t`; their default loss and their
    evaluation use `logit_scale_a` in both directions (LAION-AI/CLAP issues 109, 115).
    """
    cosine = jnp.einsum("ae,te->at", za, zt, precision="highest")
    score = jnp.exp(params["logit_scale_a"]) * cosine
    return score + params["logit_bias"] if "logit_bias" in params else score


def score_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The few parameters that a score reads: scale, bias, and `temporal` attention."""
    return {
        name: leaf
        for name, leaf in params.items()
        if name.startswith("logit") or name == "temporal"
    }


SCORES = {"cosine": cosine_score}


def _constrain(params: Mapping[str, Any]) -> dict[str, Any]:
    scale = jnp.clip(params["logit_scale_a"], 0.0, LOG_SCALE_MAX)
    return {**params, "logit_scale_a": scale}


def heard(audio: Any) -> Sound:
    """A log-mel, or a `Sound`, as towers take it: arrays, its mels in float32."""
    sound = jax.tree.map(jnp.asarray, as_sound(audio))
    return sound._replace(mel=jax.tree.map(lambda x: x.astype(jnp.float32), sound.mel))


def encoder(side: str, tower: Tower, head: Tower) -> Callable[..., Any]:
    """A tower with its head, `(variables, x, train, key) -> ((z, aux), new_state)`."""

    def encode(
        variables: Mapping[str, Any], x: Any, train: bool, key: jax.Array | None
    ) -> tuple[tuple[Any, dict[str, Any]], dict[str, Any]]:
        params, state = variables["params"], variables["state"]
        keys = (None, None) if key is None else jax.random.split(key)
        (embedding, aux), new_state = tower.apply(
            {"params": params[side], "state": state[side]},
            x,
            train=train,
            key=keys[0],
        )
        (projection, _), _ = head.apply(
            {"params": params[f"{side}_projection"], "state": {}},
            embedding,
            train=train,
            key=keys[1],
        )
        aux = {**aux, "embedding": embedding, "projection": projection}
        return (l2_normalise(projection), aux), {**state, side: new_state}

    return encode


def make(
    audio: Tower,
    text: Tower,
    audio_projection: Tower,
    text_projection: Tower,
    *,
    examples: tuple[Any, Any],
    logit_scale_init: float,
    logit_bias_init: float | None = None,
    score: str = "cosine",
) -> Dual:
    """Join towers and heads to a `Dual`.

    `examples` are the shapes that `init` traces: a `Sound` and a pair (ids, mask), as
    `jax.ShapeDtypeStruct`s. `logit_scale_init` is the scale itself, not its logarithm.
    """

    def initialise(tower: Tower, key: jax.Array, example: Any) -> Any:
        return tower.init(
            key, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        )

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        params, state = {}, {}
        sides = {
            "audio": (audio, audio_projection, examples[0]),
            "text": (text, text_projection, examples[1]),
        }
        for i, (side, (tower, head, example)) in enumerate(sides.items()):
            keys = jax.random.split(jax.random.fold_in(key, i))
            variables = initialise(tower, keys[0], example)
            params[side], state[side] = variables["params"], variables["state"]
            (embedding, _), _ = jax.eval_shape(
                lambda v, e, t=tower: t.apply(v, e, train=False), variables, example
            )
            params[f"{side}_projection"] = initialise(head, keys[1], embedding)[
                "params"
            ]
        params["logit_scale_a"] = jnp.float32(math.log(logit_scale_init))
        if logit_bias_init is not None:
            params["logit_bias"] = jnp.float32(logit_bias_init)
        return {"params": params, "state": state}

    encode_a = encoder("audio", audio, audio_projection)
    encode_t = encoder("text", text, text_projection)

    def encode_audio(
        variables: Mapping[str, Any],
        audio: Float[Any, "B *V N F"] | Sound,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        return encode_a(variables, heard(audio), train, key)

    def encode_text(
        variables: Mapping[str, Any],
        ids: Int[Any, "B L"],
        mask: Bool[Any, "B L"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        return encode_t(variables, (jnp.asarray(ids), jnp.asarray(mask)), train, key)

    return Dual(init, encode_audio, encode_text, SCORES[score], _constrain)
