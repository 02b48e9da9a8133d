"""Shared memory of worker processes that is still in use when a program ends.

Grain hands out batches of worker processes in shared memory and frees each in the
background once it is no longer used. What is in use at the very end would never be freed:
it stays in /dev/shm until the next start of the machine, or until Python's resource
tracker finds it and complains.
"""

import atexit
import contextlib
import functools
import weakref
from collections import deque
from multiprocessing import shared_memory
from typing import Any

# Arrays that may be in use, or waiting to be freed, at the end.
REMEMBERED = 1000

_names: deque[str] = deque(maxlen=REMEMBERED)
_open: weakref.WeakSet = weakref.WeakSet()


def watch(iterator: Any) -> None:
    """Close an iterator when the program ends, if it is still there and open."""
    _clean_at_exit()
    _open.add(iterator)


def remember(batch: dict[str, Any]) -> None:
    """Note the shared memory that the arrays of a batch lie in."""
    for array in batch.values():
        memory = getattr(array, "shm", None)
        if memory is not None:
            _names.append(memory.name)


@functools.cache
def _clean_at_exit() -> None:
    # What is registered last runs first: before multiprocessing stops the threads that
    # free memory, and while modules still have their names.
    atexit.register(_clean)


def _clean() -> None:
    for iterator in list(_open):
        iterator.close()
    for name in _names:
        with contextlib.suppress(FileNotFoundError):
            memory = shared_memory.SharedMemory(name)
            memory.close()
            memory.unlink()
