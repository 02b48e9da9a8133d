"""Evaluations with pinned protocols: an evaluator sees an encoder, nothing else."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clap_jax import config as config_lib
from clap_jax.evals.absent import Absent
from clap_jax.evals.base import Encoder, Result
from clap_jax.evals.boundaries import Boundaries
from clap_jax.evals.caption import Captions
from clap_jax.evals.classify import HeadScores
from clap_jax.evals.localisation import Localisation
from clap_jax.evals.probe import Probe
from clap_jax.evals.retrieval import Retrieval
from clap_jax.evals.written import WrittenAnswers
from clap_jax.evals.zeroshot import ZeroShot, class_embeddings

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

__all__ = [
    "EVALUATORS",
    "Absent",
    "Boundaries",
    "Captions",
    "Encoder",
    "HeadScores",
    "Localisation",
    "Probe",
    "Result",
    "Retrieval",
    "WrittenAnswers",
    "ZeroShot",
    "build_evaluator",
    "class_embeddings",
]

EVALUATORS = {
    "absent": Absent,
    "answers": WrittenAnswers,
    "boundaries": Boundaries,
    "captions": Captions,
    "classifier": HeadScores,
    "localisation": Localisation,
    "probe": Probe,
    "retrieval": Retrieval,
    "zeroshot": ZeroShot,
}

WITHOUT_SOURCE = ("absent",)
"""Kinds of evaluators that read nothing."""

WITHOUT_TEXTS = ("absent", "boundaries", "classifier", "probe")
"""Kinds of evaluators that never ask for a text."""

OF_PARTS = ("boundaries", "probe")
"""Kinds of evaluators that learn from some parts of a source and test on others."""


def build_evaluator(
    kind: str,
    source: "Source | dict[str, Source] | None",
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Makes an evaluator by name; it has one method, `run(encoder) -> Result`.

    Args:
        kind: a key of `EVALUATORS`.
        source: the clips; of kinds in `OF_PARTS` those of each part, by its name; None for kinds in
            `WITHOUT_SOURCE`.
        options: keyword arguments of the evaluator.

    Raises:
        ValueError: unknown kind or option, with the names that come close.
    """
    options = dict(options or {})
    if kind not in EVALUATORS:
        raise ValueError(config_lib.unknown("evaluator", kind, EVALUATORS))
    evaluator = EVALUATORS[kind]
    allowed = [name for name in inspect.signature(evaluator).parameters][1:]
    problems = config_lib.unknown_keys(options, allowed, f"evaluator {kind}")
    if problems:
        raise ValueError("; ".join(problems))
    return evaluator(source, **options)
