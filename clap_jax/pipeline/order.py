"""The order of training examples: an endless shuffled mixture, by random access."""

import hashlib
import math
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

# Weights are met to one part in so many.
PATTERN_LENGTH = 10_000

POOL_BLOCKS = 8
"""Blocks of neighbours whose clips are shuffled among each other."""


def digest(parts: Iterable[Any]) -> str:
    """Eight hex digits for a sequence of strings, numbers, and tuples and lists of them.

    Sources make theirs from what they hold, so that runs can tell data apart. Bytes and
    memoryviews, which may be large, are taken as they are.
    """
    total = hashlib.blake2b(digest_size=4)
    for part in parts:
        if isinstance(part, bytes | memoryview):
            size = part.nbytes if isinstance(part, memoryview) else len(part)
            total.update(f"{size} bytes\n".encode())
            total.update(part)
        else:
            total.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()


def mix(
    sources: Sequence[tuple["Source", float | None]], temperature: float
) -> list[tuple["Source", float | None]]:
    """Sources with weights that follow their sizes, more or less.

    temperature T: shares of the mixture are in proportion to weight * clips ** (1 / T).
        1: each source as often as it has clips; larger: more alike; smaller: the large
        ones even more. A source without a weight (None or 0) has weight 1.
    With T = 0 the sources as they are. Else their new weights sum to 1. Raises
    ValueError for weights below 0.
    """
    if not temperature:
        return list(sources)
    logs = []
    for source, weight in sources:
        if weight and not 0 < weight < math.inf:
            raise ValueError(
                f"the weight of source {source.name!r} is {weight}, expected 0 or more"
            )
        logs.append(math.log(weight or 1) + math.log(len(source) or 1) / temperature)
    # Nothing overflows, and even the smallest source keeps a share.
    sizes = [math.exp(max(log - max(logs), -700.0)) for log in logs]
    shares = [size / math.fsum(sizes) for size in sizes]
    return [(source, share) for (source, _), share in zip(sources, shares)]


class Order:
    """Which clip of which source the n-th example of a training run is.

    lengths, weights, names, digests: of the sources. With weights None (or 0) for all,
    the sources are shuffled together and every clip comes once in an epoch. Else every
    source has a positive weight; the sources take turns in these proportions, and each
    is reshuffled whenever all of its clips have come.
    read_together: 1, or the neighbours that are shuffled as one block, see `Blocks`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float | None],
        names: Sequence[str],
        digests: Sequence[str],
        seed: int,
        read_together: int = 1,
    ):
        if read_together < 1:
            raise ValueError(
                f"data.read_together is {read_together}, expected 1 or more clips"
            )
        if not lengths:
            raise ValueError("there are no sources")
        for name, length in zip(names, lengths, strict=True):
            if not length:
                raise ValueError(f"source {name!r} has no clips")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}, expected 0 to 2**32 - 1")
        self.seed, self.examples = seed, sum(lengths)
        self.read_together = read_together
        self._names, self._lengths = list(names), list(lengths)
        self._digests = list(digests)
        self._weights = _checked_weights(weights, names)
        # Where each source starts when all are shuffled together.
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        if self._weights:
            self._turns, self._ranks, self._counts = _pattern(self._weights)
        streams = [[length] for length in lengths] if self._weights else [lengths]
        self._shuffles = [
            Shuffle(sum(parts), (seed, number))
            if read_together == 1
            else Blocks(parts, read_together, (seed, number))
            for number, parts in enumerate(streams)
        ]

    def __call__(self, draw: int) -> tuple[int, int]:
        """(source, index of the clip in it) of example `draw`."""
        if not self._weights:
            place = self._shuffles[0](draw)
            which = int(np.searchsorted(self._starts, place, side="right")) - 1
            return which, place - int(self._starts[which])
        cycle, step = divmod(draw, len(self._turns))
        which = int(self._turns[step])
        turn = cycle * int(self._counts[which]) + int(self._ranks[step])
        return which, self._shuffles[which](turn)

    def mixture(self) -> str:
        """One line on the sources' shares of the examples, as they come out."""
        counts = self._counts if self._weights else np.array(self._lengths)
        shares, total = counts / counts.sum(), sum(self._lengths)
        parts = [
            f"{name} {share:.2%} ({length:,} clips, each {share * total / length:.3g} "
            "times in an epoch)"
            for name, share, length in zip(self._names, shares, self._lengths)
        ]
        return ", ".join(parts)

    def fingerprint(self) -> list[str]:
        """Says in words which sequence this is: a line for each source, and the seed.

        And, where neighbours are read together, how many.
        """
        weights = self._weights or [None] * len(self._names)
        rows = zip(self._names, self._lengths, self._digests, weights, strict=True)
        lines = [
            f"source {name!r}: {length} clips, data {data}"
            + ("" if weight is None else f", weight {weight:g}")
            for name, length, data, weight in rows
        ]
        if self.read_together > 1:
            lines.append(f"{self.read_together} neighbours read together")
        return [*lines, f"seed {self.seed}"]


