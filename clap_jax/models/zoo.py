"""The table of models. A family is a row here: front end, towers, heads, tokenizer."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clap_jax import config as config_lib
from clap_jax.audio.mel import FRONTENDS, Frontend
from clap_jax.models import bert, conv_transformer, convnet, dual, heads, htsat
from clap_jax.models.tower import complete

AUDIO_TOWERS = {
    "htsat": htsat,
    "conv_transformer": conv_transformer,
    "convnet": convnet,
}
TEXT_TOWERS = {"bert": bert}


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """A kind of tower and its options.

    Options that are not given are filled from the kind's `DEFAULTS`, so that a saved
    spec still means the same model after a default has changed. Errors: ValueError on
    an unknown kind, an unknown option or a value of the wrong type.
    """

    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {**AUDIO_TOWERS, **TEXT_TOWERS}
        if self.kind not in kinds:
            raise ValueError(config_lib.unknown("tower", self.kind, kinds))
        options = complete(self.kind, self.options, kinds[self.kind].DEFAULTS)
        object.__setattr__(self, "options", options)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything that defines a model but its weights; JSON both ways.

    head: a name in `heads.HEADS`, used on both sides. embed_dim: E of the joint space.
    text_length: L, tokens per text. tokenizer: a hub id, or "" for one trained on the
    captions. logit_scale_init: the factor on the cosine at the start (not its
    logarithm). score: a name in `dual.SCORES`. Errors: ValueError on unknown names.
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

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`. Errors: ValueError on unknown or missing keys."""
        return _from_dict(json.loads(text))


def read_spec(path: Path) -> Spec:
    """The spec of a `spec.json`. Errors: ValueError naming the file."""
    try:
        return Spec.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a model's spec: {error}") from error


def _from_dict(tree: Mapping[str, Any]) -> Spec:
    """A Spec from nested dicts, every unknown or missing key reported at once."""
    errors: list[str] = []
    parts = {"frontend": Frontend, "audio": TowerSpec, "text": TowerSpec}

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

    check(tree, Spec, "")
    for name, kind in parts.items():
        if name in tree:
            check(tree[name], kind, f"{name}.")
    if errors:
        raise ValueError("; ".join(errors))
    made = {name: kind(**tree[name]) for name, kind in parts.items()}
    return Spec(**{**tree, **made})


def _laion(name: str, htsat_options: dict[str, Any], text: str = "roberta") -> Spec:
    """A LAION-CLAP model without fusion (facts: their `model_configs/*.json`)."""
    options, tokenizer, vocab_size = {
        "roberta": ({}, "FacebookAI/roberta-base", 50265),
        "bert": (
            {
                "positions": "bert",
                "position_table": 512,
                "pad_id": 0,
                "types": 2,
                "eps": 1e-12,
            },
            "google-bert/bert-base-uncased",
            30522,
        ),
    }[text]
    return Spec(
        name=name,
        frontend=FRONTENDS["laion_unfused"],
        audio=TowerSpec("htsat", htsat_options),
        text=TowerSpec("bert", options),
        head="laion_mlp",
        embed_dim=512,
        text_length=77,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        logit_scale_init=1 / 0.07,
    )


_TINY = {"width": 96, "depths": (2, 2, 6, 2)}
_BASE = {"width": 128, "depths": (2, 2, 12, 2)}
_LARGE = {"width": 256, "depths": (2, 2, 12, 2)}

_SMALL_TEXT = {
    "width": 96,
    "depth": 2,
    "heads": 4,
    "mlp": 384,
    "position_table": 128,
    "norm": "post",
    "pool": "mean",
    "dropout": 0.0,
}


def _small(name: str, frontend: str, audio: TowerSpec, scale: float) -> Spec:
    """A model of about 0.7 M parameters that trains on a laptop."""
    return Spec(
        name=name,
        frontend=FRONTENDS[frontend],
        audio=audio,
        text=TowerSpec("bert", _SMALL_TEXT),
        head="linear",
        embed_dim=128,
        text_length=24,
        tokenizer="",
        vocab_size=1024,
        logit_scale_init=scale,
    )


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _laion("laion_htsat_tiny_roberta", _TINY),
        _laion("laion_htsat_base_roberta", _BASE),
        _laion("laion_htsat_large_roberta", _LARGE),
        _laion("laion_htsat_tiny_bert", _TINY, text="bert"),
        _small("small_transformer", "small_16k", TowerSpec("conv_transformer"), 14.0),
        _small("small_conv", "small_22k", TowerSpec("convnet"), 10.0),
    )
}


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"audio.options.depth": 2} and {"audio": {"options": {"depth": 2}}} alike."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        value = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = _merged(tree, value)
    return tree


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def get_spec(name: str, overrides: Mapping[str, Any] | None = None) -> Spec:
    """A row of `SPECS` with some values replaced.

    `overrides` has dotted keys ("audio.options.depth"), nested tables, or both. A new
    `audio.kind` or `text.kind` starts from that kind's own defaults, and `frontend`
    may be the name of a row in `FRONTENDS`.
    Errors: ValueError on an unknown name or key, with the closest known ones.
    """
    if name not in SPECS:
        raise ValueError(config_lib.unknown("model", name, SPECS))
    over = _nested(overrides or {})
    base = dataclasses.asdict(SPECS[name])
    for side in ("audio", "text"):
        if not isinstance(over.get(side), Mapping):
            continue
        if over[side].get("kind", base[side]["kind"]) != base[side]["kind"]:
            base[side] = {"kind": over[side]["kind"], "options": {}}
    if isinstance(over.get("frontend"), str):
        if over["frontend"] not in FRONTENDS:
            raise ValueError(
                config_lib.unknown("front end", over["frontend"], FRONTENDS)
            )
        over["frontend"] = dataclasses.asdict(FRONTENDS[over["frontend"]])
    return _from_dict(_merged(base, over))


def build(spec: Spec, *, dtype: str = "float32", remat: str = "none") -> dual.Dual:
    """The functions of a spec. Nothing is computed until they are called.

    dtype: what towers and heads compute in, "float32" or "bfloat16"; parameters,
    norms, softmax and scores are float32 always. remat: "none", or "blocks" to
    recompute each block in the backward pass (less memory, about a third more work).
    Errors: ValueError on an unknown dtype or remat.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(config_lib.unknown("dtype", dtype, ("float32", "bfloat16")))
    if remat not in ("none", "blocks"):
        raise ValueError(config_lib.unknown("remat", remat, ("none", "blocks")))
    compute = {"dtype": dtype, "remat": remat}
    audio = AUDIO_TOWERS[spec.audio.kind].tower(spec.audio.options, **compute)
    text = TEXT_TOWERS[spec.text.kind].tower(
        spec.text.options, spec.vocab_size, **compute
    )
    frames, mels = spec.frontend.clip_frames, spec.frontend.mels
    return dual.make(
        audio,
        text,
        heads.tower(spec.head, spec.embed_dim, dtype=dtype),
        heads.tower(spec.head, spec.embed_dim, dtype=dtype),
        examples=(
            jax.ShapeDtypeStruct((1, frames, mels), jnp.float32),
            (
                jax.ShapeDtypeStruct((1, spec.text_length), jnp.int32),
                jax.ShapeDtypeStruct((1, spec.text_length), jnp.bool_),
            ),
        ),
        logit_scale_init=spec.logit_scale_init,
        score=spec.score,
    )
