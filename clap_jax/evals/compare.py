"""Several models side by side, from what their evaluations wrote.

    python -m clap_jax.evals.compare RUN_A RUN_B ... --out=compare.html

(or `clap-jax compare`). Differences are to the first run.
"""

import argparse
import html
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clap_jax.evals import details, page, runs, tables
from clap_jax.evals.runs import Difference, Run, RunError
from clap_jax.evals.tables import Cell

DESCRIPTION = """Put the results of several models side by side.

RUN is a workdir, or a results.json. The first one is what the others are held against.
Where two runs kept what each clip adds (per_clip.npz), differences have 95 % intervals of
the bootstrap paired by clip. Evaluations that were made in different ways (other clips,
prompts, crops, captions, ...) are named, and nothing of them is called best."""

EPILOG = """examples:
  clap-jax compare runs/base runs/larger
  clap-jax compare runs/*/results.json --out=all.html --names=base,larger,tuned"""

NOT_COMPARABLE = "Not comparable"
CAUTION = "Caution"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`, put on any parser."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="workdir or results.json"
    )
    parser.add_argument(
        "--out",
        default="compare.html",
        metavar="FILE",
        help="the page to write (default: %(default)s)",
    )
    parser.add_argument(
        "--names", metavar="A,B,...", help="what the runs are called (default: folders)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and print the table; returns the exit status.

    Raises ValueError (RunError), in sentences.
    """
    found = runs.read_all(options.runs)
    if len(found) < 2:
        raise RunError(f"found {len(found)} run, expected two or more to compare")
    if options.names:
        names = [name.strip() for name in options.names.split(",")]
        if len(names) != len(found) or len(set(names)) < len(names) or not all(names):
            raise RunError(
                f"--names is {options.names!r}, expected {len(found)} different names"
            )
        found = [one._replace(name=name) for one, name in zip(found, names)]
    print_table(found)
    path = write(options.out, found)
    print(f"{path}: {len(runs.evaluations_of(found))} evaluations of {len(found)} runs")
    return 0


def write(path: Path | str, found: Sequence[Run]) -> Path:
    """Writes the page, one file with everything inside; returns its path."""
    names = runs.evaluations_of(found)
    anchors: dict[str, str] = {}
    for name in names:
        anchors[name] = page.anchor(f"eval {name}", anchors.values())
    parts = [_runs_table(found)]
    for name in names:
        if runs.protocol_differences(found, name):
            text = (
                f"{NOT_COMPARABLE}: {name} was evaluated in different ways, see there."
            )
            parts.append(page.note(text, "warning"))
    parts.append(page.section("Headline numbers", _headlines(found, anchors)))
    nowhere = {name for one in found for name in one.absent} - set(names)
    if nowhere:
        parts.append(page.note(f"Evaluated in no run: {', '.join(sorted(nowhere))}."))
    parts += [_evaluation(found, name, anchors[name]) for name in names]
    title = f"Comparison of {len(found)} runs"
    body = "\n".join(filter(None, parts))
    return page.write(
        Path(path), page.page(title, body, " · ".join(r.name for r in found))
    )


def _runs_table(found: Sequence[Run]) -> str:
    """What the runs are, one a row."""
    keys = list(dict.fromkeys(key for one in found for key in one.context))
    lines = []
    for one in found:
        cells = "".join(
            tables.text_cell(page.fact_text(one.context.get(key))) for key in keys
        )
        lines.append(
            f'<tr><th scope="row">{html.escape(one.name)}</th>{cells}'
            f"{tables.text_cell(str(one.path))}</tr>"
        )
    heads = [
        tables.head(text.replace("_", " "), "text") for text in ("run", *keys, "file")
    ]
    return page.section("Runs", tables.table(heads, lines))


def _headlines(found: Sequence[Run], anchors: dict[str, str]) -> str:
    """One metric of every evaluation."""
    lines = []
    for name, mark in anchors.items():
        metric = tables.headline(runs.metrics_of(found, name))
        label = f'<a href="#{mark}">{html.escape(name)}</a>'
        if runs.protocol_differences(found, name):
            label += f'<span class="difference worse">{NOT_COMPARABLE.lower()}</span>'
        text = tables.text_cell(tables.metric_name(metric))
        cells = _cells(found, name, metric)
        lines.append(f'<tr><th scope="row">{label}</th>{text}{cells}</tr>')
    heads = [tables.head("evaluation", "text"), tables.head("metric", "text")]
    return tables.table(heads + [tables.head(one.name) for one in found], lines)


def _evaluation(found: Sequence[Run], name: str, mark: str) -> str:
    """Everything about one evaluation."""
    parts = [
        page.note(f"{NOT_COMPARABLE}: {text}.", "warning")
        for text in runs.protocol_differences(found, name)
    ]
    having = [one for one in found if name in one.evals]
    parts += [
        page.note(f"{CAUTION}: {text}.") for text in runs.heard_differences(found, name)
    ]
    comparable = not parts
    for one in found:
        if one not in having:
            why = one.absent.get(name, "it was not evaluated")
            parts.append(page.note(f"{one.name} has no numbers: {why}."))
    if comparable and having:
        said = having[0].evals[name]["protocol"]
        common = {key: said[key] for key in said if key not in runs.OUTCOMES}
        parts.append(details.protocol(common))
    heads = [tables.head("metric", "text")] + [tables.head(one.name) for one in found]
    lines = [
        f'<tr><th scope="row">{html.escape(tables.metric_name(metric))}</th>'
        f"{_cells(found, name, metric)}</tr>"
        for metric in runs.metrics_of(found, name)
    ]
    parts.append(tables.table(heads, lines))
    parts.append(f'<p class="small">{html.escape(_about_intervals(found, name))}</p>')
    parts.append(_classes(having, name))
    return page.section(name, *parts, anchor=mark)


def _about_intervals(found: Sequence[Run], name: str) -> str:
    """How the small numbers are to be read."""
    first, *others = found
    unpaired = [one.name for one in others if not runs.is_paired(first, one, name)]
    paired = [one.name for one in others if one.name not in unpaired]
    said = []
    if paired:
        said.append(
            f"Differences are to {first.name}, with 95 % intervals of the bootstrap "
            "paired by clip; coloured where zero is outside."
        )
    if unpaired:
        said.append(
            f"Unpaired: {', '.join(unpaired)} and {first.name} lack per_clip.npz of the "
            "same clips, so differences have no interval, and the intervals of the "
            "values know nothing of each other."
        )
    return " ".join(said)


def _cells(found: Sequence[Run], name: str, metric: str) -> str:
    """A metric of every run: value, its interval, difference to the first run."""
    comparable = not runs.protocol_differences(found, name)
    winners = runs.best(found, name, metric) if comparable else set()
    cells = []
    for position, one in enumerate(found):
        entry = one.evals.get(name, {"metrics": {}})
        if metric not in entry["metrics"]:
            cells.append("<td>–</td>")
            continue
        value = tables.format_value(metric, entry["metrics"][metric])
        interval = tables.format_interval(metric, entry["intervals"].get(metric))
        changed = None
        if position and comparable:
            changed = runs.difference(found[0], one, name, metric)
        kind = "best" if one.name in winners else ""
        cell = tables.value_cell(Cell(value, interval), kind)
        if changed is not None:
            cell = (
                cell.removesuffix("</td>") + _difference_html(metric, changed) + "</td>"
            )
        cells.append(cell)
    return "".join(cells)


def _difference_html(metric: str, changed: Difference) -> str:
    better = changed.value > 0
    if metric.endswith(runs.LOWER_IS_BETTER):
        better = not better
    kind = f" {'better' if better else 'worse'}" if changed.is_clear else ""
    text = html.escape(difference_text(metric, changed))
    return f'<span class="difference{kind}">{text}</span>'


def difference_text(metric: str, changed: Difference) -> str:
    """`+2.5 (−1.0 to 6.0)`; shares in points of a percent."""

    def signed(value: float) -> str:
        if tables.is_share(metric):
            return f"{100 * value:+.1f}"
        whole = metric.endswith(("rank", "_clips"))
        return f"{value:+,.0f}" if whole else f"{value:+.4g}"

    text = signed(changed.value)
    if changed.interval is not None:
        low, high = map(signed, changed.interval)
        text += f" ({low} to {high})"
    return text.replace("-", "−")


def _classes(having: Sequence[Run], name: str) -> str:
    """Every class of all runs that have numbers of it, folded."""
    classes = {one.name: one.evals[name].get("classes", {}) for one in having}
    every = list(dict.fromkeys(key for own in classes.values() for key in own))
    if not every:
        return ""
    lines = []
    for label in every:
        cells = "".join(tables.share_cell(own.get(label)) for own in classes.values())
        lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>')
    heads = [tables.head("class", "text"), *map(tables.head, classes)]
    table = tables.table(heads, lines, "sortable", tall=len(every) > 20)
    return page.folded(f"{len(every)} classes", table)


def print_table(found: Sequence[Run], console=None) -> None:
    """Prints all metrics of all runs, best ones bold, and what is not comparable."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("evaluation", "metric"):
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_column(Text(one.name), justify="right")
    for name in runs.evaluations_of(found):
        comparable = not runs.protocol_differences(found, name)
        for position, metric in enumerate(runs.metrics_of(found, name)):
            winners = runs.best(found, name, metric) if comparable else set()
            row = [Text(name if not position else ""), Text(tables.metric_name(metric))]
            for one in found:
                value = one.evals.get(name, {}).get("metrics", {}).get(metric)
                text = "–" if value is None else tables.format_value(metric, value)
                row.append(Text(text, "bold" if one.name in winners else ""))
            table.add_row(*row)
    console.print(table)
    for name in runs.evaluations_of(found):
        for text in runs.protocol_differences(found, name):
            console.print(Text(f"{NOT_COMPARABLE}: {name}: {text}", "bold red"))
        for text in runs.heard_differences(found, name):
            console.print(Text(f"{CAUTION}: {name}: {text}", "yellow"))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m clap_jax.evals.compare", allow_abbrev=False
    )
    add_arguments(parser)
    options = parser.parse_args(words)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        if os.environ.get("CLAP_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
