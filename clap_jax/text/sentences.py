"""Long texts as sentences: where each begins and ends, in characters and in tokens."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clap_jax.text.tokenize import Tokenizer

# The end of a sentence: full stops with what closes behind them, before a space; or a
# line's end. "0:30", "4.5" and "..." within a sentence are none, nor is "e.g. a", since
# what follows begins with a small letter.
_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s+[^\sa-z])|\s*\n\s*")
# Words that end with a full stop and not a sentence, when a capital or number follows.
_SHORT = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|St|vs|No|Nos|approx|ca|cf|feat|ft|Op|Vol)\.$"
)


def split(text: str) -> list[tuple[int, int]]:
    """Begin and end of each sentence, as characters, without space around it.

    A rule of thumb for captions in European writing. Never empty ones; every character
    that is no space is in one.
    """
    found, begin = [], 0
    for match in _END.finditer(text):
        if "\n" not in match.group() and _SHORT.search(text[begin : match.end()]):
            continue
        found.append((begin, match.end()))
        begin = match.end()
    found.append((begin, len(text)))
    return [
        (begin + len(part) - len(part.lstrip()), begin + len(part.rstrip()))
        for begin, end in found
        if (part := text[begin:end]).strip()
    ]


def spans(
    text: str, places: Sequence[tuple[int, int]], most: int
) -> list[tuple[int, int]]:
    """Of which token to before which each sentence of a text goes, `most` at most.

    places: of every token, see `Tokenizer.places`. Sentences that were cut off have no
    span. Of more than `most`, the neighbours that have fewest tokens together become
    one, again and again.
    """
    ends = [end for _, end in split(text)]
    # A token belongs to the sentence in which its last character is, or that follows.
    of_token = {
        token: min(int(np.searchsorted(ends, end)), len(ends) - 1)
        for token, (begin, end) in enumerate(places)
        if end > begin
    }
    found: list[tuple[int, int]] = []
    last = None
    for token, sentence in of_token.items():
        if sentence == last:
            found[-1] = (found[-1][0], token + 1)
        else:
            found.append((token, token + 1))
        last = sentence
    while len(found) > most:
        lengths = [b[1] - a[0] for a, b in zip(found, found[1:])]
        i = int(np.argmin(lengths))
        found[i : i + 2] = [(found[i][0], found[i + 1][1])]
    return found


class Rows(NamedTuple):
    """Of n texts: ids int32 [n, L], mask bool [n, L], and spans int32 [n, M, 2] of
    their sentences, zeros for those that a text does not have."""

    ids: np.ndarray
    mask: np.ndarray
    spans: np.ndarray


class Sentences:
    """A tokenizer that knows of sentences, `most` (M) of each text at most.

    Can be pickled. Raises ValueError for `most` below 1, and as the tokenizer does.
    """

    def __init__(self, tokenizer: Tokenizer, most: int):
        if most < 1:
            raise ValueError(f"{most} sentences at most, expected 1 or more")
        self.tokenizer, self.length, self.most = tokenizer, tokenizer.length, most

    def __call__(self, texts: Sequence[str]) -> Rows:
        ids, mask = self.tokenizer(texts)
        found = np.zeros((len(texts), self.most, 2), np.int32)
        for row, text in enumerate(texts):
            part = spans(text, self.tokenizer.places(text), self.most)
            found[row, : len(part)] = np.array(part, np.int32).reshape(-1, 2)
        return Rows(ids, mask, found)

    def count(self, text: str) -> int:
        """Tokens of a text, L at most, special ones included."""
        return self.tokenizer.count(text)

    def shorter(self, length: int) -> "Sentences":
        """The same, of texts that are cut after fewer tokens."""
        return Sentences(self.tokenizer.shorter(length), self.most)
