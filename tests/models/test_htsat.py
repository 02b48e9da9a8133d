"""HTSAT and its shifted windows: geometry, quirks, training behaviour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clap_jax.models import fusion, htsat, swin
from clap_jax.models.tower import Sound, complete
from tests.models.weights import fill

# 32 x 32 image of 4 stretches of 32 frames x 8 mels: maps of 16 and 8 with window 4,
# so that the second stage also shifts.
SMALL = {
    "width": 8,
    "depths": (2, 2),
    "heads": (2, 2),
    "window": 4,
    "patch": 2,
    "image": 32,
}


def make(dtype="float32", remat="none", **options):
    options = complete("htsat", SMALL | options, htsat.DEFAULTS)
    return htsat.tower(options, dtype=dtype, remat=remat)


@pytest.fixture(scope="module")
def mel():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(-30, 15, (3, 125, 8)), jnp.float32)


def test_windows_invert():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    windows = swin.to_windows(x, 4)
    assert windows.shape == (2, 6, 16, 3)
    np.testing.assert_array_equal(windows[1, 4], x[1, 4:, 4:8].reshape(16, 3))
    np.testing.assert_array_equal(swin.from_windows(windows, 8, 12, 4), x)


def test_relative_index_counts_offsets():
    index = swin.relative_index(3)
    assert index.min() == 0 and index.max() == 24
    assert (np.diag(index) == 12).all()
    # Query (0, 0), key (2, 1): offset (-2, -1), row 0 * 5 + 1.
    assert index[0, 7] == 1


def test_shift_mask_separates_what_the_roll_joined():
    """Neighbours of the unrolled map see each other, others do not."""
    size, shift, side = 4, 2, 8
    mask = swin.shift_mask(side, side, size, shift)
    rows, columns = np.divmod(np.arange(side * side), side)
    place = np.stack([rows, columns], -1).reshape(1, side, side, 2)
    rolled = np.roll(place, (-shift, -shift), (1, 2))
    windows = np.asarray(swin.to_windows(jnp.asarray(rolled, jnp.float32), size))[0]
    distance = np.abs(windows[:, :, None] - windows[:, None]).max(-1)
    np.testing.assert_array_equal(mask == 0, distance < size)
    assert set(np.unique(mask)) == {-100.0, 0.0}


def test_windows_must_fill_the_map():
    with pytest.raises(ValueError, match="8 x 12 positions is not made of windows"):
        swin.to_windows(jnp.zeros((1, 8, 12, 3)), 5)


def test_merge_order():
    """(even row, even column), (odd, even), (even, odd), (odd, odd)."""
    x = jnp.array([0.0, 2.0, 1.0, 3.0]).reshape(1, 2, 2, 1)
    merge = swin.Merge(1e-5, jnp.float32)
    variables = merge.init(jax.random.key(0), x)
    # Keep two of the four normalised values.
    kernel = jnp.eye(4)[:, jnp.array([1, 2])]
    params = variables["params"] | {"reduce": {"kernel": kernel}}
    y = merge.apply({"params": params}, x)[0, 0, 0]
    np.testing.assert_allclose(y, (np.array([1, 2]) - 1.5) / np.sqrt(1.25 + 1e-5))


def test_bicubic_matrix():
    matrix = htsat.bicubic_matrix(1024, 1001)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert matrix[0, 0] == 1 and matrix[-1, -1] == 1
    assert (np.count_nonzero(matrix, axis=1) <= 4).all()
    # Half-way between samples, Keys' formula with a = -0.75.
    half = htsat.bicubic_matrix(9, 5)[3]
    np.testing.assert_allclose(half, [-0.09375, 0.59375, 0.59375, -0.09375, 0])
    np.testing.assert_array_equal(htsat.bicubic_matrix(7, 7), np.eye(7))


@pytest.mark.parametrize("frames", [2, 690, 965, 1001])
def test_bicubic_matrix_is_torchs(frames):
    """With torch's float32 places, which are 1e-5 from those of its own float64."""

    def resize(dtype):
        eye = torch.eye(frames, dtype=dtype)[None, None]
        return torch.nn.functional.interpolate(
            eye, (1024, frames), mode="bicubic", align_corners=True
        )[0, 0].numpy()

    ours = htsat.bicubic_matrix(1024, frames)
    np.testing.assert_allclose(ours, resize(torch.float32), atol=2e-6)
    if frames == 1001:
        assert np.abs(ours - resize(torch.float64)).max() > 1e-5


