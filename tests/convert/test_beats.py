"""BEATs part by part against the same parts in transformers.

No package that installs without its framework has BEATs. Its front end is the one of
`Speech2TextFeatureExtractor`; its convolution for positions, its table of distances,
its attention and its blocks are WavLM's but for two things: the gate reads the query
where WavLM's reads what the query is made of, and DeepNorm weighs the residuals. The
first is no difference where queries are projected by the identity, and then the whole
of `WavLMEncoder` is the reference; the second is 1 there. Both are tried by WavLM's
modules put together as BEATs has them. Patches are torch's `conv2d`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Speech2TextFeatureExtractor, WavLMConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention, WavLMEncoder

from clap_jax import sharding
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import FRONTENDS
from clap_jax.convert import beats, rules, starts, trees
from clap_jax.models import beats as beats_tower
from clap_jax.models.tower import Sound, complete

FRONTEND = FRONTENDS["beats"]
SIZES = {
    **{"patch_width": 24, "width": 32, "depth": 2, "heads": 2, "mlp": 40},
    **{"taps": 16, "groups": 4, "dropout": 0.0},
}
FRAMES, BANDS = 198, 128


# One of the bands lies between two bins of the transform, in BEATs as well.
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "device"])
def test_the_front_end(xp):
    """Kaldi's fbank, silence and all."""
    rng = np.random.default_rng(0)
    waves = np.float32(0.1 * rng.normal(size=(3, 32_100)))
    waves[1, 9000:] = 0
    # Not a tone alone: in bands 90 dB below it there is but rounding.
    waves[2] = 0.3 * np.sin(np.arange(32_100)) + 0.05 + 0.5 * waves[0]
    extract = Speech2TextFeatureExtractor(feature_size=128, num_mel_bins=128)
    want = np.stack([extract._extract_fbank_features(wave) for wave in waves])
    found = np.asarray(frontend_lib.log_mel(xp.asarray(waves), FRONTEND, xp))
    assert found.shape == want.shape == (3, FRONTEND.frames(32_100), 128)
    found = found * np.log(10) / 10 + np.log(2.0**30)
    np.testing.assert_allclose(found, want, atol=5e-4)
    quiet = (want[1] < -15.9).all(1)
    assert quiet[60:].all() and not quiet[:50].any()
    mel = jnp.asarray(frontend_lib.log_mel(waves, FRONTEND))
    wanted = (want - 15.41663) / (2 * 6.55582)
    np.testing.assert_allclose(beats_tower.normalise(mel), wanted, atol=5e-5)


def test_a_wave_shorter_than_a_frame():
    with pytest.raises(ValueError, match="399 samples, expected 400 or more"):
        frontend_lib.log_mel(np.zeros(399, np.float32), FRONTEND)


@pytest.mark.parametrize("count, most", [(320, 800), (32, 128)])
def test_the_buckets(count, most):
    """Of every distance up to beyond the last range."""
    attention = WavLMAttention(8, 2, num_buckets=count, max_distance=most)
    place = torch.arange(most + 100)
    want = attention._relative_positions_bucket(place[None, :] - place[:, None])
    found = beats_tower.buckets(most + 100, count, most)
    np.testing.assert_array_equal(found, want.numpy())


@pytest.fixture(scope="module")
def encoder():
    """Of WavLM, every weight random."""
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["depth"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["mlp"],
        num_conv_pos_embeddings=SIZES["taps"],
        num_conv_pos_embedding_groups=SIZES["groups"],
    )
    assert (config.num_buckets, config.max_bucket_distance) == (320, 800)
    model = WavLMEncoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            about = 1 if name.endswith(("norm.weight", "original0", "const")) else 0
            parameter.copy_(about + 0.3 * torch.randn(parameter.shape))
    return model


