"""LAION-CLAP's layout: what its files say, and errors put in on purpose."""

import dataclasses

import numpy as np
import pytest

from clap_jax import convert, sharding
from clap_jax.audio import mel
from clap_jax.convert import laion_clap, rules, trees
from clap_jax.models import zoo
from tests.convert import small


def test_keys_of_the_source():
    """The reference's names and layouts (laion-clap 1.1.7)."""
    spec = small.spec("laion")
    state = rules.invert(
        laion_clap.table(spec)[0], sharding.flatten(small.variables(spec))
    )
    shapes = {key: array.shape for key, array in state.items()}
    assert shapes["audio_branch.patch_embed.proj.weight"] == (8, 1, 4, 4)
    assert shapes["audio_branch.layers.1.blocks.0.attn.qkv.weight"] == (48, 16)
    assert shapes["audio_branch.layers.0.downsample.reduction.weight"] == (16, 32)
    assert shapes["audio_branch.tscam_conv.weight"] == (5, 16, 8, 3)
    assert shapes["text_branch.encoder.layer.0.attention.self.key.bias"] == (64,)
    assert shapes["text_projection.2.weight"] == (6, 6)
    assert shapes["logit_scale_a"] == ()


def test_the_audioset_head_is_left_behind_without_classes():
    over = {"audio.options": small.HTSAT | {"classes": 0}, "text.options": small.BERT}
    over |= {"vocab_size": 50, "embed_dim": 6}
    spec = zoo.get_spec("laion_htsat_tiny_roberta", over)
    table, shapes = laion_clap.table(spec), trees.shapes(spec)
    variables, _ = trees.fill(*table, small.state_dict("laion"), shapes)
    assert "tag" not in variables["params"]["audio"]


def broken():
    """A state dict with one fault of every kind."""
    state = dict(small.state_dict("laion"))
    del state["audio_branch.norm.weight"]
    del state["audio_branch.layers.0.blocks.1.attn.qkv.weight"]
    state["audio_branch.patch_embed.mel_conv3d.weight"] = np.zeros(1, np.float32)
    state["text_projection.2.bias"] = np.zeros(7, np.float32)
    state["audio_branch.bn0.weight"] = np.ones(64, np.int64)
    return state


def test_all_errors_at_once_and_nothing_written(tmp_path):
    path = small.save(tmp_path / "a.pt", broken(), prefix="module.")
    with pytest.raises(convert.ConversionError) as caught:
        convert.convert(path, tmp_path / "b")
    qkv = "params/audio/stage0_block1/attention/{}/kernel"
    names = ", ".join(map(qkv.format, ("key", "query", "value")))
    assert sorted(caught.value.errors) == [
        "audio_branch.bn0.weight: dtype int64, expected float32",
        f"audio_branch.layers.0.blocks.1.attn.qkv.weight: missing; it fills {names}",
        "audio_branch.norm.weight: missing; it fills params/audio/norm/scale",
        "audio_branch.patch_embed.mel_conv3d.weight: no rule for this source tensor",
        "text_projection.2.bias: shape (7,), expected (6,)",
    ]
    assert [x.name for x in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    "key",
    [
        "audio_branch.patch_embed.proj.weight",
        "audio_branch.layers.0.blocks.0.attn.relative_position_bias_table",
        "text_branch.embeddings.word_embeddings.weight",
        "text_branch.embeddings.token_type_embeddings.weight",
        "text_branch.embeddings.position_embeddings.weight",
        "audio_projection.2.weight",
        "logit_scale_a",
    ],
)
def test_a_tensor_that_sizes_are_read_from_is_missing(key, tmp_path):
    """The other tensors say how large the model is."""
    state = dict(small.state_dict("laion"))
    lost = {key: state.pop(key)}
    path = small.save(tmp_path / "a.pt", state)
    with pytest.raises(convert.ConversionError) as caught:
        convert.load(path)
    found = [x for x in caught.value.errors if not x.startswith(f"{key}: missing")]
    assert not [x for x in found if "word_embeddings" not in key], found
    small.save(tmp_path / "a.pt", state | {key: next(iter(lost.values())).repeat(2)})
    with pytest.raises(convert.ConversionError) as caught:
        convert.load(path)
    assert all(x.startswith(f"{key}: shape") for x in caught.value.errors)


