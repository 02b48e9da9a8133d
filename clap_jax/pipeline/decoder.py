"""Threads that make clips, and the rows of a batch that these fill."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np


class Decoder:
    """Threads that start when first needed; a pickled copy has its own."""

    def __init__(self, threads: int):
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __reduce__(self):
        return Decoder, (self._threads,)

    def start(self, function: Callable, *arguments: Any) -> Callable[[], Any]:
        """Call `function` in a thread; calling what this returns waits for its result.

        Without threads, that is when the function is called.
        """
        if not self._threads:
            return partial(function, *arguments)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "decode")
        return self._pool.submit(function, *arguments).result


def put(batch: dict[str, np.ndarray], row: int, example: dict[str, Any]) -> None:
    """Write one finished clip into its row of a batch; of one in segments, which are as
    many as they are, into the first ones."""
    segments = len(example["seconds"]) if "seconds" in example else None
    for name, value in example.items():
        where = row if np.ndim(value) == 0 else (row, slice(segments))
        batch[name][where] = value


def check_shard(shard: tuple[int, int]) -> None:
    """Raise ValueError unless `shard` is (index, count) of one host among all."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(
            f"shard is {shard}, expected (index, count) with index < count"
        )