def test_fold_stacks_stretches_of_time():
    frame, mel = jnp.arange(32.0)[:, None], jnp.arange(8.0)[None]
    x = (100 * frame + mel)[None]
    image = htsat.fold(x, 16)
    assert image.shape == (1, 16, 16)
    # Row F * r + f, column c is mel f of frame 16 r + c, here with F = 8.
    assert image[0, 8 + 3, 5] == 100 * (16 + 5) + 3
    with pytest.raises(ValueError, match="65 frames are more than the 64"):
        htsat.fold(jnp.zeros((1, 65, 4)), 16)
    with pytest.raises(ValueError, match="do not divide"):
        htsat.fold(jnp.zeros((1, 20, 5)), 16)


def test_shapes_and_parameters(mel):
    tower = make(classes=5)
    variables = tower.init(jax.random.key(0), mel)
    (embedding, aux), _ = jax.jit(tower.apply)(variables, mel)
    shapes = {name: x.shape for name, x in aux.items()}
    assert embedding.shape == (3, 16)
    assert shapes == {
        "bn0": (3, 125, 8),
        "patch_embed": (3, 256, 8),
        "stage0": (3, 64, 16),
        "stage1": (3, 64, 16),
        "tokens": (3, 64, 16),
        "fine_grained": (3, 32, 16),
        "framewise": (3, 32, 5),
        "clipwise": (3, 5),
    }
    np.testing.assert_allclose(embedding, aux["fine_grained"].mean(1), atol=1e-6)
    # No AudioSet head unless asked for.
    assert "tag" not in fill(make(), mel)["params"]


def test_sizes_of_the_published_models():
    """Trainable parameters of the encoder: 27.53 M (tiny) and 67.82 M (base)."""
    mel = jax.ShapeDtypeStruct((1, 1001, 64), jnp.float32)
    for width, depths, millions in (
        (96, (2, 2, 6, 2), 27.5),
        (128, (2, 2, 12, 2), 67.8),
    ):
        given = {"width": width, "depths": depths}
        tower = htsat.tower(complete("htsat", given, htsat.DEFAULTS))
        shapes = jax.eval_shape(tower.init, jax.random.key(0), mel)
        count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
        assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_time_order_of_fine_grained(mel):
    """A change late in the clip moves late positions most."""
    tower = make(depths=(1, 1))
    variables = fill(tower, mel)
    change = mel.at[:, 110:].add(30.0)

    @jax.jit
    def positions(x):
        (_, aux), _ = tower.apply(variables, x)
        return aux["fine_grained"]

    moved = np.abs(positions(change) - positions(mel)).sum((0, 2))
    assert moved[28:].min() > 10 * moved[:20].max()


def test_training_is_fixed_by_its_key(mel):
    tower = make(drop_path=0.5)
    variables = fill(tower, mel)
    run = jax.jit(lambda key: tower.apply(variables, mel, train=True, key=key))

    (first, _), state = run(jax.random.key(1))
    (again, _), _ = run(jax.random.key(1))
    (other, _), _ = run(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    before = variables["state"]["bn0"]["mean"]
    want = 0.9 * before + 0.1 * np.asarray(mel).mean((0, 1))
    np.testing.assert_allclose(state["bn0"]["mean"], want, rtol=1e-4)


def test_spec_augment_paints_zeros_after_bn0(mel):
    """bn0 itself is untouched; without stripes and drops, training repeats itself."""
    quiet = make(spec_augment=False, drop_path=0.0)
    variables = fill(quiet, mel)

    def two_embeddings(tower):
        embed = jax.jit(lambda key: tower.apply(variables, mel, train=True, key=key))
        return [embed(jax.random.key(seed))[0][0] for seed in (1, 2)]

    np.testing.assert_array_equal(*two_embeddings(quiet))
    first, second = two_embeddings(make(drop_path=0.0))
    assert np.abs(first - second).max() > 1e-3


def test_bfloat16_and_remat_agree_with_float32(mel):
    one = {"depths": (2,), "heads": (2,)}
    tower = make(**one)
    variables = fill(tower, mel)

    def loss(tower):
        def run(params):
            both = variables | {"params": params}
            (z, _), _ = tower.apply(both, mel, train=True, key=jax.random.key(3))
            return (z**2).mean()

        return jax.jit(jax.value_and_grad(run))(variables["params"])

    value, gradient = loss(tower)
    again, recomputed = loss(make(remat="blocks", **one))
    assert again == pytest.approx(float(value), rel=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (gradient, recomputed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max()))
    half, rounded = loss(make(dtype="bfloat16", **one))
    assert half == pytest.approx(float(value), rel=2e-2)
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(rounded), strict=True)
    assert all(a.dtype == b.dtype == jnp.float32 for a, b in leaves)


