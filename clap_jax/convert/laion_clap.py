"""LAION-CLAP's checkpoints (`laion_clap` key layout), every tower and fusion type.

Source: LAION-AI/CLAP `clap_module/model.py`, laion-clap 1.1.7.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from clap_jax.audio import mel
from clap_jax.convert import (
    banks,
    bart,
    bert,
    clip_text,
    htsat,
    pann,
    parts,
    sizes,
)
from clap_jax.convert.rules import Extra, Rule
from clap_jax.convert.sizes import Shapes
from clap_jax.models import zoo

AUDIO, TEXT = "audio_branch.", "text_branch."

_SCALE = "logit_scale_t"
_AUDIO_TABLES = {"htsat": htsat, "pann": pann}


def recognises(shapes: Shapes) -> bool:
    """Whether these are both towers of a LAION-CLAP model."""
    text = (TEXT, "text_projection.", "token_embedding.", "ln_final.")
    return sizes.has(shapes, AUDIO) and any(sizes.has(shapes, x) for x in text)


def spec(tensors: Mapping[str, np.ndarray]) -> tuple[zoo.Spec, list[str]]:
    """The spec that the tensors' names and shapes say, and notes on what they do not.

    The activation of the heads (ReLU or GELU) leaves no trace: ReLU is assumed, as all
    published models have it.
    """
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    audio, size = _audio(shapes)
    fused = audio.options["fusion"] != "none"
    text_name, text, vocab_size, notes = _text(shapes)
    base = zoo.get_spec(f"laion_htsat_tiny_{'fusion_' if fused else ''}{text_name}")
    frontend = base.frontend
    if fused:
        # The bank in the file is of a front end that fused models do not use.
        notes.append(
            "mel filter bank: htk, which LAION's data pipeline computes for fused models"
        )
    else:
        frontend, found = banks.frontend_of(frontend, *banks.stored(tensors, AUDIO))
        notes += found
    embed_dim = sizes.vote(
        [
            sizes.size(shapes, f"{side}_projection.{layer}.bias", 0)
            for side in ("audio", "text")
            for layer in (0, 2)
        ],
        512,
    )
    found = dataclasses.replace(
        base,
        name=f"laion_{size}_{'fusion_' if fused else ''}{text_name}",
        frontend=frontend,
        audio=audio,
        text=zoo.TowerSpec(text.kind, base.text.options | text.options),
        embed_dim=embed_dim,
        text_length=sizes.text_length(base.text_length, text),
        vocab_size=vocab_size,
        tokenizer=base.tokenizer if vocab_size == base.vocab_size else "",
    )
    return found, notes


def _audio(shapes: Shapes) -> tuple[zoo.TowerSpec, str]:
    """The audio tower and the name of its size."""
    if sizes.has(shapes, f"{AUDIO}conv_block1."):
        options = sizes.pann(shapes, AUDIO) | {"spec_augment": "after_bn0"}
        return zoo.TowerSpec("pann", options), sizes.pann_name(options)
    options = sizes.htsat(shapes, AUDIO)
    return zoo.TowerSpec("htsat", options), sizes.htsat_name(options)


def _text(shapes: Shapes) -> tuple[str, zoo.TowerSpec, int, list[str]]:
    """The text tower: name in the zoo's rows, spec, vocabulary, notes."""
    if sizes.has(shapes, f"{TEXT}resblocks."):
        options, vocab_size = sizes.clip_text(shapes, "")
        name, kind = "clip", "clip_text"
    elif sizes.has(shapes, f"{TEXT}encoder.layers."):
        options, vocab_size = sizes.bart(shapes, TEXT)
        name, kind = "bart", "bart"
        # The mean over all 77 positions, padding included.
        options["pool"] = "mean_all"
    else:
        options, vocab_size = sizes.bert(shapes, TEXT)
        name, kind = options["positions"], "bert"
    note = sizes.heads_note(options)
    return name, zoo.TowerSpec(kind, options), vocab_size, [note]


