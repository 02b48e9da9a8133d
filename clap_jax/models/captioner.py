"""Captioners as data and as pure functions: an audio tower and a language model.

The embedding of a clip becomes a prefix that a language model goes on from: with a
caption (MS-CLAP's clapcap), or behind a prompt with the answer of any task (Pengi).

Sources: MS-CLAP `models/clap.py` and `CLAPWrapper.py` (clapcap); Pengi (Deshmukh et al.
2023, arXiv 2305.11834).
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
from clap_jax.models import dual, gpt2, heads, prefix, zoo
from clap_jax.models.spec import AUDIO_TOWERS, TowerSpec, from_dict
from clap_jax.models.tower import complete

KINDS = ("prefix",)


@dataclasses.dataclass(frozen=True)
class CaptionerSpec:
    """Everything that defines a captioner but its weights; JSON both ways.

    captioner: "prefix": the embedding of a clip becomes a prefix of the caption. The
    key is what tells this JSON from a `spec.Spec`. head, embed_dim: from the audio
    tower to the embedding, as in `spec.Spec`. mapper: options of `prefix`. decoder: a
    language model. text_length: tokens of a caption at most, with its prompt. tokenizer,
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
        return from_dict(json.loads(text), cls, _PARTS)


_PARTS = {"frontend": Frontend, "audio": TowerSpec, "decoder": TowerSpec}

_CLAPCAP = CaptionerSpec(
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

# Pengi's audio side, mapper and decoder, but for its text encoder (see `Captioner`).
_PENGI = dataclasses.replace(
    _CLAPCAP, name="pengi", mapper={"depth": 4}, text_length=77
)

# About 0.6 M parameters, all of which learn from scratch.
_SMALL = CaptionerSpec(
    name="small_answers",
    frontend=FRONTENDS["small_22k"],
    audio=TowerSpec("convnet"),
    head="linear",
    embed_dim=128,
    mapper={
        "width": 96,
        "length": 4,
        "clip_length": 4,
        "depth": 1,
        "heads": 4,
        "constants_std": 0.1,
    },
    decoder=TowerSpec(
        "gpt2",
        {
            "width": 96,
            "depth": 2,
            "heads": 4,
            "mlp": 384,
            "position_table": 64,
            "dropout": 0.0,
        },
    ),
    tokenizer="",
    vocab_size=1024,
    text_length=32,
)

SPECS: dict[str, CaptionerSpec] = {
    spec.name: spec for spec in (_CLAPCAP, _PENGI, _SMALL)
}


def get_spec(name: str, overrides: Mapping[str, Any] | None = None) -> CaptionerSpec:
    """A row of `SPECS` with some values replaced; as `zoo.get_spec`."""
    if name not in SPECS:
        raise ValueError(config_lib.unknown("captioner", name, SPECS))
    tree = zoo.changed(SPECS[name], overrides or {}, ("audio", "decoder"))
    return from_dict(tree, CaptionerSpec, _PARTS)


class Captioner(NamedTuple):
    """A model that writes captions, or answers behind a prompt, as pure functions.

    `variables` is `{"params": {"audio", "audio_projection", "mapper", "decoder"},
    "state": {"audio"}}`. The decoder reads the prefix, the prompt as rows of its own
    token table, and what it has written. (Pengi's prompt goes through a frozen CLIP
    text encoder and a mapper of its own. A frozen language model can read its own
    words: that is another tower and mapper less, and a prompt may have any length.)

    init: `init(key) -> variables`.
    encode_audio: `(variables, sound, *, train=False, key=None) -> ((z, aux),
        new_state)`, as of a `Dual`: z float32 [B, E], rows of length one; `sound` is a
        log-mel in dB [B, N, F] or a `tower.Sound`.
    prefix: `prefix(variables, sound) -> z`, as in evaluation.
    prefix_embeddings: `prefix_embeddings(variables, z) -> float32 [B, P, D]`.
    logits: `logits(variables, z, ids [B, L]) -> float32 [B, P + L, C]`; those at
        position P - 1 + i are of the token `ids[:, i]`.
    token_logits: `token_logits(variables, z, ids [B, L], *, train=False, key=None) ->
        float32 [B, L, C]`, of the tokens `ids` alone: at i those of `ids[:, i]`. With
        `train` the decoder has its dropout; the mapper has none.
    greedy: `greedy(variables, z, length, prompt=None) -> int32 [B, length]`, the
        likeliest token each time, behind the prompt int32 [Q] of all rows. It does not
        stop: cut at the token that ends a caption.
    constrain: `(params) -> params`, as in a `Dual`; changes nothing.

    Errors: ValueError when `train` is true and `key` is None.
    """

    init: Callable[..., dict[str, Any]]
    encode_audio: Callable[..., Any]
    prefix: Callable[..., jax.Array]
    prefix_embeddings: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    token_logits: Callable[..., jax.Array]
    greedy: Callable[..., jax.Array]
    constrain: Callable[..., dict[str, Any]]


def build(
    spec: CaptionerSpec,
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Captioner:
    """The functions of a spec; they work under jit (`length` is static).

    Arguments and errors are those of `zoo.build`; `greedy`, `logits` and `token_logits`
    raise ValueError on more positions than the decoder has.
    """
    audio = zoo.audio_tower(
        spec,
        dtype=dtype,
        remat=remat,
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    head = heads.tower(spec.head, spec.embed_dim)
    mapper = prefix.tower(spec.mapper, dtype=dtype)
    decoder = gpt2.language_model(
        spec.decoder.options, spec.vocab_size, dtype=dtype, remat=remat
    )
    encode = dual.encoder("audio", audio, head)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        example = zoo.example_sound(spec.frontend)
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
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        return encode(variables, dual.heard(sound), train, key)

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

    def greedy(
        variables: Mapping[str, Any],
        z: Float[Any, "B E"],
        length: int,
        prompt: Int[Any, " Q"] | None = None,
    ) -> Int[Array, "B length"]:
        params = variables["params"]["decoder"]
        asked = jnp.zeros((0,), jnp.int32) if prompt is None else jnp.asarray(prompt)
        asked = jnp.broadcast_to(asked, (len(z), *asked.shape))
        start = positions(variables, z, asked)
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

    return Captioner(
        init=init,
        encode_audio=encode_audio,
        prefix=clip_prefix,
        prefix_embeddings=embeddings,
        logits=logits,
        token_logits=token_logits,
        greedy=greedy,
        constrain=lambda params: params,
    )