class Shuffle:
    """0 ... length - 1 in a new random order in each epoch, by random access.

    The orders of two epochs are kept (4 bytes a clip), since batches of both are made at
    a time around the end of one. Grain's index_shuffle keeps nothing, but takes over 100
    microseconds an index for a few hundred clips, as long as all the rest together.
    """

    def __init__(self, length: int, entropy: tuple[int, int]):
        self._length, self._entropy = length, entropy
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return Shuffle, (self._length, self._entropy)

    def __call__(self, number: int) -> int:
        """The `number`-th of the endless sequence."""
        epoch, place = divmod(number, self._length)
        order = self._orders.get(epoch)
        return int((self._make(epoch) if order is None else order)[place])

    def _make(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                seeds = np.random.SeedSequence((*self._entropy, epoch))
                rng = np.random.Generator(np.random.PCG64(seeds))
                order = rng.permutation(np.arange(self._length, dtype=np.uint32))
                kept = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
                self._orders = {**kept, epoch: order}
            return self._orders[epoch]


class Blocks:
    """0 ... sum(lengths) - 1 in a new order in each epoch that is quick to read.

    lengths: of the sources, one behind the other. Neighbours form blocks of `size` (the
    last of a source may be smaller). Blocks come in random order; the clips of every
    POOL_BLOCKS of them that follow each other are shuffled together. Random access: what
    is kept is the order of the blocks, for two epochs, and the pools last asked for.
    """

    KEPT_POOLS = 64

    def __init__(self, lengths: Sequence[int], size: int, entropy: tuple[int, int]):
        self._lengths, self._size, self._entropy = list(lengths), size, entropy
        starts = np.cumsum([0, *lengths])
        self._first = np.concatenate(
            [
                np.arange(start, start + length, size)
                for start, length in zip(starts, lengths)
            ]
        )
        self._end = np.append(self._first[1:], starts[-1])
        self._total = int(starts[-1])
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._pools: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return Blocks, (self._lengths, self._size, self._entropy)

    def __call__(self, number: int) -> int:
        """The `number`-th of the endless sequence."""
        epoch, place = divmod(number, self._total)
        with self._lock:
            _, ends = self._epoch(epoch)
            pool = int(np.searchsorted(ends, place, side="right"))
            start = int(ends[pool - 1]) if pool else 0
            return int(self._pool(epoch, pool)[place - start])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the blocks, and how many clips there are up to each pool's end."""
        if epoch not in self._epochs:
            order = self._generator(epoch).permutation(
                np.arange(len(self._first), dtype=np.uint32)
            )
            sizes = np.cumsum(self._end[order] - self._first[order])
            ends = np.append(sizes[POOL_BLOCKS - 1 :: POOL_BLOCKS], self._total)
            kept = {e: o for e, o in self._epochs.items() if abs(e - epoch) == 1}
            self._epochs = {**kept, epoch: (order, ends)}
        return self._epochs[epoch]

    def _pool(self, epoch: int, pool: int) -> np.ndarray:
        """The clips of one pool in their order."""
        clips = self._pools.get((epoch, pool))
        if clips is None:
            order, _ = self._epoch(epoch)
            blocks = order[pool * POOL_BLOCKS : (pool + 1) * POOL_BLOCKS]
            clips = [np.arange(self._first[b], self._end[b]) for b in blocks]
            clips = self._generator(epoch, 1 + pool).permutation(np.concatenate(clips))
            while len(self._pools) >= self.KEPT_POOLS:
                del self._pools[next(iter(self._pools))]
            self._pools[epoch, pool] = clips
        return clips

    def _generator(self, epoch: int, number: int = 0) -> np.random.Generator:
        seeds = np.random.SeedSequence((*self._entropy, epoch, number))
        return np.random.Generator(np.random.PCG64(seeds))


def _checked_weights(
    weights: Sequence[float | None], names: Sequence[str]
) -> list[float]:
    """Weights as numbers, [] for none."""
    if not any(weights):
        return []
    for name, weight in zip(names, weights, strict=True):
        if not weight or not 0 < weight < math.inf:
            raise ValueError(
                f"the weight of source {name!r} is {weight}: give every source a "
                "positive weight, or none of them one"
            )
    return [float(weight) for weight in weights]


def _pattern(weights: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One period of turns, each source's spread evenly over it.

    Returns the source of each turn [P], how many turns the same source had before it in
    the period [P], and how many it has in a period [sources].
    """
    shares = np.array(weights) / sum(weights)
    counts = np.maximum(1, np.rint(shares * PATTERN_LENGTH)).astype(int)
    counts //= np.gcd.reduce(counts)
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    place = (rank + 0.5) / counts[source]
    order = np.argsort(place, kind="stable")
    return source[order], rank[order], counts
