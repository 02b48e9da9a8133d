"""The tensors of Whisper's encoder, as Hugging Face's models name them.

`prefix` is plain text before every key: "model.encoder." (with a head), "encoder."
(`WhisperModel`) or "".
"""

import re
from collections.abc import Mapping
from typing import Any

from clap_jax.convert.parts import linear, norm
from clap_jax.convert.rules import CONV1D, LINEAR, Extra, Rule


def rules(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Rules of a tower of kind "whisper" with these options."""
    del options
    start, audio = re.escape(prefix), "params/audio"
    layer, block = rf"{start}layers\.(\d+)", f"{audio}/block{{0}}"
    table = [
        Rule(rf"{start}embed_positions\.weight", f"{audio}/sinusoids"),
        *norm(rf"{start}layer_norm", f"{audio}/norm"),
    ]
    for name in ("conv1", "conv2"):
        table += [
            Rule(rf"{start}{name}\.weight", f"{audio}/{name}/kernel", CONV1D),
            Rule(rf"{start}{name}\.bias", f"{audio}/{name}/bias"),
        ]
    attention = f"{block}/attention"
    for theirs, ours in (("q", "query"), ("v", "value"), ("out", "out")):
        table += linear(rf"{layer}\.self_attn\.{theirs}_proj", f"{attention}/{ours}")
    key = rf"{layer}\.self_attn\.k_proj\.weight"
    return table + [
        Rule(key, f"{attention}/key/kernel", LINEAR),
        *norm(rf"{layer}\.self_attn_layer_norm", f"{block}/norm1"),
        *norm(rf"{layer}\.final_layer_norm", f"{block}/norm2"),
        *linear(rf"{layer}\.fc1", f"{block}/mlp/up"),
        *linear(rf"{layer}\.fc2", f"{block}/mlp/down"),
    ]


def extras(prefix: str) -> list[Extra]:
    """Keys of the whole model that the encoder leaves aside."""
    outer = re.escape(prefix.removesuffix("encoder."))
    return [
        Extra(rf"{outer}decoder\..*", "the decoder"),
        Extra(r"proj_out\.weight", "the decoder's output layer"),
    ]
