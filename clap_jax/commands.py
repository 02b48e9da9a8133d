"""What the commands of `clap-jax` share: options, errors, loading, progress."""

import argparse
import os
import sys
import time
from typing import Any, NoReturn, Self

MODEL = (
    "workdir, saved model, folder of Hugging Face's ClapModel, file of LAION-CLAP, "
    "MS-CLAP or BLAT, or the hub id of one (owner/name, owner/name/file.pt)"
)


class Parser(argparse.ArgumentParser):
    """Errors in one sentence; no abbreviations, which would change with new options."""

    def __init__(self, *arguments: Any, **options: Any):
        options |= {"allow_abbrev": False}
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        fail(f"{message}\n({self.prog} --help says more)", status=2)


def fail(message: str, status: int) -> NoReturn:
    """End with a message on standard error and an exit status."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def add_common(parser: Parser, files: str, *, several: bool = False) -> None:
    """Options of all commands; several: --model may be given more than once."""
    action = "append" if several else "store"
    parser.add_argument("--model", required=True, action=action, help=MODEL)
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="tokenizer files, for a checkpoint that has none and without a network",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="windows encoded at a time (default: 16; more for a large accelerator)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=min(16, os.cpu_count() or 4),
        metavar="N",
        help="sounds decoded at a time (default here: %(default)s)",
    )
    parser.add_argument(
        "files", nargs=files, metavar="FILE|FOLDER|TABLE", help="what to hear"
    )


def load(options: argparse.Namespace) -> Any:
    """The model of --model."""
    from clap_jax import api

    check_numbers(options)
    return api.load(
        options.model, tokenizer=options.tokenizer, batch_size=options.batch_size
    )


def check_numbers(options: argparse.Namespace) -> None:
    """End with an error for a batch size or a number of threads below 1."""
    for name in ("batch_size", "threads"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            fail(f"--{flag} is {getattr(options, name)}, expected 1 or more", status=2)


def printable(text: str) -> str:
    """`text` with question marks for bytes of a file's name that are no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Progress:
    """A bar on a terminal; elsewhere a line every half minute."""

    def __init__(self, what: str):
        self._what, self._bar = what, None
        self._said = time.perf_counter()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                *progress.Progress.get_default_columns()[:2],
                progress.MofNCompleteColumn(),
                progress.TextColumn("[cyan]{task.fields[note]}"),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self._what, total=None, note="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, bad: int, total: int) -> None:
        """Say how many are done."""
        note = f"{bad} could not be read" if bad else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.perf_counter() - self._said > 30:
            self._said = time.perf_counter()
            ending = f", {note}" if note else ""
            print(f"{done} of {total} {self._what}{ending}", file=sys.stderr)