def test_other_sizes(mel):
    """A map smaller than the window is one window; MLPs of any ratio."""
    options = {"depths": (1, 1, 1), "heads": (1, 1, 2), "window": 8}
    tower = make(**options, mlp_ratio=2.5)
    variables = fill(tower, mel)
    (embedding, _), _ = jax.jit(tower.apply)(variables, mel)
    assert embedding.shape == (3, 32)
    params = variables["params"]
    assert params["stage1_block0"]["position_bias"].shape == (15**2, 1)
    assert params["stage2_block0"]["position_bias"].shape == (7**2, 2)
    assert params["stage0_block0"]["mlp"]["up"]["kernel"].shape == (8, 20)
    with pytest.raises(ValueError, match="map of 2 rows .* 4 stretches"):
        fill(make(depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=8), mel)


@pytest.fixture(scope="module")
def views():
    """Four views of three clips, all different."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(-30, 15, (3, 4, 125, 8)), jnp.float32)


ONE = {"depths": (1, 1)}
LONGER = jnp.array([True, False, True])


@functools.lru_cache
def fused(kind, **options):
    """Variables and a compiled `embed(variables, mel, longer)`."""
    tower = make(fusion=kind, spec_augment=False, drop_path=0.0, **ONE, **options)
    example = Sound(jnp.zeros((3, 4, 125, 8)), LONGER)

    @functools.partial(jax.jit, static_argnames="train")
    def embed(variables, mel, longer, train=False):
        key = jax.random.key(0)
        (z, aux), state = tower.apply(
            variables, Sound(mel, longer), train=train, key=key
        )
        return z, aux, state

    return fill(tower, example), embed


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_only_longer_clips_hear_their_windows(kind, views):
    variables, embed = fused(kind)
    z, aux, _ = embed(variables, views, LONGER)
    assert aux["bn0"].shape == views.shape
    assert aux["patch_embed"].shape == (3, 256, 8)
    other, _, _ = embed(variables, views.at[:, 1:].add(9.0), LONGER)
    np.testing.assert_array_equal(z[1], other[1])
    assert np.abs(z - other)[::2].max(axis=1).min() > 1e-3
    # Without one, the whole clip alone: what a tower without fusion makes of it.
    none, _, _ = embed(variables, views, jnp.zeros(3, bool))
    (alone, _), _ = jax.jit(make(**ONE).apply)(_without_fusion(variables), views[:, 0])
    np.testing.assert_allclose(none, alone, atol=1e-5)


def _without_fusion(variables):
    new = ("fusion", "local_conv", "local_norm", "patch_local")
    return {
        side: {name: x for name, x in tree.items() if name not in new}
        for side, tree in variables.items()
    }


def test_channel_map_hears_all_views_always(views):
    variables, embed = fused("channel_map")
    assert variables["params"]["patch"]["kernel"].shape == (2 * 2 * 4, 8)
    z, _, _ = embed(variables, views, LONGER)
    none, _, _ = embed(variables, views, ~LONGER)
    np.testing.assert_array_equal(z, none)
    for view in range(4):
        other, _, _ = embed(variables, views.at[:, view].add(9.0), LONGER)
        assert np.abs(z - other).max(axis=1).min() > 1e-3


def test_windows_lie_side_by_side(views):
    """2d: patches three times as wide, 5 columns of each window and one of zeros."""
    variables, embed = fused("daf_2d")
    _, before, _ = embed(variables, views, LONGER)

    def columns(change):
        _, after, _ = embed(variables, change, LONGER)
        moved = np.abs(after["patch_embed"] - before["patch_embed"])[0].max(-1)
        return np.flatnonzero(moved.reshape(16, 16).max(0) > 1e-4).tolist()

    for window, places in enumerate((range(5), range(5, 10), range(10, 15))):
        assert columns(views.at[:, 1 + window].add(30.0)) == list(places)


def test_windows_follow_one_another(views):
    """1d: a third of the frames of each, one after another, cut to the clip's 125."""
    variables, embed = fused("daf_1d")
    _, before, _ = embed(variables, views, LONGER)
    # 42 frames a window: the third begins at frame 84 of 125, column 86 of 128.
    _, after, _ = embed(variables, views.at[:, 3].add(30.0), LONGER)
    moved = np.abs(after["patch_embed"] - before["patch_embed"])[0].max(-1)
    time = moved.reshape(4, 4, 16).max(1).reshape(-1)
    assert np.flatnonzero(time > 1e-3).tolist() == list(range(42, 64))


