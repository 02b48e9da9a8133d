"""Decoding, against brute force and plain loops over small made-up models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import decode
from clap_jax.models.decode import Options, Steps

WIDTH = 5


class Model:
    """Logits that depend on every token before: a small recurrent net with no sense.

    The state is a cache of one array; `logp(clip, tokens)` is the same in numpy.
    """

    def __init__(self, classes, seed=0, clips=2, sharp=2.0):
        rng = np.random.default_rng(seed)
        self.state = rng.normal(size=(clips, WIDTH)).astype(np.float32)
        self.mix = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        self.table = rng.normal(size=(classes, WIDTH)).astype(np.float32)
        self.out = (sharp * rng.normal(size=(WIDTH, classes))).astype(np.float32)
        self.classes, self.clips = classes, clips
        self.run = jax.jit(self._run, static_argnums=1)

    def _run(self, state, options, key):
        return decode.write(Steps(self.step), state @ self.out, state, options, key)

    def step(self, state, ids):
        state = jnp.tanh(state @ self.mix + jnp.asarray(self.table)[ids])
        return state @ self.out, state

    @functools.cache
    def logp(self, clip, tokens, temperature=1.0):
        state = self.state[clip].astype(np.float64)
        for token in tokens:
            state = np.tanh(state @ self.mix + self.table[token])
        logits = state @ self.out / temperature
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    def write(self, options, key=None, clips=slice(None)):
        found = self.run(jnp.asarray(self.state[clips]), options, key)
        return jax.tree.map(np.asarray, found)


def allowed(tokens, token, options):
    """Whether a token may follow, as the options say it."""
    if token == options.end_id and len(tokens) < options.min_length:
        return False
    size = options.no_repeat_ngram
    runs = [(*tokens, token)[i : i + size] for i in range(len(tokens) - size + 2)]
    return not size or runs[-1:] == [] or runs[-1] not in runs[:-1]


def score(total, tokens, options):
    return total / len(tokens) ** options.alpha


def every_caption(model, clip, options):
    """All captions there are and their scores, best first."""
    found = []

    def go_on(tokens, total):
        if tokens and (tokens[-1] == options.end_id or len(tokens) == options.length):
            found.append((score(total, tokens, options), tokens))
            return
        logp = model.logp(clip, tokens, options.temperature)
        for token in range(model.classes):
            if allowed(tokens, token, options):
                go_on((*tokens, token), total + logp[token])

    go_on((), 0.0)
    return sorted(found, reverse=True)


def same(found, clip, want, options):
    """Captions of a clip, their lengths, padding and scores."""
    for n, (value, tokens) in enumerate(want):
        row = [*tokens, *[options.pad_id] * (options.length - len(tokens))]
        np.testing.assert_array_equal(found.ids[clip, n], row)
        assert found.lengths[clip, n] == len(tokens)
        np.testing.assert_allclose(found.scores[clip, n], value, atol=2e-6)


# --- beam search ----------------------------------------------------------------------

WIDE = {"method": "beam", "count": 8}


@pytest.mark.parametrize(
    "classes, rule, options",
    [
        (3, "leave", {"length": 5, "end_id": 2, "beams": 100}),
        (3, "stay", {"length": 5, "end_id": 2, "beams": 100}),
        (
            5,
            "leave",
            {"length": 3, "end_id": 0, "pad_id": 4, "beams": 90, "alpha": 0.0},
        ),
        (4, "leave", {"length": 4, "end_id": 1, "beams": 130, "min_length": 2}),
        (4, "stay", {"length": 4, "end_id": 1, "beams": 130, "min_length": 2}),
        (3, "leave", {"length": 5, "end_id": 0, "beams": 100, "no_repeat_ngram": 2}),
        (6, "stay", {"length": 3, "beams": 220, "temperature": 0.5}),
        (5, "stay", {"length": 4, "end_id": 3, "beams": 350, "no_repeat_ngram": 1}),
    ],
)
def test_a_wide_beam_finds_the_best_of_all(classes, rule, options):
    model = Model(classes, seed=classes)
    options = Options(**WIDE, **{"alpha": 0.6} | options, rule=rule)
    found = model.write(options)
    for clip in range(model.clips):
        want = every_caption(model, clip, options)
        assert 8 <= len(want) <= options.beams
        same(found, clip, want[:8], options)


def leaving(model, clip, options):
    """AudioCaption's beam search as a loop over lists; its rule is in `Options`."""
    live, finished = [((), 0.0)], []
    for step in range(options.length):
        going = [
            ((*tokens, token), total + model.logp(clip, tokens)[token])
            for tokens, total in live
            for token in range(model.classes)
            if allowed(tokens, token, options)
        ]
        going = sorted(going, key=lambda pair: -pair[1])[: options.beams]
        live = []
        for tokens, total in going:
            if tokens[-1] == options.end_id or step == options.length - 1:
                finished.append((score(total, tokens, options), tokens))
            else:
                live.append((tokens, total))
        if len(finished) >= options.beams:
            break
    return sorted(finished, reverse=True)


