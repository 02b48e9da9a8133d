"""Static lengths: a few for texts, a few for whole clips, a compiled program for each.

What is shorter than the longest that a model takes is padded to the shortest of these
lengths that holds it. Padding that is masked has no influence, so that the numbers are
those of the full length, to rounding, and the work is less.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from clap_jax.text.tokenize import Tokenizer

TEXT_TOKENS = (16, 32)
"""Lengths of texts below the full one, special tokens included. Captions of a sound
have about 13 tokens; the longest of a batch of 64 has about 30."""


def lengths(shorter: Sequence[int], full: int) -> tuple[int, ...]:
    """The lengths of `shorter` that are below `full`, and `full`, in rising order.

    Raises ValueError for one that is no positive whole number.
    """
    for length in shorter:
        if type(length) is not int or length < 1:
            raise ValueError(
                f"a length is {length!r}, expected a whole number from 1 on"
            )
    return (*sorted({length for length in shorter if length < full}), full)


def shortest(known: Sequence[int], needed: int) -> int:
    """The shortest of the rising lengths `known` that holds `needed` entries."""
    return known[bisect.bisect_left(known, needed)]


class Texts:
    """Tokenises this host's captions, as long as all hosts make those of a batch.

    tokenizer, shorter: the full length is the tokenizer's, see `lengths`. rows: those
    of the global batch that this host makes.

    Hosts do not ask each other. Each counts the tokens of all captions of the global
    batch, which the seed alone decides, or of so many that the full length is needed:
    some tens of microseconds each, beside milliseconds for a clip to decode. Only the
    host that reads it knows that a clip is damaged: the caption that comes with its
    replacement is cut where it is longer than what all had reckoned with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        shorter: Sequence[int],
        global_batch: int,
        rows: Sequence[int],
    ):
        self._tokenizer, self._rows = tokenizer, np.array(rows)
        self._lengths = lengths(shorter, tokenizer.length)
        self._global_batch = global_batch

    def __call__(
        self,
        captions: Sequence[str],
        replaced: np.ndarray,
        caption_of: Callable[[int], str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [B, L] and mask bool [B, L] of captions, those of `rows`.

        replaced: bool [B], captions that came with another clip. caption_of: the
        caption of any row of the global batch if no clip is damaged.
        """
        ids, mask = self._tokenizer(captions)
        counts = mask.sum(1)
        length = self._length(counts, replaced, caption_of)
        for row in np.flatnonzero(counts > length):
            cut_ids, cut_mask = self._tokenizer.shorter(length)([captions[row]])
            ids[row, :length], mask[row, :length] = cut_ids[0], cut_mask[0]
        return ids[:, :length].copy(), mask[:, :length].copy()

    def _length(
        self,
        counts: np.ndarray,
        replaced: np.ndarray,
        caption_of: Callable[[int], str],
    ) -> int:
        """The length of all hosts' captions, by what the order alone says of them."""
        *shorter, full = self._lengths
        if not shorter:
            return full
        needed = int(counts[~replaced].max(initial=0))
        known = self._rows[~replaced]
        for row in np.setdiff1d(np.arange(self._global_batch), known):
            if needed > shorter[-1]:
                break
            needed = max(needed, self._tokenizer.count(caption_of(int(row))))
        return shortest(self._lengths, needed)


class Fit(NamedTuple):
    """Cuts the padding behind all clips of a batch.

    frames: the known lengths; the last is that of the batches. agree: the largest of
    all hosts' numbers, from this host's, since how long a clip is shows only once it is
    decoded; called in the process that iterates; None where this host is alone.
    """

    frames: Sequence[int]
    agree: Callable[[int], int] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with `mel` [B, N, F] no longer than it has to be."""
        needed = int(batch["frames"].max())
        if self.agree is not None:
            needed = self.agree(needed)
        length = shortest(self.frames, needed)
        if length == batch["mel"].shape[1]:
            return batch
        # A copy: what a worker has made stays in memory as long as a view of it does.
        return batch | {"mel": np.array(batch["mel"][:, :length])}
