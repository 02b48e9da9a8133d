"""Caption decoders: what they see, and what the tags do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import caption_decoder
from clap_jax.models.caption_decoder import Draft
from clap_jax.models.tower import complete
from tests.models.weights import fill

SMALL = {"width": 8, "heads": 2, "mlp": 16, "position_table": 9, "tags": 5}


def make(**options):
    options = complete("decoder", SMALL | options, caption_decoder.DEFAULTS)
    return caption_decoder.tower(options, 30)


@pytest.fixture(scope="module")
def draft():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(1, 30, (3, 6)), jnp.int32)
    mask = jnp.arange(6) < jnp.array([[6], [4], [2]])
    return Draft(
        ids=jnp.where(mask, ids, 0),
        mask=mask,
        memory=jnp.asarray(rng.normal(size=(3, 7, 10)), jnp.float32),
        frames=jnp.array([7, 5, 3]),
        tags=jnp.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0.0] * 5]),
    )


def run(tower, variables, draft):
    (logits, aux), _ = jax.jit(tower.apply)(variables, draft)
    assert logits.shape == (3, 6, 30) and aux["hidden"].shape == (3, 6, 8)
    return np.asarray(logits)


def test_sinusoids():
    table = caption_decoder.sinusoids(50, 8)
    np.testing.assert_array_equal(table[0], [0, 1] * 4)
    np.testing.assert_allclose(table[3, :2], [np.sin(3), np.cos(3)], atol=1e-7)
    np.testing.assert_allclose(table[20, 6:], [np.sin(0.02), np.cos(0.02)], atol=1e-7)
    variables = make().init(
        jax.random.key(0),
        Draft(
            *[jnp.zeros((1, 2), int)] * 2,
            memory=jnp.zeros((1, 2, 3)),
            frames=jnp.array([2]),
        ),
    )
    np.testing.assert_array_equal(
        variables["state"]["positions"], caption_decoder.sinusoids(9, 8)
    )


def test_only_words_before_and_frames_of_the_clip_are_seen(draft):
    tower = make()
    variables = fill(tower, draft, std=0.5)
    want = run(tower, variables, draft)
    later = run(tower, variables, draft._replace(ids=draft.ids.at[0, 3].set(17)))
    np.testing.assert_array_equal(later[0, :3], want[0, :3])
    assert np.abs(later - want)[0, 3:].max(axis=1).min() > 1e-3
    beyond = draft._replace(memory=draft.memory.at[1, 5:].set(9.0))
    np.testing.assert_array_equal(run(tower, variables, beyond), want)
    within = draft._replace(memory=draft.memory.at[1, 4].set(9.0))
    assert np.abs(run(tower, variables, within) - want)[1].max() > 1e-3
    # A word that is masked is not seen by those behind it.
    hidden = draft._replace(mask=draft.mask.at[0, 1].set(False))
    other = hidden._replace(ids=draft.ids.at[0, 1].set(3))
    np.testing.assert_array_equal(
        run(tower, variables, hidden)[0, 2:], run(tower, variables, other)[0, 2:]
    )


@pytest.mark.parametrize("guide", ["event", "keyword"])
def test_tags_guide_every_word(draft, guide):
    tower = make(guide=guide)
    variables = fill(tower, draft, std=0.5)
    want = run(tower, variables, draft)
    assert np.isfinite(want).all()
    other = run(tower, variables, draft._replace(tags=draft.tags.at[0, 1].set(1.0)))
    assert np.abs(other - want)[0].max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(other[1:], want[1:])


def test_events_are_averaged_and_none_is_nothing(draft):
    tower, plain = make(guide="event"), make()
    variables = fill(tower, draft, std=0.5)
    guided = run(tower, variables, draft)
    params = dict(variables["params"])
    events = params.pop("events")
    unguided = run(plain, variables | {"params": params}, draft)
    np.testing.assert_allclose(guided[2], unguided[2], atol=1e-5)
    assert np.abs(guided - unguided)[:2].max() > 1e-2
    # Twice the same event weighs as much as once.
    twin = {"params": params | {"events": events.at[3].set(events[4])}}
    twice = draft._replace(tags=draft.tags.at[1, 3].set(1.0))
    np.testing.assert_allclose(
        run(tower, variables | twin, twice)[1], guided[1], atol=1e-5
    )


def test_dropout_is_fixed_by_the_key(draft):
    tower = make()
    variables = fill(tower, draft, std=0.5)

    @jax.jit
    def train(key):
        (logits, _), state = tower.apply(variables, draft, train=True, key=key)
        return logits, state

    (first, state), (again, _), (other, _) = (
        train(jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    # Positions stay as they are.
    np.testing.assert_array_equal(state["positions"], variables["state"]["positions"])


@pytest.mark.parametrize("guide", ["none", "event", "keyword"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_token_by_token_is_the_same(draft, guide, dtype):
    """Logits of whole captions, and those from a cache; copies that change places."""
    draft = draft._replace(mask=jnp.ones((3, 6), bool))
    options = complete("decoder", SMALL | {"guide": guide}, caption_decoder.DEFAULTS)
    tower = caption_decoder.tower(options, 30, dtype=dtype)
    variables = fill(make(guide=guide), draft, std=0.5)
    want = run(tower, variables, draft)
    steps = caption_decoder.stepwise(options, 30, dtype=dtype)

    @jax.jit
    def stepped(variables, draft):
        cache = steps.start(variables, draft, 6).spread(2)
        rows, found = jnp.repeat(jnp.arange(3), 2), []
        for i in range(6):
            # Both copies of the middle clip change places: they have read the same.
            cache = cache.take(jnp.array([0, 1, 3, 2, 4, 5]))
            logits, cache = steps.step(variables, cache, draft.ids[rows, i])
            found.append(logits)
        return jnp.stack(found, axis=1)

    got = np.asarray(stepped(variables, draft))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for copy in (0, 1):
        np.testing.assert_allclose(
            got[copy::2], want, atol=tolerance * np.abs(want).max()
        )
    if dtype == "float32":
        np.testing.assert_array_equal(got[::2].argmax(-1), want.argmax(-1))


def test_copies_go_their_own_ways(draft):
    """Other tokens in two copies of a clip; `take` puts one's past in both places."""
    options = complete("decoder", SMALL, caption_decoder.DEFAULTS)
    draft = draft._replace(mask=jnp.ones((3, 6), bool))
    variables = fill(make(), draft, std=0.5)
    steps = caption_decoder.stepwise(options, 30)

    @jax.jit
    def two(variables, draft):
        cache = steps.start(variables, draft, 2).spread(2)
        _, cache = steps.step(variables, cache, jnp.array([5, 6, 7, 8, 9, 10]))
        cache = cache.take(jnp.array([1, 1, 2, 3, 5, 4]))
        return steps.step(variables, cache, jnp.full(6, 11))[0]

    got = np.asarray(two(variables, draft))
    for row, (clip, before) in enumerate(
        [(0, 6), (0, 6), (1, 7), (1, 8), (2, 10), (2, 9)]
    ):
        ids = jnp.tile(jnp.array([[before, 11, 0, 0, 0, 0]]), (3, 1))
        want = run(make(), variables, draft._replace(ids=ids))[clip, 1]
        np.testing.assert_allclose(got[row], want, atol=1e-5)


def test_a_cache_is_no_longer_than_the_positions(draft):
    options = complete("decoder", SMALL, caption_decoder.DEFAULTS)
    with pytest.raises(ValueError, match="captions of 10 tokens; this decoder takes 9"):
        caption_decoder.stepwise(options, 30).start({}, draft, 10)


@pytest.mark.parametrize(
    "options, tags, sentence",
    [
        ({"guide": "topic"}, True, "unknown guide 'topic'"),
        ({"guide": "event"}, False, "guide 'event' needs tags"),
        ({"position_table": 5}, True, "captions of 6 tokens; this decoder takes 5"),
    ],
)
def test_errors(draft, options, tags, sentence):
    draft = draft if tags else draft._replace(tags=None)
    with pytest.raises(ValueError, match=sentence):
        make(**options).init(jax.random.key(0), draft)
