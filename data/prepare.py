"""Prepare data sets as ArrayRecord files: `python -m data.prepare esc50 --help`."""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from clap_jax.pipeline import tfds as tfds_source
from data.datasets import SETS, THEMES, builder, packed
from data.datasets.layout import LayoutError
from data.datasets.row import DataSet

USAGE = """\
python -m data.prepare list                  the data sets, their licences and splits
python -m data.prepare NAME --help           what to fetch, and how it must look
python -m data.prepare NAME [options]        prepare it (NAME/CONFIG if it has configs)
python -m data.prepare manifest --table=...  pack any table or folder of sounds
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name, _, config = (arguments[0] if arguments else "").partition("/")
    if name in ("", "-h", "--help"):
        print(USAGE)
        return 0 if name else 2
    if name == "list":
        print(listing())
        return 0
    try:
        if name == "manifest":
            options = _manifest_parser().parse_args(arguments[1:])
            row = _manifest_row(options)
        elif name in SETS:
            row = SETS[name]
            options = _parser(row).parse_args(arguments[1:])
        else:
            known = ", ".join(SETS)
            raise LayoutError(f"there is no data set {name!r} (there are: {known})")
        return prepare(row, config, options)
    except (ValueError, OSError, tfds.download.DownloadError) as error:
        print(f"data.prepare: {error}", file=sys.stderr)
        return 1


def prepare(row: DataSet, config: str, options: argparse.Namespace) -> int:
    """Prepare a data set and say where it is; returns the exit status."""
    data_dir = Path(options.data_dir).expanduser()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    made = builder.make(
        row,
        config,
        data_dir=data_dir,
        splits=tuple(filter(None, options.splits.split(","))),
        allow_partial=options.allow_partial,
        download=options.download,
    )
    is_there = Path(made.data_path).exists() and not options.overwrite
    modes = tfds.download.GenerateMode
    made.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=options.manual_dir
            or data_dir / "downloads" / "manual" / row.name,
            download_mode=modes.REUSE_CACHE_IF_EXISTS
            if options.overwrite
            else modes.REUSE_DATASET_IF_EXISTS,
        )
    )
    print(_result(row, made, is_there))
    return 0


def _result(row: DataSet, made: builder.ClipBuilder, was_there: bool) -> str:
    """The message at the end."""
    infos = made.info.splits
    numbers = ", ".join(f"{name} {info.num_examples}" for name, info in infos.items())
    size_mib = sum(info.num_bytes for info in infos.values()) / 2**20
    published = row.splits_of(made.builder_config.name if made.builder_config else "")
    short = [
        f"{name} has {info.num_examples} of {published[name]} clips"
        for name, info in infos.items()
        if published[name] not in (None, info.num_examples)
    ]
    first = next(iter(infos))
    name = "/".join(Path(made.data_path).relative_to(made.data_dir_root).parts[:-1])
    source = {"kind": "tfds", "dataset": name, "split": first}
    source["data_dir"] = str(made.data_dir_root)
    lines = [
        f"{name}: {sum(i.num_examples for i in infos.values())} clips ({numbers}), "
        f"{size_mib:.1f} MiB. Licence: {row.licence}.",
        *(["Incomplete: " + "; ".join(short) + "."] if short else []),
        f"{'It was there already' if was_there else 'Prepared'}: {made.data_path}"
        + (" (--overwrite makes it anew)" if was_there else ""),
        "In a config:",
        f"    config.data.sources = ({json.dumps(source)},)",
    ]
    return "\n".join(lines)


def listing() -> str:
    """The table of data sets as text."""
    lines = []
    for theme, rows in THEMES.items():
        lines += ["", theme.upper()]
        for row in rows:
            configs = f" [{' | '.join(row.configs)}]" if row.configs else ""
            lines.append(f"{row.name}{configs}: {row.title}")
            lines.append(f"    {_splits(row.splits)}. Licence: {row.licence}")
    return "\n".join(lines[1:])


def _splits(splits: dict[str, int | None]) -> str:
    return ", ".join(
        f"{name} {clips:,}" if clips else name for name, clips in splits.items()
    )


def _parser(row: DataSet) -> argparse.ArgumentParser:
    """The options of a data set; its --help says what it needs."""
    fetched = "With --download it is fetched." if row.urls else ""
    paragraphs = [
        f"{row.title}. {row.homepage}",
        f"Licence: {row.licence}.",
        f"Needs: {row.get} {fetched}",
        f"Splits: {_splits(row.splits)}.",
    ]
    for config, splits in row.configs.items():
        paragraphs.append(
            f"Config: {row.name}/{config}"
            + (f", splits {_splits(splits)}." if splits else ".")
        )
    paragraphs += [row.note, f"Cite: {row.citation}."]
    parser = argparse.ArgumentParser(
        prog=f"python -m data.prepare {row.name}",
        description="\n\n".join(
            textwrap.fill(
                " ".join(text.split()),
                width=88,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for text in paragraphs
            if text
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--manual_dir",
        default="",
        help=f"folder of the data set (default: DATA_DIR/downloads/manual/{row.name})",
    )
    if row.urls:
        parser.add_argument(
            "--download", action="store_true", help=f"fetch {', '.join(row.urls)}"
        )
    return _with_common(parser)


def _manifest_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare manifest",
        description="Pack a table (CSV, JSON Lines, Parquet) or a folder of sounds.",
        allow_abbrev=False,
    )
    parser.add_argument("--table", required=True, help="the table, or the folder")
    parser.add_argument(
        "--name", default="", help="name of the data set (default: the table's)"
    )
    parser.add_argument(
        "--split_column",
        default="",
        help="column whose values are splits (fold: fold1, fold2, ...); default: all "
        f"rows are the split {packed.SPLIT}",
    )
    parser.add_argument(
        "--options",
        default="{}",
        help="JSON of options of clap_jax.pipeline.manifest.ManifestSource, such as "
        '\'{"caption_columns": ["title"], "merge_rows": true}\'',
    )
    parser.set_defaults(manual_dir="")
    return _with_common(parser)


def _with_common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--data_dir",
        default=tfds_source.default_data_dir(),
        help="where prepared data sets lie (default: %(default)s)",
    )
    parser.set_defaults(download=False)
    parser.add_argument("--splits", default="", help="only these, with commas between")
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="prepare what is there when clips are missing; the message at the end "
        "says how many are",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="prepare it anew where it is there"
    )
    return parser


def _manifest_row(options: argparse.Namespace) -> DataSet:
    try:
        own = json.loads(options.options)
    except ValueError as error:
        raise LayoutError(f"--options is not JSON: {error}") from None
    name = options.name or re.sub(r"\W+", "_", Path(options.table).stem).lower()
    if not re.fullmatch(r"[a-z_]\w*", name):
        raise LayoutError(f"--name is {name!r}, expected letters, digits and _")
    return packed.table_row(name, options.table, options.split_column, own)


if __name__ == "__main__":
    sys.exit(main())
