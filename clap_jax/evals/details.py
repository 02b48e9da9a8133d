"""What a page shows of one evaluation: classes, confusions, prompts, worst answers."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax.evals import page, plots, tables
from clap_jax.evals.base import Miss, Result, Written
from clap_jax.evals.excerpts import Excerpt, Excerpts

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

MISS_HEADINGS = {
    "t2a": "Hardest captions (text → audio)",
    "a2t": "Hardest clips (audio → text)",
    "": "Hardest clips",
    "written": "Answers furthest from what was expected",
}
# What the two sides of a card are: what is right, and what the model said.
SIDES = {
    "t2a": ("the caption, and its clip", "the clip put first"),
    "a2t": ("the clip, and its caption", "the caption put first"),
    "": ("the clip, and its class", "the class put first"),
    "written": ("the clip, and the nearest right answer", "what was written"),
}

WRITTEN_HEADING = "Captions, from the worst to the best"

# What of a protocol is seen at once; the rest is folded.
SIZES = (
    *("source", "clips", "captions", "sentences", "classes", "boundaries", "chance"),
    *("protocol", "templates"),
)


class ClassRow(NamedTuple):
    """One class in numbers; None where a number cannot be had.

    clips: of this class. accuracy: the share of them that was found. precision: the
    share of the clips put into this class that belong there. average_precision: of the
    class. mixed_up: the class that its clips were most often taken for, and how often.
    """

    name: str
    clips: int | None
    accuracy: float | None
    precision: float | None
    average_precision: float | None
    mixed_up: tuple[str, int] | None


def protocol(said: Mapping[str, Any]) -> str:
    """How an evaluation was made."""
    first = {key: said[key] for key in SIZES if key in said}
    rest = {key: said[key] for key in said if key not in (*SIZES, "kind")}
    folded = page.folded("How it was evaluated", page.facts(rest)) if rest else ""
    return page.facts(first) + folded


def class_rows(result: Result) -> list[ClassRow]:
    """The classes of an evaluation in their order; none where it has no classes."""
    names = result.labels.get("classes", [])
    if "confusion" in result.arrays:
        counts = result.arrays["confusion"]
        wrong = counts * (1 - np.eye(len(names), dtype=np.int64))
        clips, placed = counts.sum(axis=1), counts.sum(axis=0)
        return [
            ClassRow(
                name,
                int(clips[i]),
                counts[i, i] / clips[i] if clips[i] else None,
                counts[i, i] / placed[i] if placed[i] else None,
                None,
                (names[wrong[i].argmax()], int(wrong[i].max()))
                if wrong[i].any()
                else None,
            )
            for i, name in enumerate(names)
        ]
    values = result.arrays.get("average_precision", ())
    return [
        ClassRow(name, None, None, None, None if np.isnan(value) else value, None)
        for name, value in zip(names, values)
    ]


def classes_table(result: Result) -> str:
    """Accuracy, or average precision, of every class; sorts by any column."""
    rows = class_rows(result)
    if not rows:
        return ""
    if "confusion" not in result.arrays:
        heads = [tables.head("class", "text"), tables.head("average precision")]
        lines = [
            f'<tr><th scope="row">{html.escape(row.name)}</th>'
            f"{tables.share_cell(row.average_precision)}</tr>"
            for row in rows
        ]
    else:
        names = ("clips", "accuracy", "precision")
        heads = [tables.head("class", "text"), *map(tables.head, names)]
        heads.append(tables.head("most often taken for", "text"))
        lines = []
        for row in rows:
            name, count = row.mixed_up or ("", 0)
            taken_for = f"{name} ({count})" if count else "–"
            lines.append(
                f'<tr><th scope="row">{html.escape(row.name)}</th><td>{row.clips:,}</td>'
                f"{tables.share_cell(row.accuracy)}{tables.share_cell(row.precision)}"
                f"{tables.text_cell(taken_for)}</tr>"
            )
    return page.section(
        "Classes",
        tables.table(heads, lines, "sortable", tall=len(rows) > 20),
        level=3,
    )


def confusion_table(result: Result) -> str:
    """True classes (rows) against predicted ones, as a heat map that can be read."""
    if "confusion" not in result.arrays:
        return ""
    shown = plots.hardest_classes(result.arrays["confusion"])
    counts = result.arrays["confusion"][np.ix_(shown, shown)]
    totals = np.maximum(result.arrays["confusion"].sum(axis=1)[shown], 1)
    classes = [result.labels["classes"][i] for i in shown]
    every = len(result.labels["classes"])
    caption = "Rows: true class. Columns: predicted class. Numbers: clips."
    if len(classes) < every:
        caption += f" The {len(classes)} hardest of {every} classes."
    heads = '<th scope="col" class="text">true class</th>' + "".join(
        f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in classes
    )
    lines = []
    for row, name in enumerate(classes):
        cells = "".join(
            _confusion_cell(
                counts[row, i], counts[row, i] / totals[row], name, predicted
            )
            for i, predicted in enumerate(classes)
        )
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    cell = "2.4rem" if len(classes) <= plots.COUNTED_CLASSES else "1.5rem"
    table = tables.table([heads], lines, "confusion", caption)
    return page.section(
        "Confusion", f'<div style="--cell: {cell}">{table}</div>', level=3
    )


def _confusion_cell(count: int, share: float, name: str, predicted: str) -> str:
    kind = f"{'right' if name == predicted else ''} {'high' if share > 0.5 else ''}"
    own = f' class="{kind.strip()}"' if kind.strip() else ""
    if not count:
        return f"<td{own}></td>"
    title = html.escape(f"{name} → {predicted}: {count} ({100 * share:.0f} %)")
    return f'<td{own} style="--s: {share:.2f}" title="{title}">{count}</td>'


def prompts_table(result: Result) -> str:
    """How the headline metric depends on the wording of the prompts."""
    names = result.labels.get("prompts", [])
    if len(names) < 2:
        return ""
    values = result.arrays["prompt_scores"]
    metric = "zeroshot_mAP" if "zeroshot_mAP" in result.metrics else "zeroshot_acc"
    lines = []
    for name, value in zip(names, values):
        change = 100 * (value - values[0])
        sign = "–" if name == names[0] else f"{change:+.1f}".replace("-", "−")
        lines.append(
            f'<tr><th scope="row" class="text wide">{html.escape(name)}</th>'
            f'{tables.share_cell(value)}<td data-value="{change:.4f}">{sign}</td></tr>'
        )
    heads = [
        tables.head("prompt", "text"),
        tables.head(tables.metric_name(metric)),
        tables.head("points from the first"),
    ]
    spread = 100 * (values.max() - values.min())
    return page.section(
        "Prompts",
        tables.table(
            heads,
            lines,
            "sortable",
            f"The first row is this evaluation; then each prompt alone. From worst to "
            f"best: {spread:.1f} points.",
        ),
        level=3,
    )


def misses(
    results: Mapping[str, Result],
    sources: Mapping[str, "Source"],
    most: int,
    excerpts: Excerpts,
) -> dict[str, str]:
    """The worst answers as cards: what was asked, what came first, both to be heard.

    The sounds of the worst of all evaluations come before those of the second worst of
    any, so that a budget that does not suffice for all is shared.

    Args:
        results: evaluation name -> result, whose `misses` these are.
        sources: evaluation name -> its clips; without them there is no sound.
        most: cards of each evaluation and direction.
        excerpts: makes the sounds.

    Returns:
        Evaluation name -> HTML.
    """
    cards: dict[tuple[str, str], list[str]] = {}
    ranked: list[tuple[int, str, Miss]] = []
    for name, result in results.items():
        for direction in MISS_HEADINGS:
            own = [miss for miss in result.misses if miss.direction == direction]
            ranked += [(place, name, miss) for place, miss in enumerate(own[:most])]
    for _, name, miss in sorted(ranked, key=lambda item: item[0]):
        card = _card(miss, sources.get(name), excerpts)
        cards.setdefault((name, miss.direction), []).append(card)
    found: dict[str, str] = {}
    for name in results:
        for direction, heading in MISS_HEADINGS.items():
            own = "\n".join(cards.get((name, direction), ()))
            if own:
                part = page.section(heading, f'<ul class="misses">{own}</ul>', level=3)
                found[name] = found.get(name, "") + part
    return found


def written(
    results: Mapping[str, Result],
    sources: Mapping[str, "Source"],
    most: int,
    excerpts: Excerpts,
) -> dict[str, str]:
    """Captions that were written as cards, beside those of people, to be heard.

    Arguments and result as for `misses`; of more captions than `most`, those at even
    distances from the worst to the best.
    """
    found = {}
    for name, result in results.items():
        places = np.linspace(0, len(result.written) - 1, min(most, len(result.written)))
        cards = "\n".join(
            _written_card(result.written[place], sources.get(name), excerpts)
            for place in places.round().astype(int)
        )
        if cards:
            cards = f'<ul class="misses">{cards}</ul>'
            found[name] = page.section(WRITTEN_HEADING, cards, level=3)
    return found


def _written_card(one: Written, source: "Source | None", excerpts: Excerpts) -> str:
    scores = " · ".join(
        f"{html.escape(tables.metric_name(name))} {value:.3g}"
        for name, value in one.scores.items()
    )
    people = "".join(f"<p>{html.escape(text)}</p>" for text in one.references)
    return (
        f'<li class="card miss"><p class="rank">{scores}</p>'
        + _side(
            "the model wrote",
            one.caption or "(nothing)",
            one.clip,
            "side found",
            source,
            excerpts,
        )
        + f'<div class="side"><p class="what">people wrote</p>{people}</div></li>'
    )


def _card(miss: Miss, source: "Source | None", excerpts: Excerpts) -> str:
    right, first = SIDES[miss.direction]
    return (
        f'<li class="card miss"><p class="rank">{_place(miss)}</p>'
        + _side(
            right,
            miss.truth,
            miss.clip,
            "side",
            source,
            excerpts,
        )
        + _side(
            first,
            miss.found,
            miss.found_clip,
            "side found",
            source,
            excerpts,
        )
        + "</li>"
    )


def _place(miss: Miss) -> str:
    """How far the right answer was from being given."""
    if miss.rank is None:
        return f"{html.escape(miss.score)}: <b>{100 * miss.similarity:.0f} %</b>"
    asked = "class" if miss.direction == "" else "pair"
    return (
        f"right {asked} at rank <b>{miss.rank:,}</b> · {html.escape(miss.score)} "
        f"{miss.similarity:.3f}, first {miss.found_similarity:.3f}"
    )


def _side(
    what: str,
    text: str,
    clip: int | None,
    kind: str,
    source: "Source | None",
    excerpts: Excerpts,
) -> str:
    """One side of a card: what it is, the text, the sound and where that is from."""
    lines = [f'<p class="what">{html.escape(what)}</p>', f"<p>{html.escape(text)}</p>"]
    if source is not None and clip is not None:
        excerpt = excerpts.make(source, clip)
        where = source.id(clip)
        if excerpt.uri:
            label = html.escape(f"{what}: {text}", quote=True)
            lines.append(
                f'<audio controls preload="metadata" aria-label="{label}" '
                f'src="{excerpt.uri}"></audio>'
            )
        note = html.escape(f"{where}{_extent(excerpt)}")
        lines.append(f'<p class="where">{note}</p>')
    return f'<div class="{kind}">{"".join(lines)}</div>'


def _extent(excerpt: Excerpt) -> str:
    """Which part of the clip can be heard, or why none."""
    if not excerpt.uri:
        return f" (sound {excerpt.problem})"
    if excerpt.end - excerpt.begin >= excerpt.total:
        return f", {excerpt.total:.1f} s"
    return f", {excerpt.begin:.1f} – {excerpt.end:.1f} of {excerpt.total:.1f} s"


def figures(drawn: Sequence[plots.Plot]) -> str:
    """Drawings side by side."""
    if not drawn:
        return ""
    inside = "".join(page.figure(plot.svg) for plot in drawn)
    return f'<div class="figures">{inside}</div>'
