"""Static lengths: a few for texts, a few for whole clips, a compiled program for each.

What is shorter than the longest that a model takes is padded to the shortest of these
lengths that holds it. Padding that is masked has no influence, so that the numbers are
those of the full length, to rounding, and the work is less.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clap_jax.text.answers import Writer
from clap_jax.text.sentences import Sentences
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


SEGMENT_FIELDS = ("wave", "features", "seconds", "heard")
"""What a batch of long clips has for each segment, [B, S, ...]."""


class Texts:
    """Tokenises this host's texts, as long as all hosts make those of a batch.

    tokenizer: of captions, alone or with their sentences, or a writer of (prompt,
    answer), which are texts as well.
    shorter: the full length is the tokenizer's, see `lengths`. rows: those of the
    global batch that this host makes.

    Hosts do not ask each other. Each counts the tokens of all texts of the global
    batch, which the seed alone decides, or of so many that the full length is needed:
    some tens of microseconds each, beside milliseconds for a clip to decode. Only the
    host that reads it knows that a clip is damaged: the text that comes with its
    replacement is cut where it is longer than what all had reckoned with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | Sentences | Writer,
        shorter: Sequence[int],
        global_batch: int,
        rows: Sequence[int],
    ):
        self._tokenizer, self._rows = tokenizer, np.array(rows)
        self._lengths = lengths(shorter, tokenizer.length)
        self._global_batch = global_batch

    def __call__(
        self,
        texts: Sequence[Any],
        replaced: np.ndarray,
        text_of: Callable[[int], Any],
        reckoned: Sequence[Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Ids int32 [B, L] and mask bool [B, L] of texts, those of `rows`; of answers
        also which tokens are theirs, bool [B, L], and with sentences their spans
        [B, M, 2].

        replaced: bool [B], texts that came with another clip. text_of: the text of any
        row of the global batch if no clip is damaged. reckoned: what `text_of` gives for
        these rows, where that is not the text that is learnt from.
        """
        found = self._tokenizer(texts)
        reckoned = found if reckoned is None else self._tokenizer(reckoned)
        length = self._length(reckoned.mask.sum(1), replaced, text_of)
        for row in np.flatnonzero(found.mask.sum(1) > length):
            for whole, cut in zip(found, self._tokenizer.shorter(length)([texts[row]])):
                whole[row, : cut.shape[1]] = cut[0]
        return {
            name: whole if name == "spans" else whole[:, :length].copy()
            for name, whole in found._asdict().items()
        }

    def _length(
        self,
        counts: np.ndarray,
        replaced: np.ndarray,
        text_of: Callable[[int], Any],
    ) -> int:
        """The length of all hosts' texts, by what the order alone says of them."""
        *shorter, full = self._lengths
        if not shorter:
            return full
        needed = int(counts[~replaced].max(initial=0))
        known = self._rows[~replaced]
        for row in np.setdiff1d(np.arange(self._global_batch), known):
            if needed > shorter[-1]:
                break
            needed = max(needed, self._tokenizer.count(text_of(int(row))))
        return shortest(self._lengths, needed)


class Fit(NamedTuple):
    """Cuts the padding behind all clips of a batch.

    lengths: those that there may be, of frames of whole clips, or of segments; the last
    is that of the batches. agree: the largest of all hosts' numbers, from this host's,
    since how long a clip is shows only once it is decoded; called in the process that
    iterates; None where this host is alone.
    """

    lengths: Sequence[int]
    agree: Callable[[int], int] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with `mel` [B, N, F], or all that is said of segments, [B, S, ...],
        no longer than it has to be."""
        if "seconds" in batch:
            names = [name for name in SEGMENT_FIELDS if name in batch]
            needed = int((batch["seconds"][..., 1] > 0).sum(1).max())
        else:
            names, needed = ["mel"], int(batch["frames"].max())
        if self.agree is not None:
            needed = self.agree(needed)
        length = shortest(self.lengths, needed)
        if length == batch[names[0]].shape[1]:
            return batch
        # A copy: what a worker has made stays in memory as long as a view of it does.
        return batch | {name: np.array(batch[name][:, :length]) for name in names}
