"""config.json and preprocessor_config.json of Hugging Face: what is read and refused."""

import dataclasses
import json

import numpy as np
import pytest

from clap_jax.convert import hf_clap, hf_config, hf_frontend, rules, trees
from clap_jax.models import zoo
from tests.convert import hf

PUBLISHED = {
    "chunk_length_s": 10,
    "feature_extractor_type": "ClapFeatureExtractor",
    "feature_size": 64,
    "fft_window_size": 1024,
    "frequency_max": 14000,
    "frequency_min": 50,
    "hop_length": 480,
    "max_length_s": 10,
    "n_fft": 1024,
    "nb_frequency_bins": 513,
    "nb_max_frames": 1000,
    "nb_max_samples": 480000,
    "padding": "repeatpad",
    "sampling_rate": 48000,
    "top_db": None,
    "truncation": "rand_trunc",
}


CUT = (
    "texts are cut after 77 tokens, with which LAION-CLAP was trained; transformers "
    "cuts only when it is asked to"
)


@pytest.fixture(scope="module")
def published():
    """Tensors of the published size, without their values, and a sparse old config."""
    import torch

    with torch.device("meta"):
        model = hf.transformers().ClapModel(hf.transformers().ClapConfig())
    tensors = {
        key: np.broadcast_to(np.float32(0), tuple(x.shape))
        for key, x in model.state_dict().items()
    }
    config = {
        "model_type": "clap",
        "audio_config": {"model_type": "clap_audio_model", "hidden_size": 768},
        "text_config": {"fusion_num_hidden_layers": 2, "classifier_dropout": None},
        "projection_hidden_act": "relu",
    }
    return tensors, config


def changed(config, path, value):
    """A copy of `config` with the value at a dotted path replaced."""
    config = json.loads(json.dumps(config))
    *parents, last = path.split(".")
    place = config
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return config


def test_defaults_are_those_of_transformers():
    config = hf.transformers().ClapConfig()
    for part in ("", "audio_config", "text_config"):
        ours = hf_config.DEFAULTS[part] if part else hf_config.DEFAULTS
        theirs = getattr(config, part) if part else config
        for key, value in ours.items():
            # The last one is of transformers 4.
            if not isinstance(value, dict) and key != "position_embedding_type":
                found = getattr(theirs, key)
                found = list(found) if isinstance(value, list) else found
                assert found == value, key
    extractor = hf.transformers().ClapFeatureExtractor()
    for key, value in hf_frontend.DEFAULTS.items():
        assert getattr(extractor, key) == value, key


def test_the_published_model(published):
    spec, notes = hf_clap.spec(*published)
    assert notes == [
        "no preprocessor_config.json: assumed the published one, 50 to 14000 Hz",
        CUT,
    ]
    assert spec.name == "hf_clap_unfused"
    assert spec.tokenizer == "FacebookAI/roberta-base"
    assert spec.text_length == 77
    assert spec.text.options["eps"] == 1e-12
    assert not spec.frontend.int16_trip
    # Training with what the config says, as transformers would.
    assert spec.audio.options["drop_path"] == 0.0


@pytest.mark.parametrize("name", ["laion_htsat_base_fusion_roberta", "small"])
def test_config_of_a_spec_and_back(name):
    small = {"width": 8, "depths": (1, 3), "heads": (2, 4), "patch": 2, "reduction": 2}
    over = {"audio.options": small, "head": "laion_mlp_gelu", "embed_dim": 9}
    base = name if name != "small" else "laion_htsat_tiny_fusion_roberta"
    spec = zoo.get_spec(base, over if name == "small" else {})
    config = json.loads(json.dumps(hf_config.from_spec(spec)))
    back = hf_config.to_spec(hf_config.complete(config), spec.frontend)
    assert not hf_config.problems(hf_config.complete(config))
    for part in ("audio", "text", "head", "embed_dim", "vocab_size", "tokenizer"):
        assert getattr(back, part) == getattr(spec, part), part
    settings = json.loads(json.dumps(hf_frontend.to_settings(spec.frontend)))
    frontend = hf_frontend.to_frontend(settings, fused=True, mels=64)
    assert frontend == hf_frontend.published(fused=True, mels=64)
    assert dataclasses.replace(frontend, int16_trip=True) == spec.frontend


