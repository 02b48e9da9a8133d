"""The options of a tower from the names and shapes of its tensors alone.

`shapes` is source key -> shape; `prefix` is plain text before every key. Where a tensor
is missing or of a wrong shape, the others outvote it, so that the table can name it.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from clap_jax.audio.mel import VIEWS
from clap_jax.models import pann as pann_lib
from clap_jax.models import zoo

Shapes = Mapping[str, tuple[int, ...]]

# Every BERT, RoBERTa, GPT-2, CLIP and BART of the published sizes has heads of 64.
HEAD_WIDTH = 64


def vote(values: Iterable[int | None], default: int) -> int:
    """The most frequent value, the first of equals; `default` where there is none."""
    found = collections.Counter(value for value in values if value is not None)
    return found.most_common(1)[0][0] if found else default


def size(shapes: Shapes, key: str, axis: int) -> int | None:
    """One extent of a tensor; None where it is missing or has too few axes."""
    shape = shapes.get(key, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def rows(shapes: Shapes, key: str) -> int | None:
    """Rows of a table of vectors; None where it is missing or no table."""
    return shapes[key][0] if len(shapes.get(key, ())) == 2 else None


def numbers(shapes: Shapes, pattern: str) -> set[int]:
    """The values of the one group of a regex, over all keys that begin with it."""
    found = (re.match(pattern, key) for key in shapes)
    return {int(match.group(1)) for match in found if match}


def depth(shapes: Shapes, pattern: str) -> int:
    """How many layers there are, by the highest number."""
    return max(numbers(shapes, pattern), default=-1) + 1


def has(shapes: Shapes, start: str) -> bool:
    """Whether any key begins so."""
    return any(key.startswith(start) for key in shapes)


def htsat(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Options of models.htsat, by LAION's names."""
    plain = re.escape(prefix)
    stages = range(depth(shapes, rf"{plain}layers\.(\d+)\."))
    blocks = [depth(shapes, rf"{plain}layers\.{i}\.blocks\.(\d+)\.") for i in stages]
    width = vote(
        [
            size(shapes, f"{prefix}patch_embed.proj.weight", 0),
            size(shapes, f"{prefix}patch_embed.norm.weight", 0),
            size(shapes, f"{prefix}patch_embed.proj.bias", 0),
            size(shapes, f"{prefix}layers.0.blocks.0.norm1.weight", 0),
        ],
        96,
    )
    heads, places = [], []
    for i, count in enumerate(blocks):
        tables = [
            f"{prefix}layers.{i}.blocks.{j}.attn.relative_position_bias_table"
            for j in range(count)
        ]
        heads.append(vote((size(shapes, key, 1) for key in tables), 4 * 2**i))
        places += [rows(shapes, key) for key in tables]
    # The table has a row for each of (2 window - 1)^2 displacements.
    window = (math.isqrt(vote(places, 225)) + 1) // 2
    patch = vote([size(shapes, f"{prefix}patch_embed.proj.weight", 2)], 4)
    hidden = vote([size(shapes, f"{prefix}layers.0.blocks.0.mlp.fc1.bias", 0)], 0)
    # The mask of shifted windows tells how many of them cover the image.
    windows = size(shapes, f"{prefix}layers.0.blocks.1.attn_mask", 0)
    image = math.isqrt(windows) * window * patch if windows else 256
    return {
        "width": width,
        "depths": tuple(blocks),
        "heads": tuple(heads),
        "window": window,
        "patch": patch,
        "image": image,
        "mlp_ratio": hidden // width or 4,
        "classes": size(shapes, f"{prefix}tscam_conv.weight", 0) or 0,
        **fusion(shapes, prefix, f"{prefix}patch_embed."),
    }


def htsat_name(options: Mapping[str, Any]) -> str:
    """htsat_tiny, htsat_base, htsat_large, or htsat_<width> of another size."""
    for name, known in zoo.HTSAT_SIZES.items():
        if all(options[key] == value for key, value in known.items()):
            return f"htsat_{name}"
    return f"htsat_{options['width']}"


