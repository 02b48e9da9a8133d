"""Pack clips into ArrayRecord shards: python -m data.pack SOURCE OUT."""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from clap_jax import remote
from clap_jax.cli import Parser, fail
from clap_jax.pipeline import array_record, sources
from data import clips, jobs, listing, report, shards

DESCRIPTION = """Pack the clips of a table, a folder of sounds, LAION's tar shards,
ArrayRecord, a data set of data.prepare or BLAT's HDF5 into ArrayRecord shards, which a
config reads by {"kind": "array_record", "path": OUT}.

SOURCE is a path, or any entry of a config's data.sources as JSON. Of a prepared data set
at a path, all splits are packed, unless --options name one.

Every clip is decoded and checked. What cannot be used is left out, and listed with the
reason in OUT/rejects.csv. The shards have the same bytes whatever the number of workers.
A run that was stopped, or killed, goes on when the same command is given again."""

EXAMPLES = """examples:
  python -m data.pack sounds.csv packed --encoding=flac --rate_hz=48000 --workers=8
  python -m data.pack sounds.csv packed --options='{"where": {"split": "train"}}'
  python -m data.pack 'laion/{000..123}.tar' packed --exclude=overlap/exclude.txt
  python -m data.pack tfds/clotho/1.0.0 packed --options='{"split": "development"}'
  python -m data.pack waveform.csv packed --kind=hdf5 --options='{"captions": "train.json"}'
  python -m data.pack gs://bucket/sounds.csv gs://bucket/packed --runner=DataflowRunner \\
      --project=P --region=R --temp_location=gs://bucket/tmp --sdk_container_image=IMAGE

Any other option is one of Apache Beam's. Without --runner, Beam works on this machine.
Exit status: 0 when all is packed, 1 when not, 2 for options that cannot be understood."""

CLIPS_IN_A_SHARD = 1000


