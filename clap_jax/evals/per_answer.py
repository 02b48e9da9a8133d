"""Single answers behind the numbers: the worst ones, and what every clip adds."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clap_jax.evals import scores
from clap_jax.evals.base import Miss

MISSES = 12
"""So many wrong answers are kept of each evaluation and direction."""


class Sides(NamedTuple):
    """The two sides of a retrieval, over n clips that could be read and m captions.

    za, zt: float32 [n, E] and [m, E].
    clips: int64 [n], positions in the source.
    texts: the m captions that are asked for.
    clip_of: int64 [m], position in the source of each caption's clip.
    group: int64, by position in the source; clips of one group are right for each other.
    """

    za: np.ndarray
    zt: np.ndarray
    clips: np.ndarray
    texts: Sequence[str]
    clip_of: np.ndarray
    group: np.ndarray


def retrieval_misses(
    sides: Sides, t2a: list[np.ndarray], a2t: list[np.ndarray]
) -> tuple[Miss, ...]:
    """The queries whose right answers rank lowest, one a clip, both directions.

    Args:
        sides: what was compared.
        t2a: ranks of the right clips of every caption, as `scores.ranks` gives them.
        a2t: ranks of the right captions of every clip.
    """
    text_group, clip_group = sides.group[sides.clip_of], sides.group[sides.clips]
    # What a clip is called: its first caption, or where another of its group says the
    # same, that one's.
    called = {int(group): i for i, group in reversed(list(enumerate(text_group)))}
    called_group = {int(clip): called[int(sides.group[clip])] for clip in sides.clips}
    own = {int(clip): i for i, clip in reversed(list(enumerate(sides.clip_of)))}
    first_text = called_group | own
    misses = []
    for text in _worst(scores.best_ranks(t2a), sides.clip_of):
        row = _row(sides.zt[text], sides.za)
        found = _best(row, clip_group != text_group[text])
        right = _best(row, clip_group == text_group[text])
        found_clip = int(sides.clips[found])
        misses.append(
            Miss(
                direction="t2a",
                clip=int(sides.clip_of[text]),
                truth=sides.texts[text],
                found=sides.texts[first_text[found_clip]],
                found_clip=found_clip,
                rank=int(t2a[text][0]),
                similarity=float(row[right]),
                found_similarity=float(row[found]),
            )
        )
    for clip in _worst(scores.best_ranks(a2t), sides.clips):
        row = _row(sides.za[clip], sides.zt)
        found = _best(row, text_group != clip_group[clip])
        right = _best(row, text_group == clip_group[clip])
        misses.append(
            Miss(
                direction="a2t",
                clip=int(sides.clips[clip]),
                truth=sides.texts[right],
                found=sides.texts[found],
                found_clip=int(sides.clip_of[found]),
                rank=int(a2t[clip][0]),
                similarity=float(row[right]),
                found_similarity=float(row[found]),
            )
        )
    return tuple(misses)


def class_misses(
    similarity: np.ndarray,
    targets: np.ndarray,
    clips: np.ndarray,
    labels: Sequence[str],
    score: str = "cosine",
) -> tuple[Miss, ...]:
    """The clips whose classes rank lowest; one without any class is not asked about.

    Args:
        similarity: float [n, C].
        targets: bool [n, C].
        clips: int64 [n], positions in the source.
        labels: the C classes.
        score: what `similarity` is.
    """
    ranks = _class_ranks(similarity, targets)
    misses = []
    for row in _worst(ranks, clips):
        found = _best(similarity[row], ~targets[row])
        right = _best(similarity[row], targets[row])
        own = [labels[i] for i in np.flatnonzero(targets[row])]
        misses.append(
            Miss(
                direction="",
                clip=int(clips[row]),
                truth=", ".join(own),
                found=labels[found],
                found_clip=None,
                rank=int(ranks[row]),
                similarity=float(similarity[row, right]),
                found_similarity=float(similarity[row, found]),
                score=score,
            )
        )
    return tuple(misses)


def written_misses(
    written: Sequence[str], expected: Sequence[Collection[str]], clips: np.ndarray
) -> tuple[Miss, ...]:
    """The answers in words that are furthest from every one that was expected.

    Args:
        written: what each of n clips was answered.
        expected: what would have been right, as `plain` gives it.
        clips: int64 [n], positions in the source.
    """
    nearest = [
        max(((words_in_common(text, right), right) for right in sorted(own)))
        for text, own in zip(written, expected, strict=True)
    ]
    wrong = [row for row, own in enumerate(expected) if plain(written[row]) not in own]
    worst = sorted(wrong, key=lambda row: nearest[row][0])[:MISSES]
    return tuple(
        Miss(
            direction="written",
            clip=int(clips[row]),
            truth=nearest[row][1],
            found=written[row] or "(nothing)",
            found_clip=None,
            rank=None,
            similarity=nearest[row][0],
            found_similarity=None,
            score="words in common",
        )
        for row in worst
    )


def plain(text: str) -> str:
    """A text without what makes no difference: case, and spaces more than one."""
    return " ".join(text.lower().split())


def words_in_common(one: str, other: str) -> float:
    """2 * words in both / words of both, a word as often as it stands; case is none."""
    counts = [Counter(plain(text).split()) for text in (one, other)]
    total = sum(own.total() for own in counts)
    return 2 * (counts[0] & counts[1]).total() / total if total else 1.0


def retrieval_per_clip(
    sides: Sides,
    t2a: list[np.ndarray],
    a2t: list[np.ndarray],
    depths: Sequence[int],
) -> dict[str, np.ndarray]:
    """What every clip adds to recall@k and mAP@k, float64 [n, 2]; see `Result`.

    A clip with five captions asks five queries text to audio, and one audio to text.
    depths: at which mAP is reported.
    """
    clips = len(sides.clips)
    rows = {"t2a": np.searchsorted(sides.clips, sides.clip_of), "a2t": np.arange(clips)}
    found = {}
    for way, ranks in (("t2a", t2a), ("a2t", a2t)):
        count = np.bincount(rows[way], minlength=clips)
        for name, values in scores.query_scores(ranks, depths).items():
            total = np.bincount(rows[way], values, minlength=clips)
            found[f"{way}_{name}"] = np.stack([total, count], axis=1)
    return found


def _class_ranks(similarity: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The rank of the best right class of every clip, int64 [n]; ties go to wrong ones.

    1 for a clip that has none.
    """
    best = np.where(targets, similarity, -np.inf).max(axis=1, initial=-np.inf)
    wrong = ((similarity >= best[:, None]) & ~targets).sum(axis=1)
    return np.where(targets.any(axis=1), 1 + wrong, 1)


def _worst(ranks: np.ndarray, clips: np.ndarray) -> Iterator[int]:
    """Queries with a wrong answer, worst first; of each clip's only the worst."""
    seen: set[int] = set()
    for query in np.argsort(-ranks, kind="stable"):
        if ranks[query] == 1 or len(seen) == MISSES:
            return
        if int(clips[query]) not in seen:
            seen.add(int(clips[query]))
            yield int(query)


def _row(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Cosines of one query with all keys, float32 [K]."""
    return next(iter(scores.similarity_rows(query[None], keys)))[0]


def _best(row: np.ndarray, allowed: Iterable[bool]) -> int:
    """The highest of the allowed entries."""
    return int(np.where(allowed, row, -np.inf).argmax())