def staying(model, clip, options):
    """clapcap's beam search as a loop over lists; its rule is in `Options`."""
    places = [((), 0.0)]
    for _ in range(options.length):
        going = []
        for tokens, total in places:
            if tokens and tokens[-1] == options.end_id:
                going.append((tokens, total))
                continue
            logp = model.logp(clip, tokens)
            going += [
                ((*tokens, token), total + logp[token])
                for token in range(model.classes)
                if allowed(tokens, token, options)
            ]
        going = sorted(going, key=lambda pair: -score(pair[1], pair[0], options))
        places = going[: options.beams]
        if all(tokens[-1] == options.end_id for tokens, _ in places):
            break
    return [(score(total, tokens, options), tokens) for tokens, total in places]


@pytest.mark.parametrize("rule, loop", [("leave", leaving), ("stay", staying)])
@pytest.mark.parametrize("min_length", [0, 3])
def test_rules_as_plain_loops(rule, loop, min_length):
    """Forty clips, of which some finish long before others."""
    model = Model(7, clips=40, sharp=1.0)
    options = Options("beam", 8, 3, count=3, beams=3, rule=rule, min_length=min_length)
    found = model.write(options)
    for clip in range(model.clips):
        same(found, clip, loop(model, clip, options)[:3], options)
    assert len(np.unique(found.lengths)) > 2


def test_the_rules_differ():
    model = Model(7, clips=40, sharp=1.0)
    options = Options("beam", 8, 3, beams=3)
    assert any(
        leaving(model, clip, options)[0] != staying(model, clip, options)[0]
        for clip in range(model.clips)
    )


@pytest.mark.parametrize("rule", ["leave", "stay"])
def test_one_beam_is_greedy(rule):
    model = Model(9, clips=20, sharp=1.0)
    options = {"length": 7, "end_id": 4, "pad_id": 1, "no_repeat_ngram": 2}
    greedy = model.write(Options(**options))
    beam = model.write(Options("beam", **options, rule=rule))
    np.testing.assert_array_equal(beam.ids, greedy.ids)
    np.testing.assert_array_equal(beam.lengths, greedy.lengths)
    np.testing.assert_allclose(beam.scores, greedy.scores, atol=1e-6)
    assert len(np.unique(greedy.lengths)) > 2


@pytest.mark.parametrize("rule", ["leave", "stay"])
def test_fewer_captions_than_asked_for(rule):
    """Two tokens that may not come twice, and no end: two captions there are."""
    model = Model(2)
    options = Options(
        "beam", 2, count=4, beams=4, rule=rule, no_repeat_ngram=1, pad_id=0
    )
    found = model.write(options)
    for clip in range(2):
        same(found, clip, every_caption(model, clip, options), options)
    np.testing.assert_array_equal(found.lengths[:, 2:], 0)
    np.testing.assert_array_equal(found.ids[:, 2:], 0)
    assert (found.scores[:, 2:] == -np.inf).all()


# --- one token after another ----------------------------------------------------------


def test_greedy_takes_the_likeliest_and_ends():
    model = Model(9, clips=20, sharp=1.0)
    options = Options("greedy", 7, 5, pad_id=8, alpha=0.5)
    found = model.write(options)
    for clip in range(model.clips):
        tokens, total = (), 0.0
        while len(tokens) < 7 and tokens[-1:] != (5,):
            logp = model.logp(clip, tokens)
            tokens, total = (*tokens, int(logp.argmax())), total + logp.max()
        same(found, clip, [(score(total, tokens, options), tokens)], options)
    assert len(np.unique(found.lengths)) > 2


