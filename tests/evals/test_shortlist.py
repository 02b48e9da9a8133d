"""Shortlist and re-ranking: what is in the shortlist is ranked as by the full score."""

import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.evals import shortlist
from clap_jax.models import temporal
from tests.models import long_clips

OPTIONS = temporal.Temporal(heads=2, sentences=3, longest_seconds=60.0)
CLIPS, TEXTS = 530, 11


@pytest.fixture(scope="module")
def made():
    song, story = long_clips.make(0, CLIPS, TEXTS, 4, 3)
    params = long_clips.params(OPTIONS)
    score = temporal.score(OPTIONS)
    return shortlist.Reranker(score, params), song, story, score, params


def test_the_full_ranking(made):
    reranker, song, story, score, params = made
    found = reranker.full(song, story, depth=10)
    scores = np.asarray(score(params, *_arrays(song, story)))
    wanted = np.argsort(-scores, axis=0)[:10].T
    np.testing.assert_array_equal(found.places, wanted)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores.T, wanted, axis=1), atol=1e-5
    )


def test_the_shortlist_is_ranked_by_the_fused_score(made):
    reranker, song, story, score, params = made
    found = reranker.shortlisted(song, story, depth=5, shortlist=40)
    scores = np.asarray(score(params, *_arrays(song, story))).T
    near = np.argsort(-(story.whole @ song.whole.T), axis=1)[:, :40]
    for text in range(TEXTS):
        best = sorted(near[text], key=lambda clip: -scores[text, clip])[:5]
        assert found.places[text].tolist() == best
    # A shortlist of all is the full ranking.
    everything = reranker.shortlisted(song, story, depth=5, shortlist=CLIPS)
    np.testing.assert_array_equal(
        everything.places, reranker.full(song, story, depth=5).places
    )


def test_what_is_lost(made):
    reranker, song, story, *_ = made
    right = reranker.full(song, story, depth=1).places[:, 0]
    found = shortlist.recall_lost(reranker, song, story, right, shortlist=10, depth=10)
    assert found["R@10_full"] == 1
    assert found["R@10_lost"] == pytest.approx(1 - found["R@10_shortlist"])
    whole = shortlist.recall_lost(reranker, song, story, right, shortlist=CLIPS)
    assert whole["R@10_lost"] == 0 and whole["seconds_full"] > 0


def test_a_shortlist_that_is_too_short(made):
    reranker, song, story, *_ = made
    with pytest.raises(ValueError, match="has 5 clips, expected the 10 that are asked"):
        reranker.shortlisted(song, story, depth=10, shortlist=5)


def _arrays(*trees):
    return [type(tree)(*map(jnp.asarray, tree)) for tree in trees]
