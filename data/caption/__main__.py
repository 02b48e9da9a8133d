"""`python -m data.caption DATA --out=OUT --by=template|t5|endpoint|music|captioner`."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clap_jax.cli import Parser, fail
from data import jobs
from data.caption import captioner, job
from data.caption import clips as clips_lib
from data.caption import endpoint as endpoint_lib
from data.caption import t5 as t5_lib
from data.caption.answers import Writer
from data.caption.endpoint import Endpoint
from data.caption.rules import NONE, Rules
from data.caption.t5 import T5
from data.caption.templates import FILE, Templates

DESCRIPTION = """Make captions from the labels of clips.

DATA is a table (CSV, JSON lines, Parquet), a folder with a sub-folder for each label,
tar or ArrayRecord shards, or any entry of a config's data.sources as JSON. Sound files
need not be there. OUT gets a line of JSON for every clip that has labels: id,
tags, caption, and its origin: what made it, with which settings, and which words were
replaced. A command that was stopped, or killed, goes on where it was when it is run
again, and gives the same file.

Answers of models that are empty, too long or no caption are asked for again; a clip
that gets no good one gets the template's caption, and its origin says so.

--by=music listens and measures: sections with their times, tempo, key, loudness; it
needs no labels, but says those that there are.

A captioner listens: --by=captioner takes a model of this project that writes captions
of sounds, guided by the clips' labels if it was trained so, and filters what it wrote."""

EPILOG = """examples:
  python -m data.caption sounds.csv --out=captions.jsonl
  python -m data.caption shards/ --by=t5 --model=gagan3012/k2t-base --out=t5.jsonl
  python -m data.caption sounds.csv --by=endpoint --url=http://localhost:8000/v1 \\
      --model=some-model --out=llm.jsonl
  python -m data.caption music/ --by=music --out=long.jsonl
  python -m data.caption sounds.csv --by=captioner --model=runs/captioner --n=5 \\
      --method=sample --clap=runs/clap --min-clap-score=0.2 --top=2 --out=heard.jsonl

training on them, in a config:
  {"kind": "manifest", "path": "sounds.csv", "generated": "t5.jsonl",
   "captions": {"original": 0.5, "t5": 0.5}}"""

# What a run by a model does unless told otherwise, as LAION-CLAP did.
DEFAULT_RULES = {
    **{"template": NONE, "music": NONE},
    **{"t5": "neutral", "endpoint": "neutral"},
}
DEFAULT_MIN_SECONDS = {"template": 0.0, "music": 0.0, "t5": 2.0, "endpoint": 2.0}

WITHOUT_MODEL = ("template", "music")

DEFAULT_BEAMS = 4  # of T5

PROGRESS_SECONDS = 10.0

# What goes wrong outside of this program.
ERRORS = (
    *(ValueError, OSError, job.JobError, jobs.JobError),
    *(t5_lib.T5Error, endpoint_lib.EndpointError),
)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.caption", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("data", metavar="DATA", help="table, folder, shards, or JSON")
    parser.add_argument("--out", required=True, help="file of JSON lines to write")
    parser.add_argument(
        "--by",
        choices=(*DEFAULT_RULES, captioner.KIND),
        default="template",
        help="what makes them (default: %(default)s)",
    )
    _add_clips(parser.add_argument_group("clips"))
    _add_words(parser.add_argument_group("words"))
    _add_models(parser.add_argument_group("models"))
    _add_t5(parser.add_argument_group("--by=t5 (needs PyTorch)"))
    _add_endpoint(parser.add_argument_group("--by=endpoint"))
    captioner.add_options(
        parser.add_argument_group("--by=captioner"),
        parser.add_argument_group("filters of --by=captioner; a number, or off"),
    )
    return parser


def _add_clips(group: Any) -> None:
    for name, what in (
        ("label-column", "column with the labels, where it is not found by its name"),
        ("id-column", "column with the clips' ids"),
        ("separator", 'between the labels of a cell, such as ","'),
    ):
        group.add_argument(f"--{name}", help=f"{what} (tables)")
    group.add_argument(
        "--min-seconds",
        type=float,
        help="leave shorter clips out, where the length is known; default: 2 for "
        "models, as LAION-CLAP did, 0 for templates",
    )
    group.add_argument(
        "--lengths",
        choices=clips_lib.LENGTHS,
        default="auto",
        help="auto: a column of seconds, else the headers of local sound files; audio: "
        "opens all audio, in shards as well; none: unknown (default: %(default)s)",
    )