def constant(logits):
    """Logits that no token changes, and how often they were asked for."""
    asked = []

    def step(cache, ids):
        jax.debug.callback(lambda: asked.append(1))
        return jnp.broadcast_to(logits, (len(ids), len(logits))), cache

    return Steps(step), asked


@pytest.mark.parametrize(
    "options, steps",
    [
        ({}, 0),
        ({"min_length": 2}, 2),
        ({"method": "beam", "beams": 2, "rule": "stay"}, 1),
        ({"method": "beam", "beams": 2, "count": 2}, 1),
        ({"method": "sample", "count": 3, "top_k": 1}, 0),
        ({"end_id": None}, 19),
    ],
)
def test_it_stops_when_all_have_ended(options, steps):
    logits = jnp.log(jnp.array([0.8, 0.15, 0.05]))
    model, asked = constant(logits)
    options = Options(**{"length": 20, "end_id": 0} | options)
    run = jax.jit(lambda first, key: decode.write(model, first, (), options, key))
    jax.block_until_ready(run(jnp.stack([logits] * 2), jax.random.key(0)))
    jax.effects_barrier()
    assert len(asked) == steps


@pytest.mark.parametrize(
    "options, want",
    [
        ({}, [2, 2, 2, 2, 2]),
        ({"no_repeat_ngram": 1}, [2, 1, 3, 0, 0]),
        ({"no_repeat_ngram": 2}, [2, 2, 1, 2, 3]),
        ({"no_repeat_ngram": 3}, [2, 2, 2, 1, 2]),
        ({"no_repeat_ngram": 9}, [2, 2, 2, 2, 2]),
        ({"no_repeat_ngram": 2, "min_length": 4}, [2, 2, 1, 2, 3]),
    ],
)
def test_no_run_of_tokens_twice(options, want):
    """Token 2 is likelier than 1, 3 and the end 0, in this order."""
    model, _ = constant(jnp.log(jnp.array([0.1, 0.3, 0.4, 0.2])))
    options = Options(**{"length": 5, "end_id": 0, "pad_id": 0} | options)
    first, _ = model.step((), jnp.zeros(1, int))
    found = jax.jit(lambda first: decode.write(model, first, (), options))(first)
    np.testing.assert_array_equal(found.ids[0, 0], want)


