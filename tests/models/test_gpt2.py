"""GPT-2: what is pooled, what has no influence, and the cache of the language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import gpt2
from clap_jax.models.tower import complete
from tests.models.weights import fill

END = 29
SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp": 16, "position_table": 20}
SMALL |= {"end_id": END}


def options(**changes):
    return complete("gpt2", SMALL | changes, gpt2.DEFAULTS)


def make(**changes):
    return gpt2.tower(options(**changes), 30)


@pytest.fixture(scope="module")
def texts():
    """Three texts that end with the end token, padded with id 0."""
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 28, (3, 7)), jnp.int32)
    mask = jnp.arange(7) < jnp.array([[7], [4], [2]])
    ids = ids.at[jnp.arange(3), jnp.array([6, 3, 1])].set(END)
    return jnp.where(mask, ids, 0), mask


@pytest.fixture(scope="module")
def variables(texts):
    return fill(make(), texts, std=0.5)


def run(tower, variables, ids, mask):
    (pooled, aux), _ = jax.jit(tower.apply)(variables, (ids, mask))
    return np.asarray(pooled), np.asarray(aux["hidden"])


@pytest.mark.parametrize("pool", ["end", "msclap"])
def test_the_end_token_stands_for_the_text(texts, variables, pool):
    pooled, hidden = run(make(pool=pool), variables, *texts)
    np.testing.assert_array_equal(pooled, hidden[range(3), [6, 3, 1]])


@pytest.mark.parametrize("pool", ["end", "msclap"])
def test_padding_has_no_influence(texts, variables, pool):
    ids, mask = texts
    tower = make(pool=pool)
    want, _ = run(tower, variables, ids, mask)
    longer = [jnp.pad(x, ((0, 0), (0, 5))) for x in texts]
    np.testing.assert_allclose(run(tower, variables, *longer)[0], want, atol=1e-5)
    # Nor what the mask says of a text that is there.
    np.testing.assert_array_equal(run(tower, variables, ids, mask | True)[0], want)
    # Words and their order do have.
    swapped = ids.at[0, :2].set(ids[0, 1::-1])
    assert np.abs(run(tower, variables, swapped, mask)[0] - want)[0].max() > 1e-2


def test_end_is_the_first_end_token_or_the_last_visible(texts, variables):
    ids, mask = texts
    tower = make()
    # Padded with the end token, as GPT-2's own tokenizer may be.
    pooled, hidden = run(tower, variables, jnp.where(mask, ids, END), mask)
    np.testing.assert_array_equal(pooled, hidden[range(3), [6, 3, 1]])
    pooled, hidden = run(tower, variables, jnp.where(ids == END, 5, ids), mask)
    np.testing.assert_array_equal(pooled, hidden[range(3), [6, 3, 1]])


def test_msclap_counts_the_ids_that_are_not_padding(texts, variables):
    """A "!" in a text, id 0, moves the pooled token one to the left of the end."""
    ids, mask = texts
    ids = ids.at[0, 2].set(0).at[1, :2].set(0)
    pooled, hidden = run(make(pool="msclap"), variables, ids, mask)
    np.testing.assert_array_equal(pooled, hidden[range(3), [5, 1, 1]])
    pooled, _ = run(make(), variables, ids, mask)
    np.testing.assert_array_equal(pooled, hidden[range(3), [6, 3, 1]])


def test_dropout_is_fixed_by_the_key(texts, variables):
    tower = make(dropout=0.3)
    train = jax.jit(lambda key: tower.apply(variables, texts, train=True, key=key))
    first, again, other = (
        np.asarray(train(jax.random.key(seed))[0][0]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_errors(texts, variables):
    with pytest.raises(ValueError, match="unknown pool of gpt2 'mean'.*end"):
        make(pool="mean").init(jax.random.key(0), texts)
    with pytest.raises(ValueError, match="texts of 7 tokens; this tower takes 6"):
        make(position_table=6).init(jax.random.key(0), texts)
    model = gpt2.language_model(options(), 30)
    with pytest.raises(ValueError, match="a cache of 21 positions; this model has 20"):
        model.start(1, 21)
    with pytest.raises(ValueError, match="texts of 21 tokens"):
        model.logits(variables["params"], jnp.zeros((1, 21), jnp.int32))
    with pytest.raises(ValueError, match="needs a key"):
        model.logits(variables["params"], texts[0], train=True)


@pytest.fixture(scope="module")
def model():
    return gpt2.language_model(options(), 30)


def test_language_model_and_tower_share_parameters(model, texts, variables):
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, variables["params"]
    )
    _, hidden = run(make(), variables, *texts)
    params = variables["params"]
    logits = jax.jit(model.logits)(params, texts[0])
    assert logits.shape == (3, 7, 30) and logits.dtype == jnp.float32
    want = hidden @ np.asarray(params["tokens"]["embedding"]).T
    np.testing.assert_allclose(logits, want, atol=1e-5)
    # Ids are a short way to write the rows of the token table.
    embedded = model.embed(params, texts[0])
    np.testing.assert_allclose(
        jax.jit(model.logits)(params, embedded), logits, atol=1e-6
    )


@pytest.mark.parametrize("room, prefix", [(12, 5), (20, 1)])
def test_cached_decoding_is_plain_decoding(model, variables, room, prefix):
    """A prefix of vectors, then token by token, in a cache of any size."""
    params = variables["params"]
    rng = np.random.default_rng(1)
    vectors = jnp.asarray(rng.normal(size=(2, prefix, 8)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 30, (2, 7)), jnp.int32)
    x = jnp.concatenate([vectors, model.embed(params, ids)], axis=1)
    want = jax.jit(model.logits)(params, x)

    @jax.jit
    def decode(params, vectors, ids):
        logits, cache = model.step(params, model.start(2, room), vectors)

        def read(cache, token):
            logits, cache = model.step(params, cache, token[:, None])
            return cache, logits

        cache, rest = jax.lax.scan(read, cache, ids.T)
        return jnp.concatenate([logits[None], rest]).swapaxes(0, 1), cache

    got, cache = decode(params, vectors, ids)
    np.testing.assert_allclose(got, want[:, prefix - 1 :], atol=1e-5)
    assert cache.index == prefix + 7
    for past in cache.layers:
        assert past.keys.shape == past.values.shape == (2, 2, 4, room)


def test_the_cache_takes_several_tokens_at_once(model, variables):
    params = variables["params"]
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 30, (3, 9)), jnp.int32)
    want = jax.jit(model.logits)(params, ids)
    cache, step = model.start(3, 9), jax.jit(model.step)
    for start, stop in ((0, 4), (4, 8), (8, 9)):
        logits, cache = step(params, cache, ids[:, start:stop])
        np.testing.assert_allclose(logits, want[:, stop - 1], atol=1e-5)


def test_logits_in_training(texts, variables):
    model = gpt2.language_model(options(dropout=0.3), 30, remat="blocks")
    params, ids = variables["params"], texts[0]

    def loss(params, seed):
        logits = model.logits(params, ids, train=True, key=jax.random.key(seed))
        return (jax.nn.log_softmax(logits)[..., 3]).mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    (first, gradients), (other, _) = (value_and_grad(params, seed) for seed in (1, 2))
    assert first != other
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["tokens"]))


def test_bfloat16_stays_close(model, texts, variables):
    half = gpt2.language_model(options(), 30, dtype="bfloat16")
    params, ids = variables["params"], texts[0]
    want = jax.jit(model.logits)(params, ids)
    got = jax.jit(half.logits)(params, ids)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()
    cache = half.start(3, 7)
    assert cache.layers[0].keys.dtype == jnp.bfloat16
    logits, cache = jax.jit(half.step)(params, cache, ids)
    assert cache.layers[0].keys.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, got[:, -1], atol=0.02 * np.abs(want).max())
