"""HTSAT's tables, both styles, on models of other sizes and on a live one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig
from transformers.models.clap.modeling_clap import ClapAudioLayer, ClapAudioModel

from clap_jax.audio.mel import FRONTENDS
from clap_jax.convert import htsat, rules, trees
from clap_jax.models import fusion
from clap_jax.models import htsat as tower_lib
from clap_jax.models.tower import Sound, complete
from clap_jax.sharding import flatten

SMALL = {
    "width": 16,
    "depths": (2, 2),
    "heads": (2, 4),
    "window": 4,
    "patch": 2,
    "image": 64,
    "mlp_ratio": 3.0,
}
FRONT = dataclasses.replace(
    FRONTENDS["laion_unfused"], n_fft=512, window_samples=512, mels=16
)


def options_of(**options):
    return complete("htsat", SMALL | options, tower_lib.DEFAULTS)


def shapes_of(options):
    """The variables' shapes below the names that tables use."""
    fused = options["fusion"] != "none"
    shape = (2, 4, 200, 16) if fused else (2, 200, 16)
    longer = jnp.array([True, False]) if fused else None
    tower = tower_lib.tower(options)
    sound = Sound(jnp.zeros(shape), longer)
    made = jax.eval_shape(tower.init, jax.random.key(0), sound)
    return {side: {"audio": tree} for side, tree in made.items()}


@pytest.mark.parametrize("kind", fusion.TYPES)
def test_round_trip_in_the_reference_layout(kind):
    """Every path has one key; prefix and classes are the caller's."""
    options = options_of(fusion=kind, classes=3)
    table, extras = htsat.rules(options, "sed_model."), htsat.extras("sed_model.")
    shapes = shapes_of(options)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)
    made = rules.invert(table, flatten(tree))
    assert made["sed_model.patch_embed.proj.weight"].shape[1] == (
        4 if kind == "channel_map" else 1
    )
    buffers = htsat.buffers(options, "sed_model.", FRONT)
    back, extra = trees.fill(table, extras, made | buffers, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert extra.keys() == buffers.keys()


def test_the_audioset_head_without_classes():
    options = options_of()
    buffers = htsat.buffers(options, "", FRONT)
    # A map of 16 x 16, four stretches of time: 4 rows of 32 channels.
    assert buffers["tscam_conv.weight"].shape == (527, 32, 4, 3)
    assert buffers["head.weight"].shape == (527, 527)
    table = htsat.rules(options, "")
    assert not any(rule.forward("tscam_conv.weight") for rule in table)
    assert any(
        rule.forward("tscam_conv.weight")
        for rule in htsat.rules(options_of(classes=527), "")
    )


@pytest.fixture(scope="module", params=[False, True])
def live(request):
    """A small ClapAudioModel of Hugging Face with random weights and statistics."""
    torch.manual_seed(0)
    config = ClapAudioConfig(
        spec_size=64,
        num_mel_bins=16,
        window_size=4,
        patch_size=2,
        patch_stride=[2, 2],
        patch_embeds_hidden_size=16,
        hidden_size=32,
        depths=[2, 2],
        num_attention_heads=[2, 4],
        mlp_ratio=3.0,
        enable_fusion=request.param,
        aff_block_r=2,
    )
    model = ClapAudioModel(config).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                x.exponential_()
            elif x.is_floating_point():
                x.normal_(0, 0.3)
    return model


PREFIX = "audio_encoder."


def test_hugging_face_live(live):
    """Embedding as theirs, for sizes that no published model has; all keys back."""
    fused = live.config.enable_fusion
    options = options_of(fusion="aff_2d" if fused else "none", reduction=2)
    table, extras = htsat.rules(options, PREFIX, "hf"), htsat.extras(PREFIX, "hf")
    source = {key: x.numpy() for key, x in live.state_dict().items()}
    tree, extra = trees.fill(table, extras, source, shapes_of(options))
    back = rules.invert(table, flatten(tree)) | extra
    buffers = htsat.buffers(options, PREFIX, FRONT, "hf")
    assert back.keys() == source.keys()
    assert extra.keys() == buffers.keys()
    for key, x in source.items():
        np.testing.assert_array_equal(back[key], x, key)
    for key, x in buffers.items():
        np.testing.assert_array_equal(x, source[key], key)
        assert x.dtype == source[key].dtype
    live.load_state_dict({k: torch.tensor(x) for k, x in (back | buffers).items()})

    rng = np.random.default_rng(1)
    mel = rng.normal(size=(2, 4 if fused else 1, 200, 16)).astype(np.float32)
    longer = np.array([True, False])
    with torch.no_grad():
        want = live(torch.tensor(mel), is_longer=torch.tensor(longer[:, None]))
    sound = Sound(jnp.asarray(mel if fused else mel[:, 0]), jnp.asarray(longer))
    tower = tower_lib.tower(options)
    variables = {side: tree[side]["audio"] for side in tree}
    (z, _), _ = jax.jit(tower.apply)(variables, sound)
    # 1e-4: Hugging Face too resizes to 256 frames in float32.
    np.testing.assert_allclose(z, want.pooler_output, atol=1e-4 * np.abs(z).max())


def test_masks_of_shifted_windows():
    """As Hugging Face computes them today and the original stored them."""
    buffers = htsat.buffers(options_of(), "", FRONT)
    masks = {k: x for k, x in buffers.items() if k.endswith("attn_mask")}
    assert sorted(masks) == [f"layers.{i}.blocks.1.attn_mask" for i in (0, 1)]
    config = ClapAudioConfig(window_size=4, num_attention_heads=[2, 4])
    for i, side in enumerate((32, 16)):
        layer = ClapAudioLayer(config, 16, (side, side), 2, shift_size=2)
        want = layer.get_attn_mask(side, side, torch.float32, "cpu").numpy()
        mask = masks[f"layers.{i}.blocks.1.attn_mask"]
        np.testing.assert_array_equal(mask, want)
        assert mask.dtype == want.dtype


def test_a_fused_model_stores_the_bank_that_it_does_not_hear():
    """Its mels come from elsewhere; `logmel_extractor` is the unfused models' anyway."""
    options = options_of()
    fused = htsat.buffers(options, "", FRONTENDS["laion_fused"])
    plain = htsat.buffers(options, "", FRONTENDS["laion_unfused"])
    key = "logmel_extractor.melW"
    np.testing.assert_array_equal(fused[key], plain[key])


def test_errors():
    with pytest.raises(ValueError, match="unknown style 'open_clip'"):
        htsat.rules(options_of(), "", "open_clip")
    for make in (htsat.rules, lambda *args: htsat.buffers(*args[:2], FRONT, args[2])):
        with pytest.raises(ValueError, match="no fusion daf_2d, only aff_2d or none"):
            make(options_of(fusion="daf_2d"), "", "hf")