def table(spec: zoo.Spec) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the model does not use. Errors: ValueError on other models."""
    check(spec)
    audio = _AUDIO_TABLES[spec.audio.kind]
    found = audio.rules(spec.audio.options, AUDIO)
    extras = audio.extras(AUDIO)
    if spec.text.kind == "clip_text":
        found += clip_text.rules(spec.text.options)
        extras += clip_text.extras()
    else:
        text = bart if spec.text.kind == "bart" else bert
        found += text.rules(spec.text.options, TEXT)
        extras += text.extras(TEXT)
    for side in ("audio", "text"):
        for layer, name in ((0, "linear1"), (2, "linear2")):
            source = rf"{side}_projection\.{layer}"
            found += parts.linear(source, f"params/{side}_projection/{name}")
    found.append(Rule("logit_scale_a", "params/logit_scale_a"))
    extras += [
        Extra(_SCALE, "never trained by the default loss; both directions use _a"),
        Extra(
            r"(audio|text)_transform\..*",
            "heads of the MLP loss, untrained without it",
        ),
    ]
    return found, extras


def check(spec: zoo.Spec) -> None:
    """ValueError that lists everything of a spec that this layout cannot hold."""
    wanted = {
        ("audio tower", spec.audio.kind): tuple(_AUDIO_TABLES),
        ("text tower", spec.text.kind): ("bert", "clip_text", "bart"),
        ("head", spec.head): ("laion_mlp", "laion_mlp_gelu"),
        ("score", spec.score): ("cosine",),
    }
    found = [
        f"its {role} is {value}, LAION-CLAP has {' or '.join(known)}"
        for (role, value), known in wanted.items()
        if value not in known
    ]
    if spec.text.kind == "bert" and spec.text.options["pool"] != "pooler":
        found.append("its text is not read by a pooler, LAION-CLAP's is")
    if spec.text.kind == "bert" and spec.text.options["norm"] != "post":
        found.append("its text blocks are pre-norm, LAION-CLAP's are post-norm")
    if found:
        raise ValueError(
            f"{spec.name} cannot be a LAION-CLAP model: {'; '.join(found)}"
        )


def losses(spec: zoo.Spec) -> list[str]:
    """What of a spec LAION-CLAP's code has fixed otherwise, a sentence each."""
    fused = spec.audio.options["fusion"] != "none"
    row = mel.FRONTENDS["laion_fused" if fused else "laion_unfused"]
    found = banks.losses(spec.frontend, row, "laion_clap")
    if fused and (spec.frontend.bank, spec.frontend.fmax_hz) != (row.bank, row.fmax_hz):
        found.append("front end: laion_clap makes the bank of fused models itself")
    if spec.text.kind == "bert":
        roberta = spec.text.options["positions"] == "roberta"
        eps, theirs = spec.text.options["eps"], 1e-5 if roberta else 1e-12
        if eps != theirs:
            found.append(
                f"text tower: norms have eps {eps:g} here and {theirs:g} in laion_clap: "
                "embeddings differ by about 1e-5"
            )
    if spec.head == "laion_mlp_gelu":
        found.append("heads: GELU here, and ReLU in laion_clap unless it is told so")
    return found


def buffers(spec: zoo.Spec) -> dict[str, np.ndarray]:
    """Keys that a strict load needs beyond the rules, for a model trained elsewhere.

    The heads of the MLP loss are random numbers of a fixed seed, of the scale that
    torch begins with; `logit_scale_t` is where LAION's training leaves it.
    """
    audio = _AUDIO_TABLES[spec.audio.kind]
    found = audio.buffers(spec.audio.options, AUDIO, spec.frontend)
    if spec.text.kind == "clip_text":
        found |= clip_text.buffers(spec.text.options)
    else:
        text = bart if spec.text.kind == "bart" else bert
        found |= text.buffers(spec.text.options, TEXT)
    found[_SCALE] = np.asarray(math.log(spec.logit_scale_init), np.float32)
    rng = np.random.default_rng(0)
    width = spec.embed_dim
    limit = 1 / math.sqrt(width)
    for side in ("audio", "text"):
        for layer in (0, 3):
            for name, shape in (("weight", (width, width)), ("bias", (width,))):
                values = rng.uniform(-limit, limit, shape).astype(np.float32)
                found[f"{side}_transform.sequential.{layer}.{name}"] = values
    return found
