"""MS-CLAP's captioner (`clapcap_weights_2023.pth`): audio tower, mapper, GPT-2.

Source: microsoft/CLAP `msclap/models/mapper.py`, msclap 1.3.4.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clap_jax.convert import banks, captioner, gpt2, sizes
from clap_jax.convert.rules import Extra, Rule
from clap_jax.convert.sizes import Shapes
from clap_jax.models.captioner import SPECS, CaptionerSpec
from clap_jax.models.spec import TowerSpec

AUDIO, GPT = captioner.AUDIO, captioner.GPT

# The mapper has 8 heads, whatever its width (facts of the published config).
_HEADS = 8


def recognises(shapes: Shapes) -> bool:
    """Whether these are the tensors of a clapcap."""
    return sizes.has(shapes, "clap_project.") and sizes.has(shapes, GPT)


def spec(tensors: Mapping[str, np.ndarray]) -> tuple[CaptionerSpec, list[str]]:
    """The spec that the tensors' names and shapes say, and notes on what they do not."""
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    base = SPECS["clapcap"]
    audio = sizes.htsat(shapes, AUDIO) | {"long_clips": "msclap"}
    decoder, vocab_size = sizes.gpt2(shapes, GPT)
    frontend, notes = banks.frontend_of(base.frontend, *banks.stored(tensors, AUDIO))
    names = ("linear1.weight", "linear2.weight", "layer_norm.weight")
    found = dataclasses.replace(
        base,
        frontend=frontend,
        audio=TowerSpec("htsat", audio),
        embed_dim=sizes.vote(
            (sizes.size(shapes, f"clap.projection.{name}", 0) for name in names), 1024
        ),
        mapper=_mapper(shapes),
        decoder=TowerSpec("gpt2", decoder),
        vocab_size=vocab_size,
        tokenizer=base.tokenizer if vocab_size == base.vocab_size else "",
    )
    notes.append(f"mapper: {_HEADS} attention heads, as in the published config")
    return found, [*notes, sizes.heads_note(decoder)]


def _mapper(shapes: Shapes) -> dict[str, int]:
    layers = "clap_project.transformer.layers."
    width = sizes.vote(
        [
            sizes.size(shapes, "clap_project.prefix_const", 1),
            sizes.size(shapes, f"{layers}0.norm1.weight", 0),
        ],
        768,
    )
    hidden = sizes.size(shapes, f"{layers}0.mlp.fc1.weight", 0) or 2 * width
    clip = sizes.size(shapes, "clap_project.linear.bias", 0) or 40 * width
    return {
        "width": width,
        "length": sizes.size(shapes, "clap_project.prefix_const", 0) or 40,
        "clip_length": clip // width,
        "depth": sizes.depth(shapes, r"clap_project\.transformer\.layers\.(\d+)\."),
        "heads": _HEADS,
        "mlp_ratio": hidden // width,
    }


def table(spec: CaptionerSpec) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the model does not use. Errors: ValueError on other models."""
    check(spec)
    return captioner.clapcap_rules(spec), captioner.clapcap_extras()


def check(spec: CaptionerSpec) -> None:
    """ValueError when the spec is not of a captioner with a prefix."""
    if getattr(spec, "captioner", "") != "prefix":
        raise ValueError(f"{spec.name} is not a captioner with a prefix")


def losses(spec: CaptionerSpec) -> list[str]:
    """What of a spec MS-CLAP's code has fixed otherwise, a sentence each."""
    return banks.losses(spec.frontend, SPECS["clapcap"].frontend, "msclap")


def buffers(spec: CaptionerSpec) -> dict[str, np.ndarray]:
    """Keys that a strict load needs beyond the rules, for a model trained elsewhere."""
    return captioner.clapcap_buffers(spec) | gpt2.buffers(spec.decoder.options, GPT)
