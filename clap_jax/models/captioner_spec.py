"""What a captioner is: as data, and as functions.

Sources: MS-CLAP `models/clap.py` and `CLAPWrapper.py` (clapcap); Pengi (Deshmukh et al.
2023, arXiv 2305.11834); BLAT (Xu et al. 2023, arXiv 2303.07902) and its captioner,
wsntxxn/AudioCaption.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from clap_jax import config as config_lib
from clap_jax.audio.mel import FRONTENDS, Frontend
from clap_jax.models import heads, prefix, recurrent, zoo
from clap_jax.models.spec import AUDIO_TOWERS, TowerSpec, check_front_ends, from_dict
from clap_jax.models.tower import complete

# How a captioner hears, and the decoder and the mapper that this takes.
KINDS = {"prefix": ("gpt2", prefix), "guided": ("caption_decoder", recurrent)}


@dataclasses.dataclass(frozen=True)
class CaptionerSpec:
    """Everything that defines a captioner but its weights; JSON both ways.

    captioner: "prefix": the embedding of a clip becomes a prefix of the caption;
    "guided": the decoder attends to the clip over time, and tags of sound events guide
    it. The key is what tells this JSON from a `spec.Spec`. head, embed_dim: from the
    audio tower to the embedding, as in `spec.Spec`; of a guided one the head is "" and
    embed_dim the width of its memory. mapper: options of `prefix`, or of `recurrent`.
    decoder: a language model, or a `caption_decoder`. text_length: tokens of a caption
    at most, with its prompt and ending. tokenizer, tokenizer_style, vocab_size: as in
    `spec.Spec`. Of a guided one alone: start_id: the token before the first. tag_names:
    what each column of the tags means, as many as the decoder's `tags`; () until the
    data have told them (`with_tags`). lora_rank: of what is learnt of the decoder beside
    its weights, see `lora`; 0: the weights themselves.
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
    start_id: int = 0
    tag_names: tuple[str, ...] = ()
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.captioner not in KINDS:
            raise ValueError(config_lib.unknown("captioner", self.captioner, KINDS))
        decoder, mapper = KINDS[self.captioner]
        known_heads = heads.HEADS if self.captioner == "prefix" else ("",)
        for role, name, known in (
            ("audio tower", self.audio.kind, AUDIO_TOWERS),
            ("decoder of a captioner", self.decoder.kind, (decoder,)),
            ("head", self.head, known_heads),
        ):
            if name not in known:
                raise ValueError(config_lib.unknown(role, name, known))
        check_front_ends(self)
        for name in ("embed_dim", "text_length", "vocab_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if type(self.lora_rank) is not int or self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank!r}, expected 0 or more")
        options = complete("a mapper", self.mapper, mapper.DEFAULTS)
        object.__setattr__(self, "mapper", options)
        self._check_prefix() if self.captioner == "prefix" else self._check_guided()

    def _check_prefix(self) -> None:
        width = self.decoder.options["width"]
        if self.mapper["width"] != width:
            raise ValueError(
                f"the mapper's width is {self.mapper['width']}, the decoder's {width}"
            )
        if self.tag_names:
            raise ValueError(f"{self.name} has tag_names, but no tags guide it")

    def _check_guided(self) -> None:
        if self.embed_dim != 2 * self.mapper["width"]:
            raise ValueError(
                f"embed_dim is {self.embed_dim}, expected {2 * self.mapper['width']}: "
                "two directions of the mapper's width"
            )
        if not 0 <= self.start_id < self.vocab_size:
            raise ValueError(
                f"start_id is {self.start_id}, expected one of {self.vocab_size} tokens"
            )
        tags = self.decoder.options["tags"] if self.is_guided else 0
        if self.tag_names and len(self.tag_names) != tags:
            raise ValueError(
                f"{len(self.tag_names)} tag_names; the decoder takes {tags} tags"
            )
        if len(set(self.tag_names)) < len(self.tag_names):
            raise ValueError("tag_names has a name twice")

    @property
    def is_guided(self) -> bool:
        """Whether tags guide it: a "guided" one with the guide "none" hears no tags."""
        return self.decoder.options.get("guide", "none") != "none"

    def with_tags(self, names: Sequence[str]) -> "CaptionerSpec":
        """The same captioner, guided by tags with these names."""
        options = self.decoder.options | {"tags": len(names)}
        decoder = TowerSpec(self.decoder.kind, options)
        return dataclasses.replace(self, decoder=decoder, tag_names=tuple(names))

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CaptionerSpec":
        """The inverse of `to_json`. Errors: ValueError on unknown or missing keys."""
        return _from_tree(json.loads(text))


_PARTS = {"frontend": Frontend, "audio": TowerSpec, "decoder": TowerSpec}


def _from_tree(tree: Mapping[str, Any]) -> CaptionerSpec:
    """From nested dicts, in which JSON has made a list of the names."""
    if isinstance(tree, Mapping) and "tag_names" in tree:
        tree = {**tree, "tag_names": tuple(tree["tag_names"])}
    return from_dict(tree, CaptionerSpec, _PARTS)


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

