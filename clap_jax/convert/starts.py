"""Weights to start from: one tower alone, as published for other purposes.

Text: Hugging Face's RoBERTa, BERT, GPT-2, CLIP and BART, with or without their heads.
Audio: HTSAT of AudioSet (a Lightning .ckpt), PANNs' .pth, the audio tower of a
LAION-CLAP model by itself, Whisper's encoder (with or without its decoder) and BEATs.
What is written is a folder with `tower.json` and
`model.safetensors`, whose paths are those of a whole model.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax.audio.mel import FRONTENDS, VIEWS
from clap_jax.convert import (
    banks,
    bart,
    beats,
    bert,
    clip_text,
    gpt2,
    htsat,
    laion_clap,
    pann,
    sizes,
    trees,
    whisper,
)
from clap_jax.convert.rules import Extra, Rule
from clap_jax.convert.sizes import Shapes
from clap_jax.models import zoo
from clap_jax.models.tower import Sound

TOWER_FILE = "tower.json"

# The last part of a key that only this kind of tower has; what stands before it is the
# prefix of all its keys.
_MARKS = {
    "htsat": "patch_embed.proj.weight",
    "pann": "conv_block1.conv1.weight",
    "bert": "embeddings.word_embeddings.weight",
    "gpt2": "wte.weight",
    "clip_text": "embeddings.token_embedding.weight",
    "bart": "shared.weight",
    "whisper": "conv1.weight",
    "beats": "patch_embedding.weight",
}
# Prefixes under which a tower stands alone.
_PREFIXES = {
    "htsat": ("", "sed_model.", "audio_branch."),
    "pann": ("", "sed_model.", "audio_branch."),
    "bert": ("", "roberta.", "bert."),
    "gpt2": ("", "transformer."),
    "clip_text": ("", "text_model."),
    "bart": ("", "model."),
    "whisper": ("", "encoder.", "model.encoder."),
    "beats": ("", "beats."),
}
_AUDIO_TABLES = {"htsat": htsat, "pann": pann, "whisper": whisper, "beats": beats}
# Of these the mel bank may lie in the file.
_WITH_BANKS = ("htsat", "pann")
_TEXT_TABLES = {"bert": bert, "gpt2": gpt2, "bart": bart}

# Heads and other towers of the files that text towers come in.
_OTHERS = {
    "bert": r"(lm_head|cls|classifier|qa_outputs)\..*",
    "gpt2": r"(score|classifier)\..*",
    "clip_text": r"(vision_model\..*|(visual|text)_projection\.weight|logit_scale)",
    "bart": r"(lm_head\.weight|final_logits_bias|classification_head\..*)",
}
_LAION_OTHERS = r"(audio_projection\..*|audio_transform\..*|logit_scale_[at])"


@dataclasses.dataclass(frozen=True)
class TowerStart:
    """One tower's weights: side "audio" or "text", kind, options, vocabulary (or 0)."""

    side: str
    kind: str
    options: dict[str, Any]
    vocab_size: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} ({self.side} tower)"

    def to_json(self) -> str:
        """The start as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read_start(path: Path) -> TowerStart:
    """The start of a `tower.json`. Errors: ValueError naming the file."""
    try:
        tree = json.loads(path.read_text())
        tower = zoo.TowerSpec(tree["kind"], tree["options"])
        return TowerStart(tree["side"], tower.kind, tower.options, tree["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a tower: {error}") from error


def find(shapes: Shapes) -> tuple[str, str] | None:
    """Kind and prefix of the one tower that the tensors are; None for anything else."""
    for kind, mark in _MARKS.items():
        for prefix in _PREFIXES[kind]:
            if prefix + mark in shapes:
                return kind, prefix
    return None


def recognises(shapes: Shapes) -> bool:
    """Whether these are the tensors of a tower alone."""
    return find(shapes) is not None


def spec(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[TowerStart, list[str]]:
    """What the tower is, from names and shapes, and notes on what they do not say.

    config: a Hugging Face `config.json`; it adds the number of heads, the epsilon of
    the norms and CLIP's activation, which no tensor shows.
    """
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    kind, prefix = find(shapes) or ("", "")
    if kind in _AUDIO_TABLES:
        options = getattr(sizes, kind)(shapes, prefix)
        notes = []
        if kind in _WITH_BANKS:
            front = FRONTENDS["laion_unfused"]
            _, notes = banks.frontend_of(front, *banks.stored(tensors, prefix))
        elif kind == "whisper":
            notes = [sizes.heads_note(options, "audio")]
        tower = zoo.TowerSpec(kind, options)
        return TowerStart("audio", kind, tower.options), notes
    if kind == "clip_text":
        options, vocab_size = sizes.clip_text(shapes, prefix, "hf")
        options["activation"] = "quick_gelu"
    else:
        options, vocab_size = getattr(sizes, kind)(shapes, prefix)
    notes = [sizes.heads_note(options)]
    if kind == "clip_text":
        notes.append("text tower: quick_gelu, as OpenAI's weights have it")
    said = _said(kind, config or {})
    if said:
        options |= said
        words = ", ".join(f"{name} {value}" for name, value in said.items())
        notes = [f"text tower, from config.json: {words}"]
    tower = zoo.TowerSpec(kind, options)
    return TowerStart("text", kind, tower.options, vocab_size), notes


def _said(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Options that only a config tells, for those that it does."""
    config = config.get("text_config", config)
    names = {
        "heads": ("num_attention_heads", "n_head", "encoder_attention_heads"),
        "eps": ("layer_norm_eps", "layer_norm_epsilon"),
        "activation": ("hidden_act",) if kind == "clip_text" else (),
    }
    return {
        ours: config[theirs]
        for ours, keys in names.items()
        for theirs in keys
        if config.get(theirs) is not None
    }


