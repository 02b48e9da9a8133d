"""Results of finished runs, read back and held against each other."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clap_jax.evals import bootstrap, page, report, tables

LOWER_IS_BETTER = ("median_rank",)
NOT_RANKED = ("bad_clips",)
OUTCOMES = ("of_each_part", "examples")
"""What a protocol says of the outcome: each model has its own."""
# What a protocol says that does not change the numbers, or follows from the rest.
NOT_PROTOCOL = ("intervals", "example", "absent", *OUTCOMES)
# What belongs to the front end of a model and its tokenizer.
HEARD = ("clip", "front_end", "text")


class RunError(ValueError):
    """Results that cannot be read; says which file, what was found, what was expected."""


class Run(NamedTuple):
    """What a run wrote.

    name: how it is called in a comparison. context: as in results.json. evals:
    evaluation -> its entry. absent: evaluation -> why it was not done. per_clip:
    `<evaluation>/<metric>` -> float64 [n, 2], `<evaluation>/clips` and, of some,
    `<evaluation>/parts` -> int64 [n]; empty where the file is gone.
    """

    name: str
    path: Path
    context: dict[str, Any]
    absent: dict[str, str]
    evals: dict[str, dict[str, Any]]
    per_clip: dict[str, np.ndarray]


class Difference(NamedTuple):
    """How far a run is from the first one in a metric.

    interval: 95 % of the difference, paired by clip; None where it cannot be had.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and not (
            self.interval[0] <= 0 <= self.interval[1]
        )


