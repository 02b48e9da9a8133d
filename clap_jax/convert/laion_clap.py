"""LAION-CLAP checkpoints (`laion_clap` key layout): HTSAT, RoBERTa or BERT, heads.

Fusion models and other towers are not in this table.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clap_jax import sharding
from clap_jax.convert import rules
from clap_jax.convert.rules import Ignore, Rule
from clap_jax.models import zoo

# DistributedDataParallel puts this before every key.
PREFIX = "module."

_N = r"(\d+)"


def _linear(source: str, target: str, bias: bool = True) -> list[Rule]:
    kernel = Rule(rf"{source}\.weight", f"{target}/kernel", rules.LINEAR)
    return [kernel, Rule(rf"{source}\.bias", f"{target}/bias")] if bias else [kernel]


def _norm(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}/scale"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def htsat_rules(options: Mapping[str, Any]) -> list[Rule]:
    """`audio_branch.*` of HTSAT without fusion."""
    source, target = r"audio_branch", "params/audio"
    block = rf"{source}\.layers\.{_N}\.blocks\.{_N}"
    ours = f"{target}/stage{{0}}_block{{1}}"
    qkv = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    merge = rf"{source}\.layers\.{_N}\.downsample"
    patch = rules.conv_patches(1, options["patch"], options["patch"])
    table = [
        *_norm(rf"{source}\.bn0", f"{target}/bn0"),
        Rule(rf"{source}\.bn0\.running_mean", "state/audio/bn0/mean"),
        Rule(rf"{source}\.bn0\.running_var", "state/audio/bn0/var"),
        Rule(rf"{source}\.patch_embed\.proj\.weight", f"{target}/patch/kernel", patch),
        Rule(rf"{source}\.patch_embed\.proj\.bias", f"{target}/patch/bias"),
        *_norm(rf"{source}\.patch_embed\.norm", f"{target}/norm_patch"),
        *_norm(rf"{block}\.norm1", f"{ours}/norm1"),
        *_norm(rf"{block}\.norm2", f"{ours}/norm2"),
        Rule(
            rf"{block}\.attn\.qkv\.weight",
            tuple(f"{path}/kernel" for path in qkv),
            rules.LINEAR_THIRDS,
        ),
        Rule(
            rf"{block}\.attn\.qkv\.bias",
            tuple(f"{path}/bias" for path in qkv),
            rules.THIRDS,
        ),
        *_linear(rf"{block}\.attn\.proj", f"{ours}/attention/out"),
        Rule(rf"{block}\.attn\.relative_position_bias_table", f"{ours}/position_bias"),
        *_linear(rf"{block}\.mlp\.fc1", f"{ours}/mlp/up"),
        *_linear(rf"{block}\.mlp\.fc2", f"{ours}/mlp/down"),
        *_norm(rf"{merge}\.norm", f"{target}/stage{{0}}_merge/norm"),
        *_linear(
            rf"{merge}\.reduction", f"{target}/stage{{0}}_merge/reduce", bias=False
        ),
        *_norm(rf"{source}\.norm", f"{target}/norm"),
    ]
    if options["classes"]:
        tag = rf"{source}\.tscam_conv"
        table += [
            Rule(rf"{tag}\.weight", f"{target}/tag/kernel", rules.CONV),
            Rule(rf"{tag}\.bias", f"{target}/tag/bias"),
        ]
    return table


def bert_rules(options: Mapping[str, Any]) -> list[Rule]:
    """`text_branch.*` as Hugging Face's RobertaModel and BertModel name it."""
    source, target = r"text_branch", "params/text"
    layer, ours = rf"{source}\.encoder\.layer\.{_N}", f"{target}/block{{0}}"
    embed = rf"{source}\.embeddings"
    table = [
        Rule(rf"{embed}\.word_embeddings\.weight", f"{target}/tokens/embedding"),
        Rule(rf"{embed}\.position_embeddings\.weight", f"{target}/positions/embedding"),
        Rule(rf"{embed}\.token_type_embeddings\.weight", f"{target}/types"),
        *_norm(rf"{embed}\.LayerNorm", f"{target}/norm_embed"),
        *_linear(rf"{layer}\.attention\.output\.dense", f"{ours}/attention/out"),
        *_norm(rf"{layer}\.attention\.output\.LayerNorm", f"{ours}/norm1"),
        *_linear(rf"{layer}\.intermediate\.dense", f"{ours}/mlp/up"),
        *_linear(rf"{layer}\.output\.dense", f"{ours}/mlp/down"),
        *_norm(rf"{layer}\.output\.LayerNorm", f"{ours}/norm2"),
        *_linear(rf"{source}\.pooler\.dense", f"{target}/pooler"),
    ]
    for name in ("query", "key", "value"):
        self_attention = rf"{layer}\.attention\.self\.{name}"
        table += _linear(self_attention, f"{ours}/attention/{name}")
    return table


