"""Whether a converted model still tells one thing from another.

A published port of a CLAP model gave all texts the same embedding (mean cosine 0.999),
which stayed unnoticed for long: no tensor was missing, and every shape was right.
"""

import numpy as np

from clap_jax.convert import probe
from clap_jax.convert.models import Converted
from clap_jax.convert.starts import TowerStart
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec

MEAN_LIMIT = 0.995
"""Mean cosine between different inputs above which a tower counts as collapsed.

Towers with random weights, which know nothing, reach a mean of 0.97.
"""


def notes(converted: Converted) -> list[str]:
    """How close the embeddings of different sounds, and texts, are; with a warning
    where they are all the same or no numbers. One tower is in memory at a time."""
    spec, variables, release = converted.spec, converted.variables, converted.release
    if isinstance(spec, TowerStart):
        return []
    found = [note("sounds", probe.audio_embeddings(spec, variables, release))]
    if isinstance(spec, CaptionerSpec | ClassifierSpec):
        return found
    folder = converted.tokenizer
    try:
        probe.tokens(spec, folder)
    except ValueError as error:
        found.append(f"WARNING: the tokenizer cannot be used: {error}")
        folder = None
    texts = probe.text_embeddings(spec, variables, folder, release)
    what = "texts" if folder else "texts of random tokens"
    return [*found, note(what, texts)]


def note(what: str, embeddings: np.ndarray) -> str:
    """A sentence on the embeddings of different things, which may be a warning."""
    if not np.isfinite(embeddings).all():
        return f"WARNING: embeddings of {what} are not finite"
    found = probe.closeness(embeddings)
    words = (
        f"embeddings of {len(embeddings)} made {what}: mean cosine {found.mean:.3f}, "
        f"largest {found.largest:.3f}"
    )
    if found.mean > MEAN_LIMIT:
        return (
            f"WARNING: {words}; the mean is above {MEAN_LIMIT}, which is collapsed: "
            "the model cannot tell them apart"
        )
    return words
