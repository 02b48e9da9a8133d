"""The command line: `clap-jax embed | classify | search | caption | convert | compare`.

Also `python -m clap_jax.cli`.

Exit status: 0 when there is a result, 1 when there is none, 2 for a command that cannot
be understood, 130 when it was stopped with Ctrl-C.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import clap_jax
from clap_jax import caption_command, classify_command, search_command
from clap_jax.commands import (
    Parser,
    Progress,
    add_common,
    check_numbers,
    fail,
    load,
)

EMBED = """Embed sounds, or texts, into one file.

Sounds are files, folders (with all their sub-folders) and tables (CSV, TSV, JSON lines,
Parquet) with a column of paths, in any number. What is done is kept in OUT.parts: a
command that was stopped, or killed, goes on where it was when it is run again. A file
that cannot be read does not stop it; all such files are listed in OUT.bad.csv, with the
reason. Only when no file at all can be read is the exit status 1."""

EMBED_END = """examples:
  clap-jax embed --model=runs/quickstart --out=vectors.npz sounds/
  clap-jax embed --model=laion/clap-htsat-unfused --out=vectors.parquet a.wav table.csv
  clap-jax embed --model=630k-audioset-best.pt --out=texts.npz --texts=captions.txt
  clap-jax embed --segments --hop=10 --model=BEATs.pt --model=openai/whisper-large-v2 \\
    --window=10 --out=features music.csv

results:
  vectors.npz      arrays path (or text), seconds, embedding float32 [n, E], metadata
  vectors.parquet  the same columns
  vectors          a folder of ArrayRecord files, and metadata.json
  clap_jax.embed.read(OUT) reads all three.

