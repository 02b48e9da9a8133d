"""Search among many long clips: a shortlist by whole embeddings, then the fused score.

The fused score of a text and a clip takes all of the clip's segments, some hundred times
the work of a product of two vectors. The best few clips by whole embeddings alone are
therefore scored again, and nothing else. What that loses is measured: `recall_lost`.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from clap_jax.models.temporal import Song, Story

TEXTS_AT_A_TIME = 8
CLIPS_AT_A_TIME = 512  # of a full ranking: about as many as a shortlist has


class Ranked(NamedTuple):
    """The best K clips of each of T texts, best first: places int64 [T, K] of the clips,
    and their fused scores, float32 [T, K]."""

    places: np.ndarray
    scores: np.ndarray


class Reranker:
    """Ranks clips for texts by `score(params, song, story) -> [A, T]`, see
    `temporal.score`; `params` are those of the model."""

    def __init__(self, score: Callable[..., jax.Array], params: object):
        self._params = params
        self._shortlisted = jax.jit(
            jax.vmap(partial(_of_one_text, score), in_axes=(None, 0, 0))
        )
        self._block = jax.jit(score)

    def full(self, song: Song, story: Story, depth: int) -> Ranked:
        """By the fused scores of all clips, `depth` of each text."""
        clips, found = len(song.whole), []
        for texts in _blocks(story):
            parts = [
                self._block(
                    self._params,
                    jax.tree.map(lambda x: x[i : i + CLIPS_AT_A_TIME], song),
                    texts,
                )
                for i in range(0, clips, CLIPS_AT_A_TIME)
            ]
            found.append(_best(np.concatenate(parts).T, depth))
        return _joined(found, len(story.whole))

    def shortlisted(
        self, song: Song, story: Story, depth: int, shortlist: int
    ) -> Ranked:
        """The same of those `shortlist` clips of each text that whole embeddings put
        first. Raises ValueError for one shorter than `depth`."""
        if shortlist < depth:
            raise ValueError(
                f"the shortlist has {shortlist} clips, expected the {depth} that are "
                "asked for or more"
            )
        found = []
        for texts in _blocks(story):
            near = _best(texts.whole @ song.whole.T, shortlist).places
            clips = jax.tree.map(lambda x: x[near], song)  # [texts, shortlist, ...]
            scores = np.asarray(self._shortlisted(self._params, clips, texts))
            best = _best(scores, depth)
            places = np.take_along_axis(near, best.places, axis=1)
            found.append(Ranked(places, best.scores))
        return _joined(found, len(story.whole))


def recall_lost(
    reranker: Reranker,
    song: Song,
    story: Story,
    right: np.ndarray,
    *,
    shortlist: int = 100,
    depth: int = 10,
) -> dict[str, float]:
    """What a shortlist costs and saves in finding clips by texts.

    right: int [T], the clip that each text is about.
    Returns recall at `depth` with the shortlist and in full, the share of the latter
    that is lost, and the seconds of both, after a first text that is not counted.
    """
    first = Story(*(x[:1] for x in story))
    named = {
        "shortlist": partial(reranker.shortlisted, shortlist=shortlist),
        "full": reranker.full,
    }
    recalls, seconds = {}, {}
    for name, rank in named.items():
        rank(song, first, depth=depth)
        began = time.perf_counter()
        places = rank(song, story, depth=depth).places
        seconds[name] = time.perf_counter() - began
        recalls[name] = float((places == right[:, None]).any(1).mean())
    lost = 1 - recalls["shortlist"] / recalls["full"] if recalls["full"] else 0.0
    return {
        f"R@{depth}_shortlist": recalls["shortlist"],
        f"R@{depth}_full": recalls["full"],
        f"R@{depth}_lost": lost,
        "seconds_shortlist": seconds["shortlist"],
        "seconds_full": seconds["full"],
    }


def _of_one_text(score: Callable, params: object, song: Song, text: Story) -> jax.Array:
    """Scores [A] of A clips with one text, which has no axis in front."""
    return score(params, song, Story(*(x[None] for x in text)))[:, 0]


def _blocks(story: Story) -> Iterator[Story]:
    """A few texts at a time, equally many; the last one is repeated at the end."""
    texts = len(story.whole)
    for start in range(0, texts, TEXTS_AT_A_TIME):
        places = np.minimum(np.arange(start, start + TEXTS_AT_A_TIME), texts - 1)
        yield Story(*(np.asarray(x)[places] for x in story))


def _best(scores: np.ndarray, depth: int) -> Ranked:
    """The highest of each row, highest first; of equal ones the first."""
    depth = min(depth, scores.shape[1])
    places = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    values = np.take_along_axis(scores, places, axis=1)
    order = np.lexsort((places, -values), axis=1)
    return Ranked(
        np.take_along_axis(places, order, axis=1),
        np.take_along_axis(values, order, axis=1),
    )


def _joined(found: list[Ranked], texts: int) -> Ranked:
    return Ranked(*(np.concatenate(part)[:texts] for part in zip(*found)))
