"""BART's tensors, as Hugging Face's `BartModel` names them in LAION-CLAP.

`prefix` is plain text before every key: "text_branch." (LAION-CLAP), "model." or "".
LAION-CLAP holds, and runs, the decoder too, though its output is never used.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clap_jax.convert import parts
from clap_jax.convert.rules import Extra, Rule


def rules(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Every parameter of `models.bart`."""
    del options  # one layout for all sizes
    source, target = re.escape(prefix), "params/text"
    encoder = rf"{source}encoder"
    layer, ours = rf"{encoder}\.layers\.(\d+)", f"{target}/block{{0}}"
    positions = f"{target}/positions/embedding"
    found = [
        Rule(rf"{source}shared\.weight", f"{target}/tokens/embedding"),
        Rule(rf"{encoder}\.embed_positions\.weight", positions),
        *parts.norm(rf"{encoder}\.layernorm_embedding", f"{target}/norm_embed"),
        *parts.linear(rf"{layer}\.self_attn\.out_proj", f"{ours}/attention/out"),
        *parts.norm(rf"{layer}\.self_attn_layer_norm", f"{ours}/norm1"),
        *parts.linear(rf"{layer}\.fc1", f"{ours}/mlp/up"),
        *parts.linear(rf"{layer}\.fc2", f"{ours}/mlp/down"),
        *parts.norm(rf"{layer}\.final_layer_norm", f"{ours}/norm2"),
    ]
    for name in parts.QKV:
        attention = rf"{layer}\.self_attn\.{name[0]}_proj"
        found += parts.linear(attention, f"{ours}/attention/{name}")
    return found


def extras(prefix: str) -> list[Extra]:
    """The decoder, and two more names of the token table."""
    source = re.escape(prefix)
    return [
        Extra(
            rf"{source}(encoder|decoder)\.embed_tokens\.weight",
            "the token table again",
            same_as=f"{prefix}shared.weight",
        ),
        Extra(rf"{source}decoder\..*", "BART's decoder, of which nothing is used"),
    ]


def buffers(options: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """A decoder of zeros, whose norms have scale one, for a strict load.

    It has the sizes of the encoder, as bart-base has; the two other names of the token
    table, which `extras` ties to it, are not in it.
    """
    sizes = dict(_decoder(options))
    return {
        f"{prefix}decoder.{name}": np.ones(size, np.float32)
        if "norm" in name and name.endswith("weight")
        else np.zeros(size, np.float32)
        for name, size in sizes.items()
    }


def _decoder(options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the decoder's tensors, without the token table."""
    width, mlp = options["width"], options["mlp"]
    yield "embed_positions.weight", (options["position_table"], width)
    for end in ("weight", "bias"):
        yield f"layernorm_embedding.{end}", (width,)
    for i in range(options["depth"]):
        layer = f"layers.{i}"
        for attention in ("self_attn", "encoder_attn"):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"{layer}.{attention}.{part}.weight", (width, width)
                yield f"{layer}.{attention}.{part}.bias", (width,)
            for end in ("weight", "bias"):
                yield f"{layer}.{attention}_layer_norm.{end}", (width,)
        for part, rows, columns in (("fc1", mlp, width), ("fc2", width, mlp)):
            yield f"{layer}.{part}.weight", (rows, columns)
            yield f"{layer}.{part}.bias", (rows,)
        for end in ("weight", "bias"):
            yield f"{layer}.final_layer_norm.{end}", (width,)
