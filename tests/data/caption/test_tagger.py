"""Tags by ear: PANNs' layout against the same head in torch, HTSAT, and classifiers."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional

import clap_jax
from clap_jax import convert, sharding
from clap_jax.audio.mel import FRONTENDS
from clap_jax.convert import frontend as frontend_lib
from clap_jax.convert import htsat, rules, starts
from clap_jax.models import zoo
from data.caption import tagger
from tests import small_models
from tests.test_api_classifier import save as save_classifier

CLASSES = 5
FUSELESS = "laion_htsat_tiny_roberta"
WIDTHS = (8, 12, 16)
# PANNs' own: 32 kHz, a hop of 10 ms, and the mean over 50 to 14000 Hz in 64 bands.
PANNS = tagger._published(np.zeros((513, 64)))


def panns(widths=WIDTHS, convs=2):
    """A state dict of PANNs with random weights, as its authors name the tensors."""
    rng, found = np.random.default_rng(3), {}

    def norm(name, width):
        found[f"{name}.weight"] = rng.uniform(0.5, 1.5, width)
        found[f"{name}.bias"] = rng.normal(0, 0.2, width)
        found[f"{name}.running_mean"] = rng.normal(0, 0.2, width)
        found[f"{name}.running_var"] = rng.uniform(0.5, 2, width)

    def layer(name, shape):
        fan_in = np.prod(shape[1:])
        found[f"{name}.weight"] = rng.normal(0, (2 / fan_in) ** 0.5, shape)

    norm("bn0", 64)
    found["bn0.running_mean"] -= 30
    found["bn0.running_var"] *= 300
    before = 1
    for block, width in enumerate(widths, 1):
        for conv in range(1, convs + 1):
            layer(f"conv_block{block}.conv{conv}", (width, before, 3, 3))
            norm(f"conv_block{block}.bn{conv}", width)
            before = width
    for name, shape in (("fc1", (before, before)), ("fc_audioset", (CLASSES, before))):
        layer(name, shape)
        found[f"{name}.bias"] = rng.normal(0, 0.5, shape[0])
    found = {name: value.astype(np.float32) for name, value in found.items()}
    return found | frontend_lib.buffers("", PANNS)


def in_torch(weights, wave):
    """What PANNs' code computes of one clip, as its paper says it, with torch alone."""
    w = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(w[f"{name}.{part}"] for part in parts))

    padded = functional.pad(
        torch.from_numpy(wave).double()[None, None], (512, 512), "reflect"
    )
    stft = "spectrogram_extractor.stft.conv_{}.weight"
    power = sum(
        functional.conv1d(padded, w[stft.format(part)], stride=320) ** 2
        for part in ("real", "imag")
    )
    mel = power.transpose(1, 2) @ w["logmel_extractor.melW"]
    x = 10 * torch.log10(torch.clamp(mel, min=1e-10))[:, None]
    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    blocks = sum(name.endswith("conv1.weight") for name in weights)
    for block in range(1, blocks + 1):
        for conv in (1, 2):
            name = f"conv_block{block}"
            x = functional.conv2d(x, w[f"{name}.conv{conv}.weight"], padding=1)
            x = functional.relu(norm(x, f"{name}.bn{conv}"))
        x = functional.avg_pool2d(x, 2)
    x = x.mean(3)
    x = x.max(2).values + x.mean(2)
    x = functional.relu(functional.linear(x, w["fc1.weight"], w["fc1.bias"]))
    x = functional.linear(x, w["fc_audioset.weight"], w["fc_audioset.bias"])
    return torch.sigmoid(x)[0].numpy()


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A table as AudioSet's."""
    path = tmp_path_factory.mktemp("labels") / "class_labels_indices.csv"
    rows = [f'{i},/m/{i},"Sound {i}, loud"' for i in range(CLASSES)]
    path.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def pann(tmp_path_factory):
    weights = panns()
    path = tmp_path_factory.mktemp("panns") / "Cnn.pth"
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save({"model": tensors}, path)
    return weights, str(path)


