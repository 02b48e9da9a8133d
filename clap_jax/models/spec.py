"""What a model is, as data: `Spec`, JSON both ways."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax.audio.mel import Frontend
from clap_jax.models import (
    bart,
    bert,
    caption_decoder,
    clip_text,
    dual,
    features,
    gpt2,
    heads,
    joint,
)
from clap_jax.models.temporal import Temporal
from clap_jax.models.tower import complete

AUDIO_TOWERS = {**joint.PARTS, "features": features, "joint": joint}
TEXT_TOWERS = {"bert": bert, "gpt2": gpt2, "clip_text": clip_text, "bart": bart}
# What writes captions; GPT-2 is a text tower as well.
DECODERS = {"gpt2": gpt2, "caption_decoder": caption_decoder}

# Padding does not show in the embedding of an audio tower with these options, and shows
# in that of a text tower with those. Other audio towers hear it, other text towers do not.
_AUDIO_PADDING_IS_HIDDEN = {"pann": {"length_mask": "every_layer"}}
_TEXT_PADDING_COUNTS = {"bart": {"pool": "mean_all"}}


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """A kind of tower and its options.

    Options that are not given are filled from the kind's `DEFAULTS`, so that a saved
    spec still means the same model after a default has changed; so are those of the
    parts of a joint tower. Errors: ValueError on an unknown kind, an unknown option or
    a value of the wrong type.
    """

    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {**AUDIO_TOWERS, **TEXT_TOWERS, **DECODERS}
        if self.kind not in kinds:
            raise ValueError(config_lib.unknown("tower", self.kind, kinds))
        options = complete(self.kind, self.options, kinds[self.kind].DEFAULTS)
        if hasattr(kinds[self.kind], "complete_parts"):
            options = kinds[self.kind].complete_parts(options)
        object.__setattr__(self, "options", options)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything that defines a model but its weights; JSON both ways.

    head: a name in `heads.HEADS`, used on both sides. embed_dim: E of the joint space.
    text_length: L, tokens per text. tokenizer: a hub id, or "" for one trained on the
    captions. tokenizer_style: a name in `text.tokenize.STYLES`. logit_scale_init: the
    factor on the cosine at the start (not its logarithm). logit_bias_init: what is added
    to scores at the start, None for a model without bias. score: a name in
    `dual.SCORES`. temporal: how clips longer than the window are heard and compared,
    segment by segment, see `models.long`; None: by one embedding. caption: a
    `caption_decoder` that learns beside the contrast, see `models.auxiliary`, or None.
    Errors: ValueError on unknown names, and on a caption with a guide or temporal.
    """

    name: str
    frontend: Frontend
    audio: TowerSpec
    text: TowerSpec
    head: str
    embed_dim: int
    text_length: int
    tokenizer: str
    vocab_size: int
    logit_scale_init: float
    score: str = "cosine"
    tokenizer_style: str = "plain"
    logit_bias_init: float | None = None
    temporal: Temporal | None = None
    caption: TowerSpec | None = None

    def __post_init__(self) -> None:
        for name in ("embed_dim", "text_length", "vocab_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not self.logit_scale_init > 0:
            raise ValueError(
                f"logit_scale_init must be positive, got {self.logit_scale_init!r}"
            )
        for role, name, known in (
            ("audio tower", self.audio.kind, AUDIO_TOWERS),
            ("text tower", self.text.kind, TEXT_TOWERS),
            ("head", self.head, heads.HEADS),
            ("score", self.score, dual.SCORES),
        ):
            if name not in known:
                raise ValueError(config_lib.unknown(role, name, known))
        check_front_ends(self)
        if self.caption:
            self._check_caption()
        if self.temporal and self.embed_dim % self.temporal.heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by the "
                f"{self.temporal.heads} heads of temporal"
            )

    def _check_caption(self) -> None:
        kind, options = self.caption.kind, self.caption.options
        if kind != "caption_decoder":
            known = ("caption_decoder",)
            raise ValueError(config_lib.unknown("decoder of captions", kind, known))
        if options["guide"] != "none":
            raise ValueError(
                f"caption.guide is {options['guide']!r}, expected 'none': no tags "
                "guide what a pair of towers writes"
            )
        if options["position_table"] < self.text_length:
            raise ValueError(
                f"caption.position_table is {options['position_table']}, but texts of "
                f"{self.name} have {self.text_length} tokens"
            )
        if self.temporal:
            raise ValueError(f"{self.name} hears segments, and can write no captions")

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`. Errors: ValueError on unknown or missing keys."""
        return from_dict(json.loads(text))


def _has(tower: TowerSpec, table: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the options that `table` has for this kind of tower are the tower's."""
    wanted = table.get(tower.kind)
    return wanted is not None and wanted.items() <= tower.options.items()


def pads_texts_freely(spec: Any) -> bool:
    """Whether a text has the same embedding, or the same scores of its tokens, however
    far it is padded.

    spec: of a pair of towers; of a captioner, whose decoder reads from left to right;
    or any other with an audio tower, which has no texts.
    """
    if hasattr(spec, "decoder"):
        return True
    text = getattr(spec, "text", None)
    return text is not None and not _has(text, _TEXT_PADDING_COUNTS)


def pads_clips_freely(spec: Any) -> bool:
    """Whether a clip has the same embedding however far it is padded."""
    return spec.frontend.whole_clip and _has(spec.audio, _AUDIO_PADDING_IS_HIDDEN)


def features_width(spec: Any) -> int:
    """D of a spec whose audio tower takes features [S, D] of a clip that other towers
    made; 0 for one that hears sound. Its front end says of which windows they are."""
    found = getattr(AUDIO_TOWERS[spec.audio.kind], "features_width", None)
    return found(spec.audio.options) if found else 0


def parts(spec: Any) -> dict[str, dict[str, Any]]:
    """The parts of a joint audio tower, kind -> options; {} for any other tower."""
    return spec.audio.options["parts"] if spec.audio.kind == "joint" else {}


def check_front_ends(spec: Any) -> None:
    """Raise ValueError where a spec has not one front end for each part of its tower."""
    wanted, found = max(len(parts(spec)), 1), 1 + len(spec.frontend.beside)
    if found != wanted:
        kinds = ", ".join(parts(spec)) or spec.audio.kind
        raise ValueError(
            f"{spec.name} has {found} front end(s), frontend and those of "
            f"frontend.beside, expected {wanted}: {kinds}"
        )


def read_spec(path: Path) -> Spec:
    """The spec of a `spec.json`. Errors: ValueError naming the file."""
    try:
        return Spec.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a model's spec: {error}") from error


_PARTS = {
    "frontend": Frontend,
    "audio": TowerSpec,
    "text": TowerSpec,
    "temporal": Temporal,
    "caption": TowerSpec,
}


def from_dict(
    tree: Mapping[str, Any], spec: type = Spec, parts: Mapping[str, type] = _PARTS
) -> Any:
    """A `spec` from nested dicts, every unknown or missing key reported at once.

    parts: fields that are tables themselves, and of what kind. One whose default is
    None may be null, or left out.
    """
    errors: list[str] = []

    def check(values: Any, kind: type, prefix: str) -> None:
        if not isinstance(values, Mapping):
            errors.append(f"{prefix.rstrip('.')} must be a table, got {values!r}")
            return
        fields = {f.name: f for f in dataclasses.fields(kind)}
        for key in values:
            if key not in fields:
                known = [prefix + name for name in fields]
                errors.append(config_lib.unknown("key of a spec", prefix + key, known))
        for name, field in fields.items():
            no_default = field.default is dataclasses.MISSING
            no_default &= field.default_factory is dataclasses.MISSING
            if name not in values and no_default:
                errors.append(f"a spec needs the key {prefix + name!r}")

    check(tree, spec, "")
    optional = {f.name for f in dataclasses.fields(spec) if f.default is None}
    parts = {
        name: kind
        for name, kind in parts.items()
        if name not in optional or tree.get(name) is not None
    }
    for name, kind in parts.items():
        if name in tree:
            check(tree[name], kind, f"{name}.")
    if errors:
        raise ValueError("; ".join(errors))
    made = {name: kind(**tree[name]) for name, kind in parts.items()}
    return spec(**{**tree, **made})
