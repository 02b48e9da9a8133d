"""The key layouts that checkpoints come in, and which one a file has.

A layout is a module with `recognises(shapes)`, `spec(tensors)`, `table(spec)`,
`buffers(spec)`, `check(spec)` (a ValueError where a spec does not fit) and `losses(spec)`
(what the original system does otherwise).
"""

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from clap_jax.convert import blat, clapcap, hf_clap, laion_clap, msclap, starts
from clap_jax.convert.files import FileError, Source

LAYOUTS: dict[str, ModuleType] = {
    "hf": hf_clap,
    "laion": laion_clap,
    "msclap": msclap,
    "blat": blat,
    "clapcap": clapcap,
}
"""By name; "clapcap" are the captioners of the family "msclap"."""

START = "start"

# What whole models are wrapped in; every key begins so.
PREFIXES = ("module.", "_orig_mod.", "model.")

# Parts of our models that a layout has no place for.
LEFT_OUT = {"hf": ("params/audio/tag/",), "blat": ("params/audio/tag/",)}


def strip(tensors: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """The prefix that every key has ("" for none) and the tensors without it.

    `module.` is of DistributedDataParallel, `_orig_mod.` of torch.compile.
    """
    whole = ""
    while tensors:
        prefixes = [x for x in PREFIXES if all(key.startswith(x) for key in tensors)]
        if not prefixes:
            break
        whole += prefixes[0]
        tensors = {key.removeprefix(prefixes[0]): x for key, x in tensors.items()}
    return whole, dict(tensors)


def recognise(source: Source) -> tuple[str, str, dict[str, np.ndarray]]:
    """Name of the layout, prefix of all keys, and the tensors without it.

    Errors: FileError on a state dict that is of no known model.
    """
    prefix, tensors = strip(source.tensors)
    shapes = {key: np.shape(array) for key, array in tensors.items()}
    for name, layout in LAYOUTS.items():
        if layout.recognises(shapes):
            return name, prefix, tensors
    if starts.recognises(shapes):
        return START, prefix, tensors
    shown = ", ".join(list(tensors)[:3])
    raise FileError(
        f"{source.path} holds {len(tensors)} tensors ({shown}, ...) of no model that is "
        f"known here: {', '.join(LAYOUTS)}, or a tower of one of them"
    )