def with_front_end(frontend):
    """A small model's state dict with another front end stored in it."""
    spec = dataclasses.replace(small.spec("laion"), frontend=frontend)
    return dict(small.state_dict("laion")) | {
        key: x for key, x in laion_clap.buffers(spec).items() if "extractor" in key
    }


def test_the_bank_in_the_file_counts(tmp_path):
    """LAION's configs have models up to 8 and 18 kHz, and windows of 1536."""
    base = mel.FRONTENDS["laion_unfused"]
    for changes in (
        {"fmax_hz": 8000.0},
        {"fmax_hz": 18_000.0},
        {"n_fft": 1536, "window_samples": 1536},
    ):
        front = dataclasses.replace(base, **changes)
        spec, notes = laion_clap.spec(with_front_end(front))
        assert spec.frontend == front
        kilo = f"48 kHz, 50 to {front.fmax_hz:g} Hz"
        assert any(f"the file's is slaney, {kilo}" in note for note in notes)


def test_a_bank_that_no_formula_gives_is_stored():
    state = dict(small.state_dict("laion"))
    key = "audio_branch.logmel_extractor.melW"
    state[key] = state[key] * np.float32(1 + 1e-5)
    spec, notes = laion_clap.spec(state)
    assert spec.frontend.bank == "stored"
    np.testing.assert_array_equal(mel.mel_bank(spec.frontend), state[key])
    assert any("no known formula gives it" in note for note in notes)
    # A difference that rounding explains is none.
    state[key] = small.state_dict("laion")[key] * np.float32(1 + 5e-7)
    assert laion_clap.spec(state)[0].frontend == mel.FRONTENDS["laion_unfused"]


def test_a_window_of_its_own_is_stored():
    state = dict(small.state_dict("laion"))
    for part in ("real", "imag"):
        key = f"audio_branch.spectrogram_extractor.stft.conv_{part}.weight"
        state[key] = state[key] * np.hamming(1024).astype(np.float32)
    spec, notes = laion_clap.spec(state)
    want = state["audio_branch.spectrogram_extractor.stft.conv_real.weight"][0, 0]
    np.testing.assert_array_equal(mel.window(spec.frontend), want)
    assert any("the file's own, which differs from Hann's" in x for x in notes)


def test_a_file_without_front_end():
    state = {k: x for k, x in small.state_dict("laion").items() if "extractor" not in k}
    spec, notes = laion_clap.spec(state)
    assert spec.frontend == mel.FRONTENDS["laion_unfused"]
    assert any("no mel filter bank; assumed slaney, 48 kHz" in note for note in notes)


def test_fused_models_hear_another_bank_than_is_in_the_file():
    """LAION's data pipeline makes it with torchaudio; the one in the file is unused."""
    state = dict(small.state_dict("laion_fused"))
    stored = state["audio_branch.logmel_extractor.melW"]
    slaney = mel.mel_bank(mel.FRONTENDS["laion_unfused"])
    np.testing.assert_array_equal(stored, slaney)
    spec, notes = laion_clap.spec(state)
    assert spec.frontend == mel.FRONTENDS["laion_fused"]
    assert any("htk, which LAION's data pipeline computes" in note for note in notes)


def test_what_it_is_not():
    with pytest.raises(ValueError) as caught:
        laion_clap.table(zoo.get_spec("small_transformer"))
    text = str(caught.value)
    assert "its audio tower is conv_transformer, LAION-CLAP has htsat or pann" in text
    assert "its head is linear, LAION-CLAP has laion_mlp" in text


def test_new_heads_of_the_mlp_loss_are_the_same_each_time():
    spec = small.spec("laion")
    first, second = laion_clap.buffers(spec), laion_clap.buffers(spec)
    key = "audio_transform.sequential.0.weight"
    assert first[key].any()
    np.testing.assert_array_equal(first[key], second[key])
    assert first["logit_scale_t"] == np.float32(np.log(1 / 0.07))
