"""What towers leave out in training, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import (
    bart,
    bert,
    clip_text,
    conv_transformer,
    drop,
    gpt2,
    htsat,
    swin,
    zoo,
)
from clap_jax.models.tower import complete
from tests.models.weights import fill

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    "rate, kept", [(0.0, 8), (0.01, 7), (0.25, 6), (0.3, 6), (0.5, 4), (0.9, 1)]
)
def test_groups_round_and_at_least_one_leaves(rate, kept):
    assert drop.groups_kept("patch_drop", rate, 8) == kept


@pytest.mark.parametrize("rate, kept", [(0.0, 77), (0.25, 58), (0.5, 39), (0.97, 3)])
def test_tokens_round_up(rate, kept):
    assert drop.tokens_kept(rate, 77) == kept
    assert drop.tokens_kept(0.7, 10) == 3  # 10 * (1 - 0.7) is a little more
    # As many as of a text that is padded to 77, where there are so many.
    assert drop.tokens_kept(rate, 32, 77) == min(kept, 32)


def test_subsets_differ_by_example_and_by_key():
    first = np.asarray(drop.subset(KEY, 50, 8, 5))
    np.testing.assert_array_equal(first, drop.subset(KEY, 50, 8, 5))
    assert (first != np.asarray(drop.subset(jax.random.key(6), 50, 8, 5))).any()
    assert (np.diff(first) > 0).all() and len(np.unique(first, axis=0)) > 20
    # Every group is as likely as another.
    many = np.asarray(drop.subset(KEY, 4000, 8, 2))
    np.testing.assert_allclose(np.bincount(many.ravel()) / 1000, 1, atol=0.1)


@pytest.mark.parametrize("axis", [1, 2])
def test_groups_are_taken_whole(axis):
    x = jax.random.normal(KEY, (3, 8, 12, 2))
    index = drop.subset(KEY, 3, 4, 2)
    size = x.shape[axis] // 4

    def places(row):
        return np.concatenate([np.arange(size) + size * i for i in np.asarray(row)])

    got = drop.take_groups(x, index, axis, 4)
    for one, row, taken in zip(np.asarray(x), index, got, strict=True):
        np.testing.assert_array_equal(np.take(one, places(row), axis - 1), taken)
    gradient = jax.grad(lambda x: drop.take_groups(x, index, axis, 4).sum())(x)
    for one, row in zip(gradient, index, strict=True):
        want = np.isin(np.arange(x.shape[axis]), places(row))
        rest = tuple(i for i in range(3) if i != axis - 1)
        np.testing.assert_array_equal(np.asarray(one).mean(rest), want)


def test_token_index_keeps_both_ends_and_prefers_words():
    mask = jnp.arange(12) < jnp.array([[12], [9], [3], [1]])
    index = np.asarray(drop.token_index(KEY, mask, drop.last_true(mask), 5))
    assert (np.diff(index) > 0).all() and (index[:, 0] == 0).all()
    assert index[0, -1] == 11 and index[1, -1] == 8
    np.testing.assert_array_equal(index[2:], np.tile(np.arange(5), (2, 1)))
    draws = [
        np.asarray(drop.token_index(jax.random.key(i), mask, drop.last_true(mask), 5))
        for i in range(40)
    ]
    assert len({tuple(draw[0]) for draw in draws}) > 20
    assert set(np.concatenate([draw[1] for draw in draws])) == set(range(9))


# --- towers ----------------------------------------------------------------

MEL = jnp.asarray(np.random.default_rng(0).normal(-30, 15, (3, 125, 8)), jnp.float32)
SMALL = {
    "width": 8,
    "depths": (1, 1),
    "heads": (2, 2),
    "window": 2,
    "patch": 2,
    "image": 32,
    "spec_augment": False,
    "drop_path": 0.0,
}


def make_htsat(options=(), **drops):
    options = complete("htsat", SMALL | dict(options), htsat.DEFAULTS)
    return htsat.tower(options, **drops)


def run(tower, variables, x, train=True, key=KEY):
    """(embedding, aux) as numpy."""
    apply = jax.jit(tower.apply, static_argnames="train")
    return jax.tree.map(np.asarray, apply(variables, x, train=train, key=key)[0])


def test_htsat_leaves_out_columns_and_computes_the_others_alike():
    """Before windows reach over a gap, what is kept comes out as if all were there."""
    variables = fill(make_htsat(), MEL)
    _, whole = run(make_htsat(), variables, MEL)
    tower = make_htsat(patch_drop=0.3)
    z, dropped = run(tower, variables, MEL)
    assert z.shape == (3, 16) and dropped["tokens"].shape == (3, 8 * 6, 16)
    assert dropped["fine_grained"].shape == (3, 4 * 6, 16)
    np.testing.assert_allclose(z, dropped["tokens"].mean(1), atol=1e-6)
    columns = whole["stage0"].reshape(3, 8, 8, 16).transpose(0, 2, 1, 3)
    kept = dropped["stage0"].reshape(3, 8, 6, 16).transpose(0, 2, 1, 3)
    choices = []
    for ours, theirs in zip(kept, columns, strict=True):
        distance = np.abs(ours[:, None] - theirs[None]).max((2, 3))
        np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
        choices.append(tuple(distance.argmin(1)))
        assert (np.diff(choices[-1]) > 0).all()
    assert len(set(choices)) > 1
    # A function of the key, and of nothing else; evaluation sees everything.
    np.testing.assert_array_equal(run(tower, variables, MEL)[0], z)
    other, _ = run(tower, variables, MEL, key=jax.random.key(6))
    assert np.abs(other - z).max() > 1e-3
    for got, want in zip(
        jax.tree.leaves(run(tower, variables, MEL, train=False)),
        jax.tree.leaves(run(make_htsat(), variables, MEL, train=False)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_htsat_drops_rows_columns_and_after_fusion():
    """Shifted windows of 4 over maps of 12 and 6; every weight has a gradient."""
    options = {"depths": (2, 2), "window": 4}
    tower = make_htsat(options, patch_drop=0.25, frequency_drop=0.5, remat="blocks")
    variables = fill(tower, MEL)
    state = variables["state"]

    @jax.jit
    def gradient(params):
        def loss(params):
            both = {"params": params, "state": state}
            (z, aux), _ = tower.apply(both, MEL, train=True, key=KEY)
            return (z**2).sum(), aux

        return jax.grad(loss, has_aux=True)(params)

    gradients, aux = gradient(variables["params"])
    assert aux["patch_embed"].shape == (3, 8 * 12, 8)
    assert aux["tokens"].shape == (3, 4 * 6, 16) and "fine_grained" not in aux
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    fused = make_htsat({"fusion": "aff_2d"}, patch_drop=0.5)
    sound = htsat.Sound(jnp.stack([MEL] * 4, 1), jnp.array([True, False, True]))
    shapes = jax.eval_shape(fused.init, jax.random.key(0), sound)
    (z, aux), _ = jax.eval_shape(
        lambda v: fused.apply(v, sound, train=True, key=KEY), shapes
    )
    assert z.shape == (3, 16) and aux["patch_embed"].shape == (3, 16 * 8, 8)


def test_a_narrow_window_is_a_wide_one_with_columns_hidden(monkeypatch):
    block = swin.Block(2, 4, (4, 2), (0, 0), 2.0, 0.0, 1e-5, jnp.float32)
    x = jax.random.normal(KEY, (2, 4, 4, 6))
    variables = block.init(jax.random.key(1), x[:, :, 1:3], False)
    variables["params"]["position_bias"] = jax.random.normal(KEY, (49, 2))
    narrow = block.apply(variables, x[:, :, 1:3], False)
    column = np.arange(16) % 4
    hidden = np.where((column == 1) | (column == 2), 0, -np.inf)
    mask = np.broadcast_to(hidden, (1, 16, 16)).astype(np.float32)
    monkeypatch.setattr(swin, "shift_mask", lambda *sizes: mask)
    # A shift by the whole width moves nothing.
    wide = block.clone(window=(4, 4), shift=(0, 4)).apply(variables, x, False)
    np.testing.assert_allclose(narrow, wide[:, :, 1:3], atol=1e-5)


def test_conv_transformer_drops_time_and_frequency():
    mel = jnp.asarray(np.random.default_rng(1).normal(-40, 20, (3, 128, 64)), "f4")
    options = {"width": 16, "depth": 1, "mlp": 16}
    options = complete("conv_transformer", options, conv_transformer.DEFAULTS)
    whole = conv_transformer.tower(options)
    variables = fill(whole, mel)
    both = conv_transformer.tower(options, patch_drop=0.25, frequency_drop=0.5)
    z, aux = run(both, variables, mel)
    assert aux["tokens"].shape == (3, 12 * 2, 16)
    assert aux["fine_grained"].shape == (3, 12, 16)
    np.testing.assert_allclose(z, aux["tokens"].mean(1), atol=1e-6)
    for got, want in zip(
        jax.tree.leaves(run(both, variables, mel, train=False)),
        jax.tree.leaves(run(whole, variables, mel)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


TEXT = {
    "bert": (bert, {"pool": "first"}),
    "gpt2": (gpt2, {"end_id": 29}),
    "clip_text": (clip_text, {}),
    "bart": (bart, {}),
}


@pytest.mark.parametrize("kind", TEXT)
def test_text_towers_drop_tokens(kind):
    """Texts that fit are whole, whatever is left of the padding; longer ones are not."""
    module, options = TEXT[kind]
    sizes = {"width": 8, "depth": 1, "heads": 2, "mlp": 16, "position_table": 20}
    options = complete(kind, sizes | options | {"dropout": 0.0}, module.DEFAULTS)
    lengths = jnp.array([[12], [6], [3], [11]])
    rng = np.random.default_rng(0)
    place = jnp.arange(12)
    ids = jnp.asarray(rng.integers(5, 29, (4, 12)), jnp.int32)
    ids = jnp.where(place == lengths - 1, 29, jnp.where(place < lengths, ids, 1))
    texts = (ids, place < lengths)
    whole = module.tower(options, 30)
    tower = module.tower(options, 30, token_drop=0.5)
    variables = fill(whole, texts, std=1.0)
    want, _ = run(whole, variables, texts)
    z, aux = run(tower, variables, texts)
    assert aux["hidden"].shape == (4, 6, 8)
    np.testing.assert_allclose(z[1:3], want[1:3], atol=1e-5)
    assert (np.abs(z - want).max(1)[[0, 3]] > 1e-3).all()
    np.testing.assert_array_equal(run(tower, variables, texts)[0], z)
    other, _ = run(tower, variables, texts, key=jax.random.key(6))
    assert (np.abs(other - z).max(1)[[0, 3]] > 1e-3).all()
    np.testing.assert_array_equal(
        run(tower, variables, texts, train=False)[0],
        run(whole, variables, texts, train=False)[0],
    )


def flops(dual, spec):
    """FLOPs of encoding one pair in training, as XLA counts them."""

    def encode(variables, sound, ids, mask):
        (za, _), _ = dual.encode_audio(variables, sound, train=True, key=KEY)
        (zt, _), _ = dual.encode_text(variables, ids, mask, train=True, key=KEY)
        return za, zt

    variables = jax.eval_shape(dual.init, KEY)
    lowered = jax.jit(encode).lower(variables, *zoo.examples(spec))
    return lowered.cost_analysis()["flops"]


def test_work_falls_in_proportion():
    spec = zoo.get_spec(
        "laion_htsat_tiny_roberta", {"text.options.depth": 1, "vocab_size": 100}
    )
    whole = flops(zoo.build(spec), spec)
    parts = [
        flops(zoo.build(spec, patch_drop=rate, token_drop=rate), spec)
        for rate in (0.25, 0.5)
    ]
    np.testing.assert_allclose(np.array(parts) / whole, [0.75, 0.5], atol=0.04)


@pytest.mark.parametrize(
    "model, drops, sentence",
    [
        ("laion_pann14_bert", {"patch_drop": 0.5}, "train.patch_drop.*tower pann"),
        ("small_conv", {"frequency_drop": 0.5}, "frequency_drop.*tower convnet"),
        ("small_transformer", {"patch_drop": 1.0}, "train.patch_drop is 1.0, expected"),
        ("small_transformer", {"token_drop": -0.1}, "train.token_drop is -0.1"),
        ("laion_htsat_tiny_bert", {"patch_drop": 0.95}, "leaves none of 8 groups"),
        ("small_transformer", {"token_drop": 0.99}, "leaves 1 of 24 tokens"),
    ],
)
def test_mistakes_get_a_sentence(model, drops, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.build(zoo.get_spec(model), **drops)


def test_tags_need_all_frequencies():
    with pytest.raises(ValueError, match="train.frequency_drop is 0.5, but tags"):
        make_htsat({"classes": 3}, frequency_drop=0.5)
