"""The Python API on a small trained-for-a-moment model."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import checkpoint
from clap_jax.audio import io
from clap_jax.pipeline.sources import build_source
from clap_jax.train import loop
from tests.train.test_loop import small_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    loop.train(small_config(train__total_steps=2), folder)
    return folder


@pytest.fixture(scope="module")
def clap(workdir):
    return clap_jax.load(workdir)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clips of many lengths, rates, channel counts and formats."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    made = []
    for name, seconds, rate_hz, channels in [
        ("short.wav", 0.1, 8_000, 1),
        ("window.flac", 2.56, 16_000, 1),
        ("ten.ogg", 10.0, 44_100, 2),
        ("long.wav", 180.0, 16_000, 1),
        ("high.flac", 3.0, 96_000, 2),
        ("music.mp3", 5.0, 48_000, 2),
    ]:
        wave = rng.normal(0, 0.1, (int(seconds * rate_hz), channels))
        tone = 0.3 * np.sin(np.arange(len(wave)) * rng.uniform(0.05, 0.3))
        soundfile.write(folder / name, wave + tone[:, None], rate_hz)
        made.append(folder / name)
    return made


def test_every_length_rate_and_format(clap, files):
    vectors = clap.embed_audio(files)
    assert vectors.shape == (6, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_same_vector_alone_or_in_any_batch(clap, files):
    together = clap.embed_audio(files)
    again = clap.embed_audio(files[::-1])[::-1]
    alone = np.concatenate([clap.embed_audio(path) for path in files])
    assert np.abs(together - again).max() < 1e-6
    assert np.abs(together - alone).max() < 1e-6
    np.testing.assert_array_equal(together, clap.embed_audio(files))


def test_paths_bytes_and_arrays_are_one(clap, files):
    wave, rate_hz = soundfile.read(files[1], dtype="float32")
    vectors = clap.embed_audio([files[1], files[1].read_bytes(), (wave, rate_hz)])
    assert np.abs(vectors - vectors[0]).max() < 1e-6
    listed = clap.embed_audio((wave.tolist(), rate_hz))
    assert np.abs(listed - vectors[0]).max() < 1e-6
    stereo = np.stack([wave, wave])
    assert np.abs(clap.embed_audio((stereo, rate_hz)) - vectors[0]).max() < 1e-6


def test_long_clips_are_averaged_by_seconds(clap):
    rate_hz = clap.spec.frontend.rate_hz
    samples = clap.spec.frontend.clip_samples
    rng = np.random.default_rng(1)
    wave = rng.normal(0, 0.1, 2 * samples + samples // 2).astype(np.float32)
    parts = [wave[:samples], wave[samples : 2 * samples], wave[2 * samples :]]
    vectors = np.concatenate([clap.embed_audio((part, rate_hz)) for part in parts])
    mean = (vectors * np.array([[1], [1], [0.5]])).sum(0)
    np.testing.assert_allclose(
        clap.embed_audio((wave, rate_hz))[0], mean / np.linalg.norm(mean), atol=2e-6
    )


def test_text_similarity_and_classes(clap, files):
    texts = ["a dog barking", "a low tone, then a loud siren"]
    zt = clap.embed_text(texts)
    np.testing.assert_allclose(np.linalg.norm(zt, axis=1), 1, rtol=1e-5)
    assert np.abs(clap.embed_text(texts[0]) - zt[0]).max() < 1e-6
    scores = clap.similarity(files[:3], texts)
    scale = np.exp(clap.variables["params"]["logit_scale_a"])
    np.testing.assert_allclose(
        scores, scale * clap.embed_audio(files[:3]) @ zt.T, rtol=1e-4, atol=1e-4
    )
    classes = clap.classify(files[:3], ["dog", "rain"], template=["{}", "a {}"])
    assert classes.shape == (3, 2)
    np.testing.assert_allclose(classes.sum(axis=1), 1, rtol=1e-5)


def test_classes_must_be_a_list_of_names(clap, files):
    with pytest.raises(TypeError, match="dog"):
        clap.classify(files[0], "dog")
    with pytest.raises(ValueError, match="label"):
        clap.classify(files[0], [])


def test_nothing_in_nothing_out(clap):
    assert clap.embed_audio([]).shape == (0, 128)
    assert clap.embed_text([]).shape == (0, 128)


def test_save_and_load_give_the_same_vectors(clap, files, tmp_path):
    clap.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"spec.json", "model.safetensors", "tokenizer"}
    again = clap_jax.load(tmp_path / "model")
    np.testing.assert_array_equal(
        again.embed_audio(files[0]), clap.embed_audio(files[0])
    )
    np.testing.assert_array_equal(again.embed_text("a bell"), clap.embed_text("a bell"))


def test_one_step_of_a_workdir(workdir, clap):
    step = clap_jax.load(workdir / "checkpoints" / "2")
    np.testing.assert_array_equal(step.embed_text("a bell"), clap.embed_text("a bell"))


def test_a_new_process_gives_the_same_vector(workdir, clap, files):
    code = (
        "import sys, clap_jax\n"
        "clap = clap_jax.load(sys.argv[1])\n"
        "print(clap.embed_audio(sys.argv[2]).tobytes().hex())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(workdir), str(files[2])],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    ).stdout
    vector = np.frombuffer(bytes.fromhex(output.strip()), np.float32)
    assert np.abs(vector - clap.embed_audio(files[2])[0]).max() < 1e-6


def test_a_bad_clip_is_named(clap, files, tmp_path):
    (tmp_path / "notes.wav").write_text("not a sound")
    with pytest.raises(io.AudioError, match=r"notes\.wav"):
        clap.embed_audio([files[0], tmp_path / "notes.wav"])
    with pytest.raises(io.AudioError, match="clip 1"):
        clap.embed_audio([files[0], (np.full(1000, np.nan), 16_000)])


def test_a_bad_array_is_named_by_its_place(clap):
    clips = [(np.ones(800), 16_000)] * 40
    clips[33] = (np.full(1000, np.nan), 16_000)
    with pytest.raises(io.AudioError, match="clip 33"):
        clap.embed_audio(clips)


@pytest.mark.parametrize("every", [0, 4])
def test_a_stream_goes_on_after_a_bad_clip(clap, files, tmp_path, every):
    broken = tmp_path / "notes.wav"
    broken.write_text("not a sound")
    clips = [*files[:3], broken, *files[3:]]
    rows = list(clap.stream(iter(clips), threads=2, every=every))
    assert [row.item for row in rows] == clips
    (bad,) = [row for row in rows if row.vector is None]
    assert bad.item == broken
    assert bad.error.startswith("not decodable")
    good = [row for row in rows if row.vector is not None]
    vectors = np.stack([row.vector for row in good])
    assert np.abs(vectors - clap.embed_audio(files)).max() < 1e-6
    assert not any(row.error for row in good)
    seconds = [row.seconds for row in good]
    np.testing.assert_allclose(seconds[:5], [0.1, 2.56, 10, 180, 3], rtol=1e-3)


def test_a_stream_that_begins_at_a_boundary_has_the_same_bits(clap, files):
    """What makes a restarted embedding job end with the same file."""
    clips = [*files, *files[::-1], *files]
    whole = [row.vector for row in clap.stream(clips, every=6)]
    rest = [row.vector for row in clap.stream(clips[6:], every=6)]
    np.testing.assert_array_equal(whole[6:], rest)


def test_the_digest_is_of_the_weights(workdir, clap, tmp_path):
    digest = clap.digest()
    assert clap_jax.load(workdir).digest() == digest
    clap.save(tmp_path / "model")
    other = clap_jax.load(tmp_path / "model")
    assert other.digest() == digest
    scale = other.variables["params"]["logit_scale_a"] + np.float32(1e-6)
    other.variables["params"]["logit_scale_a"] = scale
    assert other.digest() != digest


def test_modules_are_there_at_first_use():
    assert clap_jax.embed.read
    assert clap_jax.export.load_export
    assert clap_jax.dropin.CLAP_Module
    assert clap_jax.convert.load


def test_an_empty_text_is_an_error(clap):
    with pytest.raises(ValueError, match="1"):
        clap.embed_text(["a dog", " "])


def test_loading_what_is_no_model(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="does not exist: expected"):
        clap_jax.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds none of model\.safetensors"):
        clap_jax.load(tmp_path)
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(ValueError, match=r"notes\.txt is not a checkpoint"):
        clap_jax.load(tmp_path / "notes.txt")


def test_weights_of_another_model_are_refused(clap, tmp_path):
    clap.save(tmp_path / "model")
    path = tmp_path / "model" / "spec.json"
    path.write_text(path.read_text().replace('"width": 96', '"width": 48'))
    with pytest.raises(ValueError, match=r"shape .* expected"):
        clap_jax.load(tmp_path / "model")


def test_a_cut_weights_file_is_named(clap, tmp_path):
    clap.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        clap_jax.load(tmp_path / "model")


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        clap_jax.laod  # noqa: B018


def test_the_evaluator_sees_what_the_api_sees(clap, workdir, tmp_path):
    """Faint sounds too, where sixteen bits would show."""
    source = build_source("synthetic", "few", {"split": "kinds", "examples": 4})
    waves = [source[index]["audio"] for index in range(4)]
    faint = [(1e-3 * wave, rate_hz) for wave, rate_hz in waves]
    for number, (wave, rate_hz) in enumerate(faint):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, wave, rate_hz, subtype="FLOAT")
    files = build_source("manifest", "faint", {"path": str(tmp_path)})
    embeddings, kept = clap._encoder.audio(files)
    assert kept.all()
    assert np.abs(embeddings - clap.embed_audio(faint)).max() < 1e-6
