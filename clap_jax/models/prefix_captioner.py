"""Captioners that go on from a prefix which the embedding of a clip becomes.

The embedding is a prefix that a language model goes on from: with a caption (MS-CLAP's
clapcap), or behind a prompt with the answer of any task (Pengi).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clap_jax.models import decode, dual, gpt2, heads, prefix, zoo
from clap_jax.models.captioner_spec import Captioner, CaptionerSpec


def build(
    spec: CaptionerSpec, *, dtype: str = "float32", remat: str = "none", **drop: float
) -> Captioner:
    """The functions of a "prefix" spec; arguments and errors as for `captioner.build`."""
    audio = zoo.audio_tower(spec, dtype=dtype, remat=remat, **drop)
    head = heads.tower(spec.head, spec.embed_dim)
    mapper = prefix.tower(spec.mapper, dtype=dtype)
    decoder = gpt2.language_model(
        spec.decoder.options, spec.vocab_size, dtype=dtype, remat=remat
    )
    encode = dual.encoder("audio", audio, head)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        example = zoo.example_sound(spec)
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        heard = audio.init(keys[0], example)
        (embedding, _), _ = jax.eval_shape(audio.apply, heard, example)
        params = {
            "audio": heard["params"],
            "audio_projection": head.init(keys[1], jnp.zeros(embedding.shape))[
                "params"
            ],
            "mapper": mapper.init(keys[2], jnp.zeros((1, spec.embed_dim)))["params"],
            "decoder": decoder.init(keys[3]),
        }
        return {"params": params, "state": {"audio": heard["state"]}}

    def encode_audio(
        variables: Mapping[str, Any],
        sound: Any,
        *,
        tags: Any = None,
        train: bool = False,
        key: jax.Array | None = None,
        frozen: bool = False,
    ) -> Any:
        if tags is not None:
            raise ValueError(f"{spec.name} has tags given, but none guide it")
        return encode(variables, dual.heard(sound), train and not frozen, key)

    def clip_prefix(variables: Mapping[str, Any], sound: Any) -> Float[Array, "B E"]:
        return encode_audio(variables, sound)[0][0]

    def embeddings(
        variables: Mapping[str, Any], z: Float[Any, "B E"]
    ) -> Float[Array, "B P D"]:
        tree = {"params": variables["params"]["mapper"], "state": {}}
        (found, _), _ = mapper.apply(tree, jnp.asarray(z))
        return found.astype(jnp.float32)

    def positions(
        variables: Mapping[str, Any], z: Float[Any, "B E"], ids: Int[Any, "B L"]
    ) -> Float[Array, "B M D"]:
        """Prefix and words, as the decoder reads them."""
        words = decoder.embed(variables["params"]["decoder"], ids)
        return jnp.concatenate([embeddings(variables, z), words], axis=1)

    def logits(
        variables: Mapping[str, Any], z: Float[Any, "B E"], ids: Int[Any, "B L"]
    ) -> Float[Array, "B M C"]:
        x = positions(variables, z, ids)
        return decoder.logits(variables["params"]["decoder"], x)

    def token_logits(
        variables: Mapping[str, Any],
        z: Float[Any, "B E"],
        ids: Int[Any, "B L"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Float[Array, "B L C"]:
        # Nothing is asked of what would follow the last token.
        x = positions(variables, z, ids[:, :-1])
        params = variables["params"]["decoder"]
        return decoder.logits(params, x, last=ids.shape[1], train=train, key=key)

    def caption(
        variables: Mapping[str, Any],
        z: Float[Any, "B E"],
        options: decode.Options,
        key: jax.Array | None = None,
        prompt: Int[Any, " Q"] | None = None,
    ) -> decode.Captions:
        params = variables["params"]["decoder"]
        asked = jnp.zeros((0,), jnp.int32) if prompt is None else jnp.asarray(prompt)
        asked = jnp.broadcast_to(asked, (len(z), *asked.shape))
        start = positions(variables, z, asked)
        shared = start.shape[1]
        cache = decoder.start(len(z), shared + options.length - 1)
        first, cache = decoder.step(params, cache, start)
        steps = decode.Steps(
            lambda cache, ids: decoder.step(params, cache, ids[:, None]),
            gpt2.Cache.spread,
            lambda cache, rows: cache.take(rows, shared),
        )
        return decode.write(steps, first, cache, options, key)

    return Captioner(
        init=init,
        encode_audio=encode_audio,
        prefix=clip_prefix,
        prefix_embeddings=embeddings,
        logits=logits,
        token_logits=token_logits,
        caption=caption,
        greedy=decode.greedy(caption),
        constrain=lambda params: params,
    )