def table(spec: zoo.Spec) -> tuple[list[Rule], list[Ignore]]:
    """Rules and ignored keys for a spec. Errors: ValueError on other towers."""
    kinds = (spec.audio.kind, spec.text.kind, spec.head)
    if kinds != ("htsat", "bert", "laion_mlp"):
        raise ValueError(
            f"{spec.name} has {kinds}; this table is for htsat, bert, laion_mlp"
        )
    found = htsat_rules(spec.audio.options) + bert_rules(spec.text.options)
    for side in ("audio", "text"):
        head = f"params/{side}_projection"
        found += _linear(rf"{side}_projection\.0", f"{head}/linear1")
        found += _linear(rf"{side}_projection\.2", f"{head}/linear2")
    found.append(Rule("logit_scale_a", "params/logit_scale_a"))
    return found, _ignored(spec)


def _ignored(spec: zoo.Spec) -> list[Ignore]:
    entries = [
        ("logit_scale_t", "never trained by the default loss; both directions use _a"),
        (r"(audio|text)_transform\..*", "heads of the MLP loss, untrained without it"),
        (r"audio_branch\.head\..*", "defined but never used by HTSAT"),
        (r"audio_branch\.spectrogram_extractor\..*", "the front end computes it"),
        (r"audio_branch\.logmel_extractor\..*", "the front end computes it"),
        (r"audio_branch\.bn0\.num_batches_tracked", "a counter"),
        (r"audio_branch\..*\.relative_position_index", "computed from the window"),
        (r"audio_branch\..*\.attn_mask", "computed from the window"),
        (r"text_branch\.embeddings\.(position|token_type)_ids", "an arange, zeros"),
    ]
    if not spec.audio.options["classes"]:
        unused = "AudioSet head; the spec has audio.options.classes = 0"
        entries.append((r"audio_branch\.tscam_conv\..*", unused))
    return [Ignore(regex, reason) for regex, reason in entries]


def to_variables(
    state_dict: Mapping[str, np.ndarray], spec: zoo.Spec
) -> dict[str, Any]:
    """Variables of `zoo.build(spec)` from a LAION state dict of numpy arrays.

    A leading `module.` of every key is dropped. Errors: `rules.ConversionError` that
    lists every tensor left over, missing or of the wrong shape.
    """
    if state_dict and all(key.startswith(PREFIX) for key in state_dict):
        state_dict = {k.removeprefix(PREFIX): v for k, v in state_dict.items()}
    shapes = jax.eval_shape(zoo.build(spec).init, jax.random.key(0))
    filled = rules.apply(*table(spec), state_dict, sharding.flatten(shapes))
    return _with_empty(shapes, sharding.unflatten(filled))


def _with_empty(shapes: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the empty dicts of `shapes` (a tower without state) put back."""
    return {
        name: _with_empty(value, tree.get(name, {}))
        if isinstance(value, Mapping)
        else tree[name]
        for name, value in shapes.items()
    }


def to_state_dict(
    variables: Mapping[str, Any], spec: zoo.Spec
) -> dict[str, np.ndarray]:
    """The inverse of `to_variables` for everything that it maps (no `module.`).

    Errors: `rules.ConversionError` that lists every parameter without a rule.
    """
    found, _ = table(spec)
    return rules.invert(found, sharding.flatten(variables))
