"""Captioners' tensors: MS-CLAP's clapcap, and the decoders of AudioCaption (BLAT).

clapcap has the audio encoder under `clap`, the mapper under `clap_project`, GPT-2 under
`gpt`. A caption decoder has `decoder`, and `label_encoder` if events guide it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clap_jax.convert import gpt2, htsat, parts
from clap_jax.convert.rules import LINEAR, Extra, Rule, Transform
from clap_jax.models import captioner

# Prefixes of clapcap's towers.
AUDIO, GPT = "clap.base.htsat.", "gpt.transformer."

_N = r"(\d+)"

_LINEAR_HALVES = Transform(
    "linear halves: stacked keys, values [2 out, in] to two [in, out]",
    lambda x: tuple(part.T for part in np.split(x, 2, axis=0)),
    lambda *halves: np.concatenate([half.T for half in halves], axis=0),
    parts=2,
)
_ROWS = Transform(
    "positions [rows, 1, width] to [rows, width]",
    lambda x: (x[:, 0],),
    lambda x: x[:, None],
)


def decoder_rules(options: Mapping[str, Any]) -> list[Rule]:
    """Every parameter and the positions of a `models.caption_decoder`."""
    layer, ours = rf"decoder\.model\.layers\.{_N}", "params/block{0}"
    found = [
        Rule(r"decoder\.word_embedding\.weight", "params/tokens/embedding"),
        Rule(r"decoder\.pos_encoder\.pe", "state/positions", _ROWS),
        *parts.linear(r"decoder\.attn_proj\.0", "params/memory"),
        *parts.norm(r"decoder\.attn_proj\.3", "params/norm_memory"),
        *parts.linear(r"decoder\.classifier", "params/classifier", bias=False),
        *parts.linear(rf"{layer}\.linear1", f"{ours}/up"),
        *parts.linear(rf"{layer}\.linear2", f"{ours}/down"),
        *parts.norm(rf"{layer}\.norm{_N}", f"{ours}/norm{{1}}"),
    ]
    for source, target in (("self_attn", "attention"), ("multihead_attn", "cross")):
        found += parts.in_proj(rf"{layer}\.{source}", f"{ours}/{target}")
        found += parts.linear(rf"{layer}\.{source}\.out_proj", f"{ours}/{target}/out")
    if options["guide"] == "event":
        found.append(Rule(r"label_encoder\.label_embedding", "params/events"))
    if options["guide"] == "keyword":
        found += parts.linear(r"decoder\.keyword_proj", "params/keywords")
        found += parts.norm(r"decoder\.word_keyword_norm", "params/norm_keywords")
    return found


def gru_rules(source: str, target: str, depth: int) -> list[Rule]:
    """torch's bidirectional GRU, named `source`, to a `models.recurrent`.

    Its gates stand in the same order: reset, update, candidate.
    """
    found = []
    for i in range(depth):
        for end, name in (("", f"forward{i}"), ("_reverse", f"backward{i}")):
            for part, layer in (("ih", "input"), ("hh", "state")):
                ours = f"{target}/{name}/{layer}"
                weight = rf"{source}weight_{part}_l{i}{end}"
                found.append(Rule(weight, f"{ours}/kernel", LINEAR))
                found.append(Rule(rf"{source}bias_{part}_l{i}{end}", f"{ours}/bias"))
    return found


def clapcap_rules(spec: captioner.CaptionerSpec) -> list[Rule]:
    """Every parameter of the captioner `clapcap`."""
    layer = rf"clap_project\.transformer\.layers\.{_N}"
    mapper, ours = "params/mapper", "params/mapper/block{0}"
    head = "params/audio_projection"
    keys_values = (f"{ours}/attention/key/kernel", f"{ours}/attention/value/kernel")
    query, attention = f"{ours}/attention/query", f"{ours}/attention"
    return [
        *htsat.rules(spec.audio.options, AUDIO),
        *parts.linear(r"clap\.projection\.linear1", f"{head}/linear1", bias=False),
        *parts.linear(r"clap\.projection\.linear2", f"{head}/linear2", bias=False),
        *parts.norm(r"clap\.projection\.layer_norm", f"{head}/norm"),
        Rule(r"clap_project\.prefix_const", f"{mapper}/constants"),
        *parts.linear(r"clap_project\.linear", f"{mapper}/linear"),
        *parts.norm(rf"{layer}\.norm1", f"{ours}/norm1"),
        *parts.linear(rf"{layer}\.attn\.to_queries", query, bias=False),
        Rule(rf"{layer}\.attn\.to_keys_values\.weight", keys_values, _LINEAR_HALVES),
        *parts.linear(rf"{layer}\.attn\.project", f"{attention}/out"),
        *parts.norm(rf"{layer}\.norm2", f"{ours}/norm2"),
        *parts.linear(rf"{layer}\.mlp\.fc1", f"{ours}/mlp/up"),
        *parts.linear(rf"{layer}\.mlp\.fc2", f"{ours}/mlp/down"),
        *gpt2.rules(spec.decoder.options, GPT, "params/decoder"),
    ]


def clapcap_extras() -> list[Extra]:
    """Keys that the captioner does not use, and the other name of the token table."""
    tied = Extra(
        r"gpt\.lm_head\.weight", "the token table again", same_as=f"{GPT}wte.weight"
    )
    return [*htsat.extras(AUDIO), *gpt2.extras(GPT), tied]


def clapcap_buffers(spec: captioner.CaptionerSpec) -> dict[str, np.ndarray]:
    """Keys that a strict load needs besides rules and tied names."""
    return htsat.buffers(spec.audio.options, AUDIO, spec.frontend)
