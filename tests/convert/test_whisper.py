"""Whisper's encoder and front end against the models of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from clap_jax import sharding
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import FRONTENDS
from clap_jax.convert import rules, starts, trees, whisper
from clap_jax.models import whisper as whisper_tower
from clap_jax.models import zoo
from clap_jax.models.tower import complete
from tests.models.weights import fill

FRONTEND = FRONTENDS["whisper"]


@pytest.fixture(scope="module")
def waves():
    """30 s of tones that come and go in noise, and of silence behind a few seconds."""
    rng = np.random.default_rng(0)
    seconds = np.arange(FRONTEND.clip_samples) / FRONTEND.rate_hz
    full = np.sin(2 * np.pi * 440 * seconds) * np.sin(seconds) ** 2
    full += 0.1 * rng.normal(size=seconds.shape)
    short = np.where(seconds < 4, full, 0.0)
    return np.float32([0.5 * full, 0.05 * short])


@pytest.fixture(scope="module")
def mels(waves):
    """In decibels, as our front end gives them."""
    return frontend_lib.log_mel(waves, FRONTEND)


def test_the_front_end(waves, mels):
    extract = WhisperFeatureExtractor()
    want = extract(list(waves), sampling_rate=16_000, return_tensors="np")
    want = want["input_features"].transpose(0, 2, 1)
    assert want.shape == (2, 3000, 80)
    found = whisper_tower.normalise(jnp.asarray(mels[:, :3000]))
    np.testing.assert_allclose(found, want, atol=1e-4)
    # Limited below, and not at all alike.
    assert want[1].min() == want[1, -1].max()


def theirs(size, positions=1500):
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=size["width"],
        encoder_layers=size["depth"],
        encoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["mlp"],
        max_source_positions=positions,
    )
    model = WhisperEncoder(config).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases start as ones and zeros, which tell nothing.
            if parameter.ndim == 1:
                noise = rng.normal(size=parameter.shape)
                parameter += torch.tensor(0.1 * np.float32(noise))
    return model


@pytest.mark.parametrize("name, seconds", [("tiny", 30), ("base", 6), ("small", 6)])
def test_full_size(name, seconds, mels):
    """Random weights, and the way back. Theirs hears nothing but its full length, to
    which larger ones are cut, with their tables of positions."""
    frames = 100 * seconds
    size = zoo.WHISPER_SIZES[name] | {"position_table": frames // 2}
    model = theirs(size, frames // 2)
    options = complete("whisper", size, whisper_tower.DEFAULTS)
    tower = whisper_tower.tower(options)
    mel = jnp.asarray(mels[:1, : frames + 1])
    shapes = jax.eval_shape(tower.init, jax.random.key(0), mel)
    shapes = {"params": {"audio": shapes["params"]}}
    weights = {key: x.numpy() for key, x in model.state_dict().items()}
    source = {f"model.encoder.{key}": array for key, array in weights.items()}
    source["model.decoder.layer_norm.bias"] = np.zeros(2, np.float32)
    table = whisper.rules(options, "model.encoder.")
    extras = whisper.extras("model.encoder.")
    tree, extra = trees.fill(table, extras, source, shapes)
    assert list(extra) == ["model.decoder.layer_norm.bias"]
    back = rules.invert(table, sharding.flatten(tree))
    assert (back | extra).keys() == source.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key])

    variables = {"params": tree["params"]["audio"], "state": {}}
    (z, aux), _ = jax.jit(tower.apply)(variables, mel)
    heard = torch.tensor(np.array(whisper_tower.normalise(mel[:, :frames])))
    with torch.no_grad():
        want = model(heard.transpose(1, 2)).last_hidden_state.numpy()
    assert aux["fine_grained"].shape == (1, frames // 2, size["width"])
    np.testing.assert_allclose(aux["fine_grained"], want, atol=1e-4)
    np.testing.assert_allclose(z, want.mean(1), atol=1e-4)


def test_as_a_start():
    """A model with its decoder, recognised by its tensors, written and read again."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        d_model=128,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_source_positions=30,
        **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
        decoder_start_token_id=2,
    )
    weights = {
        key: x.numpy()
        for key, x in WhisperForConditionalGeneration(config).state_dict().items()
    }
    start, notes = starts.spec(weights)
    assert (start.side, start.kind) == ("audio", "whisper")
    size = {"width": 128, "depth": 2, "heads": 2, "mlp": 48, "position_table": 30}
    assert start.options == complete("whisper", size, whisper_tower.DEFAULTS)
    assert notes == ["audio tower: 2 attention heads, by the usual width of 64 each"]
    tree, extra, _ = starts.fill(start, weights)
    assert all(key.startswith(("model.decoder.", "proj_out.")) for key in extra)
    first = weights["model.encoder.conv1.weight"].transpose(2, 1, 0)
    np.testing.assert_array_equal(tree["params"]["audio"]["conv1"]["kernel"], first)


def test_positions_begin_as_theirs():
    size = zoo.WHISPER_SIZES["tiny"]
    model = theirs(size)
    found = whisper_tower._sinusoids(None, (1500, 384))
    np.testing.assert_allclose(found, model.embed_positions.weight.detach(), atol=2e-4)


def test_shorter_and_longer_clips():
    """Of any length up to the table's; those of an odd number of frames lose one."""
    options = {"width": 8, "depth": 1, "heads": 2, "mlp": 8, "position_table": 6}
    tower = whisper_tower.tower(complete("whisper", options, whisper_tower.DEFAULTS))
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 80)), jnp.float32)
    variables, apply = fill(tower, mel), jax.jit(tower.apply)
    (z, aux), _ = apply(variables, mel)
    assert aux["fine_grained"].shape == (2, 6, 8)
    (even, _), _ = apply(variables, mel[:, :12])
    np.testing.assert_array_equal(z, even)
    with pytest.raises(
        ValueError, match="a mel of 14 frames; this tower takes 2 to 13"
    ):
        tower.apply(variables, jnp.zeros((1, 14, 80)))
    with pytest.raises(ValueError, match="whisper"):
        whisper_tower.tower({}, patch_drop=0.5)