def _add_words(group: Any) -> None:
    group.add_argument(
        "--templates", default="laion", help="set of templates (default: %(default)s)"
    )
    group.add_argument(
        "--template-file", default=str(FILE), help="JSON with sets of templates"
    )
    group.add_argument(
        "--rules",
        help="words to replace: neutral (LAION-CLAP's de-biasing), none, or a CSV with "
        "the columns words and instead; default: neutral for models",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of what is drawn (default: %(default)s)"
    )


def _add_models(group: Any) -> None:
    heat = "0 (default, but for captioners): no chance, but for tries after the first"
    group.add_argument("--temperature", type=float, help=heat)
    group.add_argument("--model", help="hub id or folder; the endpoint's name for it")
    group.add_argument("--prompt", help="{} stands for the labels; @FILE reads a file")
    for name, kind, default, what in (
        ("tries", int, 3, "answers that are asked for before the template is used"),
        ("max-words", int, 50, "longer answers are broken"),
    ):
        _add_number(group, name, kind, default, what)


def _add_t5(group: Any) -> None:
    group.add_argument(
        "--beams", type=int, help="of the search; 1: greedy (default: 4)"
    )
    for name, kind, default, what in (
        ("batch-size", int, 64, "clips"),
        ("max-new-tokens", int, 64, "of a caption"),
    ):
        _add_number(group, name, kind, default, what)
    group.add_argument(
        "--join", default="| ", help="between labels (keytotext's: '| ')"
    )
    group.add_argument(
        "--device", default="", help="of PyTorch (default: a GPU, if any)"
    )
    group.add_argument("--precision", choices=t5_lib.PRECISIONS, default="float32")


def _add_endpoint(group: Any) -> None:
    group.add_argument("--url", help="such as http://localhost:8000/v1")
    group.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="environment variable with the key; unset: no key (default: %(default)s)",
    )
    group.add_argument("--body", help="JSON of more fields; null takes one of ours out")
    for name, kind, default, what in (
        ("max-tokens", int, 100, "of an answer"),
        ("concurrency", int, 8, "requests at a time"),
        ("requests-per-minute", float, 0.0, "at most; 0: no limit"),
        ("timeout-seconds", float, 60.0, "of a request"),
        ("patience-seconds", float, 300.0, "pauses for a busy or failing endpoint"),
    ):
        _add_number(group, name, kind, default, what)


