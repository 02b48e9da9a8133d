"""What is in a tar shard: where each clip's audio lies, and its captions.

The headers of a shard are read once. What was found is kept in a small file, which is
good as long as the shard has the same size and the same etag or time of change.
"""

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from clap_jax import remote
from clap_jax.pipeline import npz, tables

VERSION = 1
"""Of the files that keep an index."""

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aiff")
"""Members that are sounds (lower case)."""

# Big enough for a clip's JSON and the header behind it, which lie next to each other.
BLOCK_BYTES = 1 << 18


class TarError(ValueError):
    """Shards that cannot be used; says which and why."""


class Index(NamedTuple):
    """The clips of one shard in the order of their audio."""

    offset: np.ndarray  # int64 [n], first byte of the audio in the shard
    size: np.ndarray  # int64 [n], bytes of audio
    text_end: np.ndarray  # int64 [n], where the clip's text ends in `text`
    text: bytes  # JSON for each clip, see `Entry`
    problems: list[list[str]]  # (member, reason) of what is left out

    def __len__(self) -> int:
        return len(self.offset)


class Entry(NamedTuple):
    """What an index says about a clip besides its audio."""

    key: str  # name in the shard, without suffix
    text: list[str]
    tags: list[str]
    augment_all: list[str]  # JSON's text_augment_all
    augment_t5: list[str]  # JSON's text_augment_t5


def read_all(shards: Sequence[str], folder: str) -> list[Index]:
    """The index of every shard, from `folder` where it is kept there, else made anew.

    Shards are read in parallel. Raises TarError for one that is no tar file, and OSError
    for one that cannot be had.
    """
    with ThreadPoolExecutor(remote.AT_A_TIME) as pool:
        return list(pool.map(lambda shard: _cached(shard, folder), shards))


def entry(text: bytes) -> Entry:
    """A clip's part of `Index.text`."""
    return Entry(*json.loads(text))


def _cached(shard: str, folder: str) -> Index:
    try:
        found = remote.find(shard)
    except FileNotFoundError:
        raise TarError(f"{shard}: there is no such shard") from None
    if not found.size:
        raise TarError(f"{shard}: the file is empty")
    file = remote.join(folder, remote.key(shard, found) + ".index")
    index = _kept(file)
    if index is None:
        index = read(shard, found.size)
        try:
            remote.write(file, pack(index))
        except remote.StoreError:
            raise
        except OSError as error:
            raise TarError(
                f"the index of {shard} cannot be kept in {folder} "
                f"({error.strerror or error}): set cache_folder to one that can be "
                "written"
            ) from None
    return index


def _kept(file: str) -> Index | None:
    """The index in `file`, if there is a whole one of this version."""
    try:
        return unpack(remote.read(file))
    except remote.StoreError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def pack(index: Index) -> bytes:
    """An index as bytes."""
    file = io.BytesIO()
    np.savez(
        file,
        version=VERSION,
        offset=index.offset,
        size=index.size,
        text_end=index.text_end,
        text=np.frombuffer(zlib.compress(index.text, 1), np.uint8),
        problems=np.frombuffer(json.dumps(index.problems).encode(), np.uint8),
    )
    return file.getvalue()


def unpack(content: bytes) -> Index:
    """The inverse of `pack`. Raises ValueError for another version."""
    arrays = npz.load(content)
    if arrays["version"] != VERSION:
        raise ValueError(f"version {arrays['version']}, expected {VERSION}")
    return Index(
        arrays["offset"],
        arrays["size"],
        arrays["text_end"],
        zlib.decompress(arrays["text"].tobytes()),
        json.loads(arrays["problems"].tobytes()),
    )


# --- reading a shard ---


def read(shard: str, size: int) -> Index:
    """The index of a shard of `size` bytes, from its headers and texts."""
    audio: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, dict[str, Any]] = {}
    problems: list[list[str]] = []
    with remote.opened(shard, BLOCK_BYTES) as file:
        for member in _members(shard, file, size, problems):
            key, suffix = os.path.splitext(member.name)
            suffix = suffix.lower()
            if suffix in AUDIO_SUFFIXES:
                if key in audio:
                    reason = f"is the audio of {key} a second time"
                    problems.append([member.name, reason])
                elif not member.size:
                    problems.append([member.name, "the audio is empty"])
                else:
                    place = (member.name, member.offset_data, member.size)
                    audio[key] = place
            elif suffix in (".json", ".txt"):
                try:
                    content = _content(file, member)
                    texts[key] = texts.get(key, {}) | _texts(content, suffix)
                except ValueError as error:
                    problems.append([member.name, str(error)])
    return _joined(audio, texts, problems)