def published(encoder):
    """The state dict of BEATs with this encoder, and random patches before it."""
    names = (
        (
            "pos_conv_embed.conv.parametrizations.weight.original0",
            "pos_conv.0.weight_g",
        ),
        (
            "pos_conv_embed.conv.parametrizations.weight.original1",
            "pos_conv.0.weight_v",
        ),
        ("pos_conv_embed.conv.bias", "pos_conv.0.bias"),
        ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
        ("attention.gru_rel_pos_const", "self_attn.grep_a"),
        ("attention.rel_attn_embed", "self_attn.relative_attention_bias"),
        (".attention.", ".self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    )
    found = {}
    for key, array in encoder.state_dict().items():
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        if key.startswith("layers.") and ".layer_norm." in key:
            key = key.replace(".layer_norm.", ".self_attn_layer_norm.")
        found[f"encoder.{key}"] = array.numpy().copy()
    table = "self_attn.relative_attention_bias.weight"
    found[f"encoder.layers.1.{table}"] = found[f"encoder.layers.0.{table}"]
    rng = np.random.default_rng(0)

    def draw(*shape):
        return np.float32(0.2 * rng.normal(size=shape))

    inner, outer = SIZES["patch_width"], SIZES["width"]
    return found | {
        "patch_embedding.weight": draw(inner, 1, 16, 16),
        "layer_norm.weight": 1 + draw(inner),
        "layer_norm.bias": draw(inner),
        "post_extract_proj.weight": draw(outer, inner),
        "post_extract_proj.bias": draw(outer),
    }


def converted(source, **options):
    """Tower and variables, and that everything goes back."""
    options = complete("beats", SIZES | options, beats_tower.DEFAULTS)
    tower = beats_tower.tower(options)
    mel = jnp.zeros((1, FRAMES, BANDS))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), mel)
    shapes = {"params": {"audio": shapes["params"]}}
    table = beats.rules(options, "")
    source = source | {"predictor.bias": np.zeros(527, np.float32)}
    tree, extra = trees.fill(table, beats.extras(options, ""), source, shapes)
    assert list(extra) == ["predictor.bias"]
    back = rules.invert(table, sharding.flatten(tree)) | extra
    (tied, _) = beats.extras(options, "")
    back |= {name: back[tied.same_as] for name in tied.names}
    assert back.keys() == source.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key])
    return tower, {"params": tree["params"]["audio"], "state": {}}


def test_as_a_start(encoder):
    """Recognised by its tensors, which show its sizes."""
    source = {f"beats.{key}": x for key, x in published(encoder).items()}
    start, notes = starts.spec(source)
    assert (start.side, start.kind, notes) == ("audio", "beats", [])
    sizes = SIZES | {"dropout": beats_tower.DEFAULTS["dropout"]}
    assert start.options == complete("beats", sizes, beats_tower.DEFAULTS)
    tree, extra, _ = starts.fill(start, source)
    assert extra == {}
    np.testing.assert_array_equal(
        tree["params"]["audio"]["block1"]["attention"]["gate_scale"],
        source["beats.encoder.layers.1.self_attn.grep_a"].reshape(-1),
    )


