"""Captioners as data and as pure functions: an audio tower and a language model.

Source: MS-CLAP `models/clap.py` and `CLAPWrapper.py` (clapcap).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clap_jax import config as config_lib
from clap_jax.audio.mel import FRONTENDS, Frontend
from clap_jax.models import gpt2, heads, prefix
from clap_jax.models.dual import l2_normalise
from clap_jax.models.spec import AUDIO_TOWERS, TowerSpec, from_dict
from clap_jax.models.tower import Sound, as_sound, complete

KINDS = ("prefix",)


@dataclasses.dataclass(frozen=True)
class CaptionerSpec:
    """Everything that defines a captioner but its weights; JSON both ways.

    captioner: "prefix": the embedding of a clip becomes a prefix of the caption. The
    key is what tells this JSON from a `spec.Spec`. head, embed_dim: from the audio
    tower to the embedding, as in `spec.Spec`. mapper: options of `prefix`. decoder: a
    language model. text_length: tokens of a caption at most. tokenizer,
    tokenizer_style, vocab_size: as in `spec.Spec`.
    Errors: ValueError on unknown names and on widths that do not fit.
    """

    name: str
    frontend: Frontend
    audio: TowerSpec
    head: str
    embed_dim: int
    mapper: dict[str, Any]
    decoder: TowerSpec
    tokenizer: str
    vocab_size: int
    text_length: int = 67
    tokenizer_style: str = "plain"
    captioner: str = "prefix"

    def __post_init__(self) -> None:
        for role, name, known in (
            ("captioner", self.captioner, KINDS),
            ("audio tower", self.audio.kind, AUDIO_TOWERS),
            ("decoder of a captioner", self.decoder.kind, ("gpt2",)),
            ("head", self.head, heads.HEADS),
        ):
            if name not in known:
                raise ValueError(config_lib.unknown(role, name, known))
        for name in ("embed_dim", "text_length", "vocab_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        options = complete("a mapper", self.mapper, prefix.DEFAULTS)
        object.__setattr__(self, "mapper", options)
        width = self.decoder.options["width"]
        if options["width"] != width:
            raise ValueError(
                f"the mapper's width is {options['width']}, the decoder's {width}"
            )

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CaptionerSpec":
        """The inverse of `to_json`. Errors: ValueError on unknown or missing keys."""
        parts = {"frontend": Frontend, "audio": TowerSpec, "decoder": TowerSpec}
        return from_dict(json.loads(text), cls, parts)


SPECS: dict[str, CaptionerSpec] = {
    "clapcap": CaptionerSpec(
        name="clapcap",
        frontend=FRONTENDS["msclap2023"],
        audio=TowerSpec("htsat", {"long_clips": "msclap"}),
        head="msclap",
        embed_dim=1024,
        mapper={},
        decoder=TowerSpec("gpt2"),
        tokenizer="openai-community/gpt2",
        tokenizer_style="msclap",
        vocab_size=50257,
    )
}


class Captioner(NamedTuple):
    """A model that writes captions, as pure functions.

    `variables` is `{"params": {"audio", "audio_projection", "mapper", "decoder"},
    "state": {"audio"}}`. Everything runs as in evaluation: the reference trains the
    mapper alone, which has no dropout.

    init: `init(key) -> variables`.
    prefix: `prefix(variables, sound) -> float32 [B, E]`, rows of length one; `sound` is
        a log-mel in dB [B, N, F] or a `tower.Sound`.
    prefix_embeddings: `prefix_embeddings(variables, prefix) -> float32 [B, P, D]`.
    logits: `logits(variables, prefix, ids [B, L]) -> float32 [B, P + L, C]`; those at
        position P - 1 + i are of the token `ids[:, i]`.
    greedy: `greedy(variables, prefix, length) -> int32 [B, length]`, the likeliest token
        each time. It does not stop: cut at the token that ends a caption.
    """

    init: Callable[..., dict[str, Any]]
    prefix: Callable[..., jax.Array]
    prefix_embeddings: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    greedy: Callable[..., jax.Array]


def build(spec: CaptionerSpec, *, dtype: str = "float32") -> Captioner:
    """The functions of a spec; they work under jit (`length` is static).

    dtype: as for `zoo.build`. Errors: ValueError on an unknown dtype, and from `greedy`
    and `logits` on more positions than the decoder has.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(config_lib.unknown("dtype", dtype, ("float32", "bfloat16")))
    audio = AUDIO_TOWERS[spec.audio.kind].tower(spec.audio.options, dtype=dtype)
    head = heads.tower(spec.head, spec.embed_dim, dtype=dtype)
    mapper = prefix.tower(spec.mapper, dtype=dtype)
    decoder = gpt2.language_model(spec.decoder.options, spec.vocab_size, dtype=dtype)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        size = (1, spec.frontend.clip_frames, spec.frontend.mels)
        heard = audio.init(keys[0], Sound(jnp.zeros(size)))
        (embedding, _), _ = jax.eval_shape(audio.apply, heard, Sound(jnp.zeros(size)))
        params = {
            "audio": heard["params"],
            "audio_projection": head.init(keys[1], jnp.zeros(embedding.shape))[
                "params"
            ],
            "mapper": mapper.init(keys[2], jnp.zeros((1, spec.embed_dim)))["params"],
            "decoder": decoder.init(keys[3]),
        }
        return {"params": params, "state": {"audio": heard["state"]}}

    def clip_prefix(variables: Mapping[str, Any], sound: Any) -> Float[Array, "B E"]:
        params = variables["params"]
        sound = as_sound(sound)
        sound = sound._replace(mel=jnp.asarray(sound.mel, jnp.float32))
        heard = {"params": params["audio"], "state": variables["state"]["audio"]}
        (embedding, _), _ = audio.apply(heard, sound)
        projection = {"params": params["audio_projection"], "state": {}}
        (projected, _), _ = head.apply(projection, embedding)
        return l2_normalise(projected)

    def embeddings(
        variables: Mapping[str, Any], z: Float[Any, "B E"]
    ) -> Float[Array, "B P D"]:
        tree = {"params": variables["params"]["mapper"], "state": {}}
        (found, _), _ = mapper.apply(tree, jnp.asarray(z))
        return found.astype(jnp.float32)

    def logits(
        variables: Mapping[str, Any], z: Float[Any, "B E"], ids: Int[Any, "B L"]
    ) -> Float[Array, "B M C"]:
        params = variables["params"]["decoder"]
        words = decoder.embed(params, ids)
        x = jnp.concatenate([embeddings(variables, z), words], axis=1)
        return decoder.logits(params, x)

    def greedy(
        variables: Mapping[str, Any], z: Float[Any, "B E"], length: int
    ) -> Int[Array, "B length"]:
        params, start = variables["params"]["decoder"], embeddings(variables, z)
        cache = decoder.start(start.shape[0], start.shape[1] + length - 1)
        scores, cache = decoder.step(params, cache, start)
        first = jnp.argmax(scores, axis=-1)

        def write(carry: Any, _: None) -> tuple[Any, jax.Array]:
            last, cache = carry
            scores, cache = decoder.step(params, cache, last[:, None])
            following = jnp.argmax(scores, axis=-1)
            return (following, cache), following

        _, rest = jax.lax.scan(write, (first, cache), length=length - 1)
        return jnp.concatenate([first[:, None], rest.T], axis=1)

    return Captioner(init, clip_prefix, embeddings, logits, greedy)
