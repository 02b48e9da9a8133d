"""Features of segments: any clips through frozen towers, once, restartable.

A batch holds segments of whatever clips they come from, so that memory does not depend
on how long a clip is. Shards are written one after the other (`pipeline.feature_files`), each
under its name when it is whole; a job that was killed goes on behind the last of them,
with batches that begin anew, so that it ends with the same bytes.
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax.audio import io as audio_io
from clap_jax.embed import items, job, parts
from clap_jax.embed.ahead import read_ahead
from clap_jax.embed.job import Interrupted
from clap_jax.embed.stores import StoreError
from clap_jax.embed.towers import AudioTower
from clap_jax.pipeline import feature_files, order, sources, tables
from clap_jax.pipeline.array_record import SECTIONS, SUFFIX
from clap_jax.pipeline.features import Features
from clap_jax.pipeline.segments import Segmenter

FORMAT = 1
# Clips of one file; a kill loses at most what is done of one.
SHARD_CLIPS = 128
# What of a clip is heard: all of it.
_LONGEST_SECONDS = 1e7


class Files:
    """Sounds by their paths, without captions, as a `Source`."""

    name = "files"

    def __init__(self, paths: Sequence[str]):
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        name = path.encode("utf-8", "replace").decode()
        return {"id": name, "group": name, "captions": [], "tags": [], "audio": path}

    def id(self, index: int) -> str:
        """The path."""
        return self[index]["id"]

    def digest(self) -> str:
        """Short hex of paths, sizes and times of change."""
        return order.digest([path, job.stamp(path)] for path in self._paths)


def source_of(places: Sequence[str]) -> sources.Source | Files:
    """The clips of a source of training data (an entry as JSON, a table, packed clips),
    or, without captions, sounds of files and folders.

    Raises ValueError for what cannot be read, and for a source among other places.
    """
    known = [place for place in places if _is_source(place)]
    if not known:
        return Files(items.sounds(places))
    if len(places) > 1:
        raise ValueError(
            f"{known[0]:.60} is a source of clips, expected no other places beside it"
        )
    options = dict(sources.entry(places[0]))
    return sources.build_source(options.pop("kind"), "clips", options)


def _is_source(place: str) -> bool:
    if sources.is_entry(place):
        return True
    is_table = Path(place).suffix.lower().lstrip(".") in tables.READERS
    return is_table or sources.section(place)["kind"] != "manifest"


class Summary(NamedTuple):
    """How a job ended: clips and segments written, those of them in which nothing is
    heard, clips that could not be read, seconds of sound; was_there: all of it was."""

    clips: int
    segments: int
    silent: int
    bad: int
    seconds: float
    was_there: bool = False


class Cut(NamedTuple):
    """A clip in S segments: one array int16 [S, T] for each tower, and whose it is."""

    example: dict[str, Any]
    waves: list[np.ndarray]
    seconds: np.ndarray
    heard: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; what several towers hear alike counts once."""
        return sum({id(wave): wave.nbytes for wave in self.waves}.values())


class Cutter:
    """Reads clips and cuts them for all towers alike.

    Raises ValueError for a hop that `Segmenter` refuses, and windows of several lengths.
    """

    def __init__(self, towers: Sequence[AudioTower], hop_seconds: float):
        windows = {tower.frontend.clip_seconds for tower in towers}
        if len(windows) > 1:
            found = ", ".join(f"{seconds:g} s" for seconds in sorted(windows))
            raise ValueError(f"windows of {found}, expected one length for all towers")
        self._segmenters = []
        for tower in towers:
            # Two front ends that cut alike are one.
            key = tower.frontend.rate_hz, tower.frontend.fill
            longest = max(_LONGEST_SECONDS, tower.frontend.clip_seconds)
            segmenter = Segmenter(tower.frontend, hop_seconds, longest)
            self._segmenters.append((key, segmenter))

    def __call__(self, source: Any, index: int) -> Cut:
        """A clip of a source. Raises AudioError."""
        example = dict(source[index])
        audio = example.pop("audio")
        if hasattr(source, "sections"):
            example[SECTIONS] = source.sections(index)
        name = "" if isinstance(audio, str) else f"{source.name} {example['id']}"
        if isinstance(audio, Features):
            raise audio_io.AudioError(f"{name}: is features, expected sound")
        found: dict[Any, dict[str, np.ndarray]] = {}
        for key, segmenter in self._segmenters:
            if key not in found:
                wave = audio_io.load(audio, segmenter.frontend.rate_hz, name)
                found[key] = segmenter(audio_io.to_int16(wave))
        first = found[self._segmenters[0][0]]
        # At another rate a clip may be so much longer that one more segment begins.
        count = min(len(cut["heard"]) for cut in found.values())
        waves = {key: cut["wave"][:count] for key, cut in found.items()}
        return Cut(
            example,
            [waves[key] for key, _ in self._segmenters],
            first["seconds"][:count],
            first["heard"][:count],
        )


