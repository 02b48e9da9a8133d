"""Captioners as data, and a small one that writes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio.mel import FRONTENDS
from clap_jax.models import captioner, decode
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.spec import TowerSpec

SMALL = CaptionerSpec(
    name="small",
    frontend=FRONTENDS["small_16k"],
    audio=TowerSpec("convnet", {"widths": (8, 8)}),
    head="msclap",
    embed_dim=6,
    mapper={"width": 8, "length": 3, "clip_length": 2, "depth": 1, "heads": 2},
    decoder=TowerSpec("gpt2", {"width": 8, "depth": 2, "heads": 2, "mlp": 16}),
    tokenizer="",
    vocab_size=30,
)


def test_json_both_ways():
    for spec in (SMALL, captioner.SPECS["clapcap"]):
        assert CaptionerSpec.from_json(spec.to_json()) == spec
    assert captioner.SPECS["clapcap"].mapper["length"] == 40


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"captioner": "cross"}, "unknown captioner 'cross'"),
        ({"tag_names": ("dog",)}, "small has tag_names, but no tags guide it"),
        ({"decoder": TowerSpec("bert")}, "unknown decoder of a captioner 'bert'"),
        ({"audio": TowerSpec("gpt2")}, "unknown audio tower 'gpt2'"),
        ({"head": "cubic"}, "unknown head 'cubic'"),
        ({"embed_dim": 0}, "embed_dim must be a positive integer, got 0"),
        ({"mapper": {"width": 16}}, "mapper's width is 16, the decoder's 8"),
        ({"mapper": {"size": 16}}, "unknown option of a mapper 'size'"),
    ],
)
def test_bad_specs(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **changes)


def test_bad_json():
    text = SMALL.to_json().replace('"vocab_size"', '"vocabulary"')
    with pytest.raises(ValueError, match="'vocabulary'.*needs the key 'vocab_size'"):
        CaptionerSpec.from_json(text)
    with pytest.raises(ValueError, match="unknown dtype 'float16'"):
        captioner.build(SMALL, dtype="float16")


@pytest.fixture(scope="module")
def small():
    """A captioner, its variables (large enough to differ) and two clips' prefixes."""
    model = captioner.build(SMALL)
    variables = model.init(jax.random.key(0))
    variables["params"] = jax.tree.map(lambda x: 3 * x, variables["params"])
    mel = np.random.default_rng(0).normal(-30, 14, (2, 128, 64)).astype(np.float32)
    return model, variables, jax.jit(model.prefix)(variables, mel)


def test_shapes(small):
    model, variables, prefix = small
    names = {"audio", "audio_projection", "mapper", "decoder"}
    assert set(variables["params"]) == names and set(variables["state"]) == {"audio"}
    assert prefix.shape == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(prefix, axis=1), 1, atol=1e-5)
    assert model.prefix_embeddings(variables, prefix).shape == (2, 3, 8)
    assert "bias" not in variables["params"]["mapper"]["block0"]["attention"]["query"]


def test_greedy_takes_the_likeliest_token_each_time(small):
    model, variables, prefix = small
    greedy = jax.jit(model.greedy, static_argnums=2)
    ids = np.asarray(greedy(variables, prefix, 6))
    logits = jax.jit(model.logits)
    scores = np.asarray(logits(variables, prefix, ids))
    assert scores.shape == (2, 3 + 6, 30)
    # Position P - 1 + i is followed by token i.
    np.testing.assert_array_equal(scores[:, 2:-1].argmax(-1), ids)
    assert len(np.unique(ids)) > 1
    # The caption is about the sound.
    assert np.abs(logits(variables, -prefix, ids) - scores).max() > 1e-3


def test_a_caption_of_one_token(small):
    model, variables, prefix = small
    ids = jax.jit(model.greedy, static_argnums=2)(variables, prefix, 1)
    assert ids.shape == (2, 1) and ids.dtype == jnp.int32


def test_too_long_captions(small):
    model, variables, prefix = small
    with pytest.raises(ValueError, match="a cache of 1025 positions"):
        model.greedy(variables, prefix, 1023)


def test_bfloat16(small):
    model, variables, prefix = small
    half = captioner.build(SMALL, dtype="bfloat16")
    ids = jnp.array([[3, 4, 5], [6, 7, 8]])
    want = jax.jit(model.logits)(variables, prefix, ids)
    got = jax.jit(half.logits)(variables, prefix, ids)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()
    written = jax.jit(half.greedy, static_argnums=2)(variables, prefix, 4)
    assert written.shape == (2, 4)


# --- behind a prompt, and in training -------------------------------------------------


def test_scores_of_the_tokens_alone(small):
    model, variables, prefix = small
    ids = jnp.array([[3, 4, 5, 6], [6, 7, 8, 9]])
    whole = np.asarray(jax.jit(model.logits)(variables, prefix, ids))
    found = jax.jit(model.token_logits)(variables, prefix, ids)
    assert found.shape == (2, 4, 30)
    np.testing.assert_allclose(found, whole[:, 2:-1], rtol=1e-5, atol=1e-5)


def test_a_prompt_changes_what_is_written(small):
    """What is written is the likeliest token each time, behind prefix and prompt."""
    model, variables, prefix = small
    greedy = jax.jit(model.greedy, static_argnums=2)
    written = []
    for prompt in ([3, 4], [9, 8]):
        ids = np.asarray(greedy(variables, prefix, 5, jnp.array(prompt)))
        row = np.concatenate([np.tile(prompt, (2, 1)), ids], axis=1)
        scores = jax.jit(model.token_logits)(variables, prefix, row)
        np.testing.assert_array_equal(np.asarray(scores).argmax(-1)[:, 2:], ids)
        written.append(ids)
    assert (written[0] != written[1]).any()
    none = greedy(variables, prefix, 5, jnp.zeros(0, jnp.int32))
    np.testing.assert_array_equal(none, greedy(variables, prefix, 5))


