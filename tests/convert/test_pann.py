"""PANN's table: names and layouts of every option, both front ends."""

import jax
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.audio import mel
from clap_jax.convert import pann, rules, trees
from clap_jax.models import fusion
from clap_jax.models import pann as pann_tower
from clap_jax.models.tower import Sound, complete

FRONT = mel.FRONTENDS["laion_unfused"]


def options_of(**options):
    small = {"widths": (4, 6), "classes": 3} | options
    return complete("pann", small, pann_tower.DEFAULTS)


def shapes_of(options):
    views = () if options["fusion"] == "none" else (4,)
    example = Sound(
        jax.ShapeDtypeStruct((1, *views, 32, 64), np.float32),
        jax.ShapeDtypeStruct((1,), bool),
    )
    shapes = jax.eval_shape(pann_tower.tower(options).init, jax.random.key(0), example)
    return {side: {"audio": tree} for side, tree in shapes.items()}


def drawn(options):
    """Weights that are all different, so that no two can be swapped unseen."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), shapes_of(options)
    )


# Of the first convolution, the local one, and of one layer of the fusion.
SHAPES = {
    "none": ((4, 1, 3, 3), None, None),
    "channel_map": ((4, 4, 3, 3), None, None),
    "daf_1d": ((4, 1, 3, 3), (64, 64, 5), None),
    "aff_1d": ((4, 1, 3, 3), (64, 64, 5), (16, 64, 1)),
    "iaff_1d": ((4, 1, 3, 3), (64, 64, 5), (16, 64, 1)),
    "daf_2d": ((4, 1, 3, 3), (4, 1, 5, 5), None),
    "aff_2d": ((4, 1, 3, 3), (4, 1, 5, 5), (1, 4, 1, 1)),
    "iaff_2d": ((4, 1, 3, 3), (4, 1, 5, 5), (1, 4, 1, 1)),
}


@pytest.mark.parametrize("kind", fusion.TYPES)
def test_names_and_layouts_of_every_fusion(kind):
    options = options_of(fusion=kind)
    tree = drawn(options)
    table = pann.rules(options, "audio_branch.")
    source = rules.invert(table, sharding.flatten(tree))
    first, local, fused = SHAPES[kind]
    shapes = {key: array.shape for key, array in source.items()}
    start = "audio_branch."
    assert shapes[f"{start}conv_block1.conv1.weight"] == first
    assert shapes[f"{start}conv_block2.bn2.running_var"] == (6,)
    assert shapes[f"{start}fc_audioset.weight"] == (3, 6)
    for i in (1, 2):
        layer = f"{start}mel_conv{i}d.0.weight"
        assert shapes.get(layer) == (local if kind.endswith(f"{i}d") else None)
    assert shapes.get(f"{start}fusion_model.local_att.0.weight") == fused
    second = f"{start}fusion_model.global_att2.5.running_mean"
    assert (second in shapes) == kind.startswith("iaff")
    # Counters and the front end complete it.
    buffers = pann.buffers(options, start, FRONT)
    assert buffers.keys().isdisjoint(source)
    extras = pann.extras(start)
    back, extra = trees.fill(table, extras, source | buffers, shapes_of(options))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert extra.keys() == buffers.keys()
    norms = sum(key.endswith("running_mean") for key in source)
    assert norms == sum(key.endswith("num_batches_tracked") for key in buffers)


def test_the_audioset_head_without_classes():
    """It is kept for the way back; a model that never had one gets zeros."""
    with_head, without = options_of(), options_of(classes=0)
    source = rules.invert(pann.rules(with_head, ""), sharding.flatten(drawn(with_head)))
    table = pann.rules(without, ""), pann.extras("")
    _, extra = trees.fill(*table, source, shapes_of(without))
    assert sorted(extra) == ["fc_audioset.bias", "fc_audioset.weight"]
    buffers = pann.buffers(without, "", FRONT)
    assert buffers["fc_audioset.weight"].shape == (527, 6)
    assert not buffers["fc_audioset.bias"].any()
    assert "fc_audioset.weight" not in pann.buffers(with_head, "", FRONT)


def test_blat_stores_another_front_end_and_no_head():
    options = options_of(classes=0, convs=1, kernel=5)
    front = mel.FRONTENDS["blat"]
    buffers = pann.buffers(options, "audio_encoder.", front, "blat")
    start = "audio_encoder.melspec_extractor"
    norms = ("bn0", "conv_block1.bn1", "conv_block2.bn1")
    assert set(buffers) == {
        f"{start}.spectrogram.window",
        f"{start}.mel_scale.fb",
        *(f"audio_encoder.{norm}.num_batches_tracked" for norm in norms),
    }
    assert buffers[f"{start}.mel_scale.fb"].shape == (513, 64)
    regexes = [entry.source_regex for entry in pann.extras("audio_encoder.", "blat")]
    assert not any("logmel" in regex or "fc_audioset" in regex for regex in regexes)


@pytest.mark.parametrize(
    "ask", [pann.extras, lambda p, s: pann.buffers({}, p, FRONT, s)]
)
def test_unknown_style(ask):
    with pytest.raises(ValueError, match="unknown style 'hf'"):
        ask("", "hf")
