"""Files by path or URL: what is where, what is in it, byte ranges of it.

A path with a scheme (gs://bucket/a.tar, s3://..., memory://...) goes through fsspec,
which is imported at first use; the library behind a scheme (gcsfs for gs://, s3fs for
s3://) is the user's to install. Everything else is a local path.

A store that fails is asked again for PATIENCE_SECONDS, whatever is wanted of it: what a
run reads must not depend on the network's bad minutes. Then StoreError says so. What
asking again cannot mend (no such file, no permission) is an error at once.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import io
import itertools
import os
import posixpath
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from absl import logging

AT_A_TIME = 16
"""Files that are looked at, or copied, at the same time."""

PATIENCE_SECONDS = 300.0
"""How long, pauses added up, a store that fails is asked again."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_LIBRARIES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
# What stores call the mark that changes with the content.
_STAMPS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "created")


class RemoteError(OSError):
    """A file that cannot be had: says which, and why."""


class StoreError(RemoteError):
    """A store that kept failing for PATIENCE_SECONDS; it may not, the next time."""


class Found(NamedTuple):
    """Size of a file in bytes, and text that changes when its content does."""

    size: int
    stamp: str


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, as gs://bucket/name has."""
    return bool(_SCHEME.match(path))


def join(folder: str, name: str) -> str:
    """`name` as seen from `folder`; one that is whole already stays as it is."""
    if is_remote(name) or not is_remote(folder):
        return name if is_remote(name) else os.path.join(folder, name)
    return f"{folder.rstrip('/')}/{name}"


def opened(path: str, block_bytes: int = 1 << 20) -> BinaryIO:
    """A binary file to read and to seek in; `block_bytes` are fetched ahead."""
    if not is_remote(path):
        return open(path, "rb")
    fs, inner = _filesystem(path)
    options = {"block_size": block_bytes, "cache_type": "readahead"}
    return io.BufferedReader(_Far(path, _ask(path, fs.open, inner, "rb", **options)))


def read(path: str) -> bytes:
    """All bytes of a file. Raises RemoteError (an OSError) or OSError."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    fs, inner = _filesystem(path)
    return _ask(path, fs.cat_file, inner)


def fetch(path: str, copy: str) -> None:
    """Copy a remote file to a local one. Raises RemoteError or OSError."""
    fs, inner = _filesystem(path)
    _ask(path, fs.get_file, inner, copy)


def write(path: str, content: bytes) -> None:
    """Write a file whole or not at all, and the folders above it."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        _ask(path, fs.makedirs, posixpath.dirname(inner), exist_ok=True)
        # Object stores show an object once it is complete.
        _ask(path, fs.pipe_file, inner, content)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(partial, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | OSError]:
    """Bytes [start, end) of files, each (path, start, end), fewer where a file ends.

    Ranges of one store are asked for at the same time where its library can. In place
    of what cannot be had stands an OSError: a local file's, or the FileNotFoundError of
    a remote one. Any other trouble with a store is raised, as RemoteError.
    """
    results: list[Any] = [None] * len(ranges)
    far: dict[int, tuple[Any, list[int]]] = {}
    for number, (path, start, end) in enumerate(ranges):
        try:
            if is_remote(path):
                fs, _ = _filesystem(path)
                far.setdefault(id(fs), (fs, []))[1].append(number)
                continue
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                results[number] = _read_exactly(file, end - start)
        except RemoteError:
            raise
        except OSError as error:
            results[number] = error
    for fs, numbers in far.values():
        _read_far(fs, ranges, numbers, results)
    return results


