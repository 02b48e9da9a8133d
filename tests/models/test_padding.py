"""Padding: embeddings and gradients do not depend on it, where `models.spec` says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import bart, bert, clip_text, gpt2, pann, zoo
from clap_jax.models import spec as spec_lib
from clap_jax.models.tower import Sound, complete
from tests.models.weights import fill

SMALL = {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "position_table": 40}
NO_DROPOUT = SMALL | {"dropout": 0.0}
FULL, SHORT = 30, 12
VOCABULARY = 40
COUNTS = (12, 7, 2, 9)

# Module, options, the ids of padding and of the end token (None: any word).
TOWERS = {
    "roberta": ("bert", {}, 1, None),
    "roberta_mean": ("bert", {"pool": "mean"}, 1, None),
    "bert_first": ("bert", {"positions": "bert", "pool": "first"}, 0, None),
    "gpt2_end": ("gpt2", {"end_id": 39}, 39, 39),
    "gpt2_last_visible": ("gpt2", {"end_id": 50256}, 0, None),
    "msclap": ("gpt2", {"pool": "msclap", "end_id": 39}, 0, 39),
    "clip": ("clip_text", {}, 0, 39),
    "clip_padded_with_ends": ("clip_text", {}, 39, 39),
    "bart": ("bart", {"pool": "mean"}, 1, None),
    "laion_bart": ("bart", {"pool": "mean_all"}, 1, None),
}
MODULES = {"bert": bert, "gpt2": gpt2, "clip_text": clip_text, "bart": bart}


def texts(pad, end):
    """Ids and mask of FULL tokens; the longest text has SHORT."""
    rng = np.random.default_rng(0)
    mask = np.arange(FULL) < np.array(COUNTS)[:, None]
    ids = np.where(mask, rng.integers(2, 38, mask.shape), pad)
    if end is not None:
        ids[np.arange(4), np.array(COUNTS) - 1] = end
    if pad == 0:
        ids[1, 2:4] = 0  # MS-CLAP's "!", padding that is a word as well
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask)


def spread(tower, variables, x):
    """The embedding in training, and the gradient of a loss that reads all of it."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 16)), jnp.float32)

    def loss(params):
        (z, _), _ = tower.apply(
            variables | {"params": params}, x, train=True, key=jax.random.key(0)
        )
        return (z * weights).sum(), z

    (_, z), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    return np.asarray(z), gradient


def largest_difference(found, expected):
    """Leaf by leaf, relative to the largest value of all."""
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs) / scale


@pytest.mark.parametrize("name", TOWERS)
def test_texts_may_be_cut_to_the_longest(name):
    kind, changes, pad, end = TOWERS[name]
    options = complete(kind, NO_DROPOUT | changes, MODULES[kind].DEFAULTS)
    tower = MODULES[kind].tower(options, VOCABULARY)
    ids, mask = texts(pad, end)
    variables = fill(tower, (ids, mask), std=0.5)
    expected = spread(tower, variables, (ids, mask))
    found = spread(tower, variables, (ids[:, :SHORT], mask[:, :SHORT]))
    # No text is another's twin, and every word counts.
    assert np.abs(expected[0] - expected[0][::-1]).max(1).min() > 1e-3
    spec = zoo.get_spec(
        "small_conv",
        {"text.kind": kind, "text.options": NO_DROPOUT | changes},
    )
    if spec_lib.pads_texts_freely(spec):
        assert largest_difference(found[0], expected[0]) < 2e-6
        assert largest_difference(found[1], expected[1]) < 5e-6
    else:
        assert name == "laion_bart"
        assert largest_difference(found[0], expected[0]) > 1e-3


def test_dropping_words_leaves_as_many_however_far_texts_are_padded():
    """Half of 30 is left out: nothing of texts of 12, cut or not."""
    options = complete("bert", NO_DROPOUT, bert.DEFAULTS)
    tower = bert.tower(options, VOCABULARY, token_drop=0.5, full_length=FULL)
    ids, mask = texts(1, None)
    variables = fill(tower, (ids, mask), std=0.5)
    expected = spread(tower, variables, (ids, mask))[0]
    found = spread(tower, variables, (ids[:, :SHORT], mask[:, :SHORT]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = bert.tower(options, VOCABULARY, token_drop=0.5)
    found = spread(alone, variables, (ids[:, :SHORT], mask[:, :SHORT]))[0]
    assert np.abs(found - expected).max() > 1e-2


@pytest.mark.parametrize("mask", pann.LENGTH_MASKS)
def test_clips_may_be_cut_to_the_longest(mask):
    """In training too: embeddings, gradients and batch statistics."""
    options = {"widths": (4, 8, 16), "dropout": 0.0, "fc_dropout": 0.0}
    options |= {"length_mask": mask, "spec_augment": "none"}
    tower = pann.tower(complete("pann", options, pann.DEFAULTS))
    frames = np.array([20, 13, 8, 19], np.int32)
    mel = np.random.default_rng(2).normal(-30, 15, (4, 41, 8)).astype(np.float32)
    mel[np.arange(41) >= frames[:, None]] = -100
    mel, frames = jnp.asarray(mel), jnp.asarray(frames)
    whole, cut = Sound(mel, None, frames), Sound(mel[:, :21], None, frames)
    variables = fill(tower, whole)
    expected = spread(tower, variables, whole)
    found = spread(tower, variables, cut)
    states = [
        tower.apply(variables, x, train=True, key=jax.random.key(0))[1]
        for x in (cut, whole)
    ]
    spec = zoo.get_spec("blat", {"audio.options": options})
    assert spec_lib.pads_clips_freely(spec) == (mask == "every_layer")
    if spec_lib.pads_clips_freely(spec):
        assert largest_difference(found[0], expected[0]) < 2e-6
        assert largest_difference(found[1], expected[1]) < 1e-5
        assert largest_difference(*states) < 2e-6
    else:
        assert largest_difference(found[0], expected[0]) > 1e-3


def test_which_models_pad_freely():
    freely = {n for n, spec in zoo.SPECS.items() if spec_lib.pads_clips_freely(spec)}
    assert freely == {"blat"}
    assert all(spec_lib.pads_texts_freely(spec) for spec in zoo.SPECS.values())
