"""Attention of sentences over segments, and the score that it makes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import dual, temporal
from clap_jax.models.temporal import Temporal
from tests.models import long_clips
from tests.models.long_clips import EVERYTHING

PLAIN = dataclasses.replace(EVERYTHING, positions=False, monotone=False, heads=1)


@functools.cache
def programs(options):
    """Score, and attention of all pairs and of rows, compiled."""
    attend, align = (
        jax.jit(functools.partial(function, options))
        for function in (temporal.attend, temporal.align)
    )
    return jax.jit(temporal.score(options)), attend, align


@pytest.mark.parametrize("options", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_as_defined(options):
    song, story = long_clips.make(0, clips=5, texts=4, segments=6, sentences=3)
    params = long_clips.params(options)
    score, attend, _ = programs(options)
    with jax.enable_x64(True):
        wide = long_clips.double((params, song, story))
        want = np.asarray(long_clips.score(*wide, options))
        want_weights = np.asarray(long_clips.weights(*wide, options))
    found, weights = score(params, song, story), attend(params["temporal"], song, story)
    assert found.dtype == weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, want_weights, atol=1e-6)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    # Sentences attend to different segments, and it matters.
    assert np.ptp(want_weights, axis=2).max() > 0.1
    time = want - dual.cosine_score(params, song.whole, story.whole)
    assert np.abs(time).max() > 0.1


@pytest.mark.parametrize("heard", [1, 4])
def test_one_segment_is_the_plain_score(heard):
    """Bit for bit, also where one of several is all that is heard."""
    song, story = long_clips.make(1, clips=5, texts=4, segments=heard, sentences=3)
    song = song._replace(heard=jnp.arange(heard) == jnp.full((5, 1), heard - 1))
    params = long_clips.params(EVERYTHING)
    found = programs(EVERYTHING)[0](params, song, story)
    want = jax.jit(dual.cosine_score)(params, song.whole, story.whole)
    np.testing.assert_array_equal(found, want)


def test_whole_embeddings_alone_have_the_plain_score():
    song, story = long_clips.make(1, clips=5, texts=4, segments=3, sentences=2)
    params = long_clips.params(EVERYTHING)
    wholes = temporal.whole(song), temporal.whole(story)
    assert temporal.whole(song.whole) is song.whole
    np.testing.assert_array_equal(
        temporal.score(EVERYTHING)(params, *wholes), dual.cosine_score(params, *wholes)
    )


def test_how_many_segments():
    assert Temporal().segments(10.0) == 30
    assert Temporal(hop_seconds=5.0).segments(10) == 59
    assert Temporal(hop_seconds=0.1, longest_seconds=5.0).segments(4.4) == 7
    assert Temporal(longest_seconds=5.0).segments(10.0) == 1


def test_padding_counts_nowhere():
    song, story = long_clips.make(2, clips=3, texts=4, segments=5, sentences=3)
    params, (score, attend, _) = long_clips.params(EVERYTHING), programs(EVERYTHING)

    def behind(x, fill):
        x = np.asarray(x)
        return jnp.concatenate([x, np.full_like(x[:, :2], fill)], axis=1)

    longer = song._replace(
        segments=behind(song.segments, 7.0),
        seconds=behind(song.seconds, 0.0),
        heard=behind(song.heard, False),
    )
    more = story._replace(
        sentences=behind(story.sentences, -9.0), said=behind(story.said, False)
    )
    want = score(params, song, story)
    np.testing.assert_allclose(score(params, longer, more), want, atol=2e-6)
    weights = np.asarray(attend(params["temporal"], longer, more))
    np.testing.assert_allclose(weights.sum(-1)[:, more.said], 1, atol=1e-6)
    assert (np.where(longer.heard[:, None, None], 0, weights) == 0).all()


def test_clips_and_texts_of_padding_alone():
    """Nothing is infinite, and there is a gradient."""
    song, story = long_clips.make(3, clips=2, texts=2, segments=4, sentences=2)
    song = song._replace(heard=jnp.array([[False] * 4, [True] * 4]))
    story = story._replace(said=story.said & jnp.array([[True], [False]]))

    def total(params, segments):
        given = song._replace(segments=segments)
        return temporal.score(EVERYTHING)(params, given, story).sum()

    params = long_clips.params(EVERYTHING)
    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(params, song.segments)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert (gradients[1][0] == 0).all() and (gradients[1][1] != 0).any()


def test_attention_begins_with_cosines():
    """Before anything is learned, a sentence attends to the segment that is like it."""
    options = Temporal(heads=4, sentences=4, temperature_init=20.0)
    song, story = long_clips.make(
        4, clips=1, texts=1, segments=4, sentences=4, width=64
    )
    song = song._replace(
        seconds=jnp.float32([[[0, 10], [10, 20], [20, 30], [30, 40]]]),
        heard=jnp.ones((1, 4), bool),
    )
    order = np.array([2, 0, 3, 1])
    story = story._replace(
        sentences=song.segments[:, order], said=jnp.ones((1, 4), bool)
    )
    params, align = temporal.init(jax.random.key(0), options, 64), programs(options)[2]
    weights = align(params, song, story)
    assert weights.shape == (1, 4, 4)
    np.testing.assert_array_equal(weights[0].argmax(-1), order)
    assert weights[0].max(-1).min() > 0.8


def test_attention_can_know_when():
    """The prior along the diagonal, and sentences that ask for a time alone."""
    options = Temporal(heads=1, sentences=3, monotone=True)
    song, story = long_clips.make(5, clips=2, texts=2, segments=6, sentences=3)
    seconds = jnp.arange(6.0)[:, None] * 10 + jnp.array([0.0, 10.0])
    song = song._replace(seconds=jnp.stack([seconds] * 2), heard=jnp.ones((2, 6), bool))
    story = story._replace(said=jnp.ones((2, 3), bool))

    def nothing(width):
        params = temporal.init(jax.random.key(0), options, width)
        return jax.tree.map(jnp.zeros_like, params)

    align = programs(options)[2]
    prior = nothing(8) | {"log_monotone": jnp.log(1e3)}
    weights = align(prior, song, story)
    middles = np.einsum("bms,s->bm", weights, seconds.mean(-1))
    np.testing.assert_allclose(middles, [[10, 30, 50]] * 2, atol=0.5)

    # Keys that are the features of each segment, and queries that are those of one.
    features = temporal.segment_features(options, song.seconds)
    width = features.shape[-1]
    params = nothing(width) | {
        "segment_position": jnp.eye(width),
        "query": jnp.eye(width),
        "log_temperature": jnp.array([2.0]),
    }
    asked = features[:, jnp.array([4, 0, 2])]
    asked /= jnp.linalg.norm(asked, axis=-1, keepdims=True)
    song = song._replace(segments=jnp.zeros((2, 6, width)))
    story = story._replace(sentences=asked)
    weights = align(params, song, story)
    np.testing.assert_array_equal(weights.argmax(-1), [[4, 0, 2]] * 2)


def test_each_row_is_aligned_as_in_all_pairs():
    song, story = long_clips.make(6, clips=4, texts=4, segments=5, sentences=3)
    params = long_clips.params(EVERYTHING)["temporal"]
    _, attend, align = programs(EVERYTHING)
    every = attend(params, song, story)
    rows = align(params, song, story)
    diagonal = np.asarray(every)[range(4), range(4)]
    np.testing.assert_allclose(rows, diagonal, atol=1e-6)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"heads": 0}, "heads is 0, expected 1 or more"),
        ({"sentences": -1}, "sentences is -1, expected 0 or more"),
        ({"hop_seconds": 0}, "hop_seconds is 0, expected more than 0"),
        ({"longest_seconds": 4}, "longest_seconds is 4, expected more than 4"),
    ],
)
def test_errors(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Temporal(**options)
