"""BERT's and RoBERTa's tensors, as Hugging Face's models name them.

`prefix` is plain text before every key, such as "text_branch." (LAION-CLAP),
"caption_encoder.base." (MS-CLAP), "text_encoder.model." (BLAT) or "text_model.".
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clap_jax.convert.parts import linear, norm
from clap_jax.convert.rules import Extra, Rule

_LAYER = r"encoder\.layer\.(\d+)"


def rules(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Rules of a tower of kind "bert" with these options."""
    embed, block = "params/text", "params/text/block{0}"
    table = [
        Rule(r"embeddings\.word_embeddings\.weight", f"{embed}/tokens/embedding"),
        Rule(
            r"embeddings\.position_embeddings\.weight", f"{embed}/positions/embedding"
        ),
        Rule(r"embeddings\.token_type_embeddings\.weight", f"{embed}/types"),
        *norm(r"embeddings\.LayerNorm", f"{embed}/norm_embed"),
    ]
    for name in ("query", "key", "value"):
        table += linear(
            rf"{_LAYER}\.attention\.self\.{name}", f"{block}/attention/{name}"
        )
    table += [
        *linear(rf"{_LAYER}\.attention\.output\.dense", f"{block}/attention/out"),
        *norm(rf"{_LAYER}\.attention\.output\.LayerNorm", f"{block}/norm1"),
        *linear(rf"{_LAYER}\.intermediate\.dense", f"{block}/mlp/up"),
        *linear(rf"{_LAYER}\.output\.dense", f"{block}/mlp/down"),
        *norm(rf"{_LAYER}\.output\.LayerNorm", f"{block}/norm2"),
    ]
    if options["pool"] == "pooler":
        table += linear(r"pooler\.dense", "params/text/pooler")
    # Names of the first port to PyTorch, which bert-base-uncased on the hub still has.
    # They come last, so that nothing is written under them.
    for old, name in ((r"LayerNorm\.gamma", "scale"), (r"LayerNorm\.beta", "bias")):
        table += [
            Rule(rf"embeddings\.{old}", f"{embed}/norm_embed/{name}"),
            Rule(rf"{_LAYER}\.attention\.output\.{old}", f"{block}/norm1/{name}"),
            Rule(rf"{_LAYER}\.output\.{old}", f"{block}/norm2/{name}"),
        ]
    start = re.escape(prefix)
    return [
        Rule(start + rule.source_regex, rule.target_path, rule.transform)
        for rule in table
    ]


def extras(prefix: str) -> list[Extra]:
    """Keys that a tower may leave aside. Put the rules first: a pooler may have one."""
    start = re.escape(prefix)
    return [
        Extra(rf"{start}embeddings\.(position|token_type)_ids", "an arange, zeros"),
        Extra(rf"{start}pooler\.dense\..*", "the text's embedding is not the pooler's"),
    ]


def buffers(
    options: Mapping[str, Any], prefix: str, ids: bool = False
) -> dict[str, np.ndarray]:
    """What a strict load needs beyond `rules`: a pooler that nobody asks, zeros.

    ids: also `position_ids` and `token_type_ids`, int64 [1, positions], which files
    of transformers before 4.31 and Hugging Face's ClapModel have.
    """
    width, positions = options["width"], options["position_table"]
    found: dict[str, np.ndarray] = {}
    if options["pool"] != "pooler":
        found["pooler.dense.weight"] = np.zeros((width, width), np.float32)
        found["pooler.dense.bias"] = np.zeros(width, np.float32)
    if ids:
        found["embeddings.position_ids"] = np.arange(positions, dtype=np.int64)[None]
        found["embeddings.token_type_ids"] = np.zeros((1, positions), np.int64)
    return {prefix + key: array for key, array in found.items()}
