"""The tensors of BEATs (iteration 3, pretrained or with AudioSet's classes).

They lie under "model" of the published files; `prefix` is plain text before every key,
"" or "beats." (SALMONN).
"""

import re
from collections.abc import Mapping
from typing import Any

from clap_jax.convert.parts import QKV, linear, norm
from clap_jax.convert.rules import CONV1D, Extra, Rule, Transform, conv_patches

_TABLE = "self_attn.relative_attention_bias.weight"

_TAPS = Transform(
    "a size for every tap: [1, 1, W] to [W]",
    lambda x: (x.reshape(-1),),
    lambda x: x.reshape(1, 1, -1),
)
_HEADS = Transform(
    "a number for every head: [1, heads, 1, 1] to [heads]",
    lambda x: (x.reshape(-1),),
    lambda x: x.reshape(1, -1, 1, 1),
)


def rules(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Rules of a tower of kind "beats" with these options."""
    start, audio = re.escape(prefix), "params/audio"
    encoder, patch = rf"{start}encoder", options["patch"]
    layer, block = rf"{encoder}\.layers\.(\d+)", f"{audio}/block{{0}}"
    attention, ours = rf"{layer}\.self_attn", f"{block}/attention"
    convolution = rf"{encoder}\.pos_conv\.0"
    table = [
        Rule(
            rf"{start}patch_embedding\.weight",
            f"{audio}/patch/kernel",
            conv_patches(1, patch, patch),
        ),
        *norm(rf"{start}layer_norm", f"{audio}/norm_patch"),
        Rule(rf"{convolution}\.weight_g", f"{audio}/position/scale", _TAPS),
        Rule(rf"{convolution}\.weight_v", f"{audio}/position/kernel", CONV1D),
        Rule(rf"{convolution}\.bias", f"{audio}/position/bias"),
        *norm(rf"{encoder}\.layer_norm", f"{audio}/norm"),
        Rule(
            rf"{encoder}\.layers\.0\.{re.escape(_TABLE)}",
            f"{audio}/distances/embedding",
        ),
        *linear(rf"{attention}\.grep_linear", f"{ours}/gate"),
        Rule(rf"{attention}\.grep_a", f"{ours}/gate_scale", _HEADS),
        *linear(rf"{attention}\.out_proj", f"{ours}/out"),
        *norm(rf"{attention}_layer_norm", f"{block}/norm1"),
        *linear(rf"{layer}\.fc1", f"{block}/mlp/up"),
        *linear(rf"{layer}\.fc2", f"{block}/mlp/down"),
        *norm(rf"{layer}\.final_layer_norm", f"{block}/norm2"),
    ]
    for name in QKV:
        table += linear(rf"{attention}\.{name[0]}_proj", f"{ours}/{name}")
    if options["patch_width"] != options["width"]:
        table += linear(rf"{start}post_extract_proj", f"{audio}/project")
    return table


def extras(options: Mapping[str, Any], prefix: str) -> list[Extra]:
    """Keys that the model does not use."""
    start = re.escape(prefix)
    others = "|".join(str(i) for i in range(1, options["depth"]))
    return [
        Extra(
            rf"{start}encoder\.layers\.({others})\.{re.escape(_TABLE)}",
            "the first layer's table again",
            same_as=f"{prefix}encoder.layers.0.{_TABLE}",
        ),
        Extra(rf"{start}predictor\..*", "AudioSet's classes"),
    ]
