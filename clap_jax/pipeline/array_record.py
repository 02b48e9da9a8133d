"""Clips packed into ArrayRecord files: few large files instead of many small ones.

A record is RECORD_MAGIC, the length of the header (4 bytes, little endian), the header
(JSON: id, captions, tags, group, maybe sections), and then an audio file, byte for byte. The last record
of every file is its index: INDEX_MAGIC and all headers, compressed, so that captions are
known without touching the audio. Files are written under another name and renamed at the
end; one that bears its name is complete.
"""

import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
import soundfile
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)

from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.pipeline import copies, order

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

SUFFIX = ".array_record"
RECORD_MAGIC = b"CLAPREC1"
INDEX_MAGIC = b"CLAPIDX1"
HEADER_KEYS = ("id", "captions", "tags", "group")
SECTIONS = "sections"  # also in a header, where the source knows of them

# Audio is compressed already; groups of one record are what random access wants.
WRITER_OPTIONS = "group_size:1,uncompressed"
_RIEGELI_START = bytes.fromhex("83af70d10d884a3f")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})" + re.escape(SUFFIX))
_OPENED_AT_A_TIME = 16


class ArrayRecordError(ValueError):
    """Files that are no packed clips, or not whole; says which and why."""


class ArrayRecordSource:
    """Packed clips by index.

    path: a file, a folder (all its .array_record files) or a glob pattern; files are read
        in the order of their names. Or a URL of these (gs://, s3://): such files are
        copied to the local disk first, all of them.
    cache_folder: where copies go ("": ~/.cache/clap_jax/shards), cache_gib: the most
        that it may hold, in GiB. A copy is made once, and again when the file changed.

    Only the index of each file is read here. Raises ArrayRecordError for files that are
    missing, foreign, truncated or twice the same, and OSError for copies that fail.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        name: str = "array_record",
        cache_folder: str = "",
        cache_gib: float = 100.0,
    ):
        self.name, self._path = name, os.fspath(path)
        if not remote.is_remote(self._path):
            self._path = os.path.expanduser(self._path)
        if not remote.is_remote(cache_folder):
            cache_folder = os.path.expanduser(cache_folder)
        self._files = copies.stage(_files(self._path), cache_folder, cache_gib)
        with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool:
            indices = list(pool.map(_read_index, self._files))
        self._headers = [header for index in indices for header in index]
        # The number of a clip's record among all records, index records included.
        self._record = np.concatenate(
            [np.arange(len(index)) + start for index, start in _starts(indices)]
        )
        self._records = grain.sources.ArrayRecordDataSource(self._files)
        seen: set[str] = set()
        for header in self._headers:
            if header["id"] in seen:
                raise ArrayRecordError(
                    f"{self._path}: two clips have the id {header['id']!r}: is one "
                    "packing there twice?"
                )
            seen.add(header["id"])

    def __len__(self) -> int:
        return len(self._headers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip, its audio as bytes. Raises AudioError for a damaged record."""
        try:
            record = self._records[int(self._record[index])]
        except (RuntimeError, ValueError) as error:
            name = f"{self._path}, clip {self.id(index)}"
            raise audio_io.AudioError(f"{name}: damaged record: {error}") from None
        return self._example(index, record)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Several clips by one request for each file; an AudioError in place of one
        that is damaged."""
        try:
            records = self._records.__getitems__(
                [int(self._record[i]) for i in indices]
            )
        except (RuntimeError, ValueError):  # of one of them: which?
            return [_or_error(self.__getitem__, index) for index in indices]
        rows = zip(indices, records, strict=True)
        return [_or_error(self._example, *row) for row in rows]

    def _example(self, index: int, record: bytes) -> dict[str, Any]:
        header = self._headers[index]
        if not record.startswith(RECORD_MAGIC):
            raise audio_io.AudioError(
                f"{self._path}, clip {header['id']}: starts with {record[:8]!r}, not a clip"
            )
        start = len(RECORD_MAGIC) + 4
        length = int.from_bytes(record[len(RECORD_MAGIC) : start], "little")
        return {**header, "audio": record[start + length :]}

    def audio_files(self) -> list[str]:
        """The files of records, on the local disk."""
        return list(self._files)

    def captions(self, index: int) -> list[str]:
        """Captions of a clip."""
        return list(self._headers[index]["captions"])

    def tags(self, index: int) -> list[str]:
        """Labels of a clip."""
        return list(self._headers[index]["tags"])

    def group(self, index: int) -> str:
        """Clips of one group are positives of each other."""
        return self._headers[index]["group"]

    @property
    def sections(self) -> Callable[[int], list[tuple[float, float, str]]]:
        """`sections(index)`, as the packed source gave them; where it gave any."""
        if not any(SECTIONS in header for header in self._headers):
            raise AttributeError(f"{self._path} knows of no {SECTIONS}")
        return lambda index: [
            (float(begin), float(end), words)
            for begin, end, words in self._headers[index].get(SECTIONS, ())
        ]

    def id(self, index: int) -> str:
        """What the clip was called when it was packed."""
        return self._headers[index]["id"]

    def description(self) -> str:
        """One line: how many clips in how many files."""
        plural = "s" if len(self._files) > 1 else ""
        return (
            f"{self.name}: {self._clips()} in {len(self._files)} file{plural} "
            f"({self._path})"
        )

    def _clips(self) -> str:
        return f"{len(self)} packed clips"

    def digest(self) -> str:
        """Short hex of the headers of all clips, wherever the files are."""
        keys = (*HEADER_KEYS, SECTIONS)
        return order.digest([h[key] for key in keys if key in h] for h in self._headers)


def write_array_record(
    path: str | os.PathLike,
    examples: Iterable[Mapping[str, Any]],
    encoding: str = "flac",
    may_be_empty: bool = False,
    with_captions: bool = True,
) -> int:
    """Write examples (as a `Source` gives them) into one file; returns how many.

    Audio that is a path or bytes is copied as it is, undecoded. Audio that is (array,
    rate_hz) becomes mono and is encoded: "flac" keeps 16 bits a sample, "wav" keeps
    float32 exactly. Raises ValueError for examples without captions (unless
    `with_captions` is false), with an id that was there before, or none at all (unless
    that may be), and AudioError for audio that cannot be had; then there is no file.
    """
    if encoding not in ("flac", "wav"):
        raise ValueError(f"encoding is {encoding!r}, expected 'flac' or 'wav'")
    path = os.fspath(path)
    if not path.endswith(SUFFIX):
        raise ValueError(f"{path}: the name must end in {SUFFIX}")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = f"{path}.part{os.getpid()}"
    writer = ArrayRecordWriter(partial, WRITER_OPTIONS)
    try:
        headers: dict[str, dict] = {}
        for example in examples:
            header = _header(example, with_captions)
            if header["id"] in headers:
                raise ValueError(f"{path}: two clips have the id {header['id']!r}")
            headers[header["id"]] = header
            packed = json.dumps(header, ensure_ascii=False).encode()
            length = len(packed).to_bytes(4, "little")
            audio = _audio_bytes(example["audio"], encoding, header["id"])
            writer.write(RECORD_MAGIC + length + packed + audio)
        if not headers and not may_be_empty:
            raise ValueError(f"{path}: there are no clips to write")
        index = json.dumps(list(headers.values()), ensure_ascii=False).encode()
        writer.write(INDEX_MAGIC + zlib.compress(index))
        writer.close()
        os.replace(partial, path)
    finally:
        if writer.is_open():
            writer.close()
        if os.path.exists(partial):
            os.remove(partial)
    return len(headers)


def pack(
    source: "Source", path: str | os.PathLike, shards: int = 1, encoding: str = "flac"
) -> list[str]:
    """Write all clips of a source to `path`-00000-of-0000N.array_record and so on.

    Returns the paths of the files. Errors as in `write_array_record`.
    """
    if not 1 <= shards <= len(source):
        raise ValueError(f"shards is {shards}, expected 1 to {len(source)} (clips)")
    edges = [len(source) * shard // shards for shard in range(shards + 1)]
    files = []
    for shard in range(shards):
        file = f"{os.fspath(path)}-{shard:05d}-of-{shards:05d}{SUFFIX}"
        clips = (source[i] for i in range(edges[shard], edges[shard + 1]))
        write_array_record(file, clips, encoding)
        files.append(file)
    return files


def _or_error(function: Callable, *arguments: Any) -> Any:
    """What the function returns, or the AudioError that it raises."""
    try:
        return function(*arguments)
    except audio_io.AudioError as error:
        return error


def _header(example: Mapping[str, Any], with_captions: bool) -> dict[str, Any]:
    header = {key: example[key] for key in HEADER_KEYS}
    if SECTIONS in example:
        header[SECTIONS] = [list(section) for section in example[SECTIONS]]
    captions = header["captions"]
    missing = with_captions and not captions
    if missing or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError(f"clip {header['id']!r} has no or an empty caption")
    return header


def _audio_bytes(audio: Any, encoding: str, name: str) -> bytes:
    if isinstance(audio, bytes):
        return audio
    if isinstance(audio, tuple):
        rate_hz = audio[1]
        wave = audio_io.load(audio, rate_hz, name)
        subtype = {"flac": "PCM_16", "wav": "FLOAT"}[encoding]
        file = io.BytesIO()
        soundfile.write(file, wave, round(rate_hz), subtype, format=encoding.upper())
        return file.getvalue()
    try:
        with open(audio, "rb") as file:
            return file.read()
    except OSError as error:
        raise audio_io.AudioError(f"{audio}: {error.strerror or error}") from None


def _files(path: str) -> list[str]:
    """The files that `path` means; shards of a set must all be there."""
    folder = remote.is_folder(path)
    if folder:
        here = path.rstrip("/") if remote.is_remote(path) else path
        named = (name for name in remote.names(here) if name.endswith(SUFFIX))
        files = sorted(remote.join(here, name) for name in named)
    else:
        files = list(filter(remote.is_file, remote.expand(path, SUFFIX)))
    if not files:
        raise ArrayRecordError(
            f"{path}: no {SUFFIX} file there (expected a file, a folder or a pattern)"
        )
    if folder:
        present = set(files)
        for stem, shards in {m.group(1, 3) for m in map(_SHARD.fullmatch, files) if m}:
            for shard in range(int(shards)):
                file = f"{stem}-{shard:05d}-of-{shards}{SUFFIX}"
                if file not in present:
                    raise ArrayRecordError(f"{file} is missing beside the other shards")
    return files


def _starts(indices: list[list]) -> list[tuple[list, int]]:
    """Each file's index with the number of its first record among all files'."""
    sizes = [len(index) + 1 for index in indices]
    return list(zip(indices, np.cumsum([0, *sizes[:-1]]), strict=True))


def _read_index(file: str) -> list[dict[str, Any]]:
    """The headers of all clips of a file."""
    reader = ArrayRecordReader(file, "readahead_buffer_size:0")
    try:
        records = reader.num_records() if reader.ok() else 0
        last = reader.read([records - 1])[0] if records else b""
    except (RuntimeError, ValueError) as error:
        raise ArrayRecordError(f"{file}: its index is damaged: {error}") from None
    finally:
        # Closing one that did not open raises an error without a word.
        if reader.ok():
            reader.close()
    if not records:
        raise ArrayRecordError(f"{file}: {_why_not(file)}")
    if not last.startswith(INDEX_MAGIC):
        raise ArrayRecordError(
            f"{file}: its {records} records were not packed by clap_jax (the last one "
            f"starts with {last[:8]!r}): write it with clap_jax.pipeline.array_record"
        )
    headers = json.loads(zlib.decompress(last[len(INDEX_MAGIC) :]))
    if len(headers) != records - 1:
        raise ArrayRecordError(
            f"{file}: {records - 1} clips, but its index has {len(headers)}"
        )
    return headers


def _why_not(file: str) -> str:
    with open(file, "rb") as content:
        start = content.read(len(_RIEGELI_START))
    if not start:
        return "the file is empty"
    if start == _RIEGELI_START:
        return "truncated: its end, where the index is, is missing"
    return f"is not an ArrayRecord file (starts with {start!r})"