def _read_far(
    fs: Any,
    ranges: Sequence[tuple[str, int, int]],
    numbers: Sequence[int],
    results: list[Any],
) -> None:
    """Put the ranges of these numbers, all of one store, into their places."""
    left = list(numbers)

    def request() -> None:
        paths = [_filesystem(ranges[number][0])[1] for number in left]
        starts, ends = ([ranges[number][which] for number in left] for which in (1, 2))
        parts = fs.cat_ranges(paths, starts, ends, on_error="return")
        failed = {}
        for number, part in zip(list(left), parts, strict=True):
            if isinstance(part, FileNotFoundError):
                part = _missing(ranges[number][0])
            elif isinstance(part, Exception) and _is_behind_the_end(part):
                part = b""
            if isinstance(part, Exception) and not isinstance(part, FileNotFoundError):
                failed[number] = part
                continue
            results[number] = part
            left.remove(number)  # what came is not asked for again
        if failed:
            number = max(failed, key=lambda number: _is_final(failed[number]))
            left.remove(number)
            left.insert(0, number)  # the one to be named
            raise failed[number]

    _ask(lambda: ranges[left[0]][0], request)


def _read_exactly(file: io.RawIOBase, size: int) -> bytes:
    """`size` bytes, or what there is up to the end (one read may give fewer)."""
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content


def find(path: str) -> Found:
    """What a file is now. Raises RemoteError or OSError when there is none."""
    if not is_remote(path):
        status = os.stat(path)
        return Found(status.st_size, str(status.st_mtime_ns))
    fs, inner = _filesystem(path)
    info = _ask(path, fs.info, inner)
    stamps = [str(info[key]) for key in _STAMPS if info.get(key) is not None]
    return Found(int(info["size"]), stamps[0] if stamps else "")


def is_file(path: str) -> bool:
    """Whether there is a file."""
    return _kind(path) == "file" if is_remote(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Whether there is a folder, or anything whose name begins as in one."""
    if not is_remote(path):
        return os.path.isdir(path)
    if path.lower().startswith("http"):  # where folders are pages with links
        fs, inner = _filesystem(path)
        return _ask(path, fs.isdir, inner)
    return _kind(path) == "directory"


def _kind(path: str) -> str:
    """What lies there, "file", "directory" or "": isfile would take a fault for ""."""
    fs, inner = _filesystem(path)
    try:
        return _ask(path, fs.info, inner)["type"]
    except FileNotFoundError:
        return ""


def names(folder: str) -> set[str]:
    """Names of the files right in a folder; none when there is no such folder."""
    if not is_remote(folder):
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except OSError:
            return set()
    fs, inner = _filesystem(folder)
    try:
        found = _ask(folder, fs.ls, inner, detail=True)
    except FileNotFoundError:
        return set()
    return {posixpath.basename(f["name"]) for f in found if f["type"] == "file"}


def below(folder: str) -> list[str]:
    """Paths, as seen from a folder, of the files in it and in the folders in it.

    Sorted; hidden ones are left out.
    """
    if is_remote(folder):
        fs, inner = _filesystem(folder)
        found = _ask(folder, fs.find, inner)
        files = [posixpath.relpath(file, inner) for file in found]
    else:
        files = [
            os.path.relpath(os.path.join(place, name), folder)
            for place, _, names in os.walk(folder)
            for name in names
        ]
    return sorted(file for file in files if not re.search(r"(^|[/\\])\.", file))


def expand(path: Any, suffix: str) -> list[str]:
    """The files that a path means, in the order of their names.

    path: a file; a folder (all files in it that end in `suffix`, however deep); a
    pattern with *, ? or [...]; any of these with {000..123} or {a,b} in it; or a list
    of such paths, whose order is kept.
    """
    if not isinstance(path, str | os.PathLike):
        return [file for part in path for file in expand(part, suffix)]
    path = os.fspath(path)
    if not is_remote(path):
        path = os.path.expanduser(path)
    if is_file(path):
        return [path]
    alternatives = list(_without_braces(path))
    if alternatives != [path]:
        return [file for part in alternatives for file in _expand_one(part, suffix)]
    return _expand_one(path, suffix)


def _expand_one(path: str, suffix: str) -> list[str]:
    if is_folder(path):
        return [join(path, file) for file in below(path) if file.endswith(suffix)]
    if not glob.has_magic(path):
        return [path]
    if not is_remote(path):
        return sorted(glob.glob(path, recursive=True))
    fs, inner = _filesystem(path)
    return sorted(map(fs.unstrip_protocol, _ask(path, fs.glob, inner)))


def _without_braces(path: str) -> Iterator[str]:
    """All paths that a path with {1..3} or {a,b} stands for."""
    match = _BRACES.search(path)
    if not match:
        yield path
        return
    numbers = _NUMBERS.fullmatch(match[1])
    if numbers:
        first, last = map(int, numbers.groups())
        digits = len(numbers[1])
        parts = [f"{number:0{digits}}" for number in range(first, last + 1)]
    else:
        parts = match[1].split(",")
    for part, rest in itertools.product(parts, _without_braces(path[match.end() :])):
        yield path[: match.start()] + part + rest


# --- what is kept of files ---


def cache_folder(name: str) -> str:
    """A folder for files that can be made again, under ~/.cache or XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "clap_jax", name)


