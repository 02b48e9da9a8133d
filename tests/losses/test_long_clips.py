"""Losses over scores of segments and sentences: exactly the dense float64 definition."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.losses import sharded
from clap_jax.losses.contrastive import Labels, Options
from clap_jax.models import temporal
from clap_jax.models.temporal import Song, Story, Temporal
from tests.losses import cases
from tests.models import long_clips
from tests.models.long_clips import EVERYTHING

BATCH = 24


@functools.cache
def case(seed=0):
    """Parameters, clips and texts, of which some belong to several of the others."""
    song, story = long_clips.make(seed, BATCH, BATCH, segments=5, sentences=3)
    labels = cases.make_case(seed, BATCH, groups="uneven")
    return (long_clips.params(EVERYTHING, seed=seed), song, story), labels


@functools.cache
def expected(name):
    """Mean loss, and its gradients by all floats, in float64."""
    (params, song, story), labels = case()
    with jax.enable_x64(True):
        wide = long_clips.double((params, song, story))

        def score(floats):
            params, song, story = floats
            return long_clips.score(
                params,
                Song(*song, heard=wide[1].heard),
                Story(*story, said=wide[2].said),
                EVERYTHING,
            )

        floats = wide[0], wide[1][:3], wide[2][:2]
        scores, pull = jax.vjp(score, floats)
        options = Options(name)
        targets = cases.target(labels, name)
        value, slopes = cases.dense(np.asarray(scores), targets, options)
        return value, jax.tree.map(np.asarray, pull(jnp.asarray(slopes))[0])


def mean_loss(options, mesh):
    def loss(floats, masks, labels):
        params, song, story = floats
        total, count = sharded.pair_loss(
            temporal.score(EVERYTHING),
            params,
            Song(*song, heard=masks[0]),
            Story(*story, said=masks[1]),
            labels,
            options,
            mesh,
        )
        return total / count

    return loss


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("impl, chunk", [("global", 0), ("gather", 2), ("ring", 2)])
def test_as_defined(impl, chunk, shape):
    check(Options("softmax", impl, chunk), shape)


def test_sigmoid():
    """All of a device's rows at once, on a ring."""
    check(Options("sigmoid", "ring"), (4, 2))


def check(options, shape):
    mesh = sharding.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
    (params, song, story), labels = case()
    rows, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    program = jax.jit(jax.value_and_grad(mean_loss(options, mesh)), out_shardings=every)
    given = ((song[:3], story[:2]), (song.heard, story.said), labels.labels())
    (song, story), masks, marks = jax.device_put(given, rows)
    value, found = program((jax.device_put(params, every), song, story), masks, marks)
    want, gradients = expected(options.name)
    assert abs(value - want) <= 1e-6 * abs(want), (value, want)
    # Adding to all scores changes no softmax: its bias has a gradient of zero.
    scale = abs(gradients[0]["logit_scale_a"])
    assert abs(found[0].pop("logit_bias") - gradients[0]["logit_bias"]) <= 1e-5 * scale
    for (path, x), y in zip(
        jax.tree.leaves_with_path(found),
        jax.tree.leaves((dict(gradients[0], logit_bias=None), *gradients[1:])),
        strict=True,
    ):
        error = np.abs(x - y).max() / np.abs(y).max()
        assert error <= 1e-5, (jax.tree_util.keystr(path), error)


# --- memory ---------------------------------------------------------------------------


def compiled(options: Options, long: Temporal, batch, segments, width):
    """The loss and its gradients, compiled for eight devices from shapes alone."""
    mesh = sharding.make_mesh(4, 2, jax.devices())
    rows, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def shape(dimensions, dtype=jnp.float32, where=rows):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=where)

    params = {
        "logit_scale_a": jnp.float32(0),
        "temporal": temporal.init(jax.random.key(0), long, width),
    }
    params = jax.tree.map(lambda x: shape(x.shape, where=every), params)
    song = Song(
        shape((batch, width)),
        shape((batch, segments, width)),
        shape((batch, segments, 2)),
        shape((batch, segments), jnp.bool_),
    )
    sentences = max(long.sentences, 1)
    story = Story(
        shape((batch, width)),
        shape((batch, sentences, width)),
        shape((batch, sentences), jnp.bool_),
    )
    numbers = temporal.numbers_per_pair(long, segments)

    def loss(params, segments, sentences, song, story, group):
        total, count = sharded.pair_loss(
            temporal.score(long),
            params,
            song._replace(segments=segments),
            story._replace(sentences=sentences),
            Labels(group, group),
            options,
            mesh,
            numbers,
        )
        return total / count

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    given = params, song.segments, story.sentences, song, story
    return gradients.lower(*given, shape((batch,), jnp.int32)).compile()


@pytest.mark.parametrize(
    "long",
    [Temporal(heads=1), Temporal(heads=8, sentences=8, monotone=True)],
    ids=["one_head", "sentences"],
)
def test_a_ring_takes_a_sixth(long):
    """Per device, of eight: against the definition as the compiler splits it."""
    found = {
        impl: compiled(Options("softmax", impl), long, 1024, 30, 512)
        for impl in ("global", "ring")
    }
    bytes_of = {
        impl: program.memory_analysis().temp_size_in_bytes
        for impl, program in found.items()
    }
    assert bytes_of["ring"] <= bytes_of["global"] / 6, bytes_of
    # No device ever sees all texts; the groups of the labels are but a number each.
    program = found["ring"].as_text()
    gathered = re.findall(r"= (\S+) all-gather", program)
    assert gathered and not [shape for shape in gathered if shape.startswith("f32")]
    assert "collective-permute" in program


def test_the_choice():
    """The numbers of each pair count, and those of a clip."""
    long = Temporal(heads=8, sentences=8)
    numbers = temporal.numbers_per_pair(long, segments=30)
    assert numbers == 30 * 8 * 8
    widths = {"width": 9 * 512, "numbers_per_pair": numbers, "clip_width": 31 * 512}

    def choose(batch, devices, impl="auto"):
        options, reason = sharded.choose(Options(impl=impl), batch, devices, **widths)
        assert f"{batch} x {batch} scores of 1920 numbers over" in reason
        return options.impl, options.chunk

    assert choose(64, 8) == ("global", 0)
    assert choose(1024, 8) == ("gather", 8)
    assert choose(1024, 8, "ring") == ("ring", 8)
    assert choose(65_536, 256) == ("ring", 8)
    widths |= {"numbers_per_pair": 30}
    options, _ = sharded.choose(Options(impl="ring"), 1024, 8, **widths)
    assert options.chunk == 16
