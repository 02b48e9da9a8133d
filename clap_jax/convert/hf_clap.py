"""Hugging Face's ClapModel: HTSAT with RoBERTa, two heads, two scales, both ways.

Source: transformers 5.23, `models/clap`; facts of its port of LAION-CLAP are in the
comments of `hf_config` and `hf_frontend`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clap_jax.audio import mel
from clap_jax.convert import bert, hf_config, hf_frontend, htsat, sizes
from clap_jax.convert.hf_config import AUDIO, TEXT
from clap_jax.convert.parts import linear
from clap_jax.convert.rules import Extra, Rule
from clap_jax.models import zoo


def recognises(shapes: sizes.Shapes) -> bool:
    """Whether these are the tensors of a ClapModel with both of its towers."""
    return sizes.has(shapes, AUDIO) and sizes.has(shapes, TEXT)


def spec(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> tuple[zoo.Spec, list[str]]:
    """The spec of a ClapModel, and notes on what it does not say.

    tensors: key -> anything with `shape`. config: its `config.json`, which must agree
    with the tensors and adds what they do not tell. folder: where the settings of its
    feature extractor are looked for. Errors: ValueError with everything that does not
    fit and every option that our towers do not have.
    """
    measured = hf_config.measure({key: x.shape for key, x in tensors.items()})
    notes = []
    if config:
        whole = hf_config.complete(config)
        found = hf_config.compare(whole, measured)
    else:
        whole, guesses = hf_config.guessed(measured)
        found = []
        notes.append(f"no config.json: assumed {guesses}")
    found += hf_config.problems(whole)
    try:
        frontend, settings_note = _frontend(whole, folder)
        notes += settings_note
    except ValueError as error:
        found.append(str(error))
    if not found and frontend.clip_frames > hf_config.longest(whole):
        found.append(
            f"clips of {frontend.clip_frames} frames are longer than the "
            f"{hf_config.longest(whole)} that audio_config.spec_size allows"
        )
    if found:
        raise ValueError(f"this ClapModel cannot be read: {'; '.join(found)}")
    made = hf_config.to_spec(whole, frontend)
    notes.append(
        f"texts are cut after {made.text_length} tokens, with which LAION-CLAP was "
        "trained; transformers cuts only when it is asked to"
    )
    return made, notes


def _frontend(
    config: Mapping[str, Any], folder: Path | None
) -> tuple[mel.Frontend, list[str]]:
    """The folder's front end, or the published one with a note."""
    audio, notes = config["audio_config"], []
    kind = {"fused": audio["enable_fusion"], "mels": audio["num_mel_bins"]}
    settings = hf_frontend.find(folder) if folder else None
    if settings is not None:
        frontend = hf_frontend.to_frontend(settings, **kind)
    else:
        frontend = hf_frontend.published(**kind)
        notes.append(
            f"no {hf_frontend.FILE}: assumed the published one, "
            f"{frontend.fmin_hz:g} to {frontend.fmax_hz:g} Hz"
        )
    return frontend, notes


def table(spec: zoo.Spec) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the model does not use. Errors: ValueError on other models."""
    _refuse(spec, hf_config.spec_problems(spec))
    rules = htsat.rules(spec.audio.options, AUDIO, "hf")
    rules += bert.rules(spec.text.options, TEXT)
    for side in ("audio", "text"):
        for name in ("linear1", "linear2"):
            source = rf"{side}_projection\.{name}"
            rules += linear(source, f"params/{side}_projection/{name}")
    rules.append(Rule("logit_scale_a", "params/logit_scale_a"))
    unused = Extra("logit_scale_t", "both directions use logit_scale_a")
    return rules, [*htsat.extras(AUDIO, "hf"), *bert.extras(TEXT), unused]


def buffers(spec: zoo.Spec) -> dict[str, np.ndarray]:
    """Keys that a ClapModel saves and `table` has no rule for, but `logit_scale_t`."""
    found = htsat.buffers(spec.audio.options, AUDIO, spec.frontend, "hf")
    return found | bert.buffers(spec.text.options, TEXT, ids=True)


def losses(spec: zoo.Spec) -> list[str]:
    """What of a spec is lost where it becomes a ClapModel, a sentence each."""
    found = []
    if spec.frontend.int16_trip:
        found.append(
            "Hugging Face's feature extractor does not send waves through 16-bit "
            "integers as this model's front end does: quiet sounds differ a little"
        )
    if spec.audio.options["fusion"] != "none":
        found.append(
            "Hugging Face's feature extractor calls a clip of a batch of short ones "
            "longer, at random: its embedding differs there, and is another each time"
        )
    if spec.audio.options["classes"]:
        found.append("the AudioSet head is left out: a ClapModel has none")
    return found


def check(spec: zoo.Spec) -> None:
    """ValueError that lists everything of a spec that a ClapModel cannot be."""
    _refuse(spec, hf_config.spec_problems(spec))
    fused = spec.audio.options["fusion"] != "none"
    _refuse(spec, hf_frontend.problems(spec.frontend, fused))


def _refuse(spec: zoo.Spec, problems: list[str]) -> None:
    if problems:
        raise ValueError(
            f"{spec.name} cannot be a Hugging Face ClapModel: {'; '.join(problems)}"
        )