def key(path: str, found: Found) -> str:
    """A file name for what is made of a file as it is now."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        path = fs.unstrip_protocol(inner)  # a store may know several ways to say it
    text = f"{path}\n{found.size}\n{found.stamp}".encode("utf-8", "surrogatepass")
    stem = re.sub(r"[^\w.-]", "_", posixpath.basename(path))[-80:]
    return f"{hashlib.blake2b(text, digest_size=10).hexdigest()}-{stem}"


# --- fsspec ---


@functools.lru_cache(maxsize=4096)
def _filesystem(path: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    scheme = path.partition("://")[0].lower()
    library = _LIBRARIES.get(scheme)
    advice = f"pip install {library}" if library else "install what serves it"
    try:
        import fsspec

        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise RemoteError(
            f"{path}: {scheme}:// needs a library that is not here ({error}): {advice}"
        ) from None
    except ValueError as error:
        raise RemoteError(
            f"{path}: fsspec knows no {scheme}:// ({error}): {advice}"
        ) from None


class _Far(io.RawIOBase):
    """A store's open file, whose reads are asked again where they fail."""

    def __init__(self, path: str, file: Any):
        super().__init__()
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = _ask(self._path, self._file.read, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


# --- patience ---


_sleep = time.sleep

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_MISTAKES = (ImportError, TypeError, AttributeError, NotImplementedError)
_OWN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def _ask(
    path: str | Callable[[], str], request: Callable, *arguments, **options
) -> Any:
    """What a request to a store returns; where it fails, asked again for a while.

    path: names the file in errors, or gives its name. Whatever a store's library raises
    becomes FileNotFoundError, RemoteError (asking again would not help) or StoreError.
    """
    waited, pause = 0.0, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return request(*arguments, **options)
        except RemoteError:
            raise
        except Exception as error:  # each library has its own
            name = path if isinstance(path, str) else path()
            if isinstance(error, FileNotFoundError):
                raise _missing(name) from None
            said = (str(error).strip().splitlines() or [""])[0]
            sentence = f"{name}: {type(error).__name__}: {said}".rstrip(": ")
            if _is_final(error):
                raise RemoteError(sentence) from error
            if waited >= PATIENCE_SECONDS:
                raise StoreError(f"{sentence} (for {waited:.0f} s)") from error
        # Not all at the same moment: a store that is back would be down again.
        seconds = pause * random.uniform(0.5, 1.0)
        logging.warning("%s; asked again in %.1f s", sentence, seconds)
        _sleep(seconds)
        waited, pause = waited + seconds, min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: there is no such file")


def _status(error: Exception) -> int:
    """The HTTP status in a library's own error; 0 where there is none."""
    for name in ("status", "code", "status_code"):
        with contextlib.suppress(TypeError, ValueError):
            return int(getattr(error, name, None))
    return 0


def _is_final(error: Exception) -> bool:
    """Whether the same request would fail again."""
    if isinstance(error, (*_FINAL, *_MISTAKES)):
        return True
    if isinstance(error, OSError) and error.errno in _OWN_DISK:
        return True
    if "Credentials" in type(error).__name__:  # there are none
        return True
    # 401: of a token that is being renewed; 408, 425, 429: too slow, early, often.
    return _status(error) in {*range(400, 500)} - {401, 408, 425, 429}


def _is_behind_the_end(error: Exception) -> bool:
    """Whether a range was asked for that begins where the file has ended."""
    return _status(error) == 416 or "not satisfiable" in str(error).lower()