With --segments the result is a folder of ArrayRecord files with an embedding of every
segment of every clip, what the audio tower (BEATs' and Whisper's also alone) makes of it
before any head; of several models side by side. Captions and labels of a table, or of any
other source of training data, are kept beside them, and training takes the folder:
{"kind": "features", "path": OUT}."""


def make_parser(command: str = "") -> Parser:
    """The whole command line.

    command: `convert` and `compare` bring their own options, which need imports; this
    one has them.
    """
    parser = Parser(
        prog="clap-jax",
        description="Language-audio models: embed, classify, search and caption, convert "
        "weights, compare results.",
        epilog="clap-jax COMMAND --help says what a command takes.",
    )
    parser.add_argument("--version", action="version", version=clap_jax.__version__)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    _add_embed(commands)
    classify_command.add(commands)
    search_command.add(commands)
    caption_command.add(commands)
    convert = commands.add_parser("convert", help="weights between systems, both ways")
    if command == "convert":
        from clap_jax.convert import __main__ as converter

        converter.add_arguments(convert)
        convert.set_defaults(run=converter.run)
    comparison = commands.add_parser("compare", help="results of models side by side")
    if command == "compare":
        from clap_jax.evals import compare

        compare.add_arguments(comparison)
        comparison.set_defaults(run=compare.run)
    return parser


def _add_embed(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="sounds or texts to a file of vectors",
        description=EMBED,
        epilog=EMBED_END,
    )
    parser.set_defaults(run=embed)
    add_common(parser, "*", several=True)
    parser.add_argument(
        "--out", required=True, help="NAME.npz, NAME.parquet, or a folder (ArrayRecord)"
    )
    parser.add_argument(
        "--segments",
        action="store_true",
        help="a vector for every segment; FILE may also be a source of training data, "
        "as JSON or by its path; --model may be given several times",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of a segment (default: the first model's window)",
    )
    parser.add_argument(
        "--hop",
        type=float,
        metavar="SECONDS",
        help="from one segment's beginning to the next one's (default: the window)",
    )
    parser.add_argument(
        "--output",
        choices=("embedding", "projection"),
        help="of a segment: the audio tower's own (default), or behind the head",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="of segments' vectors on disk (default: float16)",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="embed texts instead: a file with one a line, or a table of captions",
    )


def embed(options: argparse.Namespace) -> int:
    """`clap-jax embed`."""
    from clap_jax import embed as embed_lib
    from clap_jax.embed import items, job, stores

    if bool(options.files) == bool(options.texts):
        fail("embed needs sounds, or --texts=FILE (one of the two)", status=2)
    if options.segments:
        return embed_segments(options)
    of_segments = ("window", "hop", "output", "dtype")
    if len(options.model) > 1 or any(getattr(options, name) for name in of_segments):
        flags = ", ".join(f"--{name}" for name in of_segments)
        fail(f"several --model, {flags} go with --segments", status=2)
    options.model = options.model[0]
    try:
        stores.check_name(options.out)
        texts = items.texts(options.texts) if options.texts else []
        sounds = items.sounds(options.files)
    except ValueError as error:
        fail(str(error), status=2)
    clap = load(options)
    if clap.is_classifier:
        fail(f"{options.model} is a classifier, expected a pair of towers", status=2)
    if clap.is_captioner and texts:
        fail(f"{options.model} is a captioner: it embeds sounds, no texts", status=2)
    kind = "text" if texts else "path"
    settings = {
        "kind": kind,
        "name": clap.spec.name,
        "embed_dim": clap.width,
        "weights": clap.digest(),
    }

    def vectors(left: Sequence[str]) -> Iterator[embed_lib.Embedded]:
        if not texts:
            return clap.stream(
                left, threads=options.threads, every=embed_lib.PART_ITEMS
            )
        return (
            embed_lib.Embedded(text, vector)
            for start in range(0, len(left), embed_lib.PART_ITEMS)
            for text, vector in _zip_vectors(clap, left[start:][: embed_lib.PART_ITEMS])
        )

    began = time.perf_counter()
    with Progress("texts" if texts else "sounds") as progress:
        summary = job.run(
            texts or sounds,
            vectors,
            options.out,
            settings,
            on_progress=progress.show,
            note=options.model,
        )
    _report(options.out, kind, summary, clap.width, began)
    return 0 if summary.count else 1


def embed_segments(options: argparse.Namespace) -> int:
    """`clap-jax embed --segments`."""
    from clap_jax.embed import job, segments, towers
    from clap_jax.writer import clock

    if options.texts:
        fail("--segments are of sounds, and --texts of none", status=2)
    check_numbers(options)
    began = time.perf_counter()
    try:
        source = segments.source_of(options.files)
        output, dtype = options.output or "embedding", options.dtype or "float16"
        models = towers.load_all(options.model, output, options.window)
        how = segments.Options(
            options.hop or models[0].frontend.clip_seconds,
            dtype,
            options.batch_size,
            options.threads,
        )
        with Progress("clips") as progress:
            found = segments.run(source, models, options.out, how, progress.show)
    except ValueError as error:
        fail(str(error), status=2)
    took = clock(time.perf_counter() - began)
    when = "was complete already" if found.was_there else f"in {took}"
    width = sum(model.width for model in models)
    print(
        f"{options.out}: {found.clips:,} clips, {found.segments:,} segments "
        f"({found.silent:,} silent), {dtype} [{width}] each, "
        f"{clock(found.seconds)} of sound, {when}"
    )
    if found.bad:
        print(f"{job.bad_list(options.out)}: {found.bad:,} could not be read, and why")
    return 0 if found.clips else 1


def _zip_vectors(clap: Any, texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    return zip(texts, clap.embed_text(texts), strict=True)


def _report(out: str, kind: str, summary: Any, embed_dim: int, began: float) -> None:
    """The last words: where the results are, and what is not in them."""
    from clap_jax.embed import job
    from clap_jax.writer import clock

    what = {"path": "sounds", "text": "texts"}[kind]
    if summary.count:
        length = f", {clock(summary.seconds)} of sound" if kind == "path" else ""
        took = clock(time.perf_counter() - began)
        how = "was complete already" if summary.was_there else f"in {took}"
        print(
            f"{out}: {summary.count:,} {what}, float32 [{summary.count}, {embed_dim}]"
            f"{length}, {how}"
        )
    else:
        print(
            f"error: none of the {summary.bad:,} {what} could be read", file=sys.stderr
        )
    if summary.bad:
        print(f"{job.bad_list(out)}: {summary.bad:,} could not be read, and why")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, or ends with it for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = make_parser(next(iter(arguments), ""))
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return run(options) or 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from clap_jax.checkpoint import CheckpointError
        from clap_jax.embed import Interrupted
        from clap_jax.embed.parts import PartsError

        if isinstance(error, Interrupted):
            print(error, file=sys.stderr)
            return 130
        expected = (ValueError, OSError, ImportError, CheckpointError, PartsError)
        if os.environ.get("CLAP_JAX_TRACEBACK") or not isinstance(error, expected):
            raise
        fail(f"{error}\n(CLAP_JAX_TRACEBACK=1 shows where)", status=1)


if __name__ == "__main__":
    sys.exit(main())
