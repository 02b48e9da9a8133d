"""Results for people and programs: results.json, per_clip.npz, report.html.

    python -m clap_jax.main --mode=eval --config=... --workdir=DIR

and the end of training write them into the workdir. `clap_jax.evals.compare` puts
several side by side.
"""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax.evals import details, page, plots, tables
from clap_jax.evals.base import Result
from clap_jax.evals.excerpts import Excerpts
from clap_jax.evals.tables import print_table

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

__all__ = ["print_table", "write_report", "write_results"]

RESULTS, PER_CLIP, REPORT = "results.json", "per_clip.npz", "report.html"
TILES = 8
"""So many evaluations at most have their headline number at the top."""
MISSES_SHOWN = 6
"""Cards of worst answers for each evaluation and direction."""


def write_results(
    folder: Path | str,
    results: Mapping[str, Result],
    context: Mapping[str, Any],
) -> Path:
    """Writes results.json, numbers and how they were made, and per_clip.npz beside it.

    Args:
        folder: made if missing.
        results: evaluation name -> result.
        context: what holds for all evaluations (model, step, crop, ...); JSON values,
            numpy numbers and paths.

    Returns:
        The path of the file: `{"context": ..., "evals": {name: {"metrics": ...,
        "intervals": {metric: [low, high]}, "protocol": ..., "prompts": {prompt: score},
        "classes": {class: score}, "written": [{"clip": ..., "caption": ...,
        "references": [...], "scores": {...}}, ...]}}}`, the last three where there are
        some. per_clip.npz has `<name>/clips`, `<name>/<metric>` and, of some,
        `<name>/parts`: `clips`, `per_clip` and `parts` of the result.

    Raises:
        ValueError: a metric is NaN or infinite.
        TypeError: a value in `context` has no JSON form.
    """
    folder = Path(folder)
    content = {
        "context": dict(context),
        "evals": {name: _entry(result) for name, result in results.items()},
    }
    text = json.dumps(
        content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain
    )
    page.write(folder / PER_CLIP, _per_clip(results))
    return page.write(folder / RESULTS, text + "\n")


def _entry(result: Result) -> dict[str, Any]:
    entry = {
        "metrics": result.metrics,
        "intervals": result.intervals,
        "protocol": result.protocol,
    }
    if "prompt_scores" in result.arrays:
        scores = result.arrays["prompt_scores"].tolist()
        entry["prompts"] = dict(zip(result.labels["prompts"], scores, strict=True))
    classes = {
        row.name: row.accuracy
        if row.average_precision is None
        else row.average_precision
        for row in details.class_rows(result)
    }
    if result.written:
        entry["written"] = [dataclasses.asdict(one) for one in result.written]
    return entry | ({"classes": classes} if classes else {})


def _per_clip(results: Mapping[str, Result]) -> bytes:
    arrays = {}
    for name, result in results.items():
        if result.clips is not None and result.per_clip:
            arrays[f"{name}/clips"] = result.clips
            arrays |= {f"{name}/{key}": rows for key, rows in result.per_clip.items()}
            if result.parts is not None:
                arrays[f"{name}/parts"] = result.parts
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def write_report(
    folder: Path | str,
    results: Mapping[str, Result],
    metrics_jsonl_path: Path | str | None = None,
    context: Mapping[str, Any] | None = None,
    title: str = "Evaluation report",
    sources: Mapping[str, "Source"] | None = None,
) -> Path:
    """Writes plots/*.png and report.html, one file with everything inside.

    The page asks nothing of any network. Sounds in it take at most
    `excerpts.BUDGET_BYTES`; beyond that, worst answers come without.

    Args:
        folder: made if missing.
        results: evaluation name -> result.
        metrics_jsonl_path: the log of training, if there is one.
        context: what holds for all evaluations (model, step, crop, ...), shown as text.
        title: the heading.
        sources: evaluation name -> its clips, so that worst answers can be heard.

    Returns:
        The path of report.html.

    Raises:
        ValueError: a broken line in the log.
    """
    folder, sources = Path(folder), sources or {}
    results, absent = tables.divided(results)
    figures = plots.plot_all(folder / "plots", results, metrics_jsonl_path)
    anchors: dict[str, str] = {}
    for name in results:
        anchors[name] = page.anchor(f"eval {name}", anchors.values())
    parts = [page.facts(context or {})]
    training = [figure for figure in figures if not figure.group]
    few = len(results) <= TILES
    parts.append(_tiles(results, anchors) if few else "")
    marks = {} if few else {mark: name for name, mark in anchors.items()}
    marks |= {"absent": tables.ABSENT} if absent else {}
    marks |= {"training": "Training"} if training else {}
    parts.append(page.links(marks))
    for kind, members in tables.by_kind(results).items():
        parts.append(page.section(kind, tables.metrics_table(members, anchors)))
    if any(result.intervals for result in results.values()):
        parts.append('<p class="small">Small numbers: 95 % confidence intervals.</p>')
    if absent:
        table = tables.absent_table(absent)
        parts.append(page.section(tables.ABSENT, table, anchor="absent"))
    parts += _evaluations(results, figures, anchors, sources)
    if training:
        drawn = details.figures(training)
        parts.append(page.section("Training", drawn, anchor="training"))
    body = "\n".join(filter(None, parts))
    subtitle = "Evaluation report" if title != "Evaluation report" else ""
    return page.write(folder / REPORT, page.page(title, body, subtitle))


def _tiles(results: Mapping[str, Result], anchors: Mapping[str, str]) -> str:
    """The headline number of every evaluation."""
    found = []
    for name, result in results.items():
        metric = tables.headline(list(result.metrics))
        if metric:
            value = tables.format_value(metric, result.metrics[metric])
            interval = tables.format_interval(metric, result.intervals.get(metric))
            what = tables.metric_name(metric)
            found.append((anchors[name], name, value, what, interval))
    return page.tiles(found) if found else ""


def _evaluations(
    results: Mapping[str, Result],
    figures: list[plots.Plot],
    anchors: Mapping[str, str],
    sources: Mapping[str, "Source"],
) -> list[str]:
    """The part of the page of every evaluation."""
    excerpts = Excerpts()
    misses = details.misses(results, sources, MISSES_SHOWN, excerpts)
    written = details.written(results, sources, MISSES_SHOWN, excerpts)
    parts = []
    for name, result in results.items():
        # The page has the confusion as a table.
        own = [f for f in figures if f.group == name and f.kind != "confusion"]
        content = (
            details.protocol(result.protocol),
            details.figures(own),
            details.confusion_table(result),
            details.classes_table(result),
            details.prompts_table(result),
            misses.get(name, ""),
            written.get(name, ""),
        )
        if any(content):
            parts.append(page.section(name, *content, anchor=anchors[name]))
    return parts


def _plain(value: Any) -> Any:
    """JSON form of what `json` does not know."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")