def _add_number(group: Any, name: str, kind: type, default: Any, what: str) -> None:
    group.add_argument(
        f"--{name}", type=kind, default=default, help=f"{what} (default: %(default)s)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options, flags = parser.parse_known_args(arguments)
    if flags and options.by != captioner.KIND:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    try:
        if options.by == captioner.KIND:
            from data.caption import bootstrap  # takes a while to import

            return bootstrap.run(options, flags)
        return run(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except ERRORS as error:
        fail(str(error), status=1)


def run(options: argparse.Namespace) -> int:
    """Caption what the options say; prints what came of it."""
    options.temperature = _default(options.temperature, 0.0)
    options.beams = _default(options.beams, DEFAULT_BEAMS)
    check(options)
    templates = Templates(options.templates, options.template_file, options.seed)
    rules = Rules(_default(options.rules, DEFAULT_RULES[options.by]))
    of_table = ("label_column", "id_column", "separator")
    given = {
        name: getattr(options, name) for name in of_table if getattr(options, name)
    }
    min_seconds = _default(options.min_seconds, DEFAULT_MIN_SECONDS[options.by])
    by_ear = options.by == "music"
    found = clips_lib.read(options.data, given, min_seconds, options.lengths, by_ear)
    print(found.description)
    if by_ear:
        from data.caption import music  # takes a while to import

        writer = music.Music(found.sound, options.seed)
        templates = music.Fallback(
            options.templates, options.template_file, options.seed
        )
    else:
        writer = _writer(options, templates)
    progress = _Progress(options.by)
    summary = job.run(found.clips, writer, templates, rules, options.out, progress)
    print("\n".join(report(options.out, summary, found, min_seconds, rules.table)))
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot be, or that lack another."""
    if options.by not in WITHOUT_MODEL and not options.model:
        raise ValueError(f"--by={options.by} needs --model")
    if options.by == "endpoint" and not options.url:
        raise ValueError("--by=endpoint needs --url, such as http://localhost:8000/v1")
    if options.prompt and not options.prompt.startswith("@"):
        _check_prompt(options.prompt)
    for name in ("tries", "max_words", "batch_size", "beams", "max_new_tokens"):
        _check_least(options, name, 1)
    for name in ("max_tokens", "concurrency"):
        _check_least(options, name, 1)
    for name in ("temperature", "requests_per_minute", "patience_seconds"):
        _check_least(options, name, 0)
    if not options.timeout_seconds > 0:
        raise ValueError(f"--timeout-seconds is {options.timeout_seconds:g}")


def _check_least(options: argparse.Namespace, name: str, least: int) -> None:
    value = getattr(options, name)
    if not value >= least:
        option = f"--{name.replace('_', '-')}"
        raise ValueError(f"{option} is {value:g}, expected {least} or more")


def _check_prompt(prompt: str) -> None:
    if prompt.count("{}") != 1:
        raise ValueError(f"the prompt {prompt!r:.60} must have {{}} in it exactly once")


def _writer(options: argparse.Namespace, templates: Templates) -> Writer:
    if options.by == "template":
        return templates
    names = ["model", "temperature", "seed", "tries", "max_words"]
    prompt = _prompt(options.prompt)
    settings: dict[str, Any] = {"prompt": prompt} if prompt else {}
    if options.by == "t5":
        names += [
            "batch_size",
            "beams",
            "max_new_tokens",
            "join",
            "device",
            "precision",
        ]
        return T5(**settings, **{name: getattr(options, name) for name in names})
    names += ["url", "max_tokens", "concurrency", "requests_per_minute"]
    names += ["timeout_seconds", "patience_seconds"]
    settings |= {name: getattr(options, name) for name in names}
    key = os.environ.get(options.key_variable, "")
    return Endpoint(**settings, key=key, body=_body(options.body))


def _prompt(prompt: str | None) -> str:
    if prompt and prompt.startswith("@"):
        with open(prompt[1:], encoding="utf-8") as file:
            prompt = file.read().strip()
        _check_prompt(prompt)
    return prompt or ""


def _body(text: str | None) -> dict[str, Any]:
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f"--body is {text!r:.60}, expected an object {{...}}")
    return body


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


class _Progress:
    """A line on standard error every few seconds."""

    def __init__(self, kind: str):
        self._kind = kind
        self._first: int | None = None  # what an earlier run had done

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began, self._said = done, now, now
        if now - self._said < PROGRESS_SECONDS:
            return
        rate = (done - self._first) / max(now - self._began, 1e-9)
        self._said = now
        line = f"{self._kind}: {done:,} of {total:,}, {rate:.3g} captions/s"
        print(line, file=sys.stderr, flush=True)


def report(
    out: str,
    summary: job.Summary,
    found: clips_lib.Clips,
    min_seconds: float,
    table: str,
) -> list[str]:
    """Lines that say what is in the result, and what is not."""
    lines = []
    if summary.broken:
        lines.append(f"broken answers: {_counts(summary.broken)}")
    if summary.instead:
        lines.append(
            f"captions of the template, where no answer was good: {summary.instead:,}"
        )
    if table != NONE:
        words = f": {_counts(summary.changes)}" if summary.changes else ""
        lines.append(
            f"words replaced by the rules {table}: {summary.changes.total():,} in "
            f"{summary.changed:,} captions{words}"
        )
    if found.without_tags:
        lines.append(f"left out: {found.without_tags:,} clips without labels")
    if found.short:
        lines.append(f"left out: {found.short:,} clips below {min_seconds:g} s")
    if found.unknown and min_seconds:
        lines.append(f"clips of unknown length, not left out: {found.unknown:,}")
    kinds = _counts(summary.kinds)
    return [*lines, f"{summary.captions:,} captions ({kinds}): {out}"]


def _counts(counter: Counter) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


if __name__ == "__main__":
    sys.exit(main())
