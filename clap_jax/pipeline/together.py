"""Neighbouring clips by one request: blocks that are read whole and used piece by piece."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from clap_jax.pipeline.ops import Clips


class Block:
    """The clips of one request, made when first asked for."""

    def __init__(self, read: Callable[[], dict[int, Any]]):
        self._read: Callable | None = read
        self._examples: dict[int, Any] = {}
        self._lock = threading.Lock()

    def take(self, index: int) -> Any:
        """An example, or the AudioError in its place; None when it was taken before."""
        with self._lock:
            if self._read is not None:
                self._examples, self._read = self._read(), None
            return self._examples.pop(index, None)

    @property
    def used_up(self) -> bool:
        """Whether every example was taken."""
        return self._read is None and not self._examples


class Together:
    """Blocks of `size` neighbours; the ones last asked for stay until they are used up.

    clips: of all sources. kept: blocks at most; encoded audio, the memory that this
    takes. Safe in threads; a pickled copy starts empty.
    """

    def __init__(self, clips: Sequence[Clips], size: int, kept: int):
        self._clips, self._size, self._kept = clips, size, kept
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return Together, (self._clips, self._size, self._kept)

    def start(
        self, places: Sequence[tuple[int, int]], begin: Callable
    ) -> list[Callable[[], Any] | None]:
        """For each (source, index) what gives its example, None where clips are single.

        begin(function, *arguments) calls a function in the background and returns what
        waits for its result.
        """
        return [self._taker(which, index, begin) for which, index in places]

    def _taker(self, which: int, index: int, begin: Callable) -> Callable | None:
        clips = self._clips[which]
        if not hasattr(clips.source, "read"):
            return None
        key = which, index // self._size
        with self._lock:
            block = self._blocks.pop(key, None)
            if block is None or block.used_up:
                block = Block(begin(self._read, *key))
            self._blocks[key] = block
            for old, other in list(self._blocks.items()):
                if other.used_up or len(self._blocks) > self._kept:
                    del self._blocks[old]
        return lambda: block.take(index)

    def _read(self, which: int, block: int) -> dict[int, Any]:
        clips, start = self._clips[which], block * self._size
        end = min(start + self._size, len(clips.source))
        wanted = [i for i in range(start, end) if clips.cached(i) is None]
        return dict(zip(wanted, clips.source.read(wanted), strict=True))
