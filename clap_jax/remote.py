"""Files by path or URL: what is where, byte ranges, and copies on the local disk.

A path with a scheme (gs://bucket/a.tar, s3://..., memory://...) goes through fsspec,
which is imported at first use; the library behind a scheme (gcsfs for gs://, s3fs for
s3://) is the user's to install. Everything else is a local path.
"""

import contextlib
import functools
import glob
import hashlib
import io
import itertools
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

AT_A_TIME = 16
"""Files that are looked at, or copied, at the same time."""

DAY_SECONDS = 24 * 60 * 60

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
    with _sentences(path):
        return fs.open(inner, "rb", block_size=block_bytes, cache_type="readahead")


def read(path: str) -> bytes:
    """All bytes of a file. Raises RemoteError (an OSError) or OSError."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    fs, inner = _filesystem(path)
    with _sentences(path):
        return fs.cat_file(inner)


def write(path: str, content: bytes) -> None:
    """Write a file whole or not at all, and the folders above it."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        with _sentences(path):  # object stores show an object once it is complete
            fs.makedirs(posixpath.dirname(inner), exist_ok=True)
            fs.pipe_file(inner, content)
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
    """Bytes [start, end) of files, each (path, start, end); errors in their places.

    Ranges of one store are asked for at the same time where its library can.
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
        except OSError as error:
            results[number] = error
    for fs, numbers in far.values():
        paths = [_filesystem(ranges[n][0])[1] for n in numbers]
        starts, ends = ([ranges[n][which] for n in numbers] for which in (1, 2))
        try:
            with _sentences(ranges[numbers[0]][0]):
                parts = fs.cat_ranges(paths, starts, ends, on_error="return")
        except OSError as error:
            parts = [error] * len(numbers)
        for number, part in zip(numbers, parts, strict=True):
            failed = isinstance(part, Exception)
            results[number] = _error(ranges[number][0], part) if failed else part
    return results


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
    with _sentences(path):
        info = fs.info(inner)
    stamps = [str(info[key]) for key in _STAMPS if info.get(key) is not None]
    return Found(int(info["size"]), stamps[0] if stamps else "")


def is_file(path: str) -> bool:
    """Whether there is a file."""
    if not is_remote(path):
        return os.path.isfile(path)
    fs, inner = _filesystem(path)
    with _sentences(path):
        return fs.isfile(inner)


def is_folder(path: str) -> bool:
    """Whether there is a folder, or anything whose name begins as in one."""
    if not is_remote(path):
        return os.path.isdir(path)
    fs, inner = _filesystem(path)
    with _sentences(path):
        return fs.isdir(inner)


def names(folder: str) -> set[str]:
    """Names of the files right in a folder; none when there is no such folder."""
    if not is_remote(folder):
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except OSError:
            return set()
    fs, inner = _filesystem(folder)
    with _sentences(folder):
        try:
            found = fs.ls(inner, detail=True)
        except FileNotFoundError:
            return set()
    return {posixpath.basename(f["name"]) for f in found if f["type"] == "file"}


def below(folder: str) -> list[str]:
    """Paths, as seen from a folder, of the files in it and in the folders in it.

    Sorted; hidden ones are left out.
    """
    if is_remote(folder):
        fs, inner = _filesystem(folder)
        with _sentences(folder):
            files = [posixpath.relpath(file, inner) for file in fs.find(inner)]
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
    with _sentences(path):
        return sorted(fs.unstrip_protocol(file) for file in fs.glob(inner))


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


# --- copies on the local disk ---


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


def stage(paths: Sequence[str], folder: str, limit_gib: float) -> list[str]:
    """Copies of remote files in a local folder; local paths come back as they are.

    A copy that is there and up to date is used again. Several threads and processes may
    ask for the same files at a time: one copies, and the copy appears when it is whole.
    The folder holds at most `limit_gib` GiB; nothing in it is ever deleted for room,
    since other runs may read it.
    Raises RemoteError: files that cannot be had, are too many, or do not fit the disk.
    """
    folder = folder or cache_folder("shards")
    far = [path for path in paths if is_remote(path)]
    if not far:
        return list(paths)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = dict(zip(far, pool.map(find, far), strict=True))
        copies = {path: os.path.join(folder, key(path, found[path])) for path in far}
        total = sum(item.size for item in found.values())
        os.makedirs(folder, exist_ok=True)
        others = _others(folder, set(copies.values()))
        if total + others > limit_gib * 2**30:
            beside = f", beside {_gib(others)} of other copies" if others else ""
            raise RemoteError(
                f"{far[0]} and the {len(far) - 1} other files take {_gib(total)}{beside} "
                f"in {folder}, expected {limit_gib:g} GiB at most: raise cache_gib, name "
                "fewer files" + (", or empty the folder" if others else "")
            )
        missing = [path for path in far if not _is_whole(copies[path], found[path])]
        needed = sum(found[path].size for path in missing)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise RemoteError(
                f"{folder} has room for {_gib(free)}, expected {_gib(needed)} for "
                f"{len(missing)} files such as {missing[0]}: set cache_folder to another "
                "disk"
            )
        list(pool.map(lambda path: _copy(path, copies[path], found[path]), missing))
    return [copies.get(path, path) for path in paths]


def _is_whole(copy: str, found: Found) -> bool:
    return os.path.isfile(copy) and os.path.getsize(copy) == found.size


def _copy(path: str, copy: str, found: Found) -> None:
    """Copy one file, unless another thread or process did so meanwhile."""
    with _locked(copy + ".lock"):
        if not _is_whole(copy, found):
            _download(path, copy, found)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """One at a time on this machine; where files cannot be locked, all at a time."""
    with open(path, "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield  # closing the file unlocks it


def _download(path: str, copy: str, found: Found) -> None:
    partial = f"{copy}.{uuid.uuid4().hex}.part"
    fs, inner = _filesystem(path)
    try:
        with _sentences(path):
            fs.get_file(inner, partial)
        size = os.path.getsize(partial)
        if size != found.size:
            raise RemoteError(
                f"{path}: {size} bytes came, expected {found.size}: is it being written?"
            )
        os.replace(partial, copy)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _others(folder: str, kept: set[str]) -> int:
    """Bytes of what else is in the folder, less what killed processes left there."""
    total = 0
    for file in Path(folder).iterdir():
        with contextlib.suppress(OSError):
            status = file.stat()
            if file.suffix == ".part" and time.time() - status.st_mtime > DAY_SECONDS:
                file.unlink()
            elif str(file) not in kept and file.suffix != ".part":
                total += status.st_size
    return total


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


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


@contextlib.contextmanager
def _sentences(path: str) -> Iterator[None]:
    """Whatever a store's library raises becomes a RemoteError that names the file."""
    try:
        yield
    except RemoteError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except Exception as error:  # each library has its own
        raise _error(path, error) from error


def _error(path: str, error: Exception) -> RemoteError:
    said = (str(error).strip().splitlines() or [""])[0]
    return RemoteError(f"{path}: {type(error).__name__}: {said}".rstrip(": "))
