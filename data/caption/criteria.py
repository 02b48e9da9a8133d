"""The filters of generated captions: what each looks for, its threshold, their order."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.caption.answers import words
from data.caption.clips import Clip
from data.caption.tags import TagWords

Candidate = Mapping[str, Any]
"""What is known of one caption: `caption`; where a filter asks for it `clap_score`, the
cosine of caption and clip; `log_likelihood`, which decides between equal scores."""

PHRASE_WORDS = 3


class Filter(NamedTuple):
    """One row: a filter and its threshold.

    name: in reports. option: what the threshold is called. default: its value; None: the
    filter is off. allowed: the least and the largest value; counts are whole. says: what
    is dropped, {} for the threshold. find: gives of each candidate what is wrong with
    it, "" for nothing; None for the filters of the second pass.
    """

    name: str
    option: str
    default: float | None
    allowed: tuple[float, float]
    says: str
    find: Callable[["Asked", float], list[str]] | None


class Asked(NamedTuple):
    """What a filter of one clip looks at."""

    clip: Clip
    candidates: Sequence[Candidate]
    tag_words: TagWords

    @property
    def words(self) -> list[list[str]]:
        return [words(one["caption"]) for one in self.candidates]


def _short(asked: Asked, least: float) -> list[str]:
    counts = map(len, asked.words)
    return [f"{count} words" if count < least else "" for count in counts]


def _long(asked: Asked, most: float) -> list[str]:
    counts = map(len, asked.words)
    return [f"{count} words" if count > most else "" for count in counts]


def _stutter(asked: Asked, most: float) -> list[str]:
    return [
        f"{word!r} {count} times" if count > most else ""
        for word, count in map(longest_run, asked.words)
    ]


def _repetition(asked: Asked, most: float) -> list[str]:
    found = []
    for own in asked.words:
        starts = range(len(own) - PHRASE_WORDS + 1)
        counts = Counter(" ".join(own[i : i + PHRASE_WORDS]) for i in starts)
        phrase, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
        found.append(f"{phrase!r} {count} times" if count > most else "")
    return found


def _unlike(asked: Asked, least: float) -> list[str]:
    values = [one.get("clap_score") for one in asked.candidates]
    if None in values:
        caption = asked.candidates[values.index(None)]["caption"]
        raise ValueError(
            f"clip {asked.clip.id!r}: the caption {caption!r:.60} has no clap_score, "
            "which min_clap_score asks for"
        )
    return [f"{value:.4g}" if value < least else "" for value in values]


def _untagged(asked: Asked, least: float) -> list[str]:
    tags = asked.clip.tags
    shares = [asked.tag_words.share(tags, one["caption"]) for one in asked.candidates]
    listed = ", ".join(tags)
    return [f"{share:.3g} of {listed}" if share < least else "" for share in shares]


def _near_words(asked: Asked, least: float) -> list[str]:
    return _near(asked, least, jaccard)


def _near_edit(asked: Asked, least: float) -> list[str]:
    return _near(asked, least, edit_similarity)


def _near(
    asked: Asked, least: float, similar: Callable[[list[str], list[str]], float]
) -> list[str]:
    """Best first, each is held against those that stay."""
    split, found = asked.words, [""] * len(asked.candidates)
    kept: list[int] = []
    for place in ranked(asked.candidates):
        values = {other: similar(split[place], split[other]) for other in kept}
        nearest = max(values, key=values.__getitem__, default=None)
        if nearest is not None and values[nearest] >= least:
            caption = asked.candidates[nearest]["caption"]
            found[place] = f"{values[nearest]:.3g} to {caption!r}"
        else:
            kept.append(place)
    return found


def longest_run(own: Sequence[str]) -> tuple[str, int]:
    """The word that is most often repeated at once, and how often; ("", 0) for none."""
    best, word, count = ("", 0), "", 0
    for other in own:
        count = count + 1 if other == word else 1
        word = other
        if count > best[1]:
            best = (word, count)
    return best


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Words that both have, divided by words that any has; 1 for two without words."""
    every = set(a) | set(b)
    return len(set(a) & set(b)) / len(every) if every else 1.0


def edit_similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """1 less the fewest words to add, drop or change, divided by those of the longer."""
    before = list(range(len(b) + 1))
    for i, word in enumerate(a, start=1):
        now = [i]
        for j, other in enumerate(b, start=1):
            change = before[j - 1] + (word != other)
            now.append(min(change, before[j] + 1, now[-1] + 1))
        before = now
    longest = max(len(a), len(b))
    return 1 - before[-1] / longest if longest else 1.0


def ranked(candidates: Sequence[Candidate]) -> list[int]:
    """Places of the candidates, best first: by CLAP score, then by likelihood, then by
    the caption, so that their order is of no matter; what is not known comes last."""

    def key(place: int) -> tuple[float, float, str]:
        one = candidates[place]
        numbers = (one.get(name) for name in ("clap_score", "log_likelihood"))
        clap, likely = (math.inf if n is None else -float(n) for n in numbers)
        return clap, likely, one["caption"]

    return sorted(range(len(candidates)), key=key)


COUNT, SHARE, COSINE = (1, math.inf), (0, 1), (-1, 1)

FILTERS = (
    Filter("too short", "min_words", 3, COUNT, "fewer than {} words", _short),
    Filter("too long", "max_words", 50, COUNT, "more than {} words", _long),
    Filter(
        "stutter", "max_run", 3, COUNT, "a word more than {} times in a row", _stutter
    ),
    Filter(
        "repetition",
        "max_phrase",
        1,
        COUNT,
        f"the same {PHRASE_WORDS} words in a row more than {{}} times",
        _repetition,
    ),
    Filter(
        "low CLAP score",
        "min_clap_score",
        None,
        COSINE,
        "a CLAP score below {}",
        _unlike,
    ),
    Filter(
        "tags not named",
        "min_tag_share",
        None,
        SHARE,
        "less than {} of the clip's tags named",
        _untagged,
    ),
    Filter(
        "near-duplicate by words",
        "near_words",
        0.8,
        SHARE,
        "{} or more of the words shared with a better caption of the clip",
        _near_words,
    ),
    Filter(
        "near-duplicate by edits",
        "near_edits",
        0.8,
        SHARE,
        "{} or more of the words in the places of a better caption of the clip",
        _near_edit,
    ),
    Filter(
        "over-frequent",
        "max_clips",
        None,
        COUNT,
        "a caption that {} other clips keep",
        None,
    ),
    Filter("surplus", "top", None, COUNT, "not among the {} best of the clip", None),
)
"""All filters, in the order in which they are applied."""