def test_bn0_counts_all_views_together(views):
    variables, embed = fused("daf_1d")
    _, _, state = embed(variables, views, LONGER, train=True)
    before = variables["state"]["bn0"]["mean"]
    want = 0.9 * before + 0.1 * np.asarray(views).mean((0, 1, 2))
    np.testing.assert_allclose(state["bn0"]["mean"], want, rtol=1e-4)
    # The norm of the windows counts those of longer clips only.
    *_, short = embed(variables, views, jnp.zeros(3, bool), train=True)
    for name, x in variables["state"]["local_norm"].items():
        np.testing.assert_array_equal(short["local_norm"][name], x)
        assert np.any(state["local_norm"][name] != x)


def test_flag_one_fuses_a_random_clip_of_a_short_batch(views):
    """As the reference trains; by default a batch of short clips fuses nothing."""
    none = jnp.zeros(3, bool)
    variables, plain = fused("aff_2d")
    _, flagged = fused("aff_2d", flag_one=True)

    def counted(embed, longer, train=True):
        _, _, state = embed(variables, views, longer, train=train)
        before, after = variables["state"]["fusion"], state["fusion"]
        return np.any(
            before["local_att"]["norm_up"]["mean"]
            != after["local_att"]["norm_up"]["mean"]
        )

    assert counted(flagged, none) and not counted(plain, none)
    assert not counted(flagged, none, train=False)
    # A longer clip is enough: no other is flagged.
    for got, want in zip(
        flagged(variables, views, LONGER, train=True),
        plain(variables, views, LONGER, train=True),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_fusion_needs_its_inputs(views):
    tower = make(fusion="aff_2d", **ONE)
    with pytest.raises(ValueError, match="aff_2d needs Sound.longer.*got None"):
        tower.init(jax.random.key(0), Sound(views))
    for mel in (views[:, 0], views[:, :3]):
        with pytest.raises(ValueError, match=r"4 views \[B, 4, N, F\], got shape"):
            tower.init(jax.random.key(0), Sound(mel, LONGER))
    with pytest.raises(ValueError, match=r"without fusion takes mels \[B, N, F\]"):
        make().init(jax.random.key(0), views)
    with pytest.raises(ValueError, match="unknown fusion 'aff2d'.*did you mean"):
        make(fusion="aff2d")
    with pytest.raises(ValueError, match="unknown long_clips 'laion'"):
        make(long_clips="laion")


def test_long_clips_in_windows():
    """MS-CLAP: 689 frames every 344, averaged; the tail is not heard."""
    options = ONE | {"image": 80, "window": 5, "patch": 4, "classes": 3}
    tower = make(long_clips="msclap", **options)
    rng = np.random.default_rng(2)
    mel = jnp.asarray(rng.normal(-30, 15, (2, 1500, 8)), jnp.float32)
    variables = fill(tower, mel)
    apply = jax.jit(tower.apply)
    (z, aux), _ = apply(variables, mel)
    starts = (0, 344, 688)
    windows = jnp.concatenate([mel[:, i : i + 689] for i in starts])
    (each, parts), _ = apply(variables, windows)
    for got, want in (
        (z, each),
        (aux["framewise"], parts["framewise"]),
        (aux["clipwise"], parts["clipwise"]),
        (aux["tokens"], parts["tokens"]),
    ):
        want = want.reshape(3, 2, *want.shape[1:]).mean(0)
        np.testing.assert_allclose(got, want, atol=1e-6)
    (deaf, _), _ = apply(variables, mel.at[:, 688 + 689 :].add(50.0))
    np.testing.assert_array_equal(z, deaf)
    # The reference's range leaves out the window that would end on the last frame.
    assert htsat.windows(jnp.zeros((1, 344 + 690, 4))).shape == (1, 1, 689, 4)
    assert htsat.windows(jnp.zeros((1, 344 + 691, 4))).shape == (1, 2, 689, 4)
    with pytest.raises(ValueError, match="1500 frames are more than the 800"):
        tower.apply(variables, mel, train=True, key=jax.random.key(0))
    with pytest.raises(ValueError, match="1500 frames are more than the 800"):
        make(**options).apply(variables, mel)
