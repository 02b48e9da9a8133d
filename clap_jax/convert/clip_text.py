"""CLIP's text transformer: LAION-CLAP's names, and Hugging Face's `CLIPTextModel`.

`prefix` is plain text before every key. Style "laion" has it empty: LAION-CLAP keeps
tables and final norm at the top of the model and only the blocks in `text_branch`.
Style "hf" has "text_model.".
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.convert import parts
from clap_jax.convert.rules import Extra, Rule

STYLES = ("laion", "hf")

_N = r"(\d+)"


def rules(
    options: Mapping[str, Any], prefix: str = "", style: str = "laion"
) -> list[Rule]:
    """Every parameter of `models.clip_text`. Errors: ValueError on other styles."""
    del options  # one layout for all sizes
    source = re.escape(prefix)
    if style == "laion":
        return _laion(source)
    if style == "hf":
        return _hf(source)
    raise ValueError(config_lib.unknown("style", style, STYLES))


def _laion(source: str) -> list[Rule]:
    target, ours = "params/text", "params/text/block{0}"
    layer = rf"{source}text_branch\.resblocks\.{_N}"
    return [
        Rule(rf"{source}token_embedding\.weight", f"{target}/tokens/embedding"),
        Rule(rf"{source}positional_embedding", f"{target}/positions/embedding"),
        *parts.in_proj(rf"{layer}\.attn", f"{ours}/attention"),
        *parts.linear(rf"{layer}\.attn\.out_proj", f"{ours}/attention/out"),
        *parts.norm(rf"{layer}\.ln_1", f"{ours}/norm1"),
        *parts.linear(rf"{layer}\.mlp\.c_fc", f"{ours}/mlp/up"),
        *parts.linear(rf"{layer}\.mlp\.c_proj", f"{ours}/mlp/down"),
        *parts.norm(rf"{layer}\.ln_2", f"{ours}/norm2"),
        *parts.norm(rf"{source}ln_final", f"{target}/norm"),
    ]


def _hf(source: str) -> list[Rule]:
    target, ours = "params/text", "params/text/block{0}"
    tables = rf"{source}embeddings\."
    layer = rf"{source}encoder\.layers\.{_N}"
    found = [
        Rule(rf"{tables}token_embedding\.weight", f"{target}/tokens/embedding"),
        Rule(rf"{tables}position_embedding\.weight", f"{target}/positions/embedding"),
        *parts.linear(rf"{layer}\.self_attn\.out_proj", f"{ours}/attention/out"),
        *parts.norm(rf"{layer}\.layer_norm1", f"{ours}/norm1"),
        *parts.linear(rf"{layer}\.mlp\.fc1", f"{ours}/mlp/up"),
        *parts.linear(rf"{layer}\.mlp\.fc2", f"{ours}/mlp/down"),
        *parts.norm(rf"{layer}\.layer_norm2", f"{ours}/norm2"),
        *parts.norm(rf"{source}final_layer_norm", f"{target}/norm"),
    ]
    for name in parts.QKV:
        source = rf"{layer}\.self_attn\.{name[0]}_proj"
        found += parts.linear(source, f"{ours}/attention/{name}")
    return found


def extras(prefix: str = "", style: str = "laion") -> list[Extra]:
    """What files hold besides: positions that old versions of transformers saved."""
    if style == "laion":
        return []
    return [Extra(rf"{re.escape(prefix)}embeddings\.position_ids", "an arange")]


def buffers(
    options: Mapping[str, Any], prefix: str = "", style: str = "laion"
) -> dict[str, np.ndarray]:
    """Keys that a strict load needs besides `rules`: none."""
    del options, prefix, style
    return {}