REFUSED = {
    "audio_config.hidden_act": "relu",
    "audio_config.fusion_type": "channel_map",
    "audio_config.flatten_patch_embeds": False,
    "audio_config.layer_norm_eps": 1e-6,
    "audio_config.patch_stride": [2, 2],
    "audio_config.spec_size": [256, 128],
    "text_config.hidden_act": "silu",
    "text_config.position_embedding_type": "relative_key",
    "text_config.num_attention_heads": 7,
    "projection_hidden_act": "tanh",
}


@pytest.mark.parametrize("path", REFUSED)
def test_an_option_that_our_towers_do_not_have(published, path):
    tensors, config = published
    with pytest.raises(ValueError, match=path.rpartition(".")[2]) as caught:
        hf_clap.spec(tensors, changed(config, path, REFUSED[path]))
    assert str(caught.value).startswith("this ClapModel cannot be read: ")


def test_everything_that_is_wrong_is_told_at_once(published, tmp_path):
    tensors, config = published
    for path, value in REFUSED.items():
        config = changed(config, path, value)
    config = changed(config, "audio_config.depths", [2, 2, 12, 2])
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError) as caught:
        hf_clap.spec(tensors, config, tmp_path)
    for words in (
        *(path.rpartition(".")[2] for path in REFUSED),
        "audio_config.depths is [2, 2, 12, 2], the tensors have [2, 2, 6, 2]",
        "truncation is 'fusion', expected 'rand_trunc': the weights are not fused",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("audio_config.enable_fusion", True),
        ("audio_config.mlp_ratio", 3.0),
        ("audio_config.num_attention_heads", [4, 4, 4, 4]),
        ("text_config.vocab_size", 50264),
        ("text_config.max_position_embeddings", 512),
        ("projection_dim", 256),
    ],
)
def test_a_config_of_another_model(published, path, value):
    tensors, config = published
    with pytest.raises(ValueError, match=f"config.json: {path} is .*, the tensors"):
        hf_clap.spec(tensors, changed(config, path, value))


def test_windows_that_do_not_fill_a_map(published):
    """They would pad it."""
    tensors, config = published
    config = changed(config, "audio_config.spec_size", 192)
    with pytest.raises(ValueError, match=r"window_size is 8, .* \[48.0, 24.0, 12.0"):
        hf_clap.spec(tensors, config)


LOST = (
    "audio_model.audio_encoder.batch_norm.weight",
    "audio_model.audio_encoder.patch_embed.proj.weight",
    "audio_model.audio_encoder.layers.1.blocks.0.attention.self.query.bias",
    "audio_projection.linear2.weight",
    "text_model.embeddings.word_embeddings.weight",
)


@pytest.mark.parametrize("has_config", [False, True])
def test_missing_tensors_are_all_named(published, has_config):
    tensors, config = published
    tensors = {key: x for key, x in tensors.items() if key not in LOST}
    spec, _ = hf_clap.spec(tensors, config if has_config else None)
    with pytest.raises(rules.ConversionError) as caught:
        trees.fill(*hf_clap.table(spec), tensors, trees.shapes(spec))
    assert len(caught.value.errors) == len(LOST)
    for key in LOST:
        assert key in str(caught.value)


def test_tensors_without_biases_or_norm_are_refused(published):
    tensors, config = published
    lost = ("query.bias", "patch_embed.norm")
    tensors = {k: x for k, x in tensors.items() if not any(part in k for part in lost)}
    with pytest.raises(ValueError, match="qkv_bias is True, the tensors have False"):
        hf_clap.spec(tensors, config)
    with pytest.raises(ValueError, match="enable_patch_layer_norm is False, only True"):
        hf_clap.spec(tensors)


