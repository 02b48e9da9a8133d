"""Figures of a run as PNG files.

Matplotlib is imported inside functions (it is slow to import), through its
object-oriented face: no global figure, no backend to choose, safe beside other users.
"""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clap_jax.evals import svg
from clap_jax.evals.base import Result

INK, MUTED, GRID = "#1f2733", "#66707f", "#e6e9ee"
# One colour a direction, the same in every figure and in the report.
TEXT_TO_AUDIO, AUDIO_TO_TEXT = "#2463c9", "#e0782f"
SERIES = (TEXT_TO_AUDIO, AUDIO_TO_TEXT, "#2a9d78", "#8e5bc0", "#c9405b", "#8a7a3a")
SHADES = ("#ffffff", "#d5e3f7", "#8fb6ea", "#3f7dd6", "#173f87", "#0b1f47")
DIVERGING = ("#4a2006", "#8f4312", "#d9752e", "#f0b48b", "#fae2d2", *SHADES)

DOTS_PER_INCH = 150
LABELLED_CLASSES = 50
COUNTED_CLASSES = 20
LABELLED_CAPTIONS = 20
# Curves of the evaluations over training, by the last part of their name.
HEADLINES = {
    "t2a_R@1": "text → audio R@1",
    "a2t_R@1": "audio → text R@1",
    "zeroshot_acc": "zero-shot accuracy",
    "zeroshot_mAP": "zero-shot mAP",
}


class Plot(NamedTuple):
    """A figure: its file, its evaluation ("" = training), the array, and as SVG."""

    path: Path
    group: str
    kind: str
    title: str
    svg: str


def plot_all(
    folder: Path | str,
    results: Mapping[str, Result],
    metrics_jsonl: Path | str | None = None,
) -> list[Plot]:
    """Writes every figure that the results and the log have data for.

    Args:
        folder: made if missing; files of the same name are replaced.
        results: evaluation name -> result.
        metrics_jsonl: the log of training; None or a missing file gives no curves.

    Returns:
        The figures, training first.

    Raises:
        ValueError: a broken line in the log (not the last one).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    history = read_history(metrics_jsonl)
    losses = {k: v for k, v in history.items() if _is_loss(k)}
    if losses:
        figures.append(("", "loss", "Training loss", loss_figure(losses)))
    curves = {k: v for k, v in history.items() if _is_headline(k) and len(v[0]) > 1}
    if curves:
        figures.append(("", "evals", "Evaluations", progress_figure(curves)))
    for name, result in results.items():
        for kind, (title, draw) in RESULT_FIGURES.items():
            if kind in result.arrays:
                figures.append((name, kind, title, draw(name, result)))
    plots = []
    for group, kind, title, figure in figures:
        path = folder / f"{_file_name(group or 'train')}_{kind.split('_')[0]}.png"
        _save(figure, path)
        label = f"{group}: {title}" if group else title
        drawn = svg.inline(figure, label, f"figure{len(plots)}")
        plots.append(Plot(path, group, kind, title, drawn))
    return plots


def read_history(path: Path | str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The numbers of a metrics.jsonl by key: (steps, values), steps ascending.

    After a resume a step can occur twice; the later line holds. A last line that a
    killed run left unfinished is ignored.

    Raises:
        ValueError: any other line that is not a JSON object with a `step`.
    """
    if path is None or not Path(path).is_file():
        return {}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step, "
                f"found {line[:60]!r}"
            ) from error
        for key, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if key != "step" and is_number:
                found.setdefault(key, {})[step] = float(value)
    history = {}
    for key, values in found.items():
        steps = sorted(values)
        history[key] = np.array(steps), np.array([values[step] for step in steps])
    return history


