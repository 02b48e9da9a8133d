"""The words of captions, and what a set of captions comes to in words.

`words` is the Penn Treebank's way of COCO's caption evaluation (Chen et al. 2015, arXiv
1504.00325): lower case, contractions split, punctuation left out. That evaluation runs
Stanford's tokenizer, which needs Java (`caption_java.tokenize`); this does without, and
gives the same for nearly all captions of sounds (tests/evals/test_caption.py counts).
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ","]
    + [":", "-", "--", "...", ";"]
)
"""Tokens that COCO's caption evaluation leaves out. Lower-case brackets, which is what
the tokenizer gives, are not among them: they count as words there, so here too."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"}
_BRACKETS |= {"{": "-lcb-", "}": "-rcb-"}
_IN_TWO = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_QUOTES = frozenset('"“”«»')
_WORD = r"[^\W_]+(?:[-_][^\W_]+)*"
_TOKEN = re.compile(
    rf"""
      (?i:n't)(?!\w)                                         # is | n't
    | (?<=[^\W_])'(?i:s|re|ve|ll|d|m)(?!\w)                  # dog | 's
    | (?:[^\W\d_]\.){{2,}}                                   # u.s.
    | (?i:etc|vs|mr|mrs|ms|dr|st|jr|sr)\.(?=\s*\S)
    | \d+(?:[.,:/]\d+)+(?:[^\W_]+)?                          # 3.5, 7/8
    | (?<!\S)\.\d+
    | [A-Z]&[A-Z](?![^\W_])                                  # R&B
    | {_WORD}(?:/{_WORD}(?!/))?(?:\.[^\W\d_]+)*              # low-pitched, hum/buzz
    | \.{{3,}} | -{{2,}} | \S
    """,
    re.VERBOSE,
)
_NOT = re.compile(r"(?<=[^\W\d_])(n't)(?!\w)", re.IGNORECASE)


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case; [] where there are none."""
    text = caption.replace("’", "'").replace("‘", "'")
    found: list[str] = []
    for match in _TOKEN.finditer(_NOT.sub(r" \1", text)):
        token = match.group().lower()
        token = _IN_TWO.get(token, _BRACKETS.get(token, token))
        found += [part for part in token.split() if part not in PUNCTUATION | _QUOTES]
    return found


def plain(caption: str) -> str:
    """A caption as its words: captions that differ by case or punctuation are one."""
    return " ".join(words(caption))


def vocabulary(captions: Sequence[str]) -> dict[str, float]:
    """How rich the captions are, all of them together.

    Returns:
        `distinct_words`; `type_token`, these divided by all words; `distinct_2` and
        `distinct_3`, the same of pairs and triples of neighbours (Li et al. 2016, arXiv
        1510.03055), which lie within one caption; `distinct_captions`, captions that
        differ by some word, divided by all; 0 where there is nothing to divide by.
    """
    split = [words(caption) for caption in captions]
    shares = {}
    for size in (1, 2, 3):
        grams = [gram for own in split for gram in ngrams(own, size)]
        shares[size] = len(set(grams)) / len(grams) if grams else 0.0
    return {
        "distinct_words": float(len({word for own in split for word in own})),
        "type_token": shares[1],
        "distinct_2": shares[2],
        "distinct_3": shares[3],
        "distinct_captions": len({tuple(own) for own in split}) / max(len(split), 1),
    }


def ngrams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """All runs of `size` neighbours, in order."""
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def lengths(captions: Iterable[str]) -> np.ndarray:
    """How many words each caption has, float64 [n]."""
    return np.array([len(words(caption)) for caption in captions], np.float64)


def novel(captions: Iterable[str], training: Iterable[str]) -> np.ndarray:
    """Which captions no training caption equals word by word, float64 [n] of 0 and 1."""
    seen = {plain(caption) for caption in training}
    return np.array([plain(caption) not in seen for caption in captions], np.float64)
