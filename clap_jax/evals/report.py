"""Results for people: a table on the terminal, results.json, report.html."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap_jax.evals import plots
from clap_jax.evals.base import Result

ABSENT = "Not evaluated"
DIRECTIONS = {"t2a": "text → audio", "a2t": "audio → text"}
NAMES = {
    "zeroshot_acc": "accuracy",
    "zeroshot_top5": "top-5 accuracy",
    "zeroshot_mAP": "mAP",
    "median_rank": "median rank",
    "bad_clips": "bad clips",
}


def table_rows(
    results: Mapping[str, Result],
) -> tuple[list[str], list[tuple[str, str, dict[str, str]]]]:
    """All metrics as text, one row an evaluation and direction.

    Returns:
        The columns in order of first use, and rows (evaluation, direction or "",
        column -> text). A metric without direction stands in the first row of its
        evaluation.
    """
    rows: list[tuple[str, str, dict[str, str]]] = []
    columns: dict[str, None] = {}
    for name, result in results.items():
        own: dict[str, dict[str, str]] = {}
        for metric, value in result.metrics.items():
            prefix, _, rest = metric.partition("_")
            directed = prefix in DIRECTIONS
            direction = DIRECTIONS[prefix] if directed else next(iter(own), "")
            column = rest if directed else metric
            column = NAMES.get(column, column)
            own.setdefault(direction, {})[column] = format_value(metric, value)
            columns[column] = None
        rows += [(name, direction, cells) for direction, cells in own.items()]
    # What went wrong stands last, whatever evaluation brought it first.
    ordered = [c for c in columns if c != NAMES["bad_clips"]]
    return ordered + [c for c in columns if c == NAMES["bad_clips"]], rows


def format_value(metric: str, value: float) -> str:
    """Shares as percent with one decimal, ranks and counts as whole numbers."""
    if metric.endswith(("rank", "_clips")):
        return f"{value:,.0f}"
    if "R@" in metric or "mAP" in metric or metric.endswith(("acc", "top5")):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"


def print_table(results: Mapping[str, Result], console=None) -> None:
    """Prints one table a kind of evaluation.

    Args:
        results: evaluation name -> result.
        console: a `rich.console.Console`; by default one on standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    results, absent = _divided(results)
    for kind, members in _by_kind(results).items():
        columns, rows = table_rows(members)
        directed = any(direction for _, direction, _ in rows)
        look = {"box": box.SIMPLE_HEAD, "title_justify": "left", "padding": 0}
        table = Table(title=kind, **look)
        table.add_column("evaluation", overflow="fold")
        if directed:
            table.add_column("direction", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        last = None
        for name, direction, cells in rows:
            row = [name if name != last else "", *([direction] if directed else [])]
            row += [cells.get(column, "") for column in columns]
            # Text, not str: rich would read "[...]" in a name as markup.
            table.add_row(*map(Text, row))
            last = name
        console.print(table)
    if absent:
        look = {"box": box.SIMPLE_HEAD, "title_justify": "left", "padding": 0}
        table = Table("evaluation", "reason", "what to do", title=ABSENT, **look)
        for name, protocol in absent.items():
            row = (name, protocol["reason"], protocol.get("prepare", ""))
            table.add_row(*map(Text, row))
        console.print(table)


def write_results(
    folder: Path | str, results: Mapping[str, Result], context: Mapping[str, Any]
) -> Path:
    """Writes results.json: numbers and how they were made.

    Args:
        folder: made if missing.
        results: evaluation name -> result.
        context: what holds for all evaluations (model, step, crop, ...); JSON values,
            numpy numbers and paths.

    Returns:
        The path of the file: `{"context": ..., "evals": {name: {"metrics": ...,
        "intervals": {metric: [low, high]}, "protocol": ...}}}`.

    Raises:
        ValueError: a metric is NaN or infinite.
        TypeError: a value in `context` has no JSON form.
    """
    content = {
        "context": dict(context),
        "evals": {
            name: {
                "metrics": result.metrics,
                "intervals": result.intervals,
                "protocol": result.protocol,
            }
            for name, result in results.items()
        },
    }
    text = json.dumps(
        content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain
    )
    return _write(Path(folder) / "results.json", text + "\n")


def write_report(
    folder: Path | str,
    results: Mapping[str, Result],
    metrics_jsonl_path: Path | str | None = None,
    context: Mapping[str, Any] | None = None,
    title: str = "Evaluation report",
) -> Path:
    """Writes plots/*.png and report.html, one file with everything inside.

    Args:
        folder: made if missing.
        results: evaluation name -> result.
        metrics_jsonl_path: the log of training, if there is one.
        context: what holds for all evaluations (model, step, crop, ...), shown as text.
        title: the heading.

    Returns:
        The path of report.html.

    Raises:
        ValueError: a broken line in the log.
    """
    folder = Path(folder)
    results, absent = _divided(results)
    figures = plots.plot_all(folder / "plots", results, metrics_jsonl_path)
    sections = [_facts(context)] if context else []
    sections += [
        f"<h2>{html.escape(kind)}</h2>\n{_html_table(members)}"
        for kind, members in _by_kind(results).items()
    ]
    sections += [_absent_table(absent)] if absent else []
    for group in ["", *results]:
        own = [figure for figure in figures if figure.group == group]
        protocol = results[group].protocol if group else {}
        if own or protocol:
            sections.append(
                f"<h2>{html.escape(group or 'Training')}</h2>\n{_facts(protocol)}\n"
                f'<div class="figures">{"".join(map(_html_figure, own))}</div>'
            )
    page = PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(sections))
    return _write(folder / "report.html", page)