def test_training_has_chance_and_evaluation_none(small):
    model, variables, prefix = small
    ids = jnp.array([[3, 4, 5], [6, 7, 8]])
    score = jax.jit(
        lambda key: model.token_logits(variables, prefix, ids, train=True, key=key)
    )
    first, again, other = (score(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    mel = np.zeros((2, 128, 64), np.float32)
    for function, given in (
        (model.token_logits, (prefix, ids)),
        (model.encode_audio, (mel,)),
    ):
        with pytest.raises(ValueError, match="needs a key"):
            jax.eval_shape(functools.partial(function, train=True), variables, *given)


def test_rows_by_their_names():
    made = captioner.get_spec(
        "small_answers",
        {"audio.kind": "conv_transformer", "frontend": "small_16k", "text_length": 9},
    )
    assert made.audio == TowerSpec("conv_transformer")
    assert made.frontend == FRONTENDS["small_16k"] and made.text_length == 9
    assert made.mapper == captioner.SPECS["small_answers"].mapper
    with pytest.raises(ValueError, match="unknown captioner 'clapcab'.*'clapcap'"):
        captioner.get_spec("clapcab")
    pengi = captioner.SPECS["pengi"]
    assert (pengi.mapper["depth"], pengi.text_length, pengi.embed_dim) == (4, 77, 1024)


# --- captions -------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["leave", "stay"])
def test_scores_of_captions_are_those_of_their_tokens(small, rule):
    """Beams behind a prefix and a prompt, which all captions of a clip share."""
    model, variables, prefix = small
    caption = jax.jit(model.caption, static_argnums=2)
    options = decode.Options("beam", 6, 7, count=3, beams=4, rule=rule)
    prompt = jnp.array([3, 4])
    found = caption(variables, prefix, options, prompt=prompt)
    assert found.ids.shape == (2, 3, 6)
    for n in range(3):
        ids = jnp.concatenate([jnp.tile(prompt, (2, 1)), found.ids[:, n]], axis=1)
        logits = jax.jit(model.token_logits)(variables, prefix, ids)
        logp = jax.nn.log_softmax(logits)[:, 2:]
        each = jnp.take_along_axis(logp, found.ids[:, n, :, None], axis=2)[..., 0]
        own = jnp.arange(6) < found.lengths[:, n, None]
        want = jnp.where(own, each, 0).sum(1) / found.lengths[:, n]
        np.testing.assert_allclose(found.scores[:, n], want, atol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_tags_guide_no_prefix(small):
    model, variables, _ = small
    with pytest.raises(ValueError, match="small has tags given, but none guide it"):
        model.encode_audio(variables, np.zeros((1, 128, 64)), tags=np.zeros((1, 3)))


def test_a_frozen_tower_has_no_chance(small):
    model, variables, prefix = small
    mel = np.random.default_rng(0).normal(-30, 14, (2, 128, 64)).astype(np.float32)
    encode = jax.jit(model.encode_audio, static_argnames=("train", "frozen"))
    (z, _), _ = encode(variables, mel, train=True, frozen=True)
    np.testing.assert_allclose(z, prefix, atol=1e-6)


# --- scheduled sampling ---------------------------------------------------------------


def test_some_tokens_are_replaced_by_the_models(small):
    model, variables, prefix = small
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 30, (2, 400)), jnp.int32)
    own = jnp.arange(400) >= jnp.array([[3], [100]])
    guesses = rng.normal(size=(2, 400, 30)).astype(np.float32)

    def mixed(share, draw="likeliest", seed=0):
        key = jax.random.key(seed)
        return np.asarray(
            captioner.scheduled(lambda ids: guesses, ids, own, share, key, draw)
        )

    np.testing.assert_array_equal(mixed(0.0), ids)
    likeliest = guesses.argmax(-1)
    np.testing.assert_array_equal(mixed(1.0), np.where(own, likeliest, ids))
    some = mixed(0.3)
    changed = some != np.asarray(ids)
    assert not changed[~np.asarray(own)].any()
    np.testing.assert_array_equal(some[changed], likeliest[changed])
    # One guess in thirty is the true token.
    assert abs(changed[np.asarray(own)].mean() - 0.3 * 29 / 30) < 0.06
    assert (mixed(0.3, seed=1) != some).any()
    drawn = mixed(1.0, "sample")
    assert (drawn != likeliest)[np.asarray(own)].mean() > 0.5
    # The likelier, the more often: the mean logit of what is drawn is above that of all.
    picked = np.take_along_axis(guesses, drawn[..., None], axis=2)[np.asarray(own)]
    assert 0.7 < picked.mean() < 1.3  # E[x e^x] / E[e^x] of a normal x is 1
    with pytest.raises(ValueError, match="unknown draw 'best'"):
        mixed(0.5, "best")


def test_the_first_pass_has_no_gradient(small):
    model, variables, prefix = small
    ids = jnp.array([[3, 4, 5], [6, 7, 8]])

    def total(variables, share):
        def first(ids):
            return model.token_logits(variables, prefix, ids)

        own = jnp.ones(ids.shape, bool)
        told = captioner.scheduled(first, ids, own, share, jax.random.key(0))
        return jnp.square(first(told)).sum(), told

    gradients = jax.jit(jax.grad(total, has_aux=True))
    got, told = gradients(variables, 1.0)
    assert (told != ids).any()
    want = jax.jit(
        jax.grad(lambda v: jnp.square(model.token_logits(v, prefix, told)).sum())
    )(variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want
    )
