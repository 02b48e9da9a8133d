"""`clap-jax search`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from clap_jax.commands import Progress, add_common, fail, load, printable

SEARCH = """Find the sounds that a text is about, and where in them.

One line for each of the best sounds: its score, its path, and, with a model that hears
segments (configs/collap_roberta.py), when the text's sentences are heard. A file that
cannot be read is named on standard error, and counted."""

SEARCH_END = """examples:
  clap-jax search --model=runs/quickstart --query="a dog barks" sounds/
  clap-jax search --model=runs/collap --query=@song.txt --plot=when.png music/*.flac"""

PLOTS = (".png", ".svg", ".pdf")


def add(commands: Any) -> None:
    """Add the command to the parsers of `clap-jax`."""
    parser = commands.add_parser(
        "search",
        help="which sounds a text is about, and when",
        description=SEARCH,
        epilog=SEARCH_END,
    )
    parser.set_defaults(run=search)
    add_common(parser, "+")
    parser.add_argument(
        "--query",
        required=True,
        metavar="TEXT|@FILE",
        help="what is looked for: a text, or @ and a file that holds it",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="sounds shown (default: 10)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: path, score, and of each sentence its weights",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help=f"draw the query against the time of the best sound ({', '.join(PLOTS)})",
    )


def search(options: argparse.Namespace) -> int:
    """`clap-jax search`."""
    from clap_jax.embed import items
    from clap_jax.writer import clock

    if options.plot and Path(options.plot).suffix not in PLOTS:
        fail(f"--plot is {options.plot}, expected a {', '.join(PLOTS)}", status=2)
    if options.top < 1:
        fail(f"--top is {options.top}, expected 1 or more", status=2)
    try:
        query = _query(options.query)
        sounds = items.sounds(options.files)
    except ValueError as error:
        fail(str(error), status=2)
    clap = load(options)
    if clap.is_classifier or clap.is_captioner:
        fail(f"{options.model} compares no texts: expected a pair of towers", status=2)
    if options.plot and not clap.hears_segments:
        fail(f"{options.model} hears no segments: leave out --plot", status=2)
    began, found, bad = time.perf_counter(), [], 0
    with Progress("sounds") as progress:
        for row in clap.search(sounds, query, threads=options.threads):
            if row.error:
                bad += 1
                print(printable(f"{row.item}: {row.error}"), file=sys.stderr)
            else:
                found.append(row)
            progress.show(len(found) + bad, bad, len(sounds))
    if not found:
        fail(f"none of the {len(sounds)} sounds could be read", status=1)
    found.sort(key=lambda row: -row.score)
    for row in found[: options.top]:
        print(printable((_json if options.json else _line)(row)))
    took = clock(time.perf_counter() - began)
    last = f"{len(found):,} sounds were searched, in {took}"
    print(last + (f"; {bad:,} could not be read" if bad else ""), file=sys.stderr)
    if options.plot:
        plot(found[0], options.plot)
        print(f"{options.plot}: when {found[0].item} is what", file=sys.stderr)
    return 0


def _query(text: str) -> str:
    """The text itself, or what stands in the file behind an @. Raises ValueError."""
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            text = path.read_text()
        except OSError as error:
            raise ValueError(f"--query: {path}: {error.strerror}") from error
    if not text.strip():
        raise ValueError("--query holds no words")
    return text.strip()


def _line(row: Any) -> str:
    """A sound for people; below it each sentence, if there are several."""
    line = f"{row.score:8.3f}  {row.item}"
    if row.alignment is None:
        return line
    where = row.alignment.strongest()
    if len(where) == 1:
        return f"{line}  {_time(where[0])}"
    sentences = zip(where, row.alignment.sentences, strict=True)
    return "\n".join(
        [line, *(f"{_time(span):>19}  {text}" for span, text in sentences)]
    )


def _time(span: tuple[float, float]) -> str:
    return "-".join(f"{int(second) // 60}:{int(second) % 60:02d}" for second in span)


def _json(row: Any) -> str:
    found = {"path": str(row.item), "score": round(row.score, 6)}
    if row.alignment is not None:
        found["seconds"] = row.alignment.seconds.round(3).tolist()
        found["sentences"] = [
            {"text": text, "weights": weights.round(6).tolist()}
            for text, weights in zip(
                row.alignment.sentences, row.alignment.by_sentence, strict=True
            )
        ]
    return json.dumps(found, ensure_ascii=False)


def plot(row: Any, path: str) -> None:
    """Draw the attention of every sentence over the time of a sound.

    row: a `findings.Found` with an alignment. path: the ending says in which format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    alignment = row.alignment
    sentences = len(alignment.sentences)
    figure = Figure(figsize=(10, 1.6 + 0.35 * sentences), layout="constrained")
    axes = figure.add_subplot()
    edges = [*alignment.seconds[:, 0], alignment.seconds[-1, 1]]
    mesh = axes.pcolormesh(
        edges, range(sentences + 1), alignment.by_sentence, cmap="viridis", vmin=0
    )
    shown = [
        text if len(text) < 60 else f"{text[:57]}..." for text in alignment.sentences
    ]
    axes.set_yticks([i + 0.5 for i in range(sentences)], shown)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda second, _: f"{int(second) // 60}:{int(second) % 60:02d}")
    )
    axes.set_xlabel("time in the sound")
    axes.set_title(f"{Path(str(row.item)).name}: attention, score {row.score:.2f}")
    figure.colorbar(mesh, ax=axes, label="share of attention")
    figure.savefig(path)