def make_parser() -> Parser:
    """The options of the command line, without Beam's."""
    parser = Parser("data.pack", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("source", help=SOURCE_HELP)
    add("out", help="folder for the shards and the report; path or URL")
    add_query(parser)
    for field in dataclasses.fields(clips.Settings):
        name, default = f"--{field.name}", field.default
        if field.name == "encoding":
            add(name, choices=clips.ENCODINGS, default=default, help="(%(default)s)")
        elif isinstance(default, bool):
            add(name, action="store_true", help=HELP[field.name])
        else:
            kind = type(default)
            add(name, type=kind, default=default, metavar="N", help=HELP[field.name])
    add("--shards", type=int, default=0, metavar="N", help="files (one for 1000 clips)")
    add("--max_bad_fraction", type=float, default=1.0, metavar="F", help=BAD_HELP)
    add("--workers", type=int, default=1, metavar="N", help="processes (1)")
    return parser


HELP = {
    "rate_hz": "resample to this rate",
    "mono": "the mean over channels",
    "min_seconds": "reject shorter clips",
    "max_seconds": "reject longer clips",
    "cut_seconds": "keep the first N seconds of longer clips",
    "min_peak_dbfs": "reject clips that never get louder (%(default)s)",
    "any_extension": "take files whose name promises another format than they have",
}
SOURCE_HELP = "table, folder, shards, prepared data set (path or URL); or JSON"
BAD_HELP = "stop when more than this share of the clips is rejected (%(default)s)"


def add_query(parser: argparse.ArgumentParser) -> None:
    """Options that say which clips of a source are meant."""
    add = parser.add_argument
    kinds = ", ".join(sources.SOURCES)
    add("--kind", default="", help=f"of source, where names do not tell it: {kinds}")
    add("--options", default="{}", metavar="JSON", help="of the source's class")
    add("--exclude", default="", metavar="FILE", help="ids to leave out, one a line")


def query(data: str, kind: str, options: str, exclude: str = "") -> listing.Query:
    """Options of the command line as a query. Raises ValueError.

    data: a path, which `kind` and `options` are for; or an entry of `data.sources` as
        JSON, which has its own.
    """
    try:
        fields = json.loads(options)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        reason = f"--options is {options}, expected a JSON object {{...}}"
        raise ValueError(reason)  # noqa: TRY004 (what a person wrote)
    if sources.is_entry(data):
        if kind or fields:
            raise ValueError(f"--kind and --options are for paths, not for {data:.60}")
        fields = sources.entry(data)
        kind = fields.pop("kind")
        fields.pop("weight", None)  # of training
        data = fields.pop(sources.place(kind), "")
    else:
        kind = kind or sources.section(absolute(data))["kind"]
        if kind == "tfds":
            fields.setdefault("split", "all")
    if not isinstance(data, str):  # several paths
        fields[sources.place(kind)], data = list(map(absolute, data)), ""
    if kind != "tfds" or os.path.isdir(os.path.expanduser(data)):  # else it is a name
        data = absolute(data)
    if "data_dir" in fields:
        fields["data_dir"] = absolute(fields["data_dir"])
    text = json.dumps(fields, sort_keys=True)
    return listing.Query(kind, data, text, absolute(exclude))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    known, flags = make_parser().parse_known_args(arguments)
    try:
        jobs.check_flags(flags)
        chosen = {
            f.name: getattr(known, f.name) for f in dataclasses.fields(clips.Settings)
        }
        settings = clips.Settings(**chosen)
        wanted = query(known.source, known.kind, known.options, known.exclude)
        _check_numbers(known)
    except (ValueError, OSError) as error:
        fail(str(error), status=2)
    return reported(
        lambda: pack(
            wanted,
            settings,
            absolute(known.out),
            known.shards,
            known.max_bad_fraction,
            known.workers,
            flags,
        ),
        report.text,
    )


def reported(
    work: Callable[[], dict[str, Any]], text: Callable[[dict[str, Any]], str]
) -> int:
    """Do the work of a command and print its report; returns the exit status."""
    try:
        done = work()
    except (ValueError, OSError, jobs.JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    print(text(done))
    return 0


def absolute(path: str) -> str:
    """A path as processes in other folders see it; URLs stay as they are."""
    if not path or remote.is_remote(path):
        return path
    return os.path.abspath(os.path.expanduser(path))


def check_workers(workers: int) -> None:
    """Raise ValueError for a number of workers that is none."""
    if workers < 1:
        raise ValueError(f"--workers is {workers}, expected 1 or more")


def _check_numbers(known: argparse.Namespace) -> None:
    check_workers(known.workers)
    if known.shards < 0:
        raise ValueError(f"--shards is {known.shards}, expected 1 or more")
    if not 0 <= known.max_bad_fraction <= 1:
        raise ValueError(
            f"--max_bad_fraction is {known.max_bad_fraction}, expected 0 to 1"
        )


def pack(
    wanted: listing.Query,
    settings: clips.Settings,
    out: str,
    count: int = 0,
    max_bad_fraction: float = 1.0,
    workers: int = 1,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Pack what a query lists into `count` shards in OUT (0: one for 1000 clips).

    Returns what OUT/report.json holds. Raises PackError, or what the source raises, when
    there is nothing to pack, and JobError when a worker cannot go on.
    """
    started = time.monotonic()
    if wanted.path and _is_within(out, wanted.path):
        raise shards.PackError(
            f"{out} lies within {wanted.path}: pack into another folder"
        )
    listing.read.cache_clear()
    clip_list = listing.read(wanted)
    if not len(clip_list):
        raise shards.PackError(f"{wanted.label}: no clip is left to be packed")
    total = len(clip_list) + len(clip_list.rejected)
    count = count or -(-len(clip_list) // CLIPS_IN_A_SHARD)
    if count > len(clip_list):
        raise shards.PackError(
            f"shards is {count}, expected {len(clip_list)} (clips) or fewer"
        )
    most_bad = int(max_bad_fraction * total + 1e-9) - len(clip_list.rejected)
    plan = shards.Plan(
        wanted, settings, out, count, len(clip_list), clip_list.digest, most_bad
    )
    with shards.locked(plan):
        shards.begin(plan)
        if most_bad < 0:
            report.write(plan, clip_list, [])
            _too_many(len(clip_list.rejected), total, out, max_bad_fraction)
        _work(plan, workers, flags)
        parts = [shards.read_part(plan, shard) for shard in range(count)]
        done = report.write(plan, clip_list, parts)
        if done["rejected"] > most_bad + len(clip_list.rejected):
            _too_many(done["rejected"], total, out, max_bad_fraction)
        if not done["clips"]:
            raise shards.PackError(
                f"all {total} clips are rejected, {out}/{report.REJECTS} says why"
            )
        _check_whole(plan, parts)
    _say(f"done in {time.monotonic() - started:.0f} s: {out}")
    return done


def _work(plan: shards.Plan, workers: int, flags: Sequence[str]) -> None:
    """Make the shards that are missing."""
    todo = [shard for shard in range(plan.shards) if not shards.is_done(plan, shard)]
    kept = plan.shards - len(todo)
    _say(
        f"{plan.listed} clips into {plan.shards} shards in {plan.out}"
        + (f", {kept} of them are there already" if kept else "")
    )
    names = {os.path.basename(plan.part(shard)) for shard in range(plan.shards)}
    folder = remote.join(plan.out, shards.PARTS)
    with jobs.progress(
        lambda: len(names & remote.names(folder)), plan.shards, "shards"
    ):
        jobs.run(functools.partial(shards.pack, plan), todo, workers, flags)


def _check_whole(plan: shards.Plan, parts: Sequence[shards.Part]) -> None:
    """Read all shards together, as training will; a store's would all be copied here."""
    if remote.is_remote(plan.out):
        return
    source = array_record.ArrayRecordSource(plan.out)
    ids = [mark.id for part in parts for mark in part.marks]
    if [source.id(index) for index in range(len(source))] != ids:
        raise shards.PackError(
            f"{plan.out}: shards do not read back as they were written"
        )


def _too_many(rejected: int, total: int, out: str, most: float) -> None:
    raise shards.PackError(
        f"{rejected} of {total} clips are rejected, max_bad_fraction is {most:g}: "
        f"{out}/{report.REJECTS} says why"
    )


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
