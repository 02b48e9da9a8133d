"""Find training clips that are also in evaluation sets: python -m data.overlap."""

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from clap_jax import remote
from clap_jax.cli import Parser, fail
from clap_jax.pipeline import order, sources, tables
from data import jobs, listing, pack, report
from data.search import (
    BLOCK_CLIPS,
    VERSION,
    Hit,
    Search,
    blocks,
    find_block,
    forget,
    index_block,
    merge_index,
)

DESCRIPTION = """Find the clips of TRAIN that are also in an evaluation set: under the same
id, or the same recording, re-encoded, cut out of or into another, louder or softer.

TRAIN and EVAL are paths (tables, folders, shards, data sets of data.prepare with all
their splits), or entries of a config's data.sources as JSON, each with its own options.

Writes OUT/hits.csv (which clip is where, and how sure that is), OUT/exclude.txt (the ids,
one a line, for data.pack --exclude and any source's exclude), OUT/report.json and
report.txt, and OUT/unheard.csv (clips that could not be read or are silent). A run that
was stopped, or killed, goes on when the same command is given again."""

EXAMPLES = """examples:
  python -m data.overlap train.csv --against audiocaps_test.csv clotho_test.csv \\
      --out=overlap --workers=8
  python -m data.pack train.csv packed --exclude=overlap/exclude.txt
  python -m data.overlap tfds/wavcaps/1.0.0 --out=overlap --against tfds/clotho/1.0.0 \\
      '{"kind": "tfds", "dataset": "audiocaps", "split": "test", "data_dir": "tfds"}'

ids: two ids are the same when they are equal without folders and suffix; names of digits
alone, or of less than 5 characters, tell nothing. What looks like a video of YouTube
(ID, YID, ID_30, ID_000030, ID_30.000_40.000) is the video: the same video at another time
is a hit as well. --ids='(\\d+)' takes what the first group of the expression finds in
both ('(.+)': the whole id); --ids=off does not look at them.
Any other option is one of Apache Beam's. Without --runner, Beam works on this machine."""

HIT_COLUMNS = ("id", "set", "eval_id", "how", "offset_seconds", "seconds", "score")


# --- ids ---


def id_key(pattern: str) -> Callable[[str], str]:
    """What of an id is compared, "" where nothing is. Raises ValueError.

    pattern: "name", "off", or a regular expression with a group.
    """
    if pattern == "off":
        return lambda name: ""
    if pattern != "name":
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--ids is no regular expression: {error}") from None
        if found.groups < 1:
            raise ValueError(f"--ids is {pattern!r}, expected a group, as in '(\\d+)'")
        return lambda name: (m := found.search(name)) and m[1] or ""
    return _name_key


# The 64 bits of a video's number in 11 characters: the last holds 4 bits of them.
_VIDEO = re.compile(
    r"Y?(?P<video>[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048])"
    r"(_\d+(\.\d+)?){0,2}",  # start and end, in any of the forms of `youtube_names`
    re.ASCII,
)
# What people write: Door_Knocks, DogBarking0, rain-2.
_WORD = r"([A-Z]+|[A-Za-z][a-z]*([A-Z][a-z]{2,})*)?\d*"
_WORDS = re.compile(rf"{_WORD}([_-]{_WORD})*")


def _video(stem: str) -> str:
    """The video of YouTube that a clip's name means, "" where it seems to mean none.

    A video's number is random: it has letters of both cases, and is not made of words.
    That is so of 98.5% of them; the others are compared as they are written.
    """
    found = _VIDEO.fullmatch(stem)
    video = found["video"] if found else ""
    both = video.upper() != video != video.lower()
    return video if both and not _WORDS.fullmatch(video) else ""


def _name_key(name: str) -> str:
    stem, suffix = os.path.splitext(name.replace("\\", "/").rsplit("/", 1)[-1])
    if suffix.lower() not in tables.SOUND_SUFFIXES:
        stem += suffix
    return "" if stem.isdigit() or len(stem) < 5 else _video(stem) or stem


def id_hits(search: Search, key: Callable[[str], str]) -> list[Hit]:
    """Training clips that are called as an evaluation clip is."""
    known: dict[str, list[tuple[str, str]]] = {}
    for query in search.evals:
        clip_list = listing.read(query)
        for index in range(len(clip_list)):
            name = clip_list.id(index)
            if key(name):
                known.setdefault(key(name), []).append((query.label, name))
    train = listing.read(search.train)
    ids = (train.id(index) for index in range(len(train)))
    return [
        Hit(name, path, other, "id")
        for name in ids
        for path, other in known.get(key(name), ())
    ]


# --- the command ---


