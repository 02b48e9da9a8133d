"""`config.json` of Hugging Face's ClapModel: read, checked against tensors, written.

Source: transformers 5.23, `models/clap` (ClapConfig).
"""

import copy
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from clap_jax.audio import mel
from clap_jax.convert import sizes
from clap_jax.models import zoo

AUDIO, TEXT = "audio_model.audio_encoder.", "text_model."

# What a key means that a config does not have; published configs are sparse.
DEFAULTS: dict[str, Any] = {
    "projection_dim": 512,
    "projection_hidden_act": "relu",
    "logit_scale_init_value": 1 / 0.07,
    "text_config": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "max_position_embeddings": 514,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "audio_config": {
        "window_size": 8,
        "num_mel_bins": 64,
        "spec_size": 256,
        "hidden_act": "gelu",
        "patch_size": 4,
        "patch_stride": [4, 4],
        "hidden_size": 768,
        "depths": [2, 2, 6, 2],
        "num_attention_heads": [4, 8, 16, 32],
        "enable_fusion": False,
        "fusion_type": None,
        "patch_embed_input_channels": 1,
        "flatten_patch_embeds": True,
        "patch_embeds_hidden_size": 96,
        "enable_patch_layer_norm": True,
        "drop_path_rate": 0.0,
        "qkv_bias": True,
        "mlp_ratio": 4.0,
        "aff_block_r": 4,
        "layer_norm_eps": 1e-5,
    },
}

# Options that our towers have no other value of.
_FIXED: dict[str, Any] = {
    "text_config": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
    "audio_config": {
        "hidden_act": "gelu",
        "fusion_type": None,
        "patch_embed_input_channels": 1,
        "flatten_patch_embeds": True,
        "enable_patch_layer_norm": True,
        "qkv_bias": True,
        # Theirs is for the norms of the blocks only, ours for every norm.
        "layer_norm_eps": 1e-5,
    },
}

HEADS = {"relu": "laion_mlp", "gelu": "laion_mlp_gelu"}

# LAION's models were trained on texts of this many tokens.
TEXT_LENGTH = 77