def test_where_no_token_may_follow():
    model, _ = constant(jnp.zeros(3))
    options = Options(length=5, end_id=0, pad_id=0, no_repeat_ngram=1, min_length=4)
    write = jax.jit(lambda first: decode.write(model, first, (), options))
    found = write(jnp.array([[0.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(found.ids[0, 0], [1, 2, 0, 0, 0])
    assert found.lengths[0, 0] == 2 and found.scores[0, 0] == -np.inf


# --- sampling -------------------------------------------------------------------------

SHARES = np.array([0.05, 0.4, 0.15, 0.3, 0.1])


@pytest.mark.parametrize(
    "options, want",
    [
        ({}, SHARES),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        # 0.4 + 0.3 are below 0.75, 0.15 more are above it.
        ({"top_p": 0.75}, [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
        ({"top_p": 0.3}, [0, 1, 0, 0, 0]),
        # Of the three likeliest tokens two have 0.8 of the probability.
        ({"top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 0.5}, SHARES**2 / (SHARES**2).sum()),
        ({"min_length": 2, "end_id": 1}, np.where(SHARES == 0.4, 0, SHARES / 0.6)),
    ],
)
def test_tokens_come_as_often_as_they_should(options, want):
    model, _ = constant(jnp.log(jnp.array(SHARES)))
    count = 5000
    options = Options("sample", **{"length": 3, "count": count} | options)
    first, _ = model.step((), jnp.zeros(1, int))
    found = jax.jit(lambda key: decode.write(model, first, (), options, key))(
        jax.random.key(0)
    )
    for step in range(2 if options.end_id is None else 1):
        share = np.bincount(found.ids[0, :, step], minlength=5) / count
        want = np.asarray(want)
        assert not share[want == 0].any()
        # Four standard deviations.
        assert (abs(share - want) <= 4 * np.sqrt(want * (1 - want) / count)).all()
    if options.end_id is None:
        # One token says nothing of the next.
        ids = np.asarray(found.ids[0])
        pairs = np.bincount(5 * ids[:, 0] + ids[:, 1], minlength=25) / count
        both = np.outer(want, want).ravel()
        assert (abs(pairs - both) <= 5 * np.sqrt(both * (1 - both) / count)).all()


def test_scores_of_samples_are_the_models():
    model = Model(6)
    options = Options("sample", 4, 2, count=5, top_k=3, temperature=1.5)
    found = model.write(options, jax.random.key(3))
    for clip, n in itertools.product(range(2), range(5)):
        tokens = tuple(found.ids[clip, n, : found.lengths[clip, n]].tolist())
        steps = [model.logp(clip, tokens[:i], 1.5)[t] for i, t in enumerate(tokens)]
        same(found, clip, [], options)
        np.testing.assert_allclose(found.scores[clip, n], np.mean(steps), atol=2e-6)


def test_the_key_decides():
    model = Model(6)
    options = Options("sample", 6, count=3)
    first, again, other = (model.write(options, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.ids != other.ids).any()
    # All captions of all clips are drawn on their own.
    assert len({tuple(row) for row in first.ids.reshape(-1, 6).tolist()}) > 3


@pytest.mark.parametrize(
    "options",
    [
        {"method": "sample", "count": 2, "top_p": 0.9},
        {"method": "beam", "beams": 3, "count": 2},
        {"method": "beam", "beams": 3, "count": 2, "rule": "stay"},
        {},
    ],
)
def test_a_clip_is_the_same_alone_and_among_others(options):
    model = Model(7, clips=6, sharp=1.0)
    options = Options(**{"length": 8, "end_id": 3} | options)
    keys = jax.random.split(jax.random.key(5), 6)
    together = model.write(options, keys)
    for clip in range(6):
        alone = model.write(options, keys[clip : clip + 1], slice(clip, clip + 1))
        np.testing.assert_array_equal(alone.ids[0], together.ids[clip])
        np.testing.assert_array_equal(alone.lengths[0], together.lengths[clip])
        np.testing.assert_allclose(alone.scores[0], together.scores[clip], atol=1e-6)
    assert len(np.unique(together.lengths)) > 1


# --- bad options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"method": "beams"}, "unknown method of decoding 'beams'.*'beam'"),
        ({"method": "beam", "rule": "go"}, "unknown rule of a beam search 'go'"),
        ({"length": 0}, "length must be an integer >= 1, got 0"),
        ({"count": 0}, "count must be an integer >= 1, got 0"),
        ({"end_id": -1}, "end_id must be a token or None, got -1"),
        ({"temperature": 0.0}, "temperature is 0.0, expected > 0"),
        ({"alpha": -1.0}, "alpha is -1.0, expected >= 0"),
        ({"top_p": 1.5}, r"top_p is 1.5, expected in \(0, 1\]"),
        ({"length": 5, "min_length": 5}, "min_length is 5, expected below length"),
        ({"count": 2}, "count is 2, expected at most 1 with the method 'greedy'"),
        ({"method": "beam", "beams": 3, "count": 4}, "at most 3.*beams=3"),
        ({"beams": 3}, "beams is 3, which is for the method 'beam', not for 'greedy'"),
        (
            {"method": "beam", "top_k": 3},
            "top_k is 3, which is for the method 'sample'",
        ),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Options(**options)


@pytest.mark.parametrize(
    "options, key, sentence",
    [
        (
            {"method": "sample"},
            None,
            "sampling needs a key of jax.random.key, got None",
        ),
        ({"method": "sample"}, 3, r"\(3,\) keys for 2 clips; expected one or 2"),
        ({"end_id": 7}, None, "end_id 7, pad_id 0: the model has 7 tokens"),
    ],
)
def test_bad_calls(options, key, sentence):
    model = Model(7)
    if key:
        key = jax.random.split(jax.random.key(0), key)
    with pytest.raises(ValueError, match=sentence):
        model.write(Options(**options), key)
