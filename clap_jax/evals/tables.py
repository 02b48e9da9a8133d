"""Metrics as tables, on a terminal and on a page."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from clap_jax.evals.base import Result

DIRECTIONS = {"t2a": "text → audio", "a2t": "audio → text"}
# Metrics without their prefix, where that is not enough.
NAMES = {
    "acc": "accuracy",
    "acc_deviation": "deviation of accuracy",
    "top5": "top-5 accuracy",
    "mAP_deviation": "deviation of mAP",
    "hit_F@0.5": "hits 0.5 s F",
    "hit_F@3": "hits 3 s F",
    "centre": "centre inside",
    "peak": "peak inside",
    "F1_micro": "F1 micro",
    "F1_macro": "F1 macro",
    "median_rank": "median rank",
    "exact": "exact answers",
    "bad_clips": "bad clips",
}
PREFIXES = (*("zeroshot_", "probe_", "boundary_", "localisation_", "head_", "label_"),)
ABSENT = "Not evaluated"
KINDS = {
    "retrieval": "Retrieval",
    "zeroshot": "Zero-shot classification",
    "answers": "Written answers",
    "probe": "Probes on frozen embeddings",
    "boundaries": "Boundaries of sections",
    "localisation": "When sentences are heard",
    "classifier": "Supervised classification",
    "captions": "Written captions",
}


class Cell(NamedTuple):
    """A metric as text, and its interval, "" where it has none."""

    text: str
    interval: str = ""


class Rows(NamedTuple):
    """All metrics as text, one row an evaluation and direction.

    columns: in order of first use. rows: evaluation, direction or "", column -> cell; a
    metric without direction stands in the first row of its evaluation.
    """

    columns: list[str]
    rows: list[tuple[str, str, dict[str, Cell]]]

    @property
    def directed(self) -> bool:
        return any(direction for _, direction, _ in self.rows)


def table_rows(results: Mapping[str, Result]) -> Rows:
    """All metrics of some evaluations."""
    rows: list[tuple[str, str, dict[str, Cell]]] = []
    columns: dict[str, None] = {}
    for name, result in results.items():
        own: dict[str, dict[str, Cell]] = {}
        for metric, value in result.metrics.items():
            prefix, _, rest = metric.partition("_")
            directed = prefix in DIRECTIONS
            direction = DIRECTIONS[prefix] if directed else next(iter(own), "")
            column = metric_name(rest if directed else metric)
            interval = format_interval(metric, result.intervals.get(metric))
            cell = Cell(format_value(metric, value), interval)
            own.setdefault(direction, {})[column] = cell
            columns[column] = None
        rows += [(name, direction, cells) for direction, cells in own.items()]
    # What went wrong stands last, whatever evaluation brought it first.
    ordered = [c for c in columns if c != NAMES["bad_clips"]]
    return Rows(ordered + [c for c in columns if c == NAMES["bad_clips"]], rows)


def headline(metrics: Sequence[str]) -> str:
    """The metric that stands for an evaluation: the first one that is a share."""
    shares = [metric for metric in metrics if is_share(metric)]
    return next(iter(shares or metrics), "")


def metric_name(metric: str) -> str:
    """A metric with its direction, for people."""
    prefix, _, rest = metric.partition("_")
    if prefix in DIRECTIONS:
        return f"{DIRECTIONS[prefix]} {NAMES.get(rest, rest)}"
    for prefix in PREFIXES:
        metric = metric.removeprefix(prefix)
    return NAMES.get(metric, metric)


def is_share(metric: str) -> bool:
    """Whether a metric is between 0 and 1 and shown in percent."""
    parts = ("R@", "mAP", "AUC", "F1", "F@")
    ends = ("acc", "top5", "acc_deviation", "exact", "_AP", "_centre", "_peak")
    return metric.endswith(ends) or any(part in metric for part in parts)


def format_value(metric: str, value: float) -> str:
    """Shares as percent with one decimal, ranks and counts as whole numbers."""
    if metric.endswith(("rank", "_clips")):
        return f"{value:,.0f}"
    if is_share(metric):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"


def format_interval(metric: str, interval: Sequence[float] | None) -> str:
    """`80.1 – 93.2`, in the unit of the metric, or "" for none."""
    if interval is None:
        return ""
    low, high = (format_value(metric, value) for value in interval)
    return f"{low.removesuffix(' %')} – {high.removesuffix(' %')}"


def by_kind(results: Mapping[str, Result]) -> dict[str, dict[str, Result]]:
    """Evaluations that share their columns, under a heading."""
    kinds: dict[str, dict[str, Result]] = {}
    for name, result in results.items():
        kind = result.protocol.get("kind", "")
        kinds.setdefault(KINDS.get(kind, "Results"), {})[name] = result
    return kinds


def divided(
    results: Mapping[str, Result],
) -> tuple[dict[str, Result], dict[str, tuple[str, str]]]:
    """Evaluations that were done; of the others (`Absent`), why not and what to do."""
    absent = {
        name: (result.protocol["reason"], result.protocol.get("prepare", ""))
        for name, result in results.items()
        if result.protocol.get("kind") == "absent"
    }
    return {name: results[name] for name in results if name not in absent}, absent


def print_table(results: Mapping[str, Result], console=None) -> None:
    """Prints one table a kind of evaluation, with intervals where they fit, and what is
    absent.

    Args:
        results: evaluation name -> result.
        console: a `rich.console.Console`; by default one on standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    results, absent = divided(results)
    look = {"box": box.SIMPLE_HEAD, "title_justify": "left", "padding": 0}
    for kind, members in by_kind(results).items():
        found = table_rows(members)
        table = _rich_table(kind, found, look, with_intervals=True)
        wide = Measurement.get(console, console.options.update(max_width=999), table)
        if wide.maximum > console.width:  # they stand in the report
            table = _rich_table(kind, found, look, with_intervals=False)
        console.print(table)
    if absent:
        table = Table("evaluation", "reason", "what to do", title=ABSENT, **look)
        for name, said in absent.items():
            table.add_row(*map(Text, (name, *said)))
        console.print(table)