def find(
    train: listing.Query,
    evals: Sequence[listing.Query],
    out: str,
    ids: str = "name",
    workers: int = 1,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Find training clips that are in evaluation sets; writes the tables into OUT.

    ids: as `id_key` takes it. Returns what OUT/report.json holds. Raises ValueError, what
    the sources raise when nothing of them can be used, and JobError.
    """
    started, key = time.monotonic(), id_key(ids)
    forget()
    train_list, eval_lists = listing.read(train), [listing.read(q) for q in evals]
    digests = [clip_list.digest for clip_list in (train_list, *eval_lists)]
    name = order.digest([VERSION, BLOCK_CLIPS, *digests])
    search = Search(train, tuple(evals), remote.join(out, f"parts-{name}"))
    counts = [sum(map(blocks, eval_lists)), blocks(train_list)]
    print(
        f"{len(train_list)} clips against {sum(map(len, eval_lists))} of "
        f"{len(evals)} evaluation sets",
        file=sys.stderr,
    )
    _do(
        search,
        "index",
        functools.partial(index_block, search),
        counts[0],
        workers,
        flags,
    )
    unheard = merge_index(search, counts[0])
    _do(
        search, "hits", functools.partial(find_block, search), counts[1], workers, flags
    )
    hits = id_hits(search, key)
    for block in range(counts[1]):
        part = json.loads(remote.read(search.part("hits", block)))
        hits += [Hit(*hit) for hit in part["hits"]]
        unheard += part["unheard"]
    done = _write(out, train_list, eval_lists, hits, unheard)
    print(f"done in {time.monotonic() - started:.0f} s: {out}", file=sys.stderr)
    return done


def _do(
    search: Search,
    kind: str,
    function: Callable[[int], object],
    count: int,
    workers: int,
    flags: Sequence[str],
) -> None:
    """Do the jobs of a kind that have left nothing yet."""
    names = {os.path.basename(search.part(kind, block)) for block in range(count)}
    there = remote.names(search.folder)
    todo = [
        block
        for block in range(count)
        if os.path.basename(search.part(kind, block)) not in there
    ]
    unit = f"blocks of {BLOCK_CLIPS} clips ({kind})"
    with jobs.progress(lambda: len(names & remote.names(search.folder)), count, unit):
        jobs.run(function, todo, workers, flags)


def _write(
    out: str,
    train_list: listing.Listing,
    eval_lists: Sequence[listing.Listing],
    hits: list[Hit],
    unheard: list[list[str]],
) -> dict[str, Any]:
    gone = list(dict.fromkeys(hit.id for hit in hits))
    done = {
        "train": train_list.description,
        "train_clips": len(train_list),
        "against": [clip_list.description for clip_list in eval_lists],
        "eval_clips": sum(map(len, eval_lists)),
        "hits_by_id": sum(hit.how == "id" for hit in hits),
        "hits_by_sound": sum(hit.how == "sound" for hit in hits),
        "excluded_clips": len(gone),
        "unheard_clips": len(unheard),
    }
    lines = [f"{name:<16} {value}" for name, value in done.items() if name != "against"]
    lines += [f"{'against':<16} {text}" for text in done["against"]]
    files = {
        "hits.csv": report.as_csv(HIT_COLUMNS, hits),
        "exclude.txt": "".join(f"{name}\n" for name in gone),
        "unheard.csv": report.as_csv(("id", "path", "reason"), unheard),
        "report.json": json.dumps(done, indent=1, ensure_ascii=False) + "\n",
        "report.txt": "\n".join(lines) + "\n",
    }
    for name, content in files.items():
        remote.write(remote.join(out, name), content.encode())
    return done


def make_parser() -> Parser:
    """The options of the command line, without Beam's."""
    parser = Parser("data.overlap", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("train", help=pack.SOURCE_HELP)
    add("--against", nargs="+", required=True, metavar="EVAL", help="evaluation sets")
    add("--out", required=True, help="folder for the tables; path or URL")
    pack.add_query(parser)
    of_paths = "of all EVAL that are paths"
    add("--against_kind", default="", help=f"{of_paths}, where names do not tell it")
    add("--against_options", default="{}", metavar="JSON", help=of_paths)
    add("--ids", default="name", help="name, off, or a regular expression (name)")
    add("--workers", type=int, default=1, metavar="N", help="processes (1)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    known, flags = make_parser().parse_known_args(arguments)
    try:
        jobs.check_flags(flags)
        id_key(known.ids)
        train = pack.query(known.train, known.kind, known.options, known.exclude)
        of_paths = (known.against_kind, known.against_options)
        evals = [
            pack.query(data, *(("", "{}") if sources.is_entry(data) else of_paths))
            for data in known.against
        ]
        pack.check_workers(known.workers)
    except ValueError as error:
        fail(str(error), status=2)
    return pack.reported(
        lambda: find(
            train, evals, pack.absolute(known.out), known.ids, known.workers, flags
        ),
        lambda done: (
            remote.read(remote.join(pack.absolute(known.out), "report.txt"))
            .decode()
            .rstrip()
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
