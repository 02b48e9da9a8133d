"""Captioners that attend to a clip over time, guided by tags of its sound events.

Source: wsntxxn/AudioCaption (`captioning/models`: `Cnn14RnnEncoder` and its transformer
decoders), the captioner of BLAT's pairs (Xu et al. 2023, arXiv 2303.07902).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clap_jax.models import caption_decoder, decode, dual, recurrent, zoo
from clap_jax.models.caption_decoder import Draft
from clap_jax.models.captioner_spec import Captioner, CaptionerSpec


class Heard(NamedTuple):
    """What the decoder attends to.

    memory: float32 [B, N, M], features over time. frames: int32 [B], how many of N are
    of the clip. tags: float32 [B, C], sound events, 0 or 1 or probabilities; None where
    no tags guide the decoder.
    """

    memory: Float[Array, "B N M"]
    frames: Int[Array, " B"]
    tags: Float[Array, "B C"] | None = None


def build(
    spec: CaptionerSpec, *, dtype: str = "float32", remat: str = "none", **drop: float
) -> Captioner:
    """The functions of a "guided" spec; arguments and errors as for `captioner.build`."""
    audio = zoo.audio_tower(spec, dtype=dtype, remat=remat, **drop)
    mapper = recurrent.tower(spec.mapper, dtype=dtype)
    options = spec.decoder.options
    decoder = caption_decoder.tower(options, spec.vocab_size, dtype=dtype)
    stepwise = caption_decoder.stepwise(options, spec.vocab_size, dtype=dtype)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        example = zoo.example_sound(spec)
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        heard = audio.init(keys[0], example)
        sequence = jax.eval_shape(
            lambda v: recurrent.over_time(audio.apply(v, example)[0][1]), heard
        )
        sequence = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), sequence)
        one = jnp.ones(1, jnp.int32)
        draft = Draft(
            ids=one[:, None],
            mask=one[:, None] > 0,
            memory=jnp.zeros((1, 1, spec.embed_dim)),
            frames=one,
            tags=jnp.zeros((1, options["tags"])) if spec.is_guided else None,
        )
        written = decoder.init(keys[2], draft)
        mapped = mapper.init(keys[1], sequence)["params"]
        return {
            "params": {
                "audio": heard["params"],
                "mapper": mapped,
                "decoder": written["params"],
            },
            "state": {"audio": heard["state"], "decoder": written["state"]},
        }

    def part(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {
            "params": variables["params"][name],
            "state": variables["state"].get(name, {}),
        }

    def encode_audio(
        variables: Mapping[str, Any],
        sound: Any,
        *,
        tags: Float[Any, "B C"] | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        frozen: bool = False,
    ) -> Any:
        keys = (None, None) if key is None else jax.random.split(key)
        (embedding, aux), state = audio.apply(
            part(variables, "audio"),
            dual.heard(sound),
            train=train and not frozen,
            key=keys[0],
        )
        sequence = recurrent.over_time(aux)
        (memory, _), _ = mapper.apply(
            part(variables, "mapper"), sequence, train=train, key=keys[1]
        )
        heard = Heard(memory, sequence.frames, checked(tags))
        new_state = {**variables["state"], "audio": state}
        return (heard, {**aux, "embedding": embedding}), new_state

    def checked(tags: Any) -> jax.Array | None:
        if not spec.is_guided:
            if tags is not None:
                raise ValueError(f"{spec.name} has tags given, but none guide it")
            return None
        wanted = options["tags"]
        if tags is None or tags.shape[-1] != wanted:
            found = "none" if tags is None else tags.shape[-1]
            raise ValueError(f"{spec.name} takes {wanted} tags a clip, got {found}")
        return jnp.asarray(tags, jnp.float32)

    def embedding(variables: Mapping[str, Any], sound: Any) -> Float[Array, "B D"]:
        (found, _), _ = audio.apply(part(variables, "audio"), dual.heard(sound))
        return dual.l2_normalise(found)

    def token_logits(
        variables: Mapping[str, Any],
        heard: Heard,
        ids: Int[Any, "B L"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Float[Array, "B L C"]:
        ids = jnp.asarray(ids)
        start = jnp.full_like(ids[:, :1], spec.start_id)
        # Padding stands behind the tokens, where causal attention hides it from them.
        draft = Draft(
            jnp.concatenate([start, ids[:, :-1]], axis=1),
            jnp.ones(ids.shape, bool),
            *heard,
        )
        (logits, _), _ = decoder.apply(
            part(variables, "decoder"), draft, train=train, key=key
        )
        return logits

    def caption(
        variables: Mapping[str, Any],
        heard: Heard,
        options: decode.Options,
        key: jax.Array | None = None,
        prompt: Int[Any, " Q"] | None = None,
    ) -> decode.Captions:
        own, clips = part(variables, "decoder"), len(heard.memory)
        start = jnp.full((1,), spec.start_id, jnp.int32)
        read = start if prompt is None else jnp.append(start, jnp.asarray(prompt))
        nothing = jnp.zeros((clips, 0), jnp.int32)
        draft = Draft(nothing, nothing > 0, *heard)
        cache = stepwise.start(own, draft, len(read) + options.length - 1)

        def go_on(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            ids = jnp.broadcast_to(token, (clips,)).astype(jnp.int32)
            logits, cache = stepwise.step(own, cache, ids)
            return cache, logits

        cache, logits = jax.lax.scan(go_on, cache, read)
        steps = decode.Steps(
            lambda cache, ids: stepwise.step(own, cache, ids),
            caption_decoder.Cache.spread,
            caption_decoder.Cache.take,
        )
        return decode.write(steps, logits[-1], cache, options, key)

    return Captioner(
        init=init,
        encode_audio=encode_audio,
        prefix=embedding,
        prefix_embeddings=None,
        logits=None,
        token_logits=token_logits,
        caption=caption,
        greedy=decode.greedy(caption),
        constrain=lambda params: params,
    )