def fusion(shapes: Shapes, prefix: str, prefix_2d: str) -> dict[str, Any]:
    """LAION's fusion: its 1d parts are under `prefix`, its 2d under `prefix_2d`.

    DAF has a second convolution only, AFF one attention, iAFF two; channel_map takes
    the four views as channels. The attention has a bottleneck.
    """
    for start, kind in ((prefix, "1d"), (prefix_2d, "2d")):
        if not has(shapes, f"{start}mel_conv{kind}."):
            continue
        model = f"{start}fusion_model."
        if not has(shapes, model):
            return {"fusion": f"daf_{kind}"}
        method = "iaff" if has(shapes, f"{model}local_att2.") else "aff"
        outer = size(shapes, f"{model}local_att.0.weight", 1) or 0
        inner = size(shapes, f"{model}local_att.0.weight", 0) or 1
        return {"fusion": f"{method}_{kind}", "reduction": outer // inner or 4}
    for first in ("patch_embed.proj.weight", "conv_block1.conv1.weight"):
        if size(shapes, f"{prefix}{first}", 1) == VIEWS:
            return {"fusion": "channel_map"}
    return {"fusion": "none"}


def pann(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Options of models.pann, by PANNs' names."""
    blocks = depth(shapes, rf"{re.escape(prefix)}conv_block(\d+)\.") - 1
    widths = []
    for i in range(1, blocks + 1):
        block = f"{prefix}conv_block{i}"
        widths.append(
            vote(
                [
                    size(shapes, f"{block}.conv1.weight", 0),
                    size(shapes, f"{block}.bn1.weight", 0),
                    size(shapes, f"{block}.bn1.bias", 0),
                ],
                64 * 2 ** (i - 1),
            )
        )
    return {
        "widths": tuple(widths),
        "convs": 2 if has(shapes, f"{prefix}conv_block1.conv2.") else 1,
        "kernel": vote([size(shapes, f"{prefix}conv_block1.conv1.weight", 2)], 3),
        # No tensor tells: Cnn10 and Cnn6 halve the map after their last block, too;
        # Cnn14, which has six blocks, does not.
        "pool_last": blocks < 6,
        "classes": size(shapes, f"{prefix}fc_audioset.weight", 0) or 0,
        **fusion(shapes, prefix, prefix),
    }


def pann_name(options: Mapping[str, Any]) -> str:
    """pann14, pann10, pann6, or pann_<widest> of another size."""
    for name, known in zoo.PANN_SIZES.items():
        whole = pann_lib.DEFAULTS | known
        if all(options[key] == whole[key] for key in ("widths", "convs", "kernel")):
            return f"pann{name}"
    return f"pann_{options['widths'][-1]}"


def whisper(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Options of models.whisper, by Hugging Face's names."""
    width = _width(shapes, f"{prefix}embed_positions.weight", f"{prefix}conv1.bias")
    return {
        "width": width,
        "depth": depth(shapes, rf"{re.escape(prefix)}layers\.(\d+)\."),
        "heads": _heads(width),
        "mlp": vote([size(shapes, f"{prefix}layers.0.fc1.bias", 0)], 4 * width),
        "position_table": vote([rows(shapes, f"{prefix}embed_positions.weight")], 1500),
    }


def beats(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Options of models.beats, by Microsoft's names.

    DeepNorm, and how far the table of distances reaches, show in no tensor: they are
    those of iteration 3.
    """
    encoder, convolution = f"{prefix}encoder.", f"{prefix}encoder.pos_conv.0."
    layer = f"{encoder}layers.0."
    distances = f"{layer}self_attn.relative_attention_bias.weight"
    width = _width(shapes, f"{encoder}layer_norm.weight", f"{convolution}bias")
    inner = size(shapes, f"{convolution}weight_v", 1) or 0
    return {
        "patch": vote([size(shapes, f"{prefix}patch_embedding.weight", 3)], 16),
        "patch_width": vote([size(shapes, f"{prefix}patch_embedding.weight", 0)], 512),
        "width": width,
        "depth": depth(shapes, rf"{re.escape(encoder)}layers\.(\d+)\."),
        "heads": vote([size(shapes, distances, 1)], _heads(width)),
        "mlp": vote([size(shapes, f"{layer}fc1.bias", 0)], 4 * width),
        "taps": vote([size(shapes, f"{convolution}weight_v", 2)], 128),
        "groups": width // inner if inner else 16,
        "buckets": vote([rows(shapes, distances)], 320),
    }


def bert(shapes: Shapes, prefix: str) -> tuple[dict[str, Any], int]:
    """Options of models.bert and the size of the vocabulary, by Hugging Face's names.

    RoBERTa has one type of text and two positions more than a power of two.
    """
    embed = f"{prefix}embeddings."
    width = _width(
        shapes,
        f"{embed}word_embeddings.weight",
        f"{embed}position_embeddings.weight",
        f"{embed}token_type_embeddings.weight",
        f"{embed}LayerNorm.weight",
    )
    types = vote([rows(shapes, f"{embed}token_type_embeddings.weight")], 0)
    positions = vote([rows(shapes, f"{embed}position_embeddings.weight")], 514)
    roberta = types == 1 if types else positions % 8 == 2
    layer = f"{prefix}encoder.layer.0."
    options = {
        "width": width,
        "depth": depth(shapes, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
        "heads": _heads(width),
        "mlp": vote([size(shapes, f"{layer}intermediate.dense.bias", 0)], 4 * width),
        "positions": "roberta" if roberta else "bert",
        "position_table": positions,
        "pad_id": 1 if roberta else 0,
        "types": types or (1 if roberta else 2),
        "eps": 1e-5 if roberta else 1e-12,
    }
    usual = 50265 if roberta else 30522
    return options, vote([rows(shapes, f"{embed}word_embeddings.weight")], usual)


def gpt2(shapes: Shapes, prefix: str) -> tuple[dict[str, Any], int]:
    """Options of models.gpt2 and the size of the vocabulary, by Hugging Face's names."""
    width = _width(
        shapes, f"{prefix}wte.weight", f"{prefix}wpe.weight", f"{prefix}ln_f.weight"
    )
    mlp = size(shapes, f"{prefix}h.0.mlp.c_fc.weight", 1)
    vocabulary = vote([rows(shapes, f"{prefix}wte.weight")], 50257)
    options = {
        "width": width,
        "depth": depth(shapes, rf"{re.escape(prefix)}h\.(\d+)\."),
        "heads": _heads(width),
        "mlp": mlp or 4 * width,
        "position_table": vote([rows(shapes, f"{prefix}wpe.weight")], 1024),
        # The last id is <|endoftext|>.
        "end_id": vocabulary - 1,
    }
    return options, vocabulary


_CLIP = {
    "laion": {
        "tokens": "token_embedding.weight",
        "positions": "positional_embedding",
        "norm": "ln_final.weight",
        "layer": "text_branch.resblocks.",
        "mlp": "mlp.c_fc.bias",
    },
    "hf": {
        "tokens": "embeddings.token_embedding.weight",
        "positions": "embeddings.position_embedding.weight",
        "norm": "final_layer_norm.weight",
        "layer": "encoder.layers.",
        "mlp": "mlp.fc1.bias",
    },
}


def clip_text(
    shapes: Shapes, prefix: str, style: str = "laion"
) -> tuple[dict[str, Any], int]:
    """Options of models.clip_text and the size of the vocabulary."""
    names = {name: prefix + key for name, key in _CLIP[style].items()}
    width = _width(shapes, names["tokens"], names["positions"], names["norm"])
    layer = names["layer"]
    mlp = f"{layer}0.{_CLIP[style]['mlp']}"
    options = {
        "width": width,
        "depth": depth(shapes, rf"{re.escape(layer)}(\d+)\."),
        "heads": _heads(width),
        "mlp": vote([size(shapes, mlp, 0)], 4 * width),
        "position_table": vote([rows(shapes, names["positions"])], 77),
    }
    return options, vote([rows(shapes, names["tokens"])], 49408)


def bart(shapes: Shapes, prefix: str) -> tuple[dict[str, Any], int]:
    """Options of models.bart and the size of the vocabulary, by Hugging Face's names."""
    encoder = f"{prefix}encoder."
    width = _width(
        shapes,
        f"{prefix}shared.weight",
        f"{encoder}embed_positions.weight",
        f"{encoder}layernorm_embedding.weight",
    )
    positions = rows(shapes, f"{encoder}embed_positions.weight")
    options = {
        "width": width,
        "depth": depth(shapes, rf"{re.escape(encoder)}layers\.(\d+)\."),
        "heads": _heads(width),
        "mlp": vote([size(shapes, f"{encoder}layers.0.fc1.bias", 0)], 4 * width),
        "position_table": vote([positions], 1026),
    }
    return options, vote([rows(shapes, f"{prefix}shared.weight")], 50265)


def _width(shapes: Shapes, *keys: str) -> int:
    return vote((size(shapes, key, -1) for key in keys), 768)


def text_length(usual: int, text: zoo.TowerSpec) -> int:
    """Tokens of a text: `usual`, or fewer where there are not as many positions."""
    taken = 2 if text.kind == "bart" else 0  # BART's first two are never used
    if text.options.get("positions") == "roberta":
        taken = text.options["pad_id"] + 1
    return max(min(usual, text.options["position_table"] - taken), 1)


def heads_note(options: Mapping[str, Any], side: str = "text") -> str:
    """What to tell of a tower whose heads no tensor shows."""
    return (
        f"{side} tower: {options['heads']} attention heads, by the usual width of "
        f"{HEAD_WIDTH} each"
    )


def _heads(width: int) -> int:
    return max(width // HEAD_WIDTH, 1)
