"""PANN's tensors, as PANNs, LAION-CLAP and MS-CLAP name them, and BLAT.

`prefix` is plain text before every key: "" (the AudioSet models), "audio_branch."
(LAION-CLAP), "audio_encoder.base." (MS-CLAP), "audio_encoder." (BLAT). Styles differ
in the front end that is stored along: "panns" has torchlibrosa's, "blat" torchaudio's.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.audio import mel
from clap_jax.convert import frontend as frontend_lib
from clap_jax.convert import fusion
from clap_jax.convert.parts import AUDIOSET_CLASSES
from clap_jax.convert.rules import CONV, CONV1D, LINEAR, Extra, Rule

STYLES = ("panns", "blat")


def rules(options: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Rules of a tower of kind "pann" with these options."""
    start = re.escape(prefix)
    block, ours = rf"{start}conv_block(\d+)", "conv_block{0}"
    table = [
        *fusion.norm_rules(f"{prefix}bn0", "bn0"),
        Rule(
            rf"{block}\.conv(\d+)\.weight",
            f"params/audio/{ours}/conv{{1}}/kernel",
            CONV,
        ),
        Rule(rf"{block}\.bn(\d+)\.weight", f"params/audio/{ours}/bn{{1}}/scale"),
        Rule(rf"{block}\.bn(\d+)\.bias", f"params/audio/{ours}/bn{{1}}/bias"),
        Rule(rf"{block}\.bn(\d+)\.running_mean", f"state/audio/{ours}/bn{{1}}/mean"),
        Rule(rf"{block}\.bn(\d+)\.running_var", f"state/audio/{ours}/bn{{1}}/var"),
        *_layer(f"{prefix}fc1", "fc1", LINEAR),
    ]
    if options["classes"]:
        table += _layer(f"{prefix}fc_audioset", "tag", LINEAR)
    local = _local(options)
    if local:
        transform = CONV1D if local == "mel_conv1d" else CONV
        table += _layer(f"{prefix}{local}.0", "local_conv", transform)
        table += fusion.norm_rules(f"{prefix}{local}.1", "local_norm")
    return table + fusion.fusion_rules(options["fusion"], f"{prefix}fusion_model.")


def extras(prefix: str, style: str = "panns") -> list[Extra]:
    """Keys that the model does not use. Put the rules first: the head may have one."""
    start = re.escape(prefix)
    entries = [(r".*\.num_batches_tracked", "a counter")]
    if _known(style) == "blat":
        entries.append((r"melspec_extractor\..*", "the front end has it"))
    else:
        entries.append(
            (r"fc_audioset\..*", "AudioSet head; audio.options.classes is 0")
        )
    found = [Extra(start + regex, reason) for regex, reason in entries]
    return found + (frontend_lib.extras(prefix) if style == "panns" else [])


def buffers(
    options: Mapping[str, Any],
    prefix: str,
    frontend: mel.Frontend,
    style: str = "panns",
) -> dict[str, np.ndarray]:
    """What a strict load needs beyond `rules`, computed anew.

    The front end's window or transform and filter bank, a counter for every batch norm
    and, where the model has no AudioSet head but the style has, one of zeros.
    """
    found: dict[str, np.ndarray] = {}
    if _known(style) == "blat":
        found["melspec_extractor.spectrogram.window"] = np.array(mel.window(frontend))
        found["melspec_extractor.mel_scale.fb"] = np.array(mel.mel_bank(frontend))
    else:
        found |= frontend_lib.buffers("", frontend)
        if not options["classes"]:
            shape = (AUDIOSET_CLASSES, options["widths"][-1])
            found["fc_audioset.weight"] = np.zeros(shape, np.float32)
            found["fc_audioset.bias"] = np.zeros(shape[:1], np.float32)
    norms = ["bn0"]
    for block in range(1, len(options["widths"]) + 1):
        norms += [
            f"conv_block{block}.bn{conv}" for conv in range(1, options["convs"] + 1)
        ]
    if _local(options):
        norms.append(f"{_local(options)}.1")
    norms += fusion.norms(options["fusion"], "fusion_model.")
    counters = {f"{norm}.num_batches_tracked": np.zeros((), np.int64) for norm in norms}
    return {prefix + key: array for key, array in (found | counters).items()}


def _known(style: str) -> str:
    if style not in STYLES:
        raise ValueError(config_lib.unknown("style", style, STYLES))
    return style


def _local(options: Mapping[str, Any]) -> str:
    """The source's name of the convolution for the windows of a long clip, or ""."""
    dimensions = options["fusion"].partition("_")[2]
    return f"mel_conv{dimensions}" if dimensions in ("1d", "2d") else ""


def _layer(source: str, name: str, transform: Any) -> list[Rule]:
    key, target = re.escape(source), f"params/audio/{name}"
    return [
        Rule(rf"{key}\.weight", f"{target}/kernel", transform),
        Rule(rf"{key}\.bias", f"{target}/bias"),
    ]
