"""`clap-jax caption`."""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from clap_jax.commands import Progress, add_common, fail, load, printable

CAPTION = """Write captions of sounds with a captioner.

Without --out one line for each sound: its path, then the caption. A file that cannot be
read is named on standard error, and counted."""

CAPTION_END = """examples:
  clap-jax caption --model=runs/blat_captioner --tags=dog,rain a.wav
  clap-jax caption --model=clapcap_weights_2023.pth --out=captions.jsonl sounds/
  clap-jax classify --model=runs/tagger --json sounds/ > tags.jsonl
  clap-jax caption --model=runs/blat_captioner --tags=tags.jsonl --out=captions.csv sounds/

results, which training reads as data.sources does any table:
  captions.jsonl   a line a sound: path, captions, scores
  captions.csv     a row a sound: path, caption and score, or with --n caption_1, ..."""

# Options of `models.decode_options.Options` -> type and what they mean.
_DECODING = {
    "length": (int, "tokens of a caption at most (default: the model's)"),
    "min_length": (int, "tokens at least"),
    "beams": (int, "of a beam search (default: the reference's, 3 or 5)"),
    "no_repeat_ngram": (int, "no run of so many tokens comes twice"),
    "alpha": (float, "scores are divided by length to this power (default: 1)"),
    "temperature": (float, "of sampling: above 1 bolder"),
    "top_k": (int, "sample from so many tokens"),
    "top_p": (float, "sample from the likeliest tokens with this share"),
}


def add(commands: Any) -> None:
    """Add the command to the parsers of `clap-jax`."""
    parser = commands.add_parser(
        "caption",
        help="captions of sounds",
        description=CAPTION,
        epilog=CAPTION_END,
    )
    parser.set_defaults(run=caption)
    add_common(parser, "+")
    parser.add_argument("--out", help="NAME.jsonl or NAME.csv (default: the terminal)")
    parser.add_argument(
        "--n", type=int, default=1, metavar="N", help="captions a sound (default: 1)"
    )
    parser.add_argument(
        "--method",
        choices=("beam", "greedy", "sample"),
        default="beam",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--tags",
        metavar="A,B|FILE",
        help="what guides the captioner: tags of all sounds, or a file of probabilities "
        "(JSON lines or .npz, see clap_jax.pipeline.tag_files) of each",
    )
    parser.add_argument(
        "--tag-rule",
        default="0.3_top5",
        help="which tags of a file are taken (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --method=sample (default: 0)"
    )
    for name, (kind, said) in _DECODING.items():
        metavar = "N" if kind is int else "X"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar=metavar, help=said)


def caption(options: argparse.Namespace) -> int:
    """`clap-jax caption`."""
    from clap_jax.embed import items
    from clap_jax.writer import clock

    suffix = Path(options.out).suffix if options.out else ""
    if options.out and suffix not in (".jsonl", ".csv"):
        fail(f"--out is {options.out}, expected NAME.jsonl or NAME.csv", status=2)
    try:
        sounds = items.sounds(options.files)
    except ValueError as error:
        fail(str(error), status=2)
    writer = load(options)
    if not writer.is_captioner:
        fail(f"{options.model} writes no captions: expected a captioner", status=2)
    tags, untold = _tags(options, writer, sounds)
    decoding = {name: getattr(options, name) for name in _DECODING}
    rows = writer.stream_captions(
        sounds,
        options.n,
        options.method,
        tags=tags,
        seed=options.seed,
        threads=options.threads,
        **{name: value for name, value in decoding.items() if value is not None},
    )
    began = time.perf_counter()
    done, bad = _write(options, rows, len(sounds))
    if not done:
        fail(f"none of the {len(sounds)} sounds could be captioned", status=1)
    if options.out:
        took = clock(time.perf_counter() - began)
        print(f"{options.out}: captions of {done:,} sounds, in {took}")
    last = [f"{bad:,} could not be captioned, see above"] if bad else []
    last += [f"{untold:,} are not in {options.tags}: without tags"] if untold else []
    for line in last:
        print(line, file=sys.stderr)
    return 0


def _tags(
    options: argparse.Namespace, writer: Any, sounds: Sequence[str]
) -> tuple[list[Any] | None, int]:
    """The tags of each sound, and how many sounds a file does not have."""
    from clap_jax.pipeline.guides import Guides
    from clap_jax.pipeline.tags import TagRule, row

    if options.tags is None:
        return None, 0
    spec = writer.spec
    if not spec.is_guided:
        fail(f"no tags guide {options.model}: leave out --tags", status=2)
    if os.path.isfile(options.tags) or options.tags.endswith((".jsonl", ".npz")):
        guides = Guides(
            options.tags,
            spec.tag_names,
            rule=TagRule.parse(options.tag_rule),
            soft=spec.decoder.options["guide"] == "keyword",
        )
        found = [guides.by_id(sound) for sound in sounds]
        return found, sum(own is None for own in found)
    names = [name.strip() for name in options.tags.split(",") if name.strip()]
    row(names, spec.tag_names, spec.decoder.options["tags"])  # raises for unknown ones
    return [names] * len(sounds), 0


def _write(
    options: argparse.Namespace, rows: Iterator[Any], total: int
) -> tuple[int, int]:
    """Write what comes; how many sounds have captions, and how many have none.

    A file is there whole or not at all: until it is, its lines are in OUT.part.
    """
    part = f"{options.out}.part"
    done = bad = 0
    with open(part if options.out else os.devnull, "w", newline="") as file:
        show = _shown(options, file)
        with Progress("sounds") as progress:
            for row in rows:
                if row.error:
                    bad += 1
                    print(printable(f"{row.item}: {row.error}"), file=sys.stderr)
                else:
                    done += 1
                    show(printable(row.item), row.captions)
                if options.out:
                    file.flush()
                    progress.show(done + bad, bad, total)
    if options.out:
        os.replace(part, options.out) if done else os.remove(part)
    return done, bad


def _shown(options: argparse.Namespace, file: TextIO) -> Any:
    """What writes the captions of a sound."""

    def lines(path: str, captions: Sequence[Any]) -> None:
        for one in captions:
            print(f"{path}: {printable(one.text)}", flush=True)

    def json_lines(path: str, captions: Sequence[Any]) -> None:
        found = {
            "path": path,
            "captions": [one.text for one in captions],
            "scores": [round(one.score, 6) for one in captions],
        }
        file.write(json.dumps(found, ensure_ascii=False) + "\n")

    if not options.out:
        return lines
    if options.out.endswith(".jsonl"):
        return json_lines
    table = csv.writer(file)
    names = [f"_{i + 1}" for i in range(options.n)] if options.n > 1 else [""]
    table.writerow(
        ["path", *(f"{kind}{name}" for name in names for kind in ("caption", "score"))]
    )

    def csv_row(path: str, captions: Sequence[Any]) -> None:
        cells = [cell for one in captions for cell in (one.text, f"{one.score:.6f}")]
        table.writerow([path, *cells, *[""] * (2 * len(names) - len(cells))])

    return csv_row
