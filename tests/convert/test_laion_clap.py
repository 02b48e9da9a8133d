"""The LAION-CLAP table on a shrunken model, with errors put in on purpose."""

import jax
import numpy as np
import pytest

from clap_jax.convert import laion_clap, rules
from clap_jax.models import zoo

SMALL = {
    "audio.options": {"width": 8, "depths": [2, 2], "heads": [2, 2], "image": 64},
    "text.options": {"width": 8, "depth": 2, "heads": 2, "mlp": 16},
    "vocab_size": 11,
    "embed_dim": 6,
    "frontend.clip_seconds": 0.5,
}


def small_spec(classes=0):
    return zoo.get_spec(
        "laion_htsat_tiny_roberta", {**SMALL, "audio.options.classes": classes}
    )


@pytest.fixture(scope="module")
def variables():
    """Weights that are all different, so that no two can be swapped unseen."""
    shapes = jax.eval_shape(zoo.build(small_spec(3)).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture
def state_dict(variables):
    return laion_clap.to_state_dict(variables, small_spec(3))


def test_keys_of_the_source(state_dict):
    """The reference's names and layouts (laion-clap 1.1.7)."""
    shapes = {key: array.shape for key, array in state_dict.items()}
    assert shapes["audio_branch.patch_embed.proj.weight"] == (8, 1, 4, 4)
    assert shapes["audio_branch.layers.1.blocks.0.attn.qkv.weight"] == (48, 16)
    assert shapes["audio_branch.layers.0.downsample.reduction.weight"] == (16, 32)
    assert shapes["audio_branch.tscam_conv.weight"] == (3, 16, 8, 3)
    assert shapes["text_branch.encoder.layer.1.attention.self.key.bias"] == (8,)
    assert shapes["text_projection.2.weight"] == (6, 6)
    assert shapes["logit_scale_a"] == ()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip(variables, state_dict, prefix):
    extra = {
        "logit_scale_t": np.zeros(()),
        "audio_transform.sequential.0.weight": np.zeros((6, 6)),
        "audio_branch.head.bias": np.zeros(3),
        "audio_branch.layers.0.blocks.1.attn_mask": np.zeros((4, 64, 64)),
        "audio_branch.layers.0.blocks.0.attn.relative_position_index": np.zeros(1),
        "audio_branch.bn0.num_batches_tracked": np.zeros((), np.int64),
        "text_branch.embeddings.position_ids": np.zeros((1, 514), np.int64),
    }
    source = {prefix + key: x for key, x in (state_dict | extra).items()}
    back = laion_clap.to_variables(source, small_spec(3))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_the_audioset_head_is_left_behind_without_classes(state_dict):
    variables = laion_clap.to_variables(state_dict, small_spec())
    assert "tag" not in variables["params"]["audio"]


def test_errors_name_the_tensors(state_dict):
    del state_dict["audio_branch.norm.weight"]
    state_dict["audio_branch.patch_embed.mel_conv2d.weight"] = np.zeros(1)
    with pytest.raises(rules.ConversionError) as caught:
        laion_clap.to_variables(state_dict, small_spec(3))
    assert caught.value.errors == [
        "audio_branch.patch_embed.mel_conv2d.weight: no rule for this source tensor",
        "params/audio/norm/scale: nothing in the source fills it",
    ]


def test_other_towers_are_refused():
    with pytest.raises(ValueError, match="this table is for htsat, bert, laion_mlp"):
        laion_clap.table(zoo.get_spec("small_transformer"))