def _members(
    shard: str, file: Any, size: int, problems: list[list[str]]
) -> Iterator[tarfile.TarInfo]:
    """The files in a shard, as far as it is whole."""
    try:
        tar = tarfile.TarFile(fileobj=file)
    except tarfile.TarError as error:
        file.seek(0)
        start = file.read(16)
        hint = {
            b"\x1f\x8b": " (gzip: unpack it, single clips of it cannot be read)",
            b"\x28\xb5": " (zstd: unpack it, single clips of it cannot be read)",
        }.get(start[:2], "")
        raise TarError(
            f"{shard}: is not a tar file: {error}; starts with {start!r}{hint}"
        ) from None
    last = ""
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError) as error:
            # A short file ends in the middle of a member, or of a header.
            problems.append([last, f"the shard is damaged behind it: {error}"])
            return
        if member is None:
            problems += _end(file, tar.offset, last)
            return
        tar.members.clear()  # else it keeps every header
        # macOS puts files named ._x beside x.
        if not member.isreg() or os.path.basename(member.name).startswith("."):
            continue
        last = member.name
        if member.offset_data + member.size > size:
            reason = f"the shard is truncated: it ends at byte {size}, within this file"
            problems.append([member.name, reason])
            return
        yield member


def _end(file: Any, offset: int, last: str) -> list[list[str]]:
    """What is wrong with the place where tarfile sees the end: a damaged header is one
    to it, and so is the end of a file that was cut between two members."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block and not any(block):
        return []
    if len(block) < tarfile.BLOCKSIZE:
        reason = "the shard is truncated behind this file: it has no end mark"
    else:
        reason = f"what is behind this file is lost: no header at byte {offset}"
    return [[last, reason]]


def _content(file: Any, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _texts(content: bytes, suffix: str) -> dict[str, list[str]]:
    """Captions and labels in a member beside the audio. Raises ValueError."""
    try:
        words = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    if suffix == ".txt":
        return {"text": list(filter(None, map(str.strip, words.splitlines())))}
    try:
        fields = json.loads(words)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    kind = type(fields).__name__
    if kind != "dict":
        raise ValueError(f"holds a {kind}, expected an object {{...}}")
    # LAION's own script for FSD50K writes `tags`, all others write `tag`.
    tags = fields.get("tag") or fields.get("tags")
    values = {
        "text": fields.get("text"),
        "tags": tags,
        "augment_all": fields.get("text_augment_all"),
        "augment_t5": fields.get("text_augment_t5"),
    }
    return {name: list(filter(None, tables.texts(v))) for name, v in values.items()}


def _joined(
    audio: dict[str, tuple[str, int, int]],
    texts: dict[str, dict[str, Any]],
    problems: list[list[str]],
) -> Index:
    """Clips that have both audio and a caption; what has not is a problem."""
    broken = {os.path.splitext(member)[0] for member, _ in problems}
    offset, size, ends, parts, length = [], [], [], [], 0
    for key, (name, start, count) in audio.items():
        found = texts.get(key)
        item = Entry(key, [], [], [], [])._replace(**(found or {}))
        if not (item.text or item.augment_all or item.augment_t5):
            if found is not None:
                problems.append([name, "its JSON has no text"])
            elif key not in broken:
                problems.append([name, "there is no .json or .txt of this name"])
            continue
        parts.append(json.dumps(item, ensure_ascii=False).encode())
        length += len(parts[-1])
        offset.append(start)
        size.append(count)
        ends.append(length)
    problems += [
        [f"{key}.json", "there is no audio of this name"]
        for key in texts
        if key not in audio and key not in broken
    ]
    arrays = (np.array(values, np.int64) for values in (offset, size, ends))
    return Index(*arrays, b"".join(parts), problems)
