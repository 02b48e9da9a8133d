"""Other packages' calls give what `clap_jax.load` gives."""

import numpy as np
import pytest
import soundfile
from absl import logging

import clap_jax
from clap_jax import api, dropin
from tests import small_models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    small_models.save("small_conv", folder)
    return folder


@pytest.fixture(scope="module")
def clap(model):
    return clap_jax.load(model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate((1.0, 12.0)):
        wave, rate_hz = small_models.sound(seconds, 16_000, seed=number)
        soundfile.write(folder / f"{number}.wav", wave, rate_hz)
    return [str(path) for path in sorted(folder.iterdir())]


TEXTS = ["a dog barks", "rain"]


def same(first, second):
    assert isinstance(first, np.ndarray)
    assert first.dtype == np.float32
    assert np.abs(first - second).max() < 1e-6


@pytest.fixture
def released(model, monkeypatch):
    """Whatever is asked for, the small model comes; says what was asked for."""
    asked, load = [], api.load

    def fake(path, **options):
        asked.append(path)
        return load(model, **options)

    monkeypatch.setattr(api, "load", fake)
    return asked


# --- laion_clap --------------------------------------------------------------------


@pytest.fixture(scope="module")
def laion(model):
    module = dropin.CLAP_Module(enable_fusion=False)
    module.load_ckpt(str(model))
    return module


def test_laion_files_and_texts(laion, clap, files):
    same(
        laion.get_audio_embedding_from_filelist(x=files, use_tensor=False),
        clap.embed_audio(files),
    )
    same(laion.get_text_embedding(TEXTS), clap.embed_text(TEXTS))
    same(laion.get_text_embedding("rain"), clap.embed_text("rain"))


def test_laion_waves_are_at_the_models_rate(laion, clap):
    rate_hz = clap.spec.frontend.rate_hz
    waves = np.stack([small_models.sound(2.0, rate_hz, seed)[0] for seed in (1, 2)])
    found = laion.get_audio_embedding_from_data(x=waves, use_tensor=False)
    same(found, clap.embed_audio([(wave, rate_hz) for wave in waves]))
    with pytest.raises(ValueError, match=r"shape .* expected .N, T."):
        laion.get_audio_embedding_from_data(waves[0])


def test_laion_tensors_are_refused_in_a_sentence(laion, files):
    with pytest.raises(ValueError, match="use_tensor=True .* torch.from_numpy"):
        laion.get_audio_embedding_from_filelist(files, use_tensor=True)
    with pytest.raises(ValueError, match="tokenizer=FOLDER"):
        laion.get_text_embedding(TEXTS, tokenizer=len)


def test_laion_without_weights():
    with pytest.raises(ValueError, match="call load_ckpt first"):
        dropin.CLAP_Module().get_text_embedding(TEXTS)
    with pytest.raises(ValueError, match="'HTSAT-huge' is none of HTSAT-tiny"):
        dropin.CLAP_Module(amodel="HTSAT-huge")


@pytest.mark.parametrize(
    ("fusion", "arguments", "file"),
    [
        (False, {}, "630k-audioset-best.pt"),
        (True, {}, "630k-audioset-fusion-best.pt"),
        (False, {"model_id": 0}, "630k-best.pt"),
        (True, {"model_id": 2}, "630k-fusion-best.pt"),
        (False, {"ckpt": "mine.pt", "verbose": False}, "mine.pt"),
    ],
)
def test_laion_released_models(released, fusion, arguments, file):
    module = dropin.CLAP_Module(fusion, device="cuda:0")
    module.load_ckpt(**arguments)
    (asked,) = released
    assert asked == (file if "ckpt" in arguments else f"lukewys/laion_clap/{file}")
    with pytest.raises(ValueError, match="model_id is 7"):
        module.load_ckpt(model_id=7)


def test_laion_the_checkpoint_is_right_about_the_towers(laion, model, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: said.append(text % a))
    module = dropin.CLAP_Module(enable_fusion=True, amodel="HTSAT-base")
    module.load_ckpt(model)
    assert said == [f"{model} is small_conv, not laion_htsat_base_fusion_roberta"]


# --- transformers ------------------------------------------------------------------


def test_hugging_face(model, clap, files):
    found = dropin.ClapModel.from_pretrained(model)
    wave, rate_hz = small_models.sound(2.0, 44_100)
    own = clap.embed_audio((wave, rate_hz))
    same(found.get_audio_features(wave, sampling_rate=rate_hz), own)
    same(found.get_audio_features(audio=[wave, wave], sampling_rate=rate_hz), own)
    same(found.get_audio_features(wave.tolist(), sampling_rate=rate_hz), own)
    at_own = (wave, clap.spec.frontend.rate_hz)
    same(found.get_audio_features(wave), clap.embed_audio(at_own))
    same(found.get_audio_features(files), clap.embed_audio(files))
    same(found.get_audio_features(files[0]), clap.embed_audio(files[0]))
    same(found.get_text_features(text=TEXTS), clap.embed_text(TEXTS))


# --- msclap ------------------------------------------------------------------------


def test_msclap(model, clap, files):
    found = dropin.CLAP(str(model), version="2023", use_cuda=False)
    za = found.get_audio_embeddings(files, resample=True)
    zt = found.get_text_embeddings(TEXTS)
    same(za, clap.embed_audio(files))
    same(zt, clap.embed_text(TEXTS))
    scores = clap.similarity(files, TEXTS)
    np.testing.assert_allclose(found.compute_similarity(za, zt), scores, atol=1e-4)
    # The original's embeddings have lengths; they do not matter here either.
    scaled = found.compute_similarity(3 * za, 0.5 * zt)
    np.testing.assert_allclose(scaled, scores, atol=1e-4)


@pytest.mark.parametrize("version", ["2022", "2023"])
def test_msclap_released_models(released, version):
    dropin.CLAP(version=version)
    assert released == [f"microsoft/msclap/CLAP_weights_{version}.pth"]


def test_msclap_unknown_version():
    with pytest.raises(ValueError, match="version is '2024', expected 2022 or 2023"):
        dropin.CLAP(version="2024")
