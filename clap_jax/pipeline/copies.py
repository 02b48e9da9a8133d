"""Copies of remote files on the local disk, made once and shared by all runs."""

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clap_jax import remote
from clap_jax.remote import Found, RemoteError

DAY_SECONDS = 24 * 60 * 60

PART = ".part"
"""How the name of a copy ends while it is being made."""


def stage(paths: Sequence[str], folder: str, limit_gib: float) -> list[str]:
    """Copies of remote files in a local folder; local paths come back as they are.

    A copy that is there and up to date is used again. Several threads and processes may
    ask for the same files at a time: one copies, and the copy appears when it is whole.
    The folder holds at most `limit_gib` GiB; nothing in it is ever deleted for room,
    since other runs may read it.
    Raises ValueError for a folder that is a URL, and RemoteError for files that cannot
    be had, are too many, or do not fit the disk.
    """
    if remote.is_remote(folder):
        raise ValueError(
            f"cache_folder is {folder}, expected a local folder: these files are read "
            "from copies on the local disk"
        )
    far = [path for path in paths if remote.is_remote(path)]
    if not far:
        return list(paths)
    folder = os.path.abspath(folder or remote.cache_folder("shards"))
    with ThreadPoolExecutor(remote.AT_A_TIME) as pool:
        found = dict(zip(far, pool.map(remote.find, far), strict=True))
        names = {path: remote.key(path, found[path]) for path in far}
        copies = {path: os.path.join(folder, name) for path, name in names.items()}
        os.makedirs(folder, exist_ok=True)
        _check_limit(folder, found, set(names.values()), limit_gib)
        missing = _missing(folder, found, copies)
        list(pool.map(lambda path: _copy(path, copies[path], found[path]), missing))
    return [copies.get(path, path) for path in paths]


def _check_limit(
    folder: str, found: dict[str, Found], names: set[str], limit_gib: float
) -> None:
    """Raise RemoteError when the folder would hold more than it may."""
    total, others = sum(item.size for item in found.values()), _others(folder, names)
    if total + others <= limit_gib * 2**30:
        return
    beside = f", beside {_gib(others)} of other copies" if others else ""
    raise RemoteError(
        f"{next(iter(found))} and the {len(found) - 1} other files take {_gib(total)}"
        f"{beside} in {folder}, expected {limit_gib:g} GiB at most: raise cache_gib, name "
        "fewer files" + (", or empty the folder" if others else "")
    )


def _missing(folder: str, found: dict[str, Found], copies: dict[str, str]) -> list[str]:
    """The files to be copied. Raises RemoteError when the disk has no room for them.

    Another process may be copying them: what it has of them takes no more room. Room,
    parts, and copies are looked at in the order in which files go from one to the next,
    so that none is missed and held against this process.
    """
    free = shutil.disk_usage(folder).free
    for copy in copies.values():
        for part in _parts(copy):
            with contextlib.suppress(FileNotFoundError):
                free += os.path.getsize(part)
    missing = [path for path in found if not _is_whole(copies[path], found[path])]
    needed = sum(found[path].size for path in missing)
    if needed > free:
        raise RemoteError(
            f"{folder} has room for {_gib(free)}, expected {_gib(needed)} for "
            f"{len(missing)} files such as {missing[0]}: set cache_folder to another disk"
        )
    return missing


def _parts(copy: str) -> list[str]:
    return glob.glob(f"{glob.escape(copy)}.*{PART}")


def _is_whole(copy: str, found: Found) -> bool:
    return os.path.isfile(copy) and os.path.getsize(copy) == found.size


def _copy(path: str, copy: str, found: Found) -> None:
    """Copy one file, unless another thread or process did so meanwhile."""
    with _locked(copy + ".lock") as alone:
        if _is_whole(copy, found):
            return
        if alone:  # so parts are of processes that were killed
            for part in _parts(copy):
                os.remove(part)
        _download(path, copy, found)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """One at a time on this machine (True); all where files cannot be locked (False)."""
    with open(path, "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except (ImportError, OSError):
            alone = False
        yield alone  # closing the file unlocks it


def _download(path: str, copy: str, found: Found) -> None:
    partial = f"{copy}.{uuid.uuid4().hex}{PART}"
    try:
        remote.fetch(path, partial)
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
            if file.suffix == PART and time.time() - status.st_mtime > DAY_SECONDS:
                file.unlink()
            elif file.name not in kept and file.suffix != PART:
                total += status.st_size
    return total


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
