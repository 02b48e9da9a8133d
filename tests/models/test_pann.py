"""PANN: padding, fusion, training behaviour, quirks of three references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import augment
from clap_jax.models import fusion, pann
from clap_jax.models.tower import Sound, complete
from tests.models.weights import fill

# Two halvings: 4 frames become one step.
SMALL = {"widths": (4, 6, 8), "dropout": 0.0, "fc_dropout": 0.0}
LENGTHS = (29, 16, 7, 2)


def make(dtype="float32", remat="none", **options):
    options = complete("pann", SMALL | options, pann.DEFAULTS)
    return pann.tower(options, dtype=dtype, remat=remat)


def clips(seed, *shape):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(-30, 15, shape), jnp.float32)


@pytest.fixture(scope="module")
def mel():
    return clips(0, 4, 29, 8)


@pytest.fixture(scope="module")
def views():
    return clips(1, 4, 4, 29, 8)


def hear(tower, variables, sound):
    (z, aux), _ = jax.jit(tower.apply)(variables, sound)
    return np.asarray(z), aux


def same(got, want):
    """Equal but for rounding, against the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def train(tower, variables, sound, seed=0):
    run = jax.jit(lambda v, s, key: tower.apply(v, s, train=True, key=key))
    (z, aux), state = run(variables, sound, jax.random.key(seed))
    return np.asarray(z), aux, state