def read(path: Path | str) -> Run:
    """The results in a workdir, or in a results.json.

    Raises RunError.
    """
    path = Path(path)
    file = path / report.RESULTS if path.is_dir() else path
    if not file.is_file():
        raise RunError(
            f"{file} does not exist: expected a workdir with results.json, which "
            "`python -m clap_jax.main --mode=eval --config=... --workdir=...` writes, or "
            "such a file"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(
            f"{file}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}): "
            "write it again with --mode=eval"
        ) from None
    except UnicodeDecodeError as error:
        raise RunError(f"{file}: no text in UTF-8 ({error.reason})") from None
    content = _object(file, "the file", content)
    evals = _object(file, "evals", content.get("evals"))
    for name, entry in evals.items():
        _check_entry(file, f"evals.{name}", entry)
    absent = {
        name: str(entry["protocol"].get("reason", "it was not evaluated"))
        for name, entry in evals.items()
        if entry["protocol"].get("kind") == "absent"
    }
    return Run(
        name=file.parent.resolve().name,
        path=file,
        context=_object(file, "context", content.get("context", {})),
        absent=absent,
        evals={name: entry for name, entry in evals.items() if name not in absent},
        per_clip=_per_clip(file.with_name(report.PER_CLIP), evals),
    )


def read_all(paths: Sequence[Path | str]) -> list[Run]:
    """Several runs, each with a name of its own. Raises RunError."""
    runs = [read(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(path)) for run, path in zip(runs, paths)]
    twice = {run.name for run in runs if [r.name for r in runs].count(run.name) > 1}
    if twice:
        raise RunError(f"{min(twice)} is named twice")
    return runs


def protocol_differences(runs: Sequence[Run], evaluation: str) -> list[str]:
    """Why the numbers of an evaluation cannot be held against each other.

    One for each key of the protocol that differs; runs that do not have the evaluation
    are left out. What clips become before a model hears them counts where the models
    have one front end; where they have several, it is theirs (`heard_differences`).
    """
    protocols = _protocols(runs, evaluation)
    own = set() if _same_front_end(protocols) else set(HEARD)
    return _differences(protocols, set(_keys(protocols.values())) - own)


def heard_differences(runs: Sequence[Run], evaluation: str) -> list[str]:
    """Differences in how models of several front ends hear an evaluation's clips.

    They are a part of the models: a caution, no fault.
    """
    protocols = _protocols(runs, evaluation)
    return [] if _same_front_end(protocols) else _differences(protocols, set(HEARD))


def _protocols(runs: Sequence[Run], evaluation: str) -> dict[str, dict[str, Any]]:
    return {
        run.name: run.evals[evaluation]["protocol"]
        for run in runs
        if evaluation in run.evals
    }


def _same_front_end(protocols: Mapping[str, Mapping[str, Any]]) -> bool:
    return not _differ(own.get("front_end") for own in protocols.values())


def _differences(
    protocols: Mapping[str, Mapping[str, Any]], keys: set[str]
) -> list[str]:
    """`different <key> (...)` for those of the keys in which protocols differ."""
    said = []
    for key in _keys(protocols.values()):
        values = {name: protocol.get(key) for name, protocol in protocols.items()}
        if key == "data" and all(p.get("data_digest") for p in protocols.values()):
            continue  # which says where the clips lie; their digests are compared
        if key in keys and key not in NOT_PROTOCOL and _differ(values.values()):
            said.append(f"different {key.replace('_', ' ')} ({_list(values)})")
    return said


def difference(
    first: Run, other: Run, evaluation: str, metric: str
) -> Difference | None:
    """What `other` has more than `first` in a metric; None where one lacks it.

    The interval is of the paired bootstrap: the same clips are drawn for both, within
    parts where the metric is a mean over parts.
    """
    entries = [
        run.evals.get(evaluation, {}).get("metrics", {}) for run in (first, other)
    ]
    if not all(metric in entry for entry in entries):
        return None
    value = entries[1][metric] - entries[0][metric]
    return Difference(value, _paired(first, other, evaluation, metric))


def is_paired(first: Run, other: Run, evaluation: str) -> bool:
    """Whether both runs kept what each clip adds, of the very same clips."""
    if evaluation not in first.evals or evaluation not in other.evals:
        return False
    protocols = [run.evals[evaluation]["protocol"] for run in (first, other)]
    if _differ(protocol.get("data_digest") for protocol in protocols):
        return False
    clips, parts = (
        [run.per_clip.get(f"{evaluation}/{key}") for run in (first, other)]
        for key in ("clips", "parts")
    )
    return all(c is not None for c in clips) and all(
        np.array_equal(*rows) for rows in (clips, parts)
    )


def best(runs: Sequence[Run], evaluation: str, metric: str) -> set[str]:
    """The names of the runs with the best value; none where nothing is best."""
    values = {
        run.name: run.evals[evaluation]["metrics"][metric]
        for run in runs
        if metric in run.evals.get(evaluation, {}).get("metrics", {})
    }
    if len(values) < 2 or metric.endswith(NOT_RANKED):
        return set()
    top = (min if metric.endswith(LOWER_IS_BETTER) else max)(values.values())
    # What looks equal is equal.
    shown = tables.format_value(metric, top)
    winners = {n for n, v in values.items() if tables.format_value(metric, v) == shown}
    return winners if len(winners) < len(values) else set()


def metrics_of(runs: Sequence[Run], evaluation: str) -> list[str]:
    """All metrics that some run has of an evaluation, in order of first use."""
    return _keys(run.evals.get(evaluation, {}).get("metrics", {}) for run in runs)


def evaluations_of(runs: Sequence[Run]) -> list[str]:
    """All evaluations that some run has, in order of first use."""
    return _keys(run.evals for run in runs)


def _paired(
    first: Run, other: Run, evaluation: str, metric: str
) -> tuple[float, float] | None:
    key = f"{evaluation}/{metric}"
    rows = [run.per_clip.get(key) for run in (first, other)]
    if not is_paired(first, other, evaluation) or any(r is None for r in rows):
        return None

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = [(r[:, 0] @ weights) / (r[:, 1] @ weights) for r in rows]
        return {metric: means[1] - means[0]}

    parts = first.per_clip.get(f"{evaluation}/parts")
    return bootstrap.intervals(len(rows[0]), statistic, part_of=parts)[metric]


def _per_clip(file: Path, evals: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What each clip adds; must give the numbers of results.json."""
    if not file.is_file():
        return {}
    advice = "remove it, or write both again with --mode=eval"
    try:
        with np.load(file) as arrays:
            found = dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise RunError(f"{file}: no arrays of numpy ({error}): {advice}") from None
    for key, rows in found.items():
        evaluation, _, metric = key.rpartition("/")
        value = evals.get(evaluation, {}).get("metrics", {}).get(metric)
        if metric == "clips" or value is None:
            continue
        total, count = rows.sum(axis=0)
        if not math.isclose(total / count, value, rel_tol=1e-9, abs_tol=1e-9):
            raise RunError(
                f"{file} is not of the results.json beside it: {metric} of {evaluation} "
                f"is {total / count:.6g} here, {value:.6g} there: {advice}"
            )
    return found


def _object(file: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise RunError(f"{file}: {where} is {found}, expected a JSON object")
    return value


def _check_entry(file: Path, where: str, entry: Any) -> None:
    """Metrics are numbers, intervals are pairs of them."""
    entry = _object(file, where, entry)
    metrics = _object(file, f"{where}.metrics", entry.get("metrics"))
    entry.setdefault("intervals", {})
    entry.setdefault("protocol", {})
    _object(file, f"{where}.protocol", entry["protocol"])
    for metric, value in metrics.items():
        if not _is_number(value):
            raise RunError(
                f"{file}: {where}.metrics.{metric} is {value!r}, expected a number"
            )
    intervals = _object(file, f"{where}.intervals", entry["intervals"])
    for metric, pair in intervals.items():
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        ):
            raise RunError(
                f"{file}: {where}.intervals.{metric} is {pair!r}, expected two numbers"
            )


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _keys(mappings: Any) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _differ(values: Any) -> bool:
    return len({json.dumps(value, sort_keys=True) for value in values}) > 1


def _list(values: Mapping[str, Any]) -> str:
    """What each run has; runs with the same are named together."""
    named: dict[str, list[str]] = {}
    for name, value in values.items():
        named.setdefault(page.fact_text(value), []).append(name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in named.items())
