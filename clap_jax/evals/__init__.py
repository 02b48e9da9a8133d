"""Evaluations with pinned protocols: an evaluator sees an encoder, nothing else."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from clap_jax.evals.base import Encoder, Result, Source
from clap_jax.evals.retrieval import Retrieval
from clap_jax.evals.zeroshot import ZeroShot

__all__ = [
    "EVALUATORS",
    "Encoder",
    "Result",
    "Retrieval",
    "Source",
    "ZeroShot",
    "build_evaluator",
]

EVALUATORS = {"retrieval": Retrieval, "zeroshot": ZeroShot}


def build_evaluator(
    kind: str, source: Source, options: Mapping[str, Any] | None = None
) -> Retrieval | ZeroShot:
    """Makes an evaluator by name; it has one method, `run(encoder) -> Result`.

    Args:
        kind: a key of `EVALUATORS`.
        source: the clips.
        options: keyword arguments of the evaluator.

    Raises:
        ValueError: unknown kind or option, with the names that come close.
    """
    options = dict(options or {})
    _known("evaluator", kind, EVALUATORS)
    evaluator = EVALUATORS[kind]
    allowed = [name for name in inspect.signature(evaluator).parameters][1:]
    for name in options:
        _known(f"option of evaluator '{kind}'", name, allowed)
    return evaluator(source, **options)


def _known(what: str, name: str, allowed) -> None:
    if name in allowed:
        return
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what}: {name!r}{hint} (known: {', '.join(allowed)})")
