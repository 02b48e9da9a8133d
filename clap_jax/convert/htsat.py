"""HTSAT's tensors: LAION-CLAP's names (MS-CLAP's and AudioSet's too), Hugging Face's.

`prefix` is plain text before every key: "audio_branch." (LAION-CLAP),
"audio_encoder.base.htsat." (MS-CLAP), "sed_model." (the AudioSet model), or
"audio_model.audio_encoder." for style "hf".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.audio import mel
from clap_jax.convert import frontend as frontend_lib
from clap_jax.convert import fusion
from clap_jax.convert import rules as tables
from clap_jax.convert.parts import AUDIOSET_CLASSES, QKV, linear, norm, qkv
from clap_jax.convert.rules import Extra, Rule, Transform
from clap_jax.models import swin

STYLES = ("laion", "hf")

_N = r"(\d+)"

# Parts of a block whose names differ between the styles.
_BLOCK = {
    "laion": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention": "attn",
        "out": "attn.proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    "hf": {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attention": "attention.self",
        "out": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
}
_BATCH_NORM = {"laion": "bn0", "hf": "batch_norm"}


def _conv(source: str, name: str, transform: Transform) -> list[Rule]:
    source, target = re.escape(source), f"params/audio/{name}"
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", transform),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def _check(options: Mapping[str, Any], style: str) -> None:
    if style not in STYLES:
        raise ValueError(config_lib.unknown("style", style, STYLES))
    kind = options["fusion"]
    if style == "hf" and kind not in ("none", "aff_2d"):
        raise ValueError(
            f"Hugging Face's ClapModel has no fusion {kind}, only aff_2d or none"
        )


def extras(prefix: str, style: str = "laion") -> list[Extra]:
    """Keys that the model does not use: what it computes, counters, other heads.

    Put the rules first: with `classes` the AudioSet head has a rule.
    """
    entries = [
        (r".*\.num_batches_tracked", "a counter"),
        (r".*\.relative_position_index", "computed from the window"),
    ]
    if style == "laion":
        entries += [
            (r".*\.attn_mask", "computed from the window"),
            (r"tscam_conv\..*", "AudioSet head; audio.options.classes is 0"),
            (r"head\..*", "defined but never used by HTSAT"),
        ]
    found = [Extra(re.escape(prefix) + regex, reason) for regex, reason in entries]
    return found + (frontend_lib.extras(prefix) if style == "laion" else [])


def rules(options: Mapping[str, Any], prefix: str, style: str = "laion") -> list[Rule]:
    """Every parameter and running statistic of an HTSAT with `options`.

    Hugging Face's encoder has no AudioSet head: with style "hf" the parameters of
    `classes` have no rule. Errors: ValueError on a style or fusion that is unknown.
    """
    _check(options, style)
    patch = options["patch"]
    views = mel.VIEWS if options["fusion"] == "channel_map" else 1
    first = tables.conv_patches(views, patch, patch)
    key = re.escape(prefix)
    table = [
        *fusion.norm_rules(f"{prefix}{_BATCH_NORM[style]}", "bn0"),
        *_conv(f"{prefix}patch_embed.proj", "patch", first),
        *norm(rf"{key}patch_embed\.norm", "params/audio/norm_patch"),
        *_fusion(options, prefix),
        *_block(key, style),
        *norm(rf"{key}norm", "params/audio/norm"),
    ]
    merge, ours = rf"{key}layers\.{_N}\.downsample", "params/audio/stage{0}_merge"
    table += norm(rf"{merge}\.norm", f"{ours}/norm")
    table += linear(rf"{merge}\.reduction", f"{ours}/reduce", bias=False)
    if options["classes"] and style == "laion":
        table += _conv(f"{prefix}tscam_conv", "tag", tables.CONV)
    return table


def _fusion(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    kind, patch = options["fusion"], options["patch"]
    if kind.endswith("1d"):
        return [
            *_conv(f"{prefix}mel_conv1d.0", "local_conv", tables.CONV1D),
            *fusion.norm_rules(f"{prefix}mel_conv1d.1", "local_norm"),
            *fusion.fusion_rules(kind, f"{prefix}fusion_model."),
        ]
    if kind.endswith("2d"):
        wide = tables.conv_patches(1, patch, 3 * patch)
        return [
            *_conv(f"{prefix}patch_embed.mel_conv2d", "patch_local", wide),
            *fusion.fusion_rules(kind, f"{prefix}patch_embed.fusion_model."),
        ]
    return []


def _block(prefix: str, style: str) -> list[Rule]:
    """A Swin block; `prefix` is escaped."""
    theirs = {name: re.escape(part) for name, part in _BLOCK[style].items()}
    block = rf"{prefix}layers\.{_N}\.blocks\.{_N}"
    attention = rf"{block}\.{theirs['attention']}"
    ours = "params/audio/stage{0}_block{1}"
    table = [
        *norm(rf"{block}\.{theirs['norm1']}", f"{ours}/norm1"),
        *norm(rf"{block}\.{theirs['norm2']}", f"{ours}/norm2"),
        Rule(rf"{attention}\.relative_position_bias_table", f"{ours}/position_bias"),
        *linear(rf"{block}\.{theirs['out']}", f"{ours}/attention/out"),
        *linear(rf"{block}\.{theirs['up']}", f"{ours}/mlp/up"),
        *linear(rf"{block}\.{theirs['down']}", f"{ours}/mlp/down"),
    ]
    if style == "hf":
        for name in QKV:
            table += linear(rf"{attention}\.{name}", f"{ours}/attention/{name}")
        return table
    kernels, biases = (qkv(f"{ours}/attention", part) for part in ("kernel", "bias"))
    return table + [
        Rule(rf"{attention}\.qkv\.weight", kernels, tables.LINEAR_THIRDS),
        Rule(rf"{attention}\.qkv\.bias", biases, tables.THIRDS),
    ]


def buffers(
    options: Mapping[str, Any],
    prefix: str,
    frontend: mel.Frontend,
    style: str = "laion",
) -> dict[str, np.ndarray]:
    """Every key that a strict load of the original needs and `rules` do not give.

    Index tables, masks and front end as the original computes them; counters and heads
    that nothing reads are zeros. Style "hf" has no front end, masks or heads.
    Errors: ValueError on a style or fusion that is unknown.
    """
    _check(options, style)
    found = {
        f"{key}.num_batches_tracked": np.zeros((), np.int64)
        for key in _batch_norms(options, prefix, style)
    }
    attention = _BLOCK[style]["attention"]
    for block, side, window, shift in _blocks(options):
        key = f"{prefix}{block}"
        index = swin.relative_index(window).copy()
        found[f"{key}.{attention}.relative_position_index"] = index
        if shift and style == "laion":
            mask = swin.shift_mask(side, side, window, shift).copy()
            found[f"{key}.attn_mask"] = mask
    if style == "hf":
        return found
    found |= frontend_lib.buffers(prefix, frontend)
    classes = options["classes"] or AUDIOSET_CLASSES
    heads = {"head.weight": (classes, classes), "head.bias": (classes,)}
    if not options["classes"]:
        width = options["width"] * 2 ** (len(options["depths"]) - 1)
        rows = options["image"] // options["patch"] // 2 ** (len(options["depths"]) - 1)
        bins = rows // (options["image"] // frontend.mels)
        heads["tscam_conv.weight"] = (classes, width, bins, 3)
        heads["tscam_conv.bias"] = (classes,)
    return found | {prefix + k: np.zeros(s, np.float32) for k, s in heads.items()}


def _batch_norms(options: Mapping[str, Any], prefix: str, style: str) -> list[str]:
    kind, names = options["fusion"], [f"{prefix}{_BATCH_NORM[style]}"]
    if kind.endswith("1d"):
        names.append(f"{prefix}mel_conv1d.1")
        return names + fusion.norms(kind, f"{prefix}fusion_model.")
    return names + fusion.norms(kind, f"{prefix}patch_embed.fusion_model.")


def _blocks(options: Mapping[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    """Every block's name, the side of its map, its window, its shift (0: none)."""
    for i, depth in enumerate(options["depths"]):
        side = options["image"] // options["patch"] // 2**i
        window = min(options["window"], side)
        shift = options["window"] // 2 if side > options["window"] else 0
        for j in range(depth):
            yield f"layers.{i}.blocks.{j}", side, window, shift if j % 2 else 0