def table(start: TowerStart, prefix: str) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the tower does not use; `prefix` as `find` gives it."""
    if start.side == "audio":
        tower = _AUDIO_TABLES[start.kind]
        if start.kind == "beats":
            extras = beats.extras(start.options, prefix)
        else:
            extras = tower.extras(prefix)
        if prefix == laion_clap.AUDIO:
            extras.append(Extra(_LAION_OTHERS, "not the audio tower"))
        return tower.rules(start.options, prefix), extras
    others = Extra(_OTHERS[start.kind], "not the text tower")
    if start.kind == "clip_text":
        found = clip_text.rules(start.options, prefix, "hf")
        return found, [*clip_text.extras(prefix, "hf"), others]
    tower = _TEXT_TABLES[start.kind]
    extras = [*tower.extras(prefix), others]
    if start.kind == "gpt2":
        tied = Extra(r"lm_head\.weight", "tied", same_as=f"{prefix}wte.weight")
        extras.append(tied)
    return tower.rules(start.options, prefix), extras


def fill(
    start: TowerStart, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Variables with this tower alone, the extras, and notes on what stays fresh.

    Errors: `rules.apply`.
    """
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    kind, prefix = find(shapes) or (start.kind, "")
    bands = ("bn0.weight", 0), ("conv1.weight", 1)
    mels = sizes.vote((sizes.size(shapes, prefix + key, i) for key, i in bands), 64)
    target, notes = _target(start, mels), []
    pooler = f"{prefix}pooler.dense.weight"
    if kind == "bert" and pooler not in shapes:
        # roberta-base has none on the hub.
        del target["params"]["text"]["pooler"]
        notes.append("fresh, not in the file: params/text/pooler")
    variables, extra = trees.fill(*table(start, prefix), tensors, target)
    return variables, extra, notes


def _target(start: TowerStart, mels: int) -> dict[str, Any]:
    if start.side == "audio":
        tower = zoo.AUDIO_TOWERS[start.kind].tower(start.options)
        views = (VIEWS,) if start.options.get("fusion", "none") != "none" else ()
        frames = {"whisper": 2, "beats": start.options.get("patch", 0)}.get(
            start.kind, 1001
        )
        if start.kind == "htsat":
            frames = start.options["image"] ** 2 // mels
        example = Sound(
            jax.ShapeDtypeStruct((1, *views, frames, mels), jnp.float32),
            longer=jax.ShapeDtypeStruct((1,), jnp.bool_) if views else None,
        )
    else:
        tower = zoo.TEXT_TOWERS[start.kind].tower(start.options, start.vocab_size)
        length = min(8, start.options["position_table"])
        example = (
            jax.ShapeDtypeStruct((1, length), jnp.int32),
            jax.ShapeDtypeStruct((1, length), jnp.bool_),
        )
    shapes = jax.eval_shape(tower.init, jax.random.key(0), example)
    return {name: {start.side: dict(tree)} for name, tree in shapes.items()}