@pytest.mark.parametrize("file", [hf_frontend.FILE, hf_frontend.PROCESSOR_FILE])
def test_the_extractor_of_a_folder(published, tmp_path, file):
    """In the file of transformers 4, or in that of 5."""
    settings = PUBLISHED | {"frequency_min": 20, "padding": "pad"}
    nested = file == hf_frontend.PROCESSOR_FILE
    whole = {"feature_extractor": settings} if nested else settings
    (tmp_path / file).write_text(json.dumps(whole))
    spec, notes = hf_clap.spec(*published, tmp_path)
    assert notes == [CUT]
    assert (spec.frontend.fmin_hz, spec.frontend.fill) == (20, "pad")


def test_the_published_extractor():
    frontend = hf_frontend.to_frontend(PUBLISHED, fused=False, mels=64)
    assert frontend == hf_frontend.published(fused=False, mels=64)


def test_an_extractor_without_frequency_min_starts_at_0_hz():
    """Their default. LAION's front end, and all published files, have 50 Hz."""
    settings = {k: v for k, v in PUBLISHED.items() if k != "frequency_min"}
    assert hf_frontend.to_frontend(settings, fused=False, mels=64).fmin_hz == 0


def test_an_extractor_that_cannot_be():
    settings = PUBLISHED | {"frequency_max": 30_000, "feature_size": 80}
    with pytest.raises(ValueError, match="feature_size is 80, .* 64.*mel range"):
        hf_frontend.to_frontend(settings, fused=False, mels=64)


def test_clips_that_are_too_long_for_the_model(published, tmp_path):
    settings = PUBLISHED | {"max_length_s": 11}
    (tmp_path / hf_frontend.FILE).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="1101 frames are longer than the 1024"):
        hf_clap.spec(*published, tmp_path)


@pytest.mark.parametrize(
    ("name", "over", "words"),
    [
        ("laion_pann14_roberta", {}, "audio tower is pann, ClapModel has htsat"),
        ("laion_htsat_tiny_clip", {}, "text tower is clip_text, ClapModel has bert"),
        ("laion_htsat_tiny_bart", {}, "text tower is bart"),
        ("laion_htsat_tiny_bert", {}, "text option positions is 'bert'"),
        ("msclap2023", {}, "text tower is gpt2.*head is msclap"),
        ("msclap2022", {}, "audio tower is pann.*head is msclap"),
        ("small_conv", {}, "audio tower is convnet"),
        (
            "laion_htsat_tiny_fusion_roberta",
            {"audio.options.fusion": "iaff_2d"},
            "audio option fusion is 'iaff_2d', ClapModel has only 'none' or 'aff_2d'",
        ),
        (
            "laion_htsat_tiny_roberta",
            {"frontend": "laion_fused"},
            "bank 'htk', ClapFeatureExtractor can do only 'slaney'.*views 4",
        ),
        ("laion_htsat_tiny_roberta", {"frontend.clip_seconds": 2.5}, "clip_seconds"),
        ("laion_htsat_tiny_roberta", {"frontend.bank_rate_hz": 32_000}, "bank_rate_hz"),
        ("laion_htsat_tiny_fusion_roberta", {"frontend.mels": 32}, "mels 32, .* 64"),
        ("laion_htsat_tiny_fusion_roberta", {"frontend.antialias": True}, "antialias"),
    ],
)
def test_models_that_theirs_cannot_be(name, over, words):
    spec = zoo.get_spec(name, over)
    with pytest.raises(ValueError, match=words) as caught:
        hf_clap.check(spec)
    assert "cannot be a Hugging Face ClapModel" in str(caught.value)


def test_what_is_lost_is_told():
    spec = zoo.get_spec("laion_htsat_tiny_roberta", {"audio.options.classes": 527})
    assert len(hf_clap.losses(spec)) == 2
    quiet = {"frontend.int16_trip": False}
    assert hf_clap.losses(zoo.get_spec("laion_htsat_tiny_roberta", quiet)) == []