def loss_figure(losses):
    """Loss over steps, each value pale and a running mean on top.

    Args:
        losses: key -> (steps [k], values [k]).
    """
    figure, axes = _figure(7.2, 4.0)
    for colour, (key, (steps, values)) in zip(_colours(), sorted(losses.items())):
        name = key.replace("_", " ")
        marker = "o" if len(values) == 1 else None
        if len(values) < 200:  # each is a mean over a log interval already
            axes.plot(steps, values, color=colour, lw=1.8, marker=marker, label=name)
            continue
        axes.plot(steps, values, color=colour, lw=0.9, alpha=0.35)
        smooth = running_mean(values, max(3, len(values) // 40))
        axes.plot(steps, smooth, color=colour, lw=2.0, label=f"{name} (running mean)")
    if not any((values < 0).any() for _, values in losses.values()):
        axes.set_ylim(bottom=0)
    _title(axes, "Training loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a pair)")
    _integer_ticks(axes.xaxis)
    _legend(axes, "upper right")
    return figure


def running_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """Centred mean over 2 * half_width + 1 values, fewer at the ends; skips NaN."""
    finite = np.isfinite(values)
    totals = np.append(0.0, np.cumsum(np.where(finite, values, 0.0)))
    counts = np.append(0, np.cumsum(finite))
    places = np.arange(len(values))
    low = np.maximum(places - half_width, 0)
    high = np.minimum(places + half_width + 1, len(values))
    seen = counts[high] - counts[low]
    means = (totals[high] - totals[low]) / np.maximum(seen, 1)
    return np.where(seen > 0, means, np.nan)


def progress_figure(curves):
    """Headline metrics of the evaluations over steps, in percent.

    Args:
        curves: `eval/<name>/<metric>` -> (steps [k], shares [k]).
    """
    figure, axes = _figure(7.2, 4.0)
    # Sorted by name, then as in HEADLINES: text to audio gets its blue.
    parts = [key.removeprefix("eval/").rsplit("/", 1) for key in curves]
    parts.sort(key=lambda part: (part[0], list(HEADLINES).index(part[1])))
    for colour, (name, metric) in zip(_colours(), parts):
        steps, values = curves[f"eval/{name}/{metric}"]
        label = f"{name}: {HEADLINES[metric]}"
        axes.plot(
            steps, 100 * values, color=colour, lw=1.8, marker="o", ms=3.5, label=label
        )
    _title(axes, "Evaluations during training")
    axes.set_xlabel("step")
    axes.set_ylabel("score (%)")
    axes.set_ylim(0, 100)
    _integer_ticks(axes.xaxis)
    _legend(axes, "best")
    return figure


def similarity_figure(name: str, result: Result):
    """Cosines of captions (rows) with clips (columns); the diagonal holds the pairs."""
    matrix = result.arrays["similarity"]
    captions = result.labels.get("captions", [])
    size = len(matrix)
    named = size <= LABELLED_CAPTIONS and len(captions) == size
    figure, axes = _figure(9.4 if named else 6.6, 5.6, grid=False)
    low, high = float(matrix.min()), float(matrix.max())
    if low < 0 < high:  # white is zero: pairs that are alike are blue
        high = max(-low, high)
        low = -high
    shades = _shades(DIVERGING if low < 0 else SHADES)
    image = axes.imshow(matrix, cmap=shades, vmin=low, vmax=high)
    _title(axes, f"{name}: similarity of captions and clips")
    axes.set_xlabel("clip (number in this figure)")
    axes.set_ylabel("" if named else "caption (number in this figure)")
    ticks = np.arange(size) if named else np.arange(0, size, max(1, size // 8))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if named:
        axes.tick_params(axis="y", length=0)
        _tick_labels(axes.yaxis, [_shorten(text, 44) for text in captions], 8)
    _colour_bar(figure, axes, image, "cosine similarity")
    return figure


def recall_figure(name: str, result: Result):
    """Recall over the number of results looked at, both directions, and chance."""
    figure, axes = _figure(6.6, 4.4)
    shown = (
        ("recall_t2a", TEXT_TO_AUDIO, "text → audio"),
        ("recall_a2t", AUDIO_TO_TEXT, "audio → text"),
    )
    for key, colour, label in shown:
        if key not in result.arrays:
            continue
        recall = 100 * result.arrays[key]
        depth = np.arange(1, len(recall) + 1)
        axes.plot(depth, recall, color=colour, lw=2.2, label=label, clip_on=False)
        marked = [k for k in (1, 5, 10) if k <= len(recall)]
        at = np.array(marked) - 1
        axes.plot(marked, recall[at], "o", color=colour, ms=5.5, clip_on=False)
    clips = result.protocol.get("clips")
    if clips and not result.protocol.get("multi_positive"):
        chance = 100 * np.minimum(depth / clips, 1)
        style = {"color": MUTED, "lw": 1.2, "ls": (0, (4, 3))}
        axes.plot(depth, chance, label="chance (text → audio)", **style)
    _title(axes, f"{name}: recall")
    axes.set_xlabel("k (results looked at)")
    axes.set_ylabel("recall@k (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(min(1, len(depth) - 1), max(len(depth), 2))
    axes.set_xticks([k for k in (1, 5, 10, 20, 30, 40, 50) if k <= len(depth)])
    _legend(axes, "best")
    return figure


def confusion_figure(name: str, result: Result):
    """True classes (rows) against predicted ones, coloured by the share of the row.

    Beyond 50 classes the 50 with the lowest recall are shown.
    """
    counts, classes = result.arrays["confusion"], result.labels["classes"]
    totals = counts.sum(axis=1)
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    title = f"{name}: confusion of classes"
    hardest = hardest_classes(counts)
    if len(hardest) < len(classes):
        title += f"\n(the {len(hardest)} hardest of {len(classes)})"
        shares, counts = (x[np.ix_(hardest, hardest)] for x in (shares, counts))
        classes = [classes[i] for i in hardest]
    size = len(classes)
    side = 3.2 + (0.42 if size <= COUNTED_CLASSES else 0.19) * size
    figure, axes = _figure(max(side + 1.4, 5.4), max(side, 4.2), grid=False)
    image = axes.imshow(shares, cmap=_shades(SHADES), vmin=0, vmax=100)
    _title(axes, title)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    font = 9 if size <= COUNTED_CLASSES else 7.5
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(size))
        _tick_labels(axis, [_shorten(label, 26) for label in classes], font)
    for tick in axes.get_xticklabels():
        tick.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=GRID, lw=0.6)
    axes.tick_params(which="both", length=0)
    if size <= COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts)):
            colour = "white" if shares[row, column] > 50 else INK
            text = str(counts[row, column])
            centre = {"ha": "center", "va": "center", "fontsize": 8.5}
            axes.text(column, row, text, color=colour, **centre)
    _colour_bar(figure, axes, image, "share of the true class (%)")
    return figure


def hardest_classes(confusion: np.ndarray) -> np.ndarray:
    """The 50 classes with the lowest recall, int64, ascending; all if they are fewer.

    Classes without a clip come last.
    """
    totals = confusion.sum(axis=1)
    recall = np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.inf)
    return np.sort(np.argsort(recall, kind="stable")[:LABELLED_CLASSES])