def test_what_is_read_from_the_last_map(mel):
    """Mean over frequency, maximum plus mean over time, and both of each three steps."""
    tower = make(classes=3)
    variables = fill(tower, mel)
    z, aux = hear(tower, variables, mel)
    time = np.asarray(aux["conv_block3"]).mean(2)
    assert time.shape == (4, 7, 8)
    np.testing.assert_allclose(aux["time"], time, atol=1e-6)
    fc1, tag = (variables["params"][name] for name in ("fc1", "tag"))

    def top(x):
        return np.maximum(x @ fc1["kernel"] + fc1["bias"], 0)

    np.testing.assert_allclose(z, top(time.max(1) + time.mean(1)), atol=1e-5)
    # Outside the clip there is nothing to be the maximum, but zeros for the mean.
    near = np.stack(
        [np.pad(time, ((0, 0), (1, 1), (0, 0)))[:, i:][:, :7] for i in range(3)]
    )
    fine = top(near.max(0) + near.mean(0))
    np.testing.assert_allclose(aux["fine_grained"], fine, atol=1e-5)
    logits = z @ np.asarray(tag["kernel"]) + tag["bias"]
    np.testing.assert_allclose(aux["clipwise"], 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize(
    "options, steps",
    [({}, 250), ({"pool_last": True}, 125), ({"convs": 1, "kernel": 5}, 250)],
)
def test_steps_and_parameters(options, steps):
    tower = make(**options)
    example = jax.ShapeDtypeStruct((1, 1001, 64), np.float32)
    variables = jax.eval_shape(tower.init, jax.random.key(0), example)
    (z, aux), _ = jax.eval_shape(tower.apply, variables, example)
    assert z.shape == (1, 8) and aux["time"].shape == (1, steps, 8)
    block = variables["params"]["conv_block2"]
    assert ("conv2" in block) == (options.get("convs", 2) == 2)
    size = options.get("kernel", 3)
    assert block["conv1"]["kernel"].shape == (size, size, 4, 6)
    assert "bias" not in block["conv1"]


@pytest.fixture(scope="module")
def padded(mel):
    """Clips of four lengths, with noise behind the shorter ones."""
    tower = make(length_mask="every_layer")
    sound = Sound(mel, frames=jnp.asarray(LENGTHS))
    variables = fill(tower, sound, std=0.5)
    return tower, variables, sound, hear(tower, variables, sound)


@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_a_clip_of_a_batch_comes_out_as_alone(padded, row):
    """Also one of 2 frames, where BLAT, which halves it away, divides by zero."""
    tower, variables, sound, (together, aux) = padded
    length = LENGTHS[row]
    alone, own = hear(tower, variables, sound.mel[row : row + 1, :length])
    same(alone[0], together[row])
    steps = int(aux["steps"][row])
    assert steps == max(length // 4, 1)
    for name in ("time", "fine_grained"):
        same(own[name][0], aux[name][row, :steps])


def test_padding_and_other_clips_have_no_influence(padded):
    tower, variables, sound, (want, _) = padded
    behind = np.arange(29) >= np.array(LENGTHS)[:, None]
    other = jnp.where(behind[..., None], 99.0, sound.mel)
    np.testing.assert_array_equal(
        hear(tower, variables, sound._replace(mel=other))[0], want
    )
    other = sound._replace(mel=sound.mel.at[0].set(7.0))
    same(hear(tower, variables, other)[0][1:], want[1:])


def test_statistics_see_the_clips_only(padded):
    tower, variables, sound, _ = padded
    *_, state = train(tower, variables, sound)
    inside = np.arange(29) < np.array(LENGTHS)[:, None]
    heard = np.asarray(sound.mel)[inside]
    before = variables["state"]["bn0"]
    np.testing.assert_allclose(
        state["bn0"]["mean"], 0.9 * before["mean"] + 0.1 * heard.mean(0), rtol=1e-5
    )
    want = 0.9 * before["var"] + 0.1 * heard.var(0, ddof=1)
    np.testing.assert_allclose(state["bn0"]["var"], want, rtol=1e-5)
    other = jnp.where(inside[..., None], sound.mel, -100.0)
    *_, again = train(tower, variables, sound._replace(mel=other))
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_pooling_alone_is_masked_in_blats_batches(padded):
    """The quirk: convolutions see the padding, so that batches change short clips."""
    _, variables, sound, (masked, _) = padded
    tower = make(length_mask="pool")
    z, aux = hear(tower, variables, sound)
    np.testing.assert_array_equal(aux["steps"], [7, 4, 1, 1])
    # Nothing is padded in the first row.
    same(z[0], masked[0])
    assert np.abs(z[1] - masked[1]).max() > 1e-3
    plain, _ = hear(make(), variables, sound)
    assert np.abs(plain[1] - z[1]).max() > 1e-3
    time, fc1 = np.asarray(aux["time"][1, :4]), variables["params"]["fc1"]
    want = (time.max(0) + time.mean(0)) @ fc1["kernel"] + fc1["bias"]
    np.testing.assert_allclose(z[1], np.maximum(want, 0), atol=1e-5)


def test_without_frames_every_clip_is_as_long_as_its_mel(mel):
    sound = Sound(mel, frames=jnp.full(4, 29))
    masked = make(length_mask="every_layer")
    variables = fill(masked, sound)
    want, _ = hear(masked, variables, sound)
    for mask in ("none", "pool", "every_layer"):
        got, aux = hear(make(length_mask=mask), variables, mel)
        same(got, want)
        assert "steps" not in aux


@pytest.mark.parametrize(
    "place, level", [("before_bn0", -30), ("after_bn0", 0), ("none", None)]
)
def test_place_of_spec_augment(mel, monkeypatch, place, level):
    """The quirk: BLAT's stripes are of 0 dB, LAION's, after bn0, of the mean level."""
    seen = []

    def record(key, x, value=0.0):
        seen.append((float(x.mean()), value))
        return x

    monkeypatch.setattr(augment, "spec_augment", record)
    tower = make(spec_augment=place)
    variables = fill(tower, mel)
    tower.apply(variables, mel)
    assert not seen
    bn0 = variables["params"]["bn0"]
    plain = {"bn0": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    assert set(bn0) == set(plain["bn0"])
    variables = variables | {"params": variables["params"] | plain}
    tower.apply(variables, mel, train=True, key=jax.random.key(0))
    assert seen == ([] if level is None else [(pytest.approx(level, abs=1), 0.0)])


@pytest.mark.parametrize("name", ["dropout", "fc_dropout"])
def test_dropout_is_fixed_by_the_key(mel, name):
    tower = make(spec_augment="none", **{name: 0.5})
    variables = fill(tower, mel)
    apply = jax.jit(lambda key: tower.apply(variables, mel, train=True, key=key)[0][0])
    first, again, second = (np.asarray(apply(jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(second - first).max() > 0.01


@pytest.mark.parametrize("kind", [k for k in fusion.TYPES if k != "none"])
def test_fusion_changes_longer_clips_only(views, kind):
    longer = jnp.array([True, False, True, False])
    tower = make(fusion=kind, widths=(4, 6))
    variables = fill(tower, Sound(views, longer))
    apply = jax.jit(lambda v, s: tower.apply(v, s)[0][0])
    fused = np.asarray(apply(variables, Sound(views, longer)))
    other = views.at[:, 1:].add(40.0)
    moved = np.abs(np.asarray(apply(variables, Sound(other, longer))) - fused).max(1)
    if kind == "channel_map":
        # Its windows are channels of every clip.
        assert (moved > 1e-3).all()
        return
    assert (moved[[0, 2]] > 1e-3).all() and (moved[[1, 3]] == 0).all()
    none = np.asarray(apply(variables, Sound(views, jnp.zeros(4, bool))))
    same(none[[1, 3]], fused[[1, 3]])
    # A clip without fusion is what a PANN without fusion makes of its global view.
    plain = make(widths=(4, 6))
    shared = fill(plain, views[:, 0])
    picked = {
        side: {name: variables[side][name] for name in shared[side]}
        for side in ("params", "state")
    }
    want, _ = hear(plain, picked, views[:, 0])
    same(none, want)


def test_short_clips_are_never_fused_outside_training(views):
    """The reference flags a random one, whose embedding is then random: not copied."""
    tower = make(fusion="daf_2d", flag_one=True)
    short = Sound(views, jnp.zeros(4, bool))
    variables = fill(tower, short)
    (z, _), _ = tower.apply(variables, short, key=jax.random.key(1))
    other = Sound(views.at[:, 1:].add(40.0), jnp.zeros(4, bool))
    np.testing.assert_array_equal(tower.apply(variables, other)[0][0], z)


@pytest.mark.parametrize("flag_one", [False, True])
def test_a_batch_of_short_clips_trains_the_fusion_if_one_is_flagged(views, flag_one):
    tower = make(fusion="daf_2d", flag_one=flag_one)
    short = Sound(views, jnp.zeros(4, bool))
    variables = fill(tower, short)
    *_, state = train(tower, variables, short)
    before, after = (s["local_norm"]["mean"] for s in (variables["state"], state))
    assert (np.abs(after - before).max() > 0) == flag_one


def test_local_statistics_count_longer_clips_only(views):
    tower = make(fusion="daf_2d", spec_augment="none")
    sound = Sound(views, jnp.array([True, False, False, True]))
    variables = fill(tower, sound)
    *_, state = train(tower, variables, sound)
    # Backwards in time, so that bn0's statistics stay as they are.
    swapped = views.at[1, 1:].set(views[1, 1:, ::-1])
    *_, again = train(tower, variables, Sound(swapped, sound.longer))
    np.testing.assert_allclose(
        state["local_norm"]["var"], again["local_norm"]["var"], rtol=1e-5
    )
    swapped = views.at[0, 1:].set(views[0, 1:, ::-1])
    *_, other = train(tower, variables, Sound(swapped, sound.longer))
    change = state["local_norm"]["mean"] - other["local_norm"]["mean"]
    assert np.abs(change).max() > 1e-4


def test_bfloat16_and_remat(mel):
    tower = make()
    variables = fill(tower, mel)
    want, _ = hear(tower, variables, mel)
    half, _ = hear(make("bfloat16"), variables, mel)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, want, atol=0.03 * np.abs(want).max())

    def gradients(tower):
        def loss(params):
            (z, _), _ = tower.apply(variables | {"params": params}, mel)
            return (z**2).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradients(tower),
        gradients(make(remat="blocks")),
    )


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"length_mask": "all"}, "unknown length_mask 'all'"),
        ({"spec_augment": "bn0"}, "unknown spec_augment 'bn0'"),
        ({"fusion": "sum"}, "unknown fusion 'sum'"),
        (
            {"fusion": "aff_2d", "length_mask": "pool"},
            "takes clips of one length; got length_mask pool",
        ),
    ],
)
def test_options_that_do_not_exist(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


@pytest.mark.parametrize(
    "options, sound, sentence",
    [
        ({}, np.zeros((1, 3, 8)), "clips of 3 frames; this PANN takes 4 or more"),
        ({}, np.zeros((1, 29, 3)), "3 mel bins; this PANN takes 4 or more"),
        ({}, np.zeros((1, 4, 29, 8)), r"without fusion takes mels \[B, N, F\]"),
        (
            {"fusion": "daf_1d"},
            np.zeros((1, 3, 29, 8)),
            r"fusion daf_1d takes mels of 4 views .*, got shape \(1, 3, 29, 8\)",
        ),
        ({"fusion": "daf_1d"}, np.zeros((1, 4, 29, 8)), "needs Sound.longer"),
    ],
)
def test_sounds_that_do_not_fit(options, sound, sentence):
    sound = Sound(jnp.asarray(sound, jnp.float32))
    with pytest.raises(ValueError, match=sentence):
        make(**options).init(jax.random.key(0), sound)
