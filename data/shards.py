"""Shards of packed clips, each the work of one worker: written, read back, then named.

OUT holds `clips-00000-of-00008.array_record` and so on. Beside them lies `parts/`, with a
JSON file for each shard that is done: its checksum, what was rejected, and marks that
tell duplicates. A shard gets its name when it is whole and read back; a run that was
killed leaves the shards that it finished, and the next one checks them and goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import array_record
from data import clips, listing

PARTS = "parts"
STEM = "clips"
UNFINISHED = "unfinished_"

_BLOCK_BYTES = 1 << 22


class PackError(ValueError):
    """A packing that cannot go on; says why."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a worker has to know; it can be pickled.

    listed: how many clips are listed; digest: of that list; most_bad: how many clips may
    be rejected before the run is stopped.
    """

    query: listing.Query
    settings: clips.Settings
    out: str
    shards: int
    listed: int
    digest: str
    most_bad: int

    @property
    def key(self) -> str:
        """Changes with everything that may change a byte of a shard."""
        settings = dataclasses.asdict(self.settings)
        parts = [self.digest, self.listed, self.shards, self.query.kind, settings]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def file(self, shard: int) -> str:
        """Where a shard goes."""
        name = f"{STEM}-{shard:05d}-of-{self.shards:05d}{array_record.SUFFIX}"
        return remote.join(self.out, name)

    def part(self, shard: int) -> str:
        """Where it is said that a shard is done."""
        return remote.join(self.out, f"{PARTS}/{shard:05d}-of-{self.shards:05d}.json")

    def clips(self, shard: int) -> range:
        """The clips of a shard, by their place in the list."""
        first, end = (self.listed * n // self.shards for n in (shard, shard + 1))
        return range(first, end)


class Mark(NamedTuple):
    """What tells a clip's duplicates: its id, and equal text for equal content."""

    id: str
    bytes_mark: str
    samples_mark: str


@dataclasses.dataclass
class Part:
    """A shard that is done."""

    key: str
    file: str
    bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
    marks: list[Mark] = dataclasses.field(default_factory=list)
    rejected: list[listing.Rejected] = dataclasses.field(default_factory=list)

    @property
    def clips(self) -> int:
        return len(self.marks)


def read_part(plan: Plan, shard: int) -> Part | None:
    """What was written down about a shard, None where there is nothing of this plan."""
    try:
        fields = json.loads(remote.read(plan.part(shard)))
        part = Part(**fields)
        part.marks = [Mark(*mark) for mark in part.marks]
        part.rejected = [listing.Rejected(*row) for row in part.rejected]
    except remote.StoreError:
        raise
    except (OSError, ValueError, TypeError):
        return None
    return part if part.key == plan.key else None


def is_done(plan: Plan, shard: int) -> bool:
    """Whether a shard is there, byte for byte as it was written."""
    part = read_part(plan, shard)
    if part is None:
        return False
    try:
        size = remote.find(plan.file(shard)).size
        return size == part.bytes and _sha256(plan.file(shard)) == part.sha256
    except FileNotFoundError:
        return False


def pack(plan: Plan, shard: int) -> int:
    """Make one shard, unless it is done; returns its number.

    Raises PackError when the source changed since the plan was made, when too many clips
    are rejected, or when what was written does not read back; then there is no shard.
    """
    if is_done(plan, shard):
        return shard
    clip_list = listing.read(plan.query)
    if clip_list.digest != plan.digest:
        raise PackError(
            f"{plan.query.label} changed since packing began: start "
            "again with another folder"
        )
    part = Part(plan.key, os.path.basename(plan.file(shard)))
    folder = _scratch(plan)
    file = os.path.join(folder, os.path.basename(plan.file(shard)))
    try:
        written: list[bytes] = []
        examples = _packed(plan, shard, clip_list, part, written)
        array_record.write_array_record(file, examples, may_be_empty=True)
        _read_back(file, part, written)
        part.bytes, part.sha256 = os.path.getsize(file), _sha256(file)
        _publish(file, plan.file(shard))
        content = json.dumps(dataclasses.asdict(part), ensure_ascii=False)
        remote.write(plan.part(shard), content.encode())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return shard


