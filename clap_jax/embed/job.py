"""An embedding job: what is left is embedded, part by part, then the result is written.

The same job, killed at any moment and started again, gives the same result: an item
that is in a part is not embedded again, and groups of items begin anew with every part.
"""

import csv
import functools
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax.embed import parts as parts_lib
from clap_jax.embed import stores
from clap_jax.embed.ahead import Embedded
from clap_jax.embed.parts import Parts, Place

FORMAT = 1


class Summary(NamedTuple):
    """How a job ended.

    count: rows of the result. bad: items without a vector. seconds: of sound, in the
    rows. was_there: the result was complete before, nothing was done.
    """

    count: int
    bad: int
    seconds: float
    was_there: bool = False


class Interrupted(RuntimeError):
    """A job that was stopped: how much is done, and that it can go on."""


def run(
    items: Sequence[str],
    embed: Callable[[Iterable[str]], Iterator[Embedded]],
    out: str | Path,
    settings: Mapping[str, Any],
    on_progress: Callable[[int, int, int], None] = lambda done, bad, total: None,
    note: str = "",
) -> Summary:
    """Embed `items` into `out`.

    Args:
        items: paths or texts, in the order of the result's rows; a text may repeat.
        embed: gives every item back with its vector, in order; groups of items that
            are embedded together should begin anew every `parts.ITEMS` items.
        out: .npz, .parquet, or a folder's name. What is done so far is kept beside it,
            in `<out>.parts`, which is removed at the end. Items without a vector are
            listed in `<out>.bad.csv` with the reason.
        settings: what defines the vectors: `kind` ("path" or "text"), `embed_dim` and
            whatever else; kept with the result and, while the job is not finished,
            compared.
        on_progress: called with the items done, those of them that are bad, and all.
        note: kept with the result as `model`, not compared.

    Raises:
        parts.PartsError: the parts are of another job, or of one that is running.
        stores.StoreError: `out` has a wrong name, or exists and is another result.
        Interrupted: instead of KeyboardInterrupt.
    """
    stores.check_name(out)
    out = Path(out)
    settings = {"format": FORMAT, **settings}
    stamps = {item: "" for item in items}
    if settings["kind"] == "path":
        stamps = {item: stamp(item) for item in stamps}
    settings_of_result = {**settings, "items": _digest(items, stamps)}
    parts_folder = out.with_name(f"{out.name}.parts")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _existing(out, settings_of_result, parts_folder)
    parts = Parts(parts_folder, settings)
    try:
        done = _embed_rest(parts, stamps, embed, on_progress)
        places = [(item, done[item]) for item in items]
        bad = {item: place.error for item, place in places if place.row < 0}
        good = [(item, place) for item, place in places if place.row >= 0]
        _write_bad(out, bad, settings["kind"])
        if good:
            metadata = {**settings_of_result, "model": note, "bad": len(bad)}
            rows = functools.partial(_blocks, parts, good)
            stores.write(out, stores.Content(len(good), rows, metadata))
        parts.remove()
    finally:
        parts.close()
    seconds = math.fsum(place.seconds for _, place in good)
    return Summary(len(good), len(bad), seconds)


def _embed_rest(
    parts: Parts,
    stamps: Mapping[str, str],
    embed: Callable[[Iterable[str]], Iterator[Embedded]],
    on_progress: Callable[[int, int, int], None],
) -> dict[str, Place]:
    """Embed what no part holds yet; returns where everything is."""
    done = parts.done(stamps)
    left = [item for item in stamps if item not in done]
    count, bad = len(done), sum(place.row < 0 for place in done.values())
    on_progress(count, bad, len(stamps))
    waiting: list[Embedded] = []
    kept = count
    try:
        for row in embed(left):
            waiting.append(row)
            count, bad = count + 1, bad + (row.vector is None)
            if len(waiting) == parts_lib.ITEMS:
                parts.add(waiting, stamps)
                kept, waiting = count, []
            on_progress(count, bad, len(stamps))
        if waiting:
            parts.add(waiting, stamps)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {kept} of {len(stamps)} are done, the same command goes on"
        ) from None
    return parts.done(stamps)


def _existing(out: Path, wanted: Mapping[str, Any], parts_folder: Path) -> Summary:
    """The summary of a result that is there already; StoreError when it is another."""
    found = stores.read_metadata(out)
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise stores.StoreError(
            f"{out} exists and was made from other {', '.join(differing)}: remove it, "
            "or write to another file"
        )
    if parts_folder.is_dir():  # killed between writing the result and removing these
        Parts(parts_folder, {}).remove()
    rows, _ = stores.read(out)
    return Summary(len(rows.items), found["bad"], float(rows.seconds.sum()), True)


def _blocks(parts: Parts, good: Sequence[tuple[str, Place]]) -> Iterator[stores.Rows]:
    for start in range(0, len(good), stores.BLOCK_ROWS):
        block = good[start : start + stores.BLOCK_ROWS]
        yield stores.Rows(
            # Names of files may hold bytes that are no UTF-8.
            [item.encode("utf-8", "replace").decode() for item, _ in block],
            np.array([place.seconds for _, place in block], np.float64),
            np.array([parts.vector(place) for _, place in block], np.float32),
        )


def _write_bad(out: Path, bad: Mapping[str, str], kind: str) -> None:
    """`<out>.bad.csv`, or none when nothing is bad."""
    path = bad_list(out)
    if not bad:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([kind, "reason"])
    writer.writerows(bad.items())
    config_lib.write_text(path, text.getvalue().encode("utf-8", "replace").decode())


def bad_list(out: str | Path) -> Path:
    """Where the items of a job that have no vector are listed."""
    out = Path(out)
    return out.with_name(f"{out.name}.bad.csv")


def stamp(path: str) -> str:
    """Changes when a file does; "" for one that cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _digest(items: Iterable[str], stamps: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(f"{item}\0{stamps[item]}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
