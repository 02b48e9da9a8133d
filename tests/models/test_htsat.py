"""HTSAT and its shifted windows: geometry, quirks, training behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import htsat, swin
from clap_jax.models.tower import complete
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
    np.testing.assert_array_equal(swin.from_windows(windows, 8, 12), x)


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
