"""`clap-jax classify`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from clap_jax.commands import add_common, fail, load, printable

CLASSIFY = """Which of the labels a sound is, without training (zero-shot).

One line for each sound: its path, then the most probable labels. With --over-time one for
each segment (of a model without segments: for each window), with its times. A file that
cannot be read is named on standard error."""

CLASSIFY_END = """examples:
  clap-jax classify --model=runs/quickstart --labels="dog,rain,church bells" a.wav b.mp3
  clap-jax classify --model=laion/clap-htsat-fused --labels=@names.txt --json sounds/
  clap-jax classify --model=runs/collap --labels="piano,drums,a singer" --over-time song.flac"""


def add(commands: Any) -> None:
    """Add the command to the parsers of `clap-jax`."""
    parser = commands.add_parser(
        "classify",
        help="which of some labels a sound is",
        description=CLASSIFY,
        epilog=CLASSIFY_END,
    )
    parser.set_defaults(run=classify)
    add_common(parser, "+")
    parser.add_argument(
        "--labels",
        metavar="A,B,C|@FILE",
        help="the classes, separated by commas, or @ and a file with one a line; a "
        "finetuned classifier has its own",
    )
    parser.add_argument(
        "--template",
        default="This is a sound of {}.",
        help="a sentence with {} for the label, or the name of a set of them in "
        "clap_jax.text.prompts (default: %(default)s)",
    )
    parser.add_argument(
        "--over-time",
        action="store_true",
        help="one line for each segment of a sound, in place of one for all of it",
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="labels shown (default: 3)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: path, label, probabilities of all labels; with "
        "--over-time also begin and end, in seconds",
    )


def classify(options: argparse.Namespace) -> int:
    """`clap-jax classify`."""
    from clap_jax.embed import items

    try:
        labels = None if options.labels is None else _labels(options.labels)
        sounds = items.sounds(options.files)
    except ValueError as error:
        fail(str(error), status=2)
    clap = load(options)
    if clap.is_captioner:
        fail(f"{options.model} writes captions: clap-jax caption has them", status=2)
    if clap.is_classifier != (labels is None):
        found = "has classes of its own" if clap.is_classifier else "has no classes"
        wanted = "leave out" if clap.is_classifier else "name them by"
        fail(f"{options.model} {found}: {wanted} --labels", status=2)
    if options.over_time:
        rows = _over_time(clap, sounds, labels, options.template)
    else:
        each = clap.classify_each(
            sounds, labels, options.template, threads=options.threads
        )
        rows = ((*row, None) for row in each)
    names, count = labels or clap.labels(), 0
    for path, probabilities, error, seconds in rows:
        if probabilities is None:
            print(printable(f"{path}: {error}"), file=sys.stderr)
            continue
        count += 1
        say = _json if options.json else _line
        print(say(path, names, probabilities, seconds, options.top), flush=True)
    if not count:
        fail(f"none of the {len(sounds)} sounds could be read", status=1)
    return 0


Row = tuple[str, Any, str, Any]


def _over_time(
    clap: Any, sounds: Sequence[str], labels: Sequence[str] | None, template: str
) -> Iterator[Row]:
    """Path, probabilities or None, reason, and times, of each segment."""
    from clap_jax.audio.io import AudioError

    probabilities = clap.class_probabilities(labels, template)
    for path in sounds:
        try:
            vectors, seconds = clap.embed_over_time(path)
        except AudioError as error:
            yield path, None, str(error).removeprefix(f"{path}: "), None
            continue
        for own, span in zip(probabilities(vectors), seconds.tolist(), strict=True):
            yield path, own, "", span


def _json(path: str, labels: Sequence[str], scores: Any, seconds: Any, _: int) -> str:
    """All classes of a sound, or of a segment, best first."""
    ranked = _ranked(scores)
    when = {}
    if seconds is not None:
        when = {"begin": round(seconds[0], 3), "end": round(seconds[1], 3)}
    found = {
        "path": printable(path),
        **when,
        "label": labels[ranked[0]],
        "probabilities": {labels[i]: round(float(scores[i]), 6) for i in ranked},
    }
    return json.dumps(found, ensure_ascii=False)


def _line(path: str, labels: Sequence[str], scores: Any, seconds: Any, top: int) -> str:
    """The best classes, for people."""
    from clap_jax.text.sections import clock

    when = "" if seconds is None else f" {'-'.join(map(clock, seconds))}"
    shown = [f"{labels[i]} {scores[i]:.3f}" for i in _ranked(scores)[: max(top, 1)]]
    return printable(f"{path}{when}: {', '.join(shown)}")


def _ranked(scores: Any) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def _labels(text: str) -> list[str]:
    """Names between commas, or lines of @FILE."""
    from clap_jax.embed import items

    if text.startswith("@"):
        labels = items.texts(text[1:])
    else:
        labels = [label.strip() for label in text.split(",") if label.strip()]
    if not labels:
        raise ValueError("--labels names no label: expected A,B,C or @FILE")
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"--labels has {min(twice)!r} twice")
    return labels