def average_precision_figure(name: str, result: Result):
    """Average precision of every class as bars, best first; at most the 50 hardest."""
    values, classes = result.arrays["average_precision"], result.labels["classes"]
    order = [i for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    title = f"{name}: average precision of classes"
    if len(order) > LABELLED_CLASSES:
        title += f"\n(the {LABELLED_CLASSES} hardest of {len(order)})"
        order = order[:LABELLED_CLASSES]
    percent = 100 * values[order]
    figure, axes = _figure(7.2, 1.6 + 0.24 * max(len(order), 4))
    places = np.arange(len(order))
    axes.barh(places, percent, color=TEXT_TO_AUDIO, height=0.68)
    for place, value in zip(places, percent):
        text = axes.text(value + 1, place, f"{value:.0f}", va="center", fontsize=8)
        text.set(color=MUTED, bbox={"fc": "white", "ec": "none", "pad": 1}, zorder=3)
    mean = 100 * np.nanmean(values)
    axes.axvline(mean, color=AUDIO_TO_TEXT, lw=1.4, label=f"mAP {mean:.1f} %")
    axes.set_yticks(places)
    _tick_labels(axes.yaxis, [_shorten(classes[i], 30) for i in order], 8.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 106)
    axes.set_ylim(-0.7, len(order) - 0.3)
    _title(axes, title)
    axes.set_xlabel("average precision (%)")
    _legend(axes, "lower right")
    return figure


# Array of a result that calls for a figure -> (title, function).
RESULT_FIGURES = {
    "recall_t2a": ("Recall", recall_figure),
    "similarity": ("Similarity of captions and clips", similarity_figure),
    "confusion": ("Confusion of classes", confusion_figure),
    "average_precision": ("Average precision of classes", average_precision_figure),
}


def _is_loss(key: str) -> bool:
    return key.startswith("train/") and key.rsplit("/", 1)[-1].endswith("loss")


def _is_headline(key: str) -> bool:
    parts = key.split("/")
    return len(parts) > 2 and parts[0] == "eval" and parts[-1] in HEADLINES


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)


def _shorten(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder="…") if len(text) > width else text


def _colours():
    while True:
        yield from SERIES


def _shades(colours):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colours)


def _figure(width: float, height: float, grid: bool = True):
    """An empty figure in inches with one pair of axes, in the house style."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=DOTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot()
    for side, spine in axes.spines.items():
        spine.set_visible(grid and side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)
    if grid:
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
    return figure, axes


def _title(axes, text: str) -> None:
    title = axes.set_title(text, loc="left", fontsize=12, color=INK, pad=12)
    title.set(fontweight="bold", parse_math=False)


def _legend(axes, place: str) -> None:
    legend = axes.legend(loc=place, frameon=False, fontsize=9, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _tick_labels(axis, labels: list[str], size: float) -> None:
    """Names on an axis, taken literally: a caption may hold a dollar sign."""
    for text in axis.set_ticklabels(labels, fontsize=size):
        text.set_parse_math(False)


def _integer_ticks(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def _colour_bar(figure, axes, image, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.86, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    bar.set_label(label, color=INK, fontsize=10)
    bar.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)


def _save(figure, path: Path) -> None:
    """Writes a PNG whole or not at all; a script without glyphs is no reason to stop.

    The software name is left out, so that equal data give equal files.
    """
    import warnings

    partial = path.with_name(path.name + ".partial")
    frame = {"bbox_inches": "tight", "pad_inches": 0.15}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(partial, format="png", metadata={"Software": None}, **frame)
    partial.replace(path)