ROBERTA = ("FacebookAI/roberta-base", 50265)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the defaults of what it leaves out; pairs of one number as one."""
    whole = DEFAULTS | {k: v for k, v in config.items() if v is not None}
    for part in _FIXED:
        given = {k: v for k, v in (config.get(part) or {}).items() if v is not None}
        whole[part] = copy.deepcopy(DEFAULTS[part]) | given
    audio = whole["audio_config"]
    for key in ("patch_size", "patch_stride", "spec_size"):
        value = audio[key]
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            audio[key] = value[0]
    for key in ("depths", "num_attention_heads"):
        audio[key] = list(audio[key])
    return whole


def problems(config: Mapping[str, Any]) -> list[str]:
    """What our towers cannot do of a completed config, a sentence each."""
    found = [
        f"{part}.{key} is {config[part][key]!r}, only {value!r} can be read"
        for part, fixed in _FIXED.items()
        for key, value in fixed.items()
        if config[part][key] != value
    ]
    act = config["projection_hidden_act"]
    if act not in HEADS:
        found.append(
            f"projection_hidden_act is {act!r}, only {' and '.join(HEADS)} can be read"
        )
    audio = config["audio_config"]
    image, patch, mels = audio["spec_size"], audio["patch_size"], audio["num_mel_bins"]
    if audio["patch_stride"] != patch:
        found.append(
            f"audio_config.patch_stride is {audio['patch_stride']!r}, only that of "
            f"patch_size, {patch!r}, can be read"
        )
    if not isinstance(patch, int) or not isinstance(image, int):
        found.append(
            f"audio_config.patch_size is {patch!r} and spec_size {image!r}, only "
            "squares can be read"
        )
    elif image % mels or image % patch:
        found.append(
            f"audio_config.spec_size is {image}, expected a multiple of num_mel_bins "
            f"{mels} and of patch_size {patch}"
        )
    else:
        side = image // patch
        sides = [side / 2**i for i in range(len(audio["depths"]))]
        if any(side % audio["window_size"] for side in sides):
            # They pad such maps, which ours does not.
            found.append(
                f"audio_config.window_size is {audio['window_size']}, expected one "
                f"that divides the sides of the maps, {sides}"
            )
    text = config["text_config"]
    if text["hidden_size"] % text["num_attention_heads"]:
        found.append(
            f"text_config.num_attention_heads is {text['num_attention_heads']}, which "
            f"does not divide hidden_size {text['hidden_size']}"
        )
    return found


def measure(shapes: sizes.Shapes) -> dict[str, Any]:
    """What the tensors say, in the words of `config.json`; nothing on what is missing."""
    size = functools.partial(sizes.size, shapes)
    block, layer = f"{AUDIO}layers.0.blocks.0.", f"{TEXT}encoder.layer.0."
    patch, embed = f"{AUDIO}patch_embed.", f"{TEXT}embeddings."
    width = size(f"{patch}proj.weight", 0)
    hidden = size(f"{block}intermediate.dense.weight", 0)
    inner = size(f"{patch}fusion_model.local_att.0.weight", 0)
    depths, heads, window = _stages(shapes)
    audio = {
        "patch_embeds_hidden_size": width,
        "patch_embed_input_channels": size(f"{patch}proj.weight", 1),
        "patch_size": size(f"{patch}proj.weight", 2),
        "num_mel_bins": size(f"{AUDIO}batch_norm.weight", 0),
        "depths": depths,
        "num_attention_heads": None if None in heads else heads,
        "window_size": window,
        "mlp_ratio": hidden / width if hidden and width else None,
        "hidden_size": size("audio_projection.linear1.weight", 1),
        "qkv_bias": any(
            key.startswith(AUDIO) and key.endswith(".query.bias") for key in shapes
        ),
        "enable_patch_layer_norm": sizes.has(shapes, f"{patch}norm."),
        "enable_fusion": sizes.has(shapes, f"{patch}fusion_model."),
        "aff_block_r": width // inner if inner and width else None,
    }
    text = {
        "vocab_size": size(f"{embed}word_embeddings.weight", 0),
        "hidden_size": size(f"{embed}word_embeddings.weight", 1),
        "num_hidden_layers": sizes.depth(
            shapes, rf"{re.escape(TEXT)}encoder\.layer\.(\d+)\."
        ),
        "intermediate_size": size(f"{layer}intermediate.dense.weight", 0),
        "max_position_embeddings": size(f"{embed}position_embeddings.weight", 0),
        "type_vocab_size": size(f"{embed}token_type_embeddings.weight", 0),
    }
    dim = size("audio_projection.linear2.weight", 0)
    found = {"projection_dim": dim} if dim else {}
    for part, values in (("audio_config", audio), ("text_config", text)):
        found[part] = {key: x for key, x in values.items() if x is not None}
    return found


def _stages(
    shapes: sizes.Shapes,
) -> tuple[list[int], list[int | None], int | None]:
    """Of HTSAT: blocks and heads of each stage, side of a window."""
    stages = rf"{re.escape(AUDIO)}layers\.(\d+)\."
    depths = [
        sizes.depth(shapes, rf"{re.escape(AUDIO)}layers\.{i}\.blocks\.(\d+)\.")
        for i in range(sizes.depth(shapes, stages))
    ]
    heads, rows = [], None
    for i in range(len(depths)):
        table = "attention.self.relative_position_bias_table"
        key = f"{AUDIO}layers.{i}.blocks.0.{table}"
        heads.append(sizes.size(shapes, key, 1))
        rows = rows or sizes.size(shapes, key, 0)
    # A table has a row for each of (2 window - 1)^2 displacements.
    return depths, heads, (math.isqrt(rows) + 1) // 2 if rows else None


# Ratios leave no other trace than sizes, which several of them may give.
_SIZES = {
    "mlp_ratio": lambda width, ratio: int(ratio * width),
    "aff_block_r": lambda width, ratio: width // ratio,
}


def compare(config: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Where a completed `config` and the tensors disagree."""
    found = []
    for part in ("", "audio_config", "text_config"):
        said = config[part] if part else config
        for key, value in (measured[part] if part else measured).items():
            if isinstance(value, Mapping) or said[key] == value:
                continue
            if key in _SIZES and _same_size(key, said[key], measured):
                continue
            name = f"{part}.{key}" if part else key
            found.append(
                f"config.json: {name} is {said[key]!r}, the tensors have {value!r}"
            )
    return found


def _same_size(key: str, ratio: float, measured: Mapping[str, Any]) -> bool:
    seen = measured["audio_config"]
    width = seen["patch_embeds_hidden_size"]
    return _SIZES[key](width, ratio) == _SIZES[key](width, seen[key])


