"""GPT-2's tensors, as Hugging Face's `GPT2Model` names them.

`prefix` is plain text before every key: "caption_encoder.base." (MS-CLAP 2023),
"gpt.transformer." (clapcap), "transformer." or "" (GPT-2 by itself).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clap_jax.convert import parts
from clap_jax.convert.rules import THIRDS, Extra, Rule, Transform

# These kernels are stored [in, out] ("Conv1D"), as ours are.
QKV_KERNEL = Transform(
    "thirds of columns: query, key, value [in, 3 out] to three [in, out]",
    lambda x: tuple(np.split(x, 3, axis=1)),
    lambda *thirds: np.concatenate(thirds, axis=1),
    parts=3,
)


def _conv1d(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def rules(
    options: Mapping[str, Any], prefix: str, target: str = "params/text"
) -> list[Rule]:
    """Every parameter of `models.gpt2`, which stands under `target`."""
    del options  # one layout for all sizes
    source = re.escape(prefix)
    layer, ours = rf"{source}h\.(\d+)", f"{target}/block{{0}}"
    kernels = parts.qkv(f"{ours}/attention", "kernel")
    biases = parts.qkv(f"{ours}/attention", "bias")
    return [
        Rule(rf"{source}wte\.weight", f"{target}/tokens/embedding"),
        Rule(rf"{source}wpe\.weight", f"{target}/positions/embedding"),
        *parts.norm(rf"{layer}\.ln_1", f"{ours}/norm1"),
        Rule(rf"{layer}\.attn\.c_attn\.weight", kernels, QKV_KERNEL),
        Rule(rf"{layer}\.attn\.c_attn\.bias", biases, THIRDS),
        *_conv1d(rf"{layer}\.attn\.c_proj", f"{ours}/attention/out"),
        *parts.norm(rf"{layer}\.ln_2", f"{ours}/norm2"),
        *_conv1d(rf"{layer}\.mlp\.c_fc", f"{ours}/mlp/up"),
        *_conv1d(rf"{layer}\.mlp\.c_proj", f"{ours}/mlp/down"),
        *parts.norm(rf"{source}ln_f", f"{target}/norm"),
    ]


def extras(prefix: str) -> list[Extra]:
    """What files hold besides: masks that old versions of transformers saved."""
    masks = rf"{re.escape(prefix)}h\.\d+\.attn\.(bias|masked_bias)"
    return [Extra(masks, "the causal mask")]


def buffers(options: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """Keys that a strict load needs besides `rules`: none."""
    del options, prefix
    return {}
