"""BLAT's checkpoints (`blat_cnn14_bertm.pth`): Cnn14, BERT-medium, linear heads.

Source: wsntxxn/BLAT `models/audio_text_model.py`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clap_jax.convert import banks, bert, pann, parts, sizes
from clap_jax.convert.rules import Extra, Rule
from clap_jax.convert.sizes import Shapes
from clap_jax.models import zoo

AUDIO, TEXT = "audio_encoder.", "text_encoder.model."

_FRONT = f"{AUDIO}melspec_extractor."

# torchaudio computes its bank in float32; librosa's formula is in float64.
_TORCHAUDIO = 5e-6


def recognises(shapes: Shapes) -> bool:
    """Whether these are both towers of a BLAT model."""
    return sizes.has(shapes, f"{AUDIO}conv_block1.") and sizes.has(shapes, TEXT)


def spec(tensors: Mapping[str, np.ndarray]) -> tuple[zoo.Spec, list[str]]:
    """The spec that the tensors' names and shapes say, and notes on what they do not."""
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    options, vocab_size = sizes.bert(shapes, TEXT)
    text = zoo.TowerSpec("bert", options | {"pool": "first"})
    frontend, notes = banks.frontend_of(
        zoo.BLAT.frontend,
        tensors.get(f"{_FRONT}mel_scale.fb"),
        tensors.get(f"{_FRONT}spectrogram.window"),
        _TORCHAUDIO,
    )
    embed_dim = sizes.vote(
        [
            sizes.size(shapes, f"{side}_proj.{name}", 0)
            for side in ("audio", "text")
            for name in ("weight", "bias")
        ],
        1024,
    )
    audio = zoo.BLAT.audio.options | sizes.pann(shapes, AUDIO)
    found = dataclasses.replace(
        zoo.BLAT,
        frontend=frontend,
        audio=zoo.TowerSpec("pann", audio),
        text=text,
        embed_dim=embed_dim,
        text_length=sizes.text_length(zoo.BLAT.text_length, text),
        vocab_size=vocab_size,
        tokenizer=zoo.BLAT.tokenizer if vocab_size == zoo.BLAT.vocab_size else "",
    )
    return found, [*notes, sizes.heads_note(options)]


def table(spec: zoo.Spec) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the model does not use. Errors: ValueError on other models."""
    check(spec)
    return [
        *pann.rules(spec.audio.options | {"classes": 0}, AUDIO),
        *bert.rules(spec.text.options, TEXT),
        *parts.linear("audio_proj", "params/audio_projection/linear"),
        *parts.linear("text_proj", "params/text_projection/linear"),
        Rule("logit_scale", "params/logit_scale_a"),
    ], [*pann.extras(AUDIO, "blat"), *bert.extras(TEXT)]


def check(spec: zoo.Spec) -> None:
    """ValueError that lists everything of a spec that this layout cannot hold."""
    wanted = {
        ("audio tower", spec.audio.kind): "pann",
        ("text tower", spec.text.kind): "bert",
        ("head", spec.head): "linear",
        ("score", spec.score): "cosine",
    }
    found = [
        f"its {role} is {value}, BLAT has {known}"
        for (role, value), known in wanted.items()
        if value != known
    ]
    if spec.audio.options.get("fusion", "none") != "none":
        found.append("its audio tower fuses views, BLAT's does not")
    if spec.text.kind == "bert" and spec.text.options["pool"] != "first":
        found.append("its text is not read at the first token, BLAT's is")
    if found:
        raise ValueError(f"{spec.name} cannot be a BLAT model: {'; '.join(found)}")


def losses(spec: zoo.Spec) -> list[str]:
    """What of a spec BLAT's code has fixed otherwise, a sentence each."""
    found = banks.losses(spec.frontend, zoo.BLAT.frontend, "BLAT's code")
    if spec.audio.options["classes"]:
        found.append("the AudioSet head is left out: BLAT has none")
    return found


def buffers(spec: zoo.Spec) -> dict[str, np.ndarray]:
    """Keys that a strict load needs beyond the rules, for a model trained elsewhere."""
    found = pann.buffers(spec.audio.options, AUDIO, spec.frontend, "blat")
    return found | bert.buffers(spec.text.options, TEXT)