def _scratch(plan: Plan) -> str:
    """A folder for a shard until it is whole: on OUT's own disk, else a local one."""
    if remote.is_remote(plan.out):
        return tempfile.mkdtemp(prefix="clap_jax_pack_")
    folder = os.path.join(plan.out, PARTS)
    os.makedirs(folder, exist_ok=True)
    return tempfile.mkdtemp(prefix=UNFINISHED, dir=folder)


@contextlib.contextmanager
def locked(plan: Plan) -> Iterator[None]:
    """One run at a time packs into a local OUT. Raises PackError."""
    if remote.is_remote(plan.out):
        yield
        return
    import fcntl

    folder = os.path.join(plan.out, PARTS)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PackError(f"another run is packing into {plan.out}") from None
        yield


def begin(plan: Plan) -> None:
    """Write down what is packed into OUT, and remove what killed runs left there.

    Raises PackError when OUT holds shards of something else.
    """
    file = remote.join(plan.out, f"{PARTS}/plan.json")
    try:
        key = json.loads(remote.read(file))["key"]
    except FileNotFoundError:
        key = ""
    names = remote.names(plan.out)
    if key != plan.key and any(name.endswith(array_record.SUFFIX) for name in names):
        raise PackError(
            f"{plan.out} holds shards of other clips or of other settings: choose "
            "another folder, or remove this one"
        )
    content = {"key": plan.key, **dataclasses.asdict(plan)}
    remote.write(file, json.dumps(content, indent=1).encode())
    if remote.is_remote(plan.out):
        return
    folder = os.path.join(plan.out, PARTS)
    for name in os.listdir(folder):
        if name.startswith(UNFINISHED):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _publish(file: str, path: str) -> None:
    if not remote.is_remote(path):
        os.replace(file, path)
        return
    with open(file, "rb") as content:
        remote.write(path, content.read())


def _packed(
    plan: Plan,
    shard: int,
    clip_list: listing.Listing,
    part: Part,
    written: list[bytes],
) -> Iterator[dict[str, Any]]:
    """The clips of a shard that are sound, encoded.

    `part` gets what is said of all of them, `written` a checksum of each that is given.
    """
    for index in plan.clips(shard):
        name, path = clip_list.id(index), plan.query.label
        try:
            example = _read(clip_list, index)
            if isinstance(example["audio"], str):
                path = example["audio"]
            captions = example["captions"]
            if not captions or not all(c.strip() for c in captions):
                raise clips.Reject("no_caption", "has no or an empty caption")
            packed = clips.prepare(example, plan.settings, clip_list.rate_hz(index))
        except clips.Reject as reject:
            row = listing.Rejected(name, path, reject.kind, str(reject))
            part.rejected.append(row)
            if len(part.rejected) > plan.most_bad:
                raise PackError(
                    f"more than {plan.most_bad} of {plan.listed} clips are rejected, the "
                    f"last one {name}: {reject}; raise max_bad_fraction to go on"
                ) from None
            continue
        part.seconds += packed.seconds
        part.marks.append(Mark(name, packed.bytes_mark, packed.samples_mark))
        packed_example = example | {"audio": packed.audio}
        written.append(_checksum(packed_example))
        yield packed_example


def _checksum(example: Mapping[str, Any]) -> bytes:
    """Of all that a shard holds of a clip."""
    header = json.dumps([example[key] for key in array_record.HEADER_KEYS])
    return hashlib.blake2b(header.encode() + example["audio"]).digest()


def _read(clip_list: listing.Listing, index: int) -> dict[str, Any]:
    try:
        return clip_list[index]
    except audio_io.AudioError as error:
        raise clips.Reject("unreadable", str(error)) from None


def _read_back(file: str, part: Part, written: list[bytes]) -> None:
    """Read a shard as training does; raise PackError where it is not what was written."""
    if not part.clips:
        return
    source = array_record.ArrayRecordSource(file)
    try:
        found = [_checksum(source[index]) for index in range(len(source))]
    except audio_io.AudioError as error:
        raise PackError(f"{file}: does not read back: {error}") from None
    if found != written:
        raise PackError(f"{file}: reads back with other clips than were written")


def _sha256(path: str) -> str:
    total = hashlib.sha256()
    with remote.opened(path) as file:
        while block := file.read(_BLOCK_BYTES):
            total.update(block)
    return total.hexdigest()
