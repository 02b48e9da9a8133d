"""Prepare data sets as ArrayRecord files: `python -m data.prepare esc50 --help`."""

import argparse
import contextlib
import functools
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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
    """Prepare a data set and say where it is; returns the exit status.

    Raises LayoutError where it is there already, but not with all that is asked for.
    """
    data_dir = Path(options.data_dir).expanduser()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    make = functools.partial(
        builder.make,
        row,
        config,
        data_dir=data_dir,
        splits=_splits_of(options),
        allow_partial=options.allow_partial,
        download=options.download,
    )
    made = make()
    if _bring_back(Path(made.data_path)):
        made = make()
    is_there = Path(made.data_path).exists()
    if is_there:
        _check_there(made, config, options)
        is_there = not options.overwrite
    manual = options.manual_dir or data_dir / "downloads" / "manual" / row.name
    with _set_aside(Path(made.data_path), options.overwrite):
        made.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual)
        )
    print(_result(row, made, is_there))
    return 0


@contextlib.contextmanager
def _set_aside(folder: Path, overwrite: bool) -> Iterator[None]:
    """Keep what is to be written anew until that is done: it may fail."""
    if overwrite and folder.exists():
        folder.rename(_aside(folder))
    try:
        yield
    finally:
        _bring_back(folder)


def _bring_back(folder: Path) -> bool:
    """What was set aside lies in its place again, or goes where that is taken.

    Returns whether it does the first: so too when an earlier run was killed.
    """
    aside = _aside(folder)
    if not aside.exists():
        return False
    if folder.exists():
        shutil.rmtree(aside)
        return False
    aside.rename(folder)
    return True


def _aside(folder: Path) -> Path:
    return folder.with_name(f"before.{folder.name}")


def _check_there(
    made: builder.ClipBuilder, config: str, options: argparse.Namespace
) -> None:
    """Raise LayoutError if what is there is not what is asked for; warn of what goes."""
    there = {name: info.num_examples for name, info in made.info.splits.items()}
    wanted = builder.chosen_splits(made.row, config, _splits_of(options))
    holds = f"{made.data_path} holds {_numbers(there)}"
    if options.overwrite:
        gone = {name: n for name, n in there.items() if name not in wanted}
        if gone:
            print(
                f"data.prepare: {holds}: --overwrite drops {_numbers(gone)}",
                file=sys.stderr,
            )
        return
    if _is_changed(made, there):
        raise LayoutError(
            f"{holds}, packed from another table, or with other options: --overwrite "
            "packs it anew, another --name packs this one beside it"
        )
    # Some splits were looked for, and this copy of the set has none of them.
    known = there.keys() | tfds_source.listed_clips(made.data_path)
    missing = [name for name in wanted if name not in known]
    if missing:
        every = ",".join(dict.fromkeys((*there, *missing)))
        raise LayoutError(
            f"{holds}, not {', '.join(missing)}. A data set is written as a whole: "
            f"--overwrite --splits={every} prepares these anew and the others too"
        )


def _is_changed(made: builder.ClipBuilder, there: Mapping[str, int]) -> bool:
    """Whether a table says something else than what was packed."""
    if not made.row.digest:
        return False
    known = made.info.metadata.get(builder.DIGEST)
    if known is None:  # packed before digests were written down
        now = made.row.splits
        return any(now.get(name) != clips for name, clips in there.items())
    return known != made.row.digest


def _splits_of(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(filter(None, options.splits.split(",")))


def _numbers(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {clips}" for name, clips in splits.items())


def _result(row: DataSet, made: builder.ClipBuilder, was_there: bool) -> str:
    """The message at the end."""
    infos = made.info.splits
    there = {name: info.num_examples for name, info in infos.items()}
    size_mib = sum(info.num_bytes for info in infos.values()) / 2**20
    published = row.splits_of(made.builder_config.name if made.builder_config else "")
    listed = tfds_source.listed_clips(made.data_path)
    expected = {name: published.get(name) or listed.get(name) for name in there}
    short = [
        f"{name} has {clips} of {expected[name]} clips"
        for name, clips in there.items()
        if expected[name] not in (None, clips)
    ]
    # Where nobody published a number, the list is all there is to compare with.
    own = {name: n for name, n in listed.items() if published.get(name) is None}
    first = next(iter(infos))
    name = "/".join(Path(made.data_path).relative_to(made.data_dir_root).parts[:-1])
    source = {"kind": "tfds", "dataset": name, "split": first}
    source["data_dir"] = str(made.data_dir_root)
    lines = [
        f"{name}: {sum(there.values())} clips ({_numbers(there)}), "
        f"{size_mib:.1f} MiB. Licence: {row.licence}.",
        *([f"Listed by the set itself: {_numbers(own)}."] if own else []),
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
        "--overwrite",
        action="store_true",
        help="prepare it anew where it is there; splits that --splits does not name go",
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
