"""MS-CLAP's checkpoints (`CLAP_weights_2022.pth`, `CLAP_weights_2023.pth`).

Source: microsoft/CLAP `msclap/models/clap.py`, msclap 1.3.4. Captioners of this family
(clapcap) are in `clapcap`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clap_jax.convert import banks, bert, gpt2, htsat, pann, parts, sizes
from clap_jax.convert.rules import Extra, Rule
from clap_jax.convert.sizes import Shapes
from clap_jax.models import zoo

AUDIO, TEXT = "audio_encoder.", "caption_encoder."

# The audio tower's own prefix; HTSAT is one module deeper.
AUDIO_BASE = {"htsat": f"{AUDIO}base.htsat.", "pann": f"{AUDIO}base."}
TEXT_BASE = f"{TEXT}base."

_AUDIO_TABLES = {"htsat": htsat, "pann": pann}
_TEXT_TABLES = {"gpt2": gpt2, "bert": bert}


def recognises(shapes: Shapes) -> bool:
    """Whether these are both towers of an MS-CLAP model."""
    return sizes.has(shapes, f"{AUDIO}base.") and sizes.has(shapes, TEXT_BASE)


def audio_tower(shapes: Shapes, prefix: str) -> tuple[zoo.TowerSpec, str]:
    """The audio tower below `prefix`, Cnn14 or HTSAT, and its own prefix."""
    if sizes.has(shapes, f"{prefix}htsat."):
        options = sizes.htsat(shapes, f"{prefix}htsat.") | {"long_clips": "msclap"}
        return zoo.TowerSpec("htsat", options), f"{prefix}htsat."
    options = sizes.pann(shapes, prefix) | {"spec_augment": "none"}
    return zoo.TowerSpec("pann", options), prefix


def spec(tensors: Mapping[str, np.ndarray]) -> tuple[zoo.Spec, list[str]]:
    """The spec that the tensors' names and shapes say, and notes on what they do not.

    Filter bank and window are those of the file: of three published descriptions of
    this front end no two agree, and the model loads whatever the file has.
    """
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    audio, prefix = audio_tower(shapes, f"{AUDIO}base.")
    if sizes.has(shapes, f"{TEXT_BASE}wte."):
        options, vocab_size = sizes.gpt2(shapes, TEXT_BASE)
        text = zoo.TowerSpec("gpt2", options | {"pool": "msclap"})
    else:
        options, vocab_size = sizes.bert(shapes, TEXT_BASE)
        # The first token's state; the pooler is in the file, but nothing asks for it.
        text = zoo.TowerSpec("bert", options | {"pool": "first"})
    # Clips of 5 s came with Cnn14, of 7 s with HTSAT; the text side has its own year.
    front = zoo.MSCLAP_2023 if audio.kind == "htsat" else zoo.MSCLAP_2022
    words = zoo.MSCLAP_2023 if text.kind == "gpt2" else zoo.MSCLAP_2022
    frontend, notes = banks.frontend_of(front.frontend, *banks.stored(tensors, prefix))
    embed_dim = sizes.vote(
        [
            sizes.size(shapes, f"{side}projection.{name}.weight", 0)
            for side in (AUDIO, TEXT)
            for name in ("linear1", "linear2", "layer_norm")
        ],
        1024,
    )
    mixed = f"msclap_{audio.kind}_{text.kind}"
    known = vocab_size == words.vocab_size
    found = dataclasses.replace(
        front,
        name=front.name if front is words else mixed,
        frontend=frontend,
        audio=audio,
        text=text,
        embed_dim=embed_dim,
        text_length=sizes.text_length(words.text_length, text),
        tokenizer=words.tokenizer if known else "",
        tokenizer_style=words.tokenizer_style,
        vocab_size=vocab_size,
    )
    return found, [*notes, sizes.heads_note(options)]


def head_rules(source: str, target: str) -> list[Rule]:
    """A projection head; `source` is a regex."""
    return [
        *parts.linear(rf"{source}\.linear1", f"{target}/linear1", bias=False),
        *parts.linear(rf"{source}\.linear2", f"{target}/linear2", bias=False),
        *parts.norm(rf"{source}\.layer_norm", f"{target}/norm"),
    ]


def table(spec: zoo.Spec) -> tuple[list[Rule], list[Extra]]:
    """Rules, and what the model does not use. Errors: ValueError on other models."""
    check(spec)
    audio, text = _AUDIO_TABLES[spec.audio.kind], _TEXT_TABLES[spec.text.kind]
    prefix = AUDIO_BASE[spec.audio.kind]
    return [
        *audio.rules(spec.audio.options, prefix),
        *text.rules(spec.text.options, TEXT_BASE),
        *head_rules(r"audio_encoder\.projection", "params/audio_projection"),
        *head_rules(r"caption_encoder\.projection", "params/text_projection"),
        Rule("logit_scale", "params/logit_scale_a"),
    ], [*audio.extras(prefix), *text.extras(TEXT_BASE)]


def check(spec: zoo.Spec) -> None:
    """ValueError that lists everything of a spec that this layout cannot hold."""
    wanted = {
        ("audio tower", spec.audio.kind): tuple(_AUDIO_TABLES),
        ("text tower", spec.text.kind): tuple(_TEXT_TABLES),
        ("head", spec.head): ("msclap",),
        ("score", spec.score): ("cosine",),
    }
    found = [
        f"its {role} is {value}, MS-CLAP has {' or '.join(known)}"
        for (role, value), known in wanted.items()
        if value not in known
    ]
    if spec.audio.options.get("fusion", "none") != "none":
        found.append("its audio tower fuses views, MS-CLAP's does not")
    if spec.text.kind == "bert" and spec.text.options["pool"] != "first":
        found.append("its text is not read at the first token, MS-CLAP's is")
    if found:
        raise ValueError(f"{spec.name} cannot be an MS-CLAP model: {'; '.join(found)}")


def losses(spec: zoo.Spec) -> list[str]:
    """What of a spec MS-CLAP's code has fixed otherwise, a sentence each."""
    row = zoo.MSCLAP_2023 if spec.audio.kind == "htsat" else zoo.MSCLAP_2022
    return banks.losses(spec.frontend, row.frontend, "msclap")


def buffers(spec: zoo.Spec) -> dict[str, np.ndarray]:
    """Keys that a strict load needs beyond the rules, for a model trained elsewhere."""
    audio, text = _AUDIO_TABLES[spec.audio.kind], _TEXT_TABLES[spec.text.kind]
    prefix = AUDIO_BASE[spec.audio.kind]
    found = audio.buffers(spec.audio.options, prefix, spec.frontend)
    return found | text.buffers(spec.text.options, TEXT_BASE)
