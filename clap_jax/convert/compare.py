"""How two checkpoints differ: specs, every tensor, and what they make of the probes."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clap_jax import sharding
from clap_jax.convert import probe
from clap_jax.convert.models import AnySpec, Converted, load
from clap_jax.convert.starts import TowerStart
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec

# Tensors that are listed by name, the most different first.
_LISTED = 12


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """absolute: the largest; relative: that over the largest value of the first."""

    path: str
    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True)
class EmbeddingDifference:
    """Embeddings of the probes: smallest cosine, largest difference over largest."""

    cosine: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    specs: sentences on where the specs differ. alone: parameters that only one model
    has, or in another shape. tensors: those of both that differ. shared: how many
    parameters both have. embeddings: "audio", "text" -> how far apart, where both
    models can be asked; else a sentence why not.
    """

    specs: list[str]
    alone: list[str]
    tensors: list[TensorDifference]
    shared: int
    embeddings: dict[str, EmbeddingDifference | str]

    @property
    def equal(self) -> bool:
        """Whether the two are the same model, bit for bit."""
        return not (self.specs or self.alone or self.tensors)


def compare(
    first: str | Path, second: str | Path, tokenizer: str | Path | None = None
) -> Comparison:
    """Compare two checkpoints of any families, as our models.

    tokenizer: a folder with the tokenizer's files, for checkpoints without; without any
    the texts are random tokens. Errors: as `convert.load`.
    """
    pair = load(first, tokenizer), load(second, tokenizer)
    flat = tuple(sharding.flatten(model.variables) for model in pair)

    def release() -> None:
        for model in pair:
            model.release()

    alone, tensors = _tensors(flat[0], flat[1], release)
    return Comparison(
        _specs(pair[0].spec, pair[1].spec),
        alone,
        tensors,
        len(flat[0].keys() & flat[1].keys()),
        _embeddings(pair),
    )


def _specs(first: AnySpec, second: AnySpec) -> list[str]:
    specs = (first, second)
    trees = [sharding.flatten(dataclasses.asdict(spec), ".") for spec in specs]
    found, absent = [], object()
    for key in dict.fromkeys([*trees[0], *trees[1]]):
        a, b = (tree.get(key, absent) for tree in trees)
        if a != b and key != "name":
            shown = ["nothing" if x is absent else _short(x) for x in (a, b)]
            found.append(f"{key}: {' and '.join(shown)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:20]}... ({len(text)} characters)"


def _tensors(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    release: Callable[[], None],
) -> tuple[list[str], list[TensorDifference]]:
    alone, tensors, seen = [], [], 0
    for path in dict.fromkeys([*first, *second]):
        if path not in first or path not in second:
            alone.append(
                f"{path}: only in the {'first' if path in first else 'second'}"
            )
            continue
        a, b = first[path], second[path]
        if a.shape != b.shape:
            alone.append(f"{path}: shapes {a.shape} and {b.shape}")
            continue
        if not np.array_equal(a, b):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            absolute = float(np.abs(a - b).max())
            largest = float(np.abs(a).max()) or 1.0
            tensors.append(TensorDifference(path, absolute, absolute / largest))
        seen += a.nbytes
        if seen > 2**26:
            release()
            seen = 0
    return alone, sorted(tensors, key=lambda x: -x.relative)


def _embeddings(
    pair: tuple[Converted, Converted],
) -> dict[str, EmbeddingDifference | str]:
    specs = [model.spec for model in pair]
    if any(isinstance(spec, TowerStart) for spec in specs):
        return {"audio": "a tower alone has no embedding in a joint space"}
    sounds = [
        probe.audio_embeddings(model.spec, model.variables, model.release)
        for model in pair
    ]
    found = {"audio": _apart(*sounds)}
    if any(isinstance(spec, CaptionerSpec | ClassifierSpec) for spec in specs):
        return found
    folders = [model.tokenizer for model in pair]
    if None in folders:
        # Random tokens must be those of one model.
        if specs[0].vocab_size != specs[1].vocab_size:
            return found | {"text": "other vocabularies, and no tokenizer for both"}
        folders = [None, None]
    texts = [
        probe.text_embeddings(model.spec, model.variables, folder, model.release)
        for model, folder in zip(pair, folders, strict=True)
    ]
    return found | {"text": _apart(*texts)}


def _apart(a: np.ndarray, b: np.ndarray) -> EmbeddingDifference | str:
    if a.shape != b.shape:
        return f"embeddings of {a.shape[1]} and {b.shape[1]} dimensions"
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return EmbeddingDifference(
        float(((a * b).sum(axis=1) / lengths).min()),
        float(np.abs(a - b).max() / np.abs(a).max()),
    )


def show(found: Comparison, console: Console) -> None:
    """Print a comparison."""
    for sentence in [*found.specs, *found.alone]:
        console.print(escape(sentence), highlight=False)
    if found.tensors:
        table = Table("parameters that differ", box=None, pad_edge=False)
        table.add_column("largest difference", justify="right")
        table.add_column("over largest value", justify="right")
        for row in found.tensors[:_LISTED]:
            table.add_row(row.path, f"{row.absolute:.3e}", f"{row.relative:.3e}")
        console.print(table)
        more = len(found.tensors) - _LISTED
        if more > 0:
            console.print(f"and {more} more")
    console.print(
        f"{found.shared - len(found.tensors)} of {found.shared} shared parameters are "
        "equal in every bit",
        highlight=False,
    )
    for side, apart in found.embeddings.items():
        words = (
            apart
            if isinstance(apart, str)
            else f"smallest cosine {apart.cosine:.7f}, largest relative difference "
            f"{apart.relative:.1e}"
        )
        console.print(f"{side} embeddings of the probes: {words}", highlight=False)
    if found.equal:
        console.print("the two are the same model")
