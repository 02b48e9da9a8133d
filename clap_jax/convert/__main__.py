"""`python -m clap_jax.convert SRC DST --to=...`, `inspect SRC` and `compare A B`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """Convert language-audio models between systems, both ways.

SRC is a file of LAION-CLAP (.pt), MS-CLAP or BLAT (.pth), a folder of Hugging Face's
ClapModel, a single tower to start training from (RoBERTa, BERT, GPT-2, CLIP, BART; HTSAT
of AudioSet, PANNs), or a model of ours: a saved one, a workdir, one of its steps; or the
hub id of one of these (owner/name, owner/name/file.pt). Family and size are found by the
tensors; nothing that lies in a file is run. Every tensor is used, kept for the way back,
or named in an error; on any error nothing is written."""

EPILOG = """examples:
  python -m clap_jax.convert 630k-audioset-best.pt models/laion --tokenizer=FOLDER
  python -m clap_jax.convert models/laion clap-hf --to=hf
  python -m clap_jax.convert runs/mine mine.pt --to=laion
  python -m clap_jax.convert inspect CLAP_weights_2023.pth
  python -m clap_jax.convert compare models/laion clap-hf

what --to writes:
  clap_jax  DST is a folder: spec.json, model.safetensors, tokenizer/; extra.safetensors
            and origin.json hold what the way back needs
  hf        DST is a folder for transformers' ClapModel and ClapProcessor
  laion, msclap, blat
            DST is the file of PyTorch that those projects load, or a folder for it"""

USAGE = """%(prog)s SRC DST [--to=clap_jax|hf|laion|msclap|blat] [options]
       %(prog)s inspect SRC
       %(prog)s compare A B [--tokenizer=FOLDER]"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`, put on any parser."""
    from clap_jax.convert.save import TARGETS
    from clap_jax.convert.writing import DTYPES

    parser.description, parser.epilog, parser.usage = DESCRIPTION, EPILOG, USAGE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "words",
        nargs="+",
        metavar="SRC DST",
        help="from where to where; or inspect SRC; or compare A B",
    )
    parser.add_argument(
        "--to", choices=TARGETS, default="clap_jax", help="what DST becomes"
    )
    parser.add_argument(
        "--dtype",
        choices=[name for name in DTYPES if name != "float64"],
        help="round weights to this; default: float32, or what the original had on the "
        "way back to it",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="the tokenizer's files, for checkpoints that come without",
    )
    parser.add_argument(
        "--prefix",
        choices=("module.", ""),
        help="what keys begin with in a file of PyTorch; default: as the original, "
        "else nothing",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DST where it exists"
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not run the model on made sounds and texts to see whether it works",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the options say; returns the exit status.

    Errors: ValueError, OSError, ImportError and CheckpointError, in sentences.
    """
    match arguments.words:
        case ["inspect", source]:
            return _inspect(source)
        case ["compare", first, second]:
            return _compare(first, second, arguments.tokenizer)
        case ["inspect" | "compare" as word, *_]:
            wanted = {"inspect": "SRC", "compare": "A B"}[word]
            raise ValueError(f"{word} takes {wanted}, and nothing else")
        case [source, destination]:
            return _convert(source, destination, arguments)
    raise ValueError(
        f"expected SRC DST, inspect SRC or compare A B, got {len(arguments.words)} "
        f"words: {' '.join(arguments.words)}"
    )


def _convert(source: str, destination: str, arguments: argparse.Namespace) -> int:
    from clap_jax import convert, hub

    where, converted = convert.convert(
        hub.find(source),
        destination,
        arguments.to,
        dtype=arguments.dtype,
        tokenizer=arguments.tokenizer,
        prefix=arguments.prefix,
        overwrite=arguments.overwrite,
        check=not arguments.no_check,
    )
    for note in converted.notes:
        print(note if note.startswith("WARNING") else f"note: {note}")
    size = sum(x.stat().st_size for x in _files(where))
    print(f"{converted.spec.name} as {arguments.to}: {where} ({size / 2**20:,.0f} MiB)")
    return 0


def _files(where: Path) -> list[Path]:
    return [where] if where.is_file() else [x for x in where.rglob("*") if x.is_file()]


def _inspect(source: str) -> int:
    from rich.console import Console

    from clap_jax import hub
    from clap_jax.convert import inspect

    inspect.show(inspect.inspect(hub.find(source)), Console(soft_wrap=True))
    return 0


def _compare(first: str, second: str, tokenizer: str | None) -> int:
    from rich.console import Console

    from clap_jax import hub
    from clap_jax.convert import compare

    found = compare.compare(hub.find(first), hub.find(second), tokenizer)
    compare.show(found, Console(soft_wrap=True))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m clap_jax.convert", allow_abbrev=False
    )
    add_arguments(parser)
    arguments = parser.parse_args(words)
    from clap_jax.checkpoint import CheckpointError

    try:
        return run(arguments)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        if os.environ.get("CLAP_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
