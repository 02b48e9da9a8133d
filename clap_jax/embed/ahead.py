"""Work in threads ahead of whoever takes the results, in bounded memory."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

# Results that wait to be taken; what is being made comes on top.
BUDGET_BYTES = 512 * 2**20


class Embedded(NamedTuple):
    """One item and its vector, or why it has none.

    item: what was embedded, as it was given. vector: float32 [E] of length one, or
    None. seconds: length of the sound (0 for a text, and where there is no vector).
    error: one sentence, "" where there is a vector.
    """

    item: Any
    vector: np.ndarray | None
    seconds: float = 0.0
    error: str = ""


def read_ahead(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    threads: int,
    ahead: int,
    size: Callable[[Any], int] = lambda result: 0,
    budget_bytes: int = BUDGET_BYTES,
) -> Iterator[tuple[Any, Any, Exception | None]]:
    """`function` of every item, made in threads, in the order of the items.

    Args:
        threads: calls at a time.
        ahead: at most so many items are begun before the first of them is taken.
        size: bytes of a result. While those that wait hold `budget_bytes` or more,
            nothing more is begun.

    Yields:
        (item, result, None), or (item, None, error) where `function` raised ValueError
        or OSError; other errors end the iteration.
    """
    shelf = _Shelf(function, items, ahead, size, budget_bytes)
    # Daemons: whoever keeps an iterator that is not at its end can still exit.
    workers = [threading.Thread(target=shelf.work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        while (made := shelf.take()) is not None:
            if made.error and not isinstance(made.error, ValueError | OSError):
                raise made.error
            yield made.item, made.result, made.error
    finally:
        shelf.stop()
        for worker in workers:
            worker.join()


class _Made(NamedTuple):
    item: Any
    result: Any
    error: Exception | None
    held_bytes: int


class _Shelf:
    """Results between the threads that make them and the one that takes them."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        ahead: int,
        size: Callable[[Any], int],
        budget_bytes: int,
    ):
        self._function, self._items = function, enumerate(items)
        self._ahead, self._size, self._budget = ahead, size, budget_bytes
        self._made: dict[int, _Made] = {}
        self._begun = self._taken = self._held = 0
        self._ended = False  # no item is left, or nobody wants any
        self._failure: Exception | None = None  # of the items themselves
        self._changed = threading.Condition()

    def work(self) -> None:
        """Make results until there are no more items."""
        while (begun := self._begin()) is not None:
            number, item = begun
            try:
                result = self._function(item)
                made = _Made(item, result, None, self._size(result))
            except Exception as error:  # noqa: BLE001 (whoever takes it raises it)
                made = _Made(item, None, error, 0)
            with self._changed:
                self._made[number] = made
                self._held += made.held_bytes
                self._changed.notify_all()

    def _begin(self) -> tuple[int, Any] | None:
        """The next item, when there is room for its result."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._ended
                    or (
                        self._begun - self._taken < self._ahead
                        and self._held < self._budget
                    )
                )
            )
            if not self._ended:
                try:
                    begun = next(self._items)
                    self._begun += 1
                    return begun
                except StopIteration:
                    pass
                except Exception as error:  # noqa: BLE001 (`take` raises it)
                    self._failure = error
            self._ended = True
            self._changed.notify_all()
            return None

    def take(self) -> _Made | None:
        """The next result in order; None after the last."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._taken in self._made
                    or (self._ended and self._taken == self._begun)
                )
            )
            made = self._made.pop(self._taken, None)
            if made is not None:
                self._taken += 1
                self._held -= made.held_bytes
                self._changed.notify_all()
            elif self._failure is not None:
                raise self._failure
            return made

    def stop(self) -> None:
        """Let the threads end."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