def _rich_table(kind: str, found: Rows, look: dict, with_intervals: bool):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=kind, **look)
    table.add_column("evaluation", overflow="fold")
    if found.directed:
        table.add_column("direction", no_wrap=True)
    for column in found.columns:
        table.add_column(column, justify="right")
    last = None
    for name, direction, cells in found.rows:
        row = [name if name != last else ""]
        row += [direction] if found.directed else []
        for column in found.columns:
            cell = cells.get(column, Cell(""))
            under = f"\n{cell.interval}" if with_intervals and cell.interval else ""
            row.append(cell.text + under)
        # Text, not str: rich would read "[...]" in a name as markup.
        table.add_row(*map(Text, row))
        last = name
    return table


def metrics_table(results: Mapping[str, Result], anchors: Mapping[str, str]) -> str:
    """Metrics with intervals as HTML; names lead to their part of the page.

    Args:
        results: evaluation name -> result.
        anchors: evaluation name -> id of its part, for those that have one.
    """
    found = table_rows(results)
    heads = [head("evaluation", "text")]
    heads += [head("direction", "text")] if found.directed else []
    heads += [head(column) for column in found.columns]
    lines, last = [], None
    for name, direction, cells in found.rows:
        label = html.escape(name)
        if name in anchors:
            label = f'<a href="#{anchors[name]}">{label}</a>'
        first = name != last
        row = f'<th scope="row">{label}</th>' if first else "<td></td>"
        row += text_cell(direction) if found.directed else ""
        for column in found.columns:
            row += value_cell(cells.get(column, Cell("")))
        lines.append(f'<tr class="{"first" if first else "more"}">{row}</tr>')
        last = name
    return table(heads, lines)


def absent_table(absent: Mapping[str, tuple[str, str]]) -> str:
    """Evaluations that were not done, why, and what to do."""
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f"{text_cell(reason, wide=True)}{text_cell(prepare, wide=True)}</tr>"
        for name, (reason, prepare) in absent.items()
    ]
    heads = [head("evaluation", "text")]
    heads += [head(text, "text wide") for text in ("reason", "what to do")]
    return table(heads, lines)


def table(
    heads: Iterable[str],
    lines: Iterable[str],
    kind: str = "",
    caption: str = "",
    tall: bool = False,
) -> str:
    """A table in a card that scrolls sideways; cells are HTML.

    kind: CSS classes ("sortable"). tall: scroll up and down as well.
    """
    over = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    own = f' class="{kind}"' if kind else ""
    card = "card tall" if tall else "card"
    # What scrolls must be reachable by keyboard.
    return (
        f'<div class="{card}" tabindex="0"><table{own}>{over}<thead><tr>'
        f"{''.join(heads)}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>"
        "</table></div>"
    )


def head(text: str, kind: str = "") -> str:
    own = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{own}>{html.escape(text)}</th>'


def text_cell(text: str, wide: bool = False) -> str:
    return f'<td class="text{" wide" if wide else ""}">{html.escape(text)}</td>'


def value_cell(cell: Cell, kind: str = "") -> str:
    own = f' class="{kind}"' if kind else ""
    under = (
        f'<span class="interval">{html.escape(cell.interval)}</span>'
        if cell.interval
        else ""
    )
    return f"<td{own}>{html.escape(cell.text)}{under}</td>"


def share_cell(share: float | None) -> str:
    """A share with a bar; None (or NaN) is a dash and sorts below all."""
    if share is None or share != share:
        return '<td data-value="-1">–</td>'
    return (
        f'<td data-value="{share:.6f}"><span class="bar"><i style="width: '
        f'{100 * share:.1f}%"></i></span><span>{100 * share:.1f} %</span></td>'
    )