@pytest.fixture(scope="module")
def mel():
    """In decibels, loud as music, two clips."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(-30, 20, (2, FRAMES, BANDS)), jnp.float32)


def embedded(source, mel):
    """Patches of whole rows, as torch makes them."""
    x = torch.tensor(np.array(beats_tower.normalise(mel)))[:, None]
    weights = {key: torch.tensor(array) for key, array in source.items()}
    x = F.conv2d(x, weights["patch_embedding.weight"], stride=16)
    x = x.flatten(2).transpose(1, 2)
    norm = weights["layer_norm.weight"], weights["layer_norm.bias"]
    x = F.layer_norm(x, x.shape[-1:], *norm)
    return F.linear(
        x, weights["post_extract_proj.weight"], weights["post_extract_proj.bias"]
    )


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_wavlm_with_plain_queries(encoder, mel):
    """The whole encoder as transformers has it; the second clip is half as long."""
    with torch.no_grad():
        for layer in encoder.layers:
            layer.attention.q_proj.weight.copy_(torch.eye(SIZES["width"]))
            layer.attention.q_proj.bias.zero_()
    source = published(encoder)
    tower, variables = converted(source, deep_norm=False)
    frames = jnp.array([FRAMES, 100])
    (z, aux), _ = jax.jit(tower.apply)(variables, Sound(mel, frames=frames))
    tokens = 12 * 8
    assert aux["tokens"].shape == (2, tokens, 32)
    mask = torch.arange(tokens) < torch.tensor([[tokens], [7 * 8]])
    with torch.no_grad():
        want = encoder(embedded(source, mel), mask).last_hidden_state.numpy()
    np.testing.assert_allclose(aux["tokens"][0], want[0], atol=2e-5)
    np.testing.assert_allclose(aux["tokens"][1, : 7 * 8], want[1, : 7 * 8], atol=2e-5)
    np.testing.assert_allclose(z[0], want[0].mean(0), atol=1e-5)
    np.testing.assert_allclose(z[1], want[1, : 7 * 8].mean(0), atol=1e-5)
    over_bands = want[0].reshape(12, 8, 32).mean(1)
    np.testing.assert_allclose(aux["fine_grained"][0], over_bands, atol=2e-5)


def gated(attention, x, distances):
    """WavLM's attention with the gate on the projected query."""
    heads, (batch, length, _) = attention.num_heads, x.shape
    query = attention.q_proj(x).view(batch, length, heads, -1).transpose(1, 2)
    gates = attention.gru_rel_pos_linear(query)
    gates = gates.view(batch, heads, length, 2, 4).sum(-1).sigmoid()
    gate = gates[..., 0] * (gates[..., 1] * attention.gru_rel_pos_const[..., 0] - 1) + 2
    bias = (gate[..., None] * distances).view(batch * heads, length, length)
    return attention.torch_multi_head_self_attention(x, None, bias)[0]


def test_queries_and_deep_norm(encoder, mel):
    """WavLM's modules, put together as in `backbone.py`."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in encoder.layers:
            for parameter in layer.attention.q_proj.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    source = published(encoder)
    tower, variables = converted(source)
    (_, aux), _ = jax.jit(tower.apply)(variables, mel)
    with torch.no_grad():
        x = embedded(source, mel)
        x = encoder.layer_norm(x + encoder.pos_conv_embed(x))
        distances = encoder.layers[0].attention.compute_bias(x.shape[1], x.shape[1])
        alpha = (2 * SIZES["depth"]) ** 0.25
        for layer in encoder.layers:
            x = layer.layer_norm(alpha * x + gated(layer.attention, x, distances))
            x = layer.final_layer_norm(alpha * x + layer.feed_forward(x))
    np.testing.assert_allclose(aux["tokens"], x.numpy(), atol=2e-5)


def test_padding_has_no_influence(encoder, mel):
    """Whole patches of it: what a clip is, alone and unpadded."""
    tower, variables = converted(published(encoder))
    run = jax.jit(tower.apply)
    padded = mel.at[:, 96:].set(7.0)
    (z, _), _ = run(variables, Sound(padded, frames=jnp.array([96, 90])))
    (want, _), _ = run(variables, mel[:, :96])
    np.testing.assert_allclose(z, want, atol=1e-5)


def test_the_published_size():
    """90 million parameters (table 1 of the paper)."""
    tower = beats_tower.tower(beats_tower.DEFAULTS)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 998, 128)))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert 90e6 < count < 91e6


def test_errors():
    with pytest.raises(ValueError, match="15 frames and 128 bands"):
        beats_tower.tower(beats_tower.DEFAULTS).init(
            jax.random.key(0), jnp.zeros((1, 15, 128))
        )
    with pytest.raises(ValueError, match="beats"):
        beats_tower.tower({}, frequency_drop=0.5)