def guessed(measured: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A completed config from tensors alone, and what had to be assumed, in words."""
    config = complete(measured)
    text, audio = config["text_config"], config["audio_config"]
    text["num_attention_heads"] = max(1, text["hidden_size"] // sizes.HEAD_WIDTH)
    audio["patch_stride"] = audio["patch_size"]
    words = (
        f"{text['num_attention_heads']} heads in the text tower, "
        f"LayerNorm eps {text['layer_norm_eps']:g} there, "
        f"{config['projection_hidden_act']} in the projections, "
        f"spectrograms of {audio['spec_size']} x {audio['spec_size']}"
    )
    return config, words


def longest(config: Mapping[str, Any]) -> int:
    """Frames that the audio tower of a config without problems takes at most."""
    audio = config["audio_config"]
    return audio["spec_size"] // audio["num_mel_bins"] * audio["spec_size"]


def to_spec(config: Mapping[str, Any], frontend: mel.Frontend) -> zoo.Spec:
    """The spec of a completed config without problems."""
    audio, text = config["audio_config"], config["text_config"]
    fused = audio["enable_fusion"]
    audio_options = {
        "width": audio["patch_embeds_hidden_size"],
        "depths": audio["depths"],
        "heads": audio["num_attention_heads"],
        "window": audio["window_size"],
        "patch": audio["patch_size"],
        "image": audio["spec_size"],
        "mlp_ratio": audio["mlp_ratio"],
        "eps": audio["layer_norm_eps"],
        "drop_path": audio["drop_path_rate"],
        "fusion": "aff_2d" if fused else "none",
        "reduction": audio["aff_block_r"],
    }
    pad = text["pad_token_id"]
    text_options = {
        "width": text["hidden_size"],
        "depth": text["num_hidden_layers"],
        "heads": text["num_attention_heads"],
        "mlp": text["intermediate_size"],
        "positions": "roberta",
        "position_table": text["max_position_embeddings"],
        "pad_id": pad,
        "types": text["type_vocab_size"],
        "eps": text["layer_norm_eps"],
        "dropout": text["hidden_dropout_prob"],
    }
    hub_id, vocab_size = ROBERTA
    return zoo.Spec(
        name="hf_clap_fused" if fused else "hf_clap_unfused",
        frontend=frontend,
        audio=zoo.TowerSpec("htsat", audio_options),
        text=zoo.TowerSpec("bert", text_options),
        head=HEADS[config["projection_hidden_act"]],
        embed_dim=config["projection_dim"],
        text_length=min(TEXT_LENGTH, text["max_position_embeddings"] - pad - 1),
        tokenizer=hub_id if text["vocab_size"] == vocab_size else "",
        vocab_size=text["vocab_size"],
        logit_scale_init=config["logit_scale_init_value"],
    )


def spec_problems(spec: zoo.Spec) -> list[str]:
    """Why ClapModel cannot be this model, a sentence each."""
    found = []
    wanted = {
        ("audio tower", spec.audio.kind): ("htsat",),
        ("text tower", spec.text.kind): ("bert",),
        ("head", spec.head): tuple(HEADS.values()),
        ("score", spec.score): ("cosine",),
    }
    for (role, value), known in wanted.items():
        if value not in known:
            found.append(f"its {role} is {value}, ClapModel has {' or '.join(known)}")
    options: dict[str, tuple[Any, ...]] = {}
    if spec.audio.kind == "htsat":
        options |= {"audio.fusion": ("none", "aff_2d"), "audio.eps": (1e-5,)}
        options |= {"audio.long_clips": ("error",)}
    if spec.text.kind == "bert":
        options |= {"text.positions": ("roberta",), "text.norm": ("post",)}
        options |= {"text.pool": ("pooler",)}
    for name, known in options.items():
        part, _, key = name.partition(".")
        value = getattr(spec, part).options[key]
        if value not in known:
            found.append(
                f"its {part} option {key} is {value!r}, ClapModel has only "
                f"{' or '.join(map(repr, known))}"
            )
    return found


def from_spec(spec: zoo.Spec) -> dict[str, Any]:
    """`config.json` of a spec without problems."""
    audio, text = spec.audio.options, spec.text.options
    activation = {head: act for act, head in HEADS.items()}[spec.head]
    shared = {"projection_dim": spec.embed_dim, "projection_hidden_act": activation}
    audio_config = DEFAULTS["audio_config"] | {
        "model_type": "clap_audio_model",
        "window_size": audio["window"],
        "num_mel_bins": spec.frontend.mels,
        "spec_size": audio["image"],
        "patch_size": audio["patch"],
        "patch_stride": [audio["patch"]] * 2,
        "hidden_size": audio["width"] * 2 ** (len(audio["depths"]) - 1),
        "num_hidden_layers": len(audio["depths"]),
        "depths": list(audio["depths"]),
        "num_attention_heads": list(audio["heads"]),
        "enable_fusion": audio["fusion"] != "none",
        "patch_embeds_hidden_size": audio["width"],
        "drop_path_rate": audio["drop_path"],
        # HTSAT has no dropout; transformers' default is 0.1.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "mlp_ratio": float(audio["mlp_ratio"]),
        "aff_block_r": audio["reduction"],
        "layer_norm_eps": audio["eps"],
    }
    text_config = DEFAULTS["text_config"] | {
        "model_type": "clap_text_model",
        "vocab_size": spec.vocab_size,
        "hidden_size": text["width"],
        "num_hidden_layers": text["depth"],
        "num_attention_heads": text["heads"],
        "intermediate_size": text["mlp"],
        "hidden_dropout_prob": text["dropout"],
        "attention_probs_dropout_prob": text["dropout"],
        "max_position_embeddings": text["position_table"],
        "type_vocab_size": text["types"],
        "layer_norm_eps": text["eps"],
        "pad_token_id": text["pad_id"],
    }
    del text_config["position_embedding_type"]  # no longer known to transformers 5
    return {
        "architectures": ["ClapModel"],
        "model_type": "clap",
        "initializer_factor": 1.0,
        "logit_scale_init_value": spec.logit_scale_init,
        "audio_config": audio_config | shared,
        "text_config": text_config | shared,
    } | shared
