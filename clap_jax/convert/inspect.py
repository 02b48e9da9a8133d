"""What a checkpoint is: family, sizes, front end, parameters, and anything odd."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clap_jax import sharding
from clap_jax.audio import mel
from clap_jax.convert.models import AnySpec, Converted, load
from clap_jax.convert.rules import is_float
from clap_jax.convert.starts import TowerStart
from clap_jax.models.classifier import ClassifierSpec

# Tensors that are zero in a healthy model: biases at the start, and counters.
_MAY_BE_ZERO = ("bias", "num_batches_tracked", "position_ids", "token_type_ids", "mask")

# Odd tensors that are listed by name.
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters under one path. spread: their standard deviation."""

    path: str
    tensors: int
    values: int
    spread: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What `inspect` found; lists of sentences, and the groups of parameters."""

    path: Path
    facts: dict[str, str]
    groups: list[Group]
    odd: list[str]
    notes: list[str]


def inspect(path: str | Path) -> Report:
    """Look at a checkpoint of any family, or of ours. Errors: as `convert.load`."""
    path = Path(path)
    found = load(path)
    flat = sharding.flatten(found.variables)
    groups, odd = _groups(found, flat)
    return Report(path, _facts(found, flat), groups, odd, found.notes)


def _facts(found: Converted, flat: Mapping[str, Any]) -> dict[str, str]:
    origin, spec = found.origin, found.spec
    values = sum(x.size for path, x in flat.items() if path.startswith("params/"))
    state = sum(x.size for path, x in flat.items() if path.startswith("state/"))
    facts = {"model": spec.name, "layout": found.layout}
    dtypes = {x.dtype.name for x in flat.values()}
    if origin is not None and found.layout == "clap_jax":
        facts["layout"] += f", made of a checkpoint of layout {origin.layout}"
    elif origin is not None:
        if origin.prefix:
            facts["layout"] += f", every key begins with {origin.prefix!r}"
        facts["tensors"] = (
            f"{len(origin.tensors)} in the file, {len(found.extra)} of them not used "
            "by the model"
        )
        facts |= {name: str(value) for name, value in origin.beside.items()}
        dtypes = set(origin.tensors.values())
    facts["dtypes"] = ", ".join(sorted(dtypes))
    facts["parameters"] = f"{values:,}, and {state:,} running statistics"
    return facts | _spec_facts(spec)


def _spec_facts(spec: AnySpec) -> dict[str, str]:
    if isinstance(spec, TowerStart):
        return {spec.side: _tower(spec.kind, spec.options)}
    facts = {"audio": _tower(spec.audio.kind, spec.audio.options)}
    if hasattr(spec, "text"):
        facts["text"] = _tower(spec.text.kind, spec.text.options)
    elif isinstance(spec, ClassifierSpec):
        facts["classes"] = "; ".join(
            f"{name}: {len(head.labels)} ({head.loss})"
            for name, head in spec.heads.items()
        )
        facts["heads"] = f"on the {spec.features}, hidden {spec.hidden or 'none'}"
    else:
        facts["decoder"] = _tower(spec.decoder.kind, spec.decoder.options)
        facts["mapper"] = ", ".join(f"{k} {v}" for k, v in spec.mapper.items())
    if not isinstance(spec, ClassifierSpec):
        own = spec.tokenizer or "own tokenizer"
        facts["vocabulary"] = f"{spec.vocab_size:,} ({own})"
    facts["head"] = f"{spec.head} to {spec.embed_dim}"
    facts["front end"] = front_end(spec.frontend)
    return facts


def _tower(kind: str, options: Mapping[str, Any]) -> str:
    shown = ("width", "widths", "depth", "depths", "heads", "mlp", "fusion", "pool")
    if "parts" in options:
        return " beside ".join(_tower(*part) for part in options["parts"].items())
    words = [f"{name} {options[name]}" for name in shown if name in options]
    if options.get("classes"):
        words.append(f"AudioSet head of {options['classes']} classes")
    return f"{kind}: {', '.join(words)}"


def front_end(frontend: mel.Frontend) -> str:
    """A front end in one line."""
    rate_hz = frontend.bank_rate_hz or frontend.rate_hz
    window = ", its own window" if frontend.window_values else ""
    bank = (
        "a bank of its own, stored"
        if frontend.bank == "stored"
        else f"{frontend.bank} bank for {rate_hz} Hz, {frontend.fmin_hz:g} to "
        f"{frontend.fmax_hz:g} Hz"
    )
    words = (
        f"{frontend.rate_hz} Hz, {frontend.clip_seconds:g} s, window "
        f"{frontend.window_samples}{window}, hop {frontend.hop_samples}, "
        f"{frontend.mels} mels, {bank}"
    )
    return "; beside it ".join([words, *map(front_end, frontend.beside)])


def _groups(
    found: Converted, flat: Mapping[str, np.ndarray]
) -> tuple[list[Group], list[str]]:
    """Parameters by block, and what is odd; every value is read once."""
    sums: dict[str, list[float]] = {}
    nonfinite, zero, constant = [], [], []
    seen = 0
    for name, array in (flat | found.extra).items():
        if is_float(array.dtype):
            values = np.asarray(array, np.float32)
            total = float(values.sum(dtype=np.float64))
            squares = float(np.einsum("i,i->", *[values.reshape(-1)] * 2, dtype=float))
            if not np.isfinite(total + squares):
                nonfinite.append(name)
            elif not squares and not name.endswith(_MAY_BE_ZERO):
                zero.append(name)
            elif name.endswith("/kernel") and values.std() == 0:
                constant.append(name)
            if name in flat:
                row = sums.setdefault("/".join(name.split("/")[:3]), [0, 0, 0, 0])
                row[:] = np.add(row, [1, array.size, total, squares])
        seen += array.nbytes
        if seen > 2**26:
            found.release()
            seen = 0
    groups = []
    for path, (tensors, count, total, squares) in sums.items():
        spread = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
        groups.append(Group(path, int(tensors), int(count), spread))
    groups.sort(key=lambda group: [x.zfill(4) for x in re.split(r"(\d+)", group.path)])
    odd = [
        f"{len(names)} tensors {what}: {', '.join(names[:_LISTED])}"
        for names, what in (
            (nonfinite, "hold NaN or infinity"),
            (zero, "are all zero"),
            (constant, "have one value everywhere"),
        )
        if names
    ]
    return groups, odd + _dead(found, flat)


def _dead(found: Converted, flat: Mapping[str, np.ndarray]) -> list[str]:
    """Heads whose outputs do not depend on the input, and scales that are unusual."""
    odd = []
    for side in ("audio", "text"):
        for path, array in flat.items():
            if not path.startswith(f"params/{side}_projection/"):
                continue
            if path.endswith("/kernel"):
                unused = int((~np.any(array, axis=0)).sum())
                if unused:
                    odd.append(f"{path}: {unused} of {array.shape[1]} outputs are dead")
    scale = flat.get("params/logit_scale_a")
    if scale is not None and not 0 <= float(scale) <= 4.61:
        odd.append(
            f"params/logit_scale_a is {float(scale):.3f}, expected 0 to 4.605 (ln 100)"
        )
    return odd


def show(report: Report, console: Console) -> None:
    """Print a report."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {"path": str(report.path), **report.facts}.items():
        facts.add_row(f"[bold]{name}", value)
    console.print(facts)
    groups = Table("parameters", box=None, pad_edge=False)
    for name in ("tensors", "values", "spread"):
        groups.add_column(name, justify="right")
    for group in report.groups:
        row = (str(group.tensors), f"{group.values:,}", f"{group.spread:.4g}")
        groups.add_row(group.path, *row)
    console.print()
    console.print(groups)
    console.print()
    for note in report.notes:
        console.print(f"note: {escape(note)}", highlight=False)
    for sentence in report.odd:
        console.print(f"[red]odd: {escape(sentence)}", highlight=False)
    if not report.odd:
        console.print("nothing odd: all values are finite, nothing is all zero")