def test_a_pann_tags_as_torch_does(pann, labels):
    """Clips of any length, each heard whole; from the file to the probabilities."""
    weights, path = pann
    found = tagger.load(path, labels)
    assert found.labels[1] == "Sound 1, loud" and len(found.labels) == CLASSES
    clips = [small_models.sound(1.3, 32_000), small_models.sound(2.71, 32_000, 5)]
    got = found.probabilities(clips)
    want = np.stack([in_torch(weights, wave) for wave, _ in clips])
    assert want.std(axis=1).min() > 0.05 and np.abs(want[0] - want[1]).max() > 0.01
    np.testing.assert_allclose(got, want, atol=2e-5)
    alone = found.probabilities(clips[1:])
    np.testing.assert_allclose(alone[0], got[1], atol=1e-6)


def test_an_htsat_tags(tmp_path, labels):
    """Its head is kept, and what a longer clip gets is the mean over its windows."""
    options = zoo.HTSAT_SIZES["tiny"] | small_models.FAMILIES[FUSELESS]
    options |= {"classes": CLASSES}
    start = starts.TowerStart("audio", "htsat", zoo.TowerSpec("htsat", options).options)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            return np.full(leaf.shape, 300 if "bn0/var" in path else 1, np.float32)
        return rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    tree = sharding.map_with_path(draw, starts._target(start, 64))
    flat = rules.invert(htsat.rules(start.options, ""), sharding.flatten(tree))
    flat |= htsat.buffers(start.options, "", PANNS)
    path = tmp_path / "htsat.safetensors"
    save_file({key: np.ascontiguousarray(x) for key, x in flat.items()}, path)
    found = tagger.load(str(path), labels)
    halves = [small_models.sound(10, 32_000, seed=seed) for seed in (1, 2)]
    whole = np.concatenate([wave for wave, _ in halves])
    got = found.probabilities([*halves, (whole, 32_000)])
    assert got.shape == (3, CLASSES) and np.abs(got[0] - got[1]).max() > 1e-3
    np.testing.assert_allclose(got[2], got[:2].mean(0), atol=1e-5)


def test_a_classifier_tags(tmp_path):
    path = save_classifier(tmp_path / "model", "sounds", "tags")
    found, clips = tagger.load(path), [small_models.sound(1, 16_000)]
    assert found.labels == ("cat", "dog", "rain", "calm")
    model = clap_jax.load(path)
    want = [model.classify(clips, head=head)[0] for head in ("sounds", "tags")]
    np.testing.assert_allclose(
        found.probabilities(clips)[0], np.concatenate(want), atol=1e-6
    )
    assert found.digest == model.digest()


def test_what_is_no_tagger(pann, labels, tmp_path):
    _, path = pann
    with pytest.raises(tagger.TaggerError, match="there is no tagger .*nowhere"):
        tagger.load(str(tmp_path / "nowhere"))
    with pytest.raises(tagger.TaggerError, match="does not name its 5 classes"):
        tagger.load(path)
    lines = tmp_path / "labels.txt"
    lines.write_text("dog\ncat\ndog\nrain\nwind\n")
    with pytest.raises(tagger.TaggerError, match="'dog' twice.* has 5 classes"):
        tagger.load(path, str(lines))
    lines.write_text("dog\ncat\n")
    with pytest.raises(tagger.TaggerError, match="2 names;"):
        tagger.load(path, str(lines))
    small_models.save("small_conv", tmp_path / "pair")
    with pytest.raises(tagger.TaggerError, match="a tagger is a classifier, or an"):
        tagger.load(str(tmp_path / "pair"))
    # A folder of ours has no filter bank in it.
    convert.write(convert.load(path), tmp_path / "start")
    assert json.loads((tmp_path / "start" / "tower.json").read_text())["kind"] == "pann"
    with pytest.raises(tagger.TaggerError, match="does not tell what it hears"):
        tagger.load(str(tmp_path / "start"), labels)
    named = tagger.load(str(tmp_path / "start"), labels, "blat")
    clip = [small_models.sound(1, 32_000)]
    again = tagger.load(path, labels).probabilities(clip)
    np.testing.assert_allclose(named.probabilities(clip), again, atol=1e-5)
    assert FRONTENDS["blat"].rate_hz == PANNS.rate_hz