def _divided(
    results: Mapping[str, Result],
) -> tuple[dict[str, Result], dict[str, dict[str, Any]]]:
    """Evaluations that were done, and the protocols of those that are absent."""
    absent = {
        name: result.protocol
        for name, result in results.items()
        if result.protocol.get("kind") == "absent"
    }
    return {name: results[name] for name in results if name not in absent}, absent


def _by_kind(results: Mapping[str, Result]) -> dict[str, dict[str, Result]]:
    """Evaluations that share their columns, under a heading."""
    headings = {"retrieval": "Retrieval", "zeroshot": "Zero-shot classification"}
    kinds: dict[str, dict[str, Result]] = {}
    for name, result in results.items():
        kind = result.protocol.get("kind", "")
        kinds.setdefault(headings.get(kind, "Results"), {})[name] = result
    return kinds


def _html_table(results: Mapping[str, Result]) -> str:
    columns, rows = table_rows(results)
    directed = any(direction for _, direction, _ in rows)
    heads = ["evaluation", *(["direction"] if directed else []), *columns]
    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in heads) + "</tr>"]
    last = None
    for name, direction, cells in rows:
        texts = [name if name != last else "", *([direction] if directed else [])]
        texts += [cells.get(column, "") for column in columns]
        cells_html = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        place = "more" if name == last else "first"
        lines.append(f'<tr class="{place}">{cells_html}</tr>')
        last = name
    kind = "directed" if directed else "plain"
    table = f'<table class="{kind}">' + "\n".join(lines) + "</table>"
    return f'<div class="scroll">{table}</div>'


def _absent_table(absent: Mapping[str, Mapping[str, Any]]) -> str:
    """What was not evaluated, why, and what would help."""
    rows = [("evaluation", "reason", "what to do")] + [
        (name, said["reason"], said.get("prepare", "")) for name, said in absent.items()
    ]
    lines = []
    for number, row in enumerate(rows):
        cell = "td" if number else "th"
        cells = "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row)
        lines.append(f'<tr class="first">{cells}</tr>')
    table = f'<table class="words">{"".join(lines)}</table>'
    return f'<h2>{ABSENT}</h2>\n<div class="scroll">{table}</div>'


def _html_figure(figure: plots.Plot) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    text = html.escape(
        f"{figure.group}: {figure.title}" if figure.group else figure.title
    )
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"></figure>'


def _facts(facts: Mapping[str, Any]) -> str:
    """Names and values on one flowing line."""
    items = "".join(
        f"<div><dt>{html.escape(str(key).replace('_', ' '))}</dt>"
        f"<dd>{html.escape(_fact_text(value))}</dd></div>"
        for key, value in facts.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def _fact_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " · ".join(map(_fact_text, value))
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_fact_text(item)}" for key, item in value.items())
    return str(value)


def _plain(value: Any) -> Any:
    """JSON form of what `json` does not know."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")


def _write(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f6f9; color: #1f2733;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.8rem; }
table, figure { background: #fff; border: 1px solid #e6e9ee; border-radius: 10px; }
table { border-spacing: 0; width: 100%; overflow: hidden; }
th, td { padding: 0.5rem 0.9rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; font-size: 0.82rem; color: #66707f; background: #fafbfc; }
tr.first td { border-top: 1px solid #e6e9ee; }
th:first-child, td:first-child, .directed th:nth-child(2), .directed td:nth-child(2)
  { text-align: left; }
td:first-child { font-weight: 600; }
.words td, .words th { text-align: left; white-space: normal; }
.scroll { overflow-x: auto; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0 0 1rem; }
dt { font-size: 0.78rem; color: #66707f; }
dd { margin: 0; overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; padding: 0.5rem; text-align: center; }
img { max-width: 100%; height: auto; }
""".strip()

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