def embed(
    clips: Iterator[tuple[int, Cut | None, Exception | None]],
    towers: Sequence[AudioTower],
    batch_size: int,
) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Clips with a `Features` for audio, or why there is none, in their order.

    batch_size: segments at a time, the last ones of all filled up with copies.
    """
    width = sum(tower.width for tower in towers)
    waiting: deque[tuple[int, Cut | None, np.ndarray | None, str]] = deque()
    rows: deque[tuple[Cut, np.ndarray, int]] = deque()

    def flush() -> None:
        batch = [rows.popleft() for _ in range(min(batch_size, len(rows)))]
        filled = batch + batch[-1:] * (batch_size - len(batch))
        found = [
            tower.encode(np.stack([cut.waves[i][row] for cut, _, row in filled]))
            for i, tower in enumerate(towers)
        ]
        vectors = np.concatenate([np.asarray(part) for part in found], axis=1)
        for (_, into, row), vector in zip(batch, vectors):
            into[row] = vector

    def finished() -> Iterator[tuple[int, dict[str, Any] | None, str]]:
        while waiting and not any(into is waiting[0][2] for _, into, _ in rows):
            number, cut, into, error = waiting.popleft()
            if cut is None:
                yield number, None, error
            elif not np.isfinite(into).all():
                yield number, None, "its embedding is not finite"
            else:
                audio = Features(into, cut.seconds, cut.heard)
                yield number, cut.example | {"audio": audio}, ""

    for number, cut, error in clips:
        into = None if cut is None else np.zeros((len(cut.heard), width), np.float32)
        waiting.append((number, cut, into, "" if error is None else str(error)))
        if cut is not None:
            rows.extend((cut, into, row) for row in range(len(into)))
        while len(rows) >= batch_size:
            flush()
        yield from finished()
    while rows:
        flush()
    yield from finished()


@dataclasses.dataclass(frozen=True)
class Options:
    """hop_seconds: from one segment's beginning to the next one's. dtype: on disk, see
    `features.DTYPES`. batch_size: segments at a time. threads: clips decoded at a time.
    shard_clips: clips of one file."""

    hop_seconds: float
    dtype: str = "float16"
    batch_size: int = 16
    threads: int = 4
    shard_clips: int = SHARD_CLIPS


def run(
    source: sources.Source | Files,
    towers: Sequence[AudioTower],
    out: str | Path,
    options: Options,
    on_progress: Callable[[int, int, int], None] = lambda done, bad, total: None,
) -> Summary:
    """Write the features of all clips of a source into the folder `out`.

    towers: their embeddings stand side by side. on_progress: called with the clips that
    are done, those of them that are bad, and all. Clips that cannot be read are left out
    and listed in `<out>.bad.csv`, with the reason.

    Raises parts.PartsError: `out` is another job's, or of one that is running.
    StoreError: it holds other things. Interrupted: instead of KeyboardInterrupt.
    ValueError: no clip at all could be read, or see `Cutter`.
    """
    cutter, folder = Cutter(towers, options.hop_seconds), Path(out)
    settings = {
        "format": FORMAT,
        "clips": len(source),
        "source": source.digest(),
        "towers": [tower.digest for tower in towers],
        "features_width": sum(tower.width for tower in towers),
        "window_seconds": towers[0].frontend.clip_seconds,
        "hop_seconds": options.hop_seconds,
        "dtype": options.dtype,
        "shard_clips": options.shard_clips,
    }
    if folder.exists() and not (folder / "settings.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise StoreError(f"{out} exists and holds no features: write elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    with parts.lock(folder, settings):
        shards = _Shards(folder, len(source), options.shard_clips)
        was_there = not shards.left()
        try:
            _embed_rest(source, cutter, towers, shards, options, on_progress)
        except KeyboardInterrupt:
            done = sum(len(shards.clips(shard)) for shard in shards.done())
            raise Interrupted(
                f"stopped; {done} of {len(source)} are done, the same command goes on"
            ) from None
        found = [shards.said(shard) for shard in shards.done()]
        bad = [row for said in found for row in said["bad"]]
        _write_bad(folder, bad)
    counts = [sum(s[name] for s in found) for name in ("clips", "segments", "silent")]
    return Summary(
        *counts, len(bad), math.fsum(said["seconds"] for said in found), was_there
    )


class _Shards:
    """The files of a job; each that is whole has a few numbers beside it."""

    def __init__(self, folder: Path, clips: int, shard_clips: int):
        self._folder, self._clips, self._size = folder, clips, shard_clips
        self._count = max(-(-clips // shard_clips), 1)
        for rest in folder.glob(f"*{SUFFIX}.part*"):  # of a job that was killed
            rest.unlink()

    def clips(self, shard: int) -> range:
        return range(shard * self._size, min((shard + 1) * self._size, self._clips))

    def file(self, shard: int) -> Path:
        return self._folder / f"features-{shard:05d}-of-{self._count:05d}{SUFFIX}"

    def done(self) -> list[int]:
        return [n for n in range(self._count) if self.said(n) is not None]

    def left(self) -> list[int]:
        return [n for n in range(self._count) if self.said(n) is None]

    def said(self, shard: int) -> dict[str, Any] | None:
        """What is said of a shard that is whole; None for another."""
        try:
            said = json.loads(self._beside(shard).read_text())
            whole = os.path.getsize(self.file(shard)) == said["bytes"]
        except (OSError, ValueError):
            return None
        return said if whole else None

    def say(self, shard: int, said: Mapping[str, Any]) -> None:
        said = {**said, "bytes": os.path.getsize(self.file(shard))}
        config_lib.write_text(self._beside(shard), json.dumps(said) + "\n")

    def _beside(self, shard: int) -> Path:
        return self.file(shard).with_suffix(".json")


def _embed_rest(
    source: Any,
    cutter: Cutter,
    towers: Sequence[AudioTower],
    shards: _Shards,
    options: Options,
    on_progress: Callable[[int, int, int], None],
) -> None:
    """Write the shards that are not done."""
    before = [shards.said(shard) for shard in shards.done()]
    bad = sum(len(said["bad"]) for said in before)
    done = bad + sum(said["clips"] for said in before)
    on_progress(done, bad, len(source))
    left = shards.left()
    read = read_ahead(
        lambda index: cutter(source, index),
        (index for shard in left for index in shards.clips(shard)),
        threads=options.threads,
        ahead=options.threads + 2 * options.batch_size,
        size=lambda cut: cut.nbytes,
    )
    for shard in left:
        said = {"clips": 0, "segments": 0, "silent": 0, "seconds": 0.0, "bad": []}

        def good(shard: int = shard, said: dict[str, Any] = said) -> Iterator[dict]:
            nonlocal done, bad
            own = itertools.islice(read, len(shards.clips(shard)))
            for number, example, error in embed(own, towers, options.batch_size):
                done, bad = done + 1, bad + (example is None)
                if example is None:
                    name = source.id(number)
                    said["bad"].append([name, error.removeprefix(f"{name}: ")])
                else:
                    heard = example["audio"].heard
                    said["clips"] += 1
                    said["segments"] += len(heard)
                    said["silent"] += int(np.count_nonzero(~heard))
                    said["seconds"] += float(example["audio"].seconds[-1, 1])
                    yield example
                on_progress(done, bad, len(source))

        feature_files.write_features(shards.file(shard), good(), options.dtype)
        shards.say(shard, said)


def _write_bad(folder: Path, bad: Sequence[tuple[str, str]]) -> None:
    """`<out>.bad.csv`, or none when nothing is bad."""
    path = job.bad_list(folder)
    if not bad:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["id", "reason"], *bad])
    config_lib.write_text(path, text.getvalue())