# The captioner of BLAT's training pairs, but for its tokenizer, which had words.
_BLAT = CaptionerSpec(
    name="blat_captioner",
    captioner="guided",
    frontend=FRONTENDS["blat"],
    audio=TowerSpec("pann", {"spec_augment": "none", "length_mask": "every_layer"}),
    head="",
    embed_dim=512,
    mapper={},
    decoder=TowerSpec("caption_decoder", {"guide": "event"}),
    tokenizer="",
    vocab_size=5000,
    # Captions had 20 words at most; a word is a token and a half at the most.
    text_length=32,
)

# About 0.8 M parameters, which two cores can train in minutes.
_SMALL_GUIDED = CaptionerSpec(
    name="small_captioner",
    captioner="guided",
    frontend=FRONTENDS["small_22k"],
    audio=TowerSpec("convnet"),
    head="",
    embed_dim=192,
    mapper={"width": 96, "depth": 1},
    decoder=TowerSpec(
        "caption_decoder",
        {"guide": "event", "width": 96, "mlp": 384, "dropout": 0.1},
    ),
    tokenizer="",
    vocab_size=1024,
    text_length=32,
)

SPECS: dict[str, CaptionerSpec] = {
    spec.name: spec for spec in (_CLAPCAP, _PENGI, _SMALL, _BLAT, _SMALL_GUIDED)
}


def get_spec(name: str, overrides: Mapping[str, Any] | None = None) -> CaptionerSpec:
    """A row of `SPECS` with some values replaced; as `zoo.get_spec`."""
    if name not in SPECS:
        raise ValueError(config_lib.unknown("captioner", name, SPECS))
    tree = zoo.changed(SPECS[name], overrides or {}, ("audio", "decoder"))
    return _from_tree(tree)


class Captioner(NamedTuple):
    """A model that writes captions, or answers behind a prompt, as pure functions.

    `variables` of the kind "prefix" are `{"params": {"audio", "audio_projection",
    "mapper", "decoder"}, "state": {"audio"}}`. The decoder reads the prefix, the prompt
    as rows of its own token table, and what it has written. (Pengi's prompt goes through
    a frozen CLIP text encoder and a mapper of its own. A frozen language model can read
    its own words: that is another tower and mapper less, and a prompt may have any
    length.) Those of the kind "guided" are `{"params": {"audio", "mapper", "decoder"},
    "state": {"audio", "decoder"}}`; its decoder reads the start token, the prompt and
    what it has written. With a `lora_rank`, "lora" is among the params as well.

    What is `heard` of B clips is z float32 [B, E], rows of length one, or, guided, a
    `guided.Heard`.

    init: `init(key) -> variables`.
    encode_audio: `(variables, sound, *, tags=None, train=False, key=None,
        frozen=False) -> ((heard, aux), new_state)`. `sound` is a log-mel in dB
        [B, N, F] or a `tower.Sound`; `tags` float32 [B, C], of a guided one alone, in
        the order of the spec's tag_names, 0 or 1 or probabilities. `frozen`: the audio
        tower (with its head) runs as in evaluation, whatever `train` says. aux has the
        tower's, and its "embedding" [B, D].
    prefix: `prefix(variables, sound) -> float32 [B, E]`, one vector a clip, of length
        one, as in evaluation: z, or, guided, the audio tower's embedding.
    prefix_embeddings: `prefix_embeddings(variables, z) -> float32 [B, P, D]`. None of
        a guided one.
    logits: `logits(variables, z, ids [B, L]) -> float32 [B, P + L, C]`; those at
        position P - 1 + i are of the token `ids[:, i]`. None of a guided one.
    token_logits: `token_logits(variables, heard, ids [B, L], *, train=False, key=None)
        -> float32 [B, L, C]`, of the tokens `ids` alone: at i those of `ids[:, i]`,
        which depend on the tokens before it. With `train` the decoder has its dropout;
        the mapper of a prefix has none.
    caption: `caption(variables, heard, options, key=None, prompt=None) ->
        decode.Captions`, behind the prompt int32 [Q] of all clips; `options` are
        `decode.Options`, static under jit, `key` as `decode.write` takes it.
    greedy: `greedy(variables, heard, length, prompt=None) -> int32 [B, length]`, the
        likeliest token each time. It does not stop: cut at the token that ends a
        caption.
    constrain: `(params) -> params`, as in a `Dual`; changes nothing.

    Errors: ValueError when `train` is true and `key` is None, on tags where there is no
    guide, and on more positions than the decoder has.
    """

    init: Callable[..., dict[str, Any]]
    encode_audio: Callable[..., Any]
    prefix: Callable[..., jax.Array]
    prefix_embeddings: Callable[..., jax.Array] | None
    logits: Callable[..., jax.Array] | None
    token_logits: Callable[..., jax.Array]
    caption: Callable[..., Any]
    greedy: Callable[..., jax.Array]
    constrain: Callable[..., dict[str, Any]]
