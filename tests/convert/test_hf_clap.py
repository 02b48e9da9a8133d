"""Live against transformers' ClapModel: tensors both ways, embeddings, its pipeline."""

import csv
import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import clap_jax
from clap_jax import convert
from clap_jax.audio import io
from clap_jax.convert import hf_clap, trees
from clap_jax.models import zoo
from clap_jax.models.tower import Sound
from tests.convert import hf

SIZES = ["unfused_default", "fused_default"]


def difference(got, want) -> float:
    """Largest absolute difference over the largest absolute value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def choices(name):
    if name in SIZES:
        # The published size, with a tokenizer that we can have.
        fused = name.startswith("fused")
        return {"audio": {"enable_fusion": fused}, "text": {}}, {}
    found = hf.MODELS[name]
    return found, hf.EXTRACTOR | found.get("extractor", {})


class Theirs:
    """A model of transformers, its extractor and its folder."""

    def __init__(self, name, folder):
        self.name = name
        options, settings = choices(name)
        self.model = hf.model(3, **options)
        self.extractor = hf.extractor(self.model, **settings)
        self.folder = hf.save(folder / name, self.model, self.extractor)
        self.state = {k: x.numpy() for k, x in self.model.state_dict().items()}

    def audio(self, features, longer=None):
        """Embeddings of features; is_longer as given, not as their extractor draws."""
        import torch

        longer = None if longer is None else torch.tensor(longer)[:, None]
        with torch.inference_mode():
            features = torch.as_tensor(np.asarray(features, np.float32))
            out = self.model.get_audio_features(features, is_longer=longer)
        return out.pooler_output.numpy()

    def text(self, texts):
        import torch

        with torch.inference_mode():
            batch = hf.tokenizer().tokenizer(texts, padding=True, return_tensors="pt")
            out = self.model.get_text_features(
                batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        return out.pooler_output.numpy()

    def features(self, wave):
        rate_hz = self.extractor.sampling_rate
        return self.extractor(wave, sampling_rate=rate_hz, return_tensors="np")


@pytest.fixture(scope="module", params=[*hf.MODELS, *SIZES])
def theirs(request, tmp_path_factory):
    return Theirs(request.param, tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def clap(theirs):
    return clap_jax.load(theirs.folder, batch_size=4)


def assert_same_tensors(got, want):
    assert got.keys() == want.keys()
    for key, array in want.items():
        assert got[key].dtype == array.dtype, key
        np.testing.assert_array_equal(got[key], array, err_msg=key)


def test_there_and_back(theirs, tmp_path):
    """Bit for bit, buffers too; and the folder loads without a word of complaint."""
    converted = convert.load(theirs.folder)
    folder = convert.write(converted, tmp_path / "back", to="hf")
    assert_same_tensors(load_file(folder / "model.safetensors"), theirs.state)
    model, info = hf.transformers().ClapModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_tensors(
        {key: x.numpy() for key, x in model.state_dict().items()}, theirs.state
    )
    processor = hf.transformers().ClapProcessor.from_pretrained(folder)
    ours, original = processor.feature_extractor.to_dict(), theirs.extractor.to_dict()
    assert {key: ours[key] for key in original} == original
    ids = processor(text=list(hf.SENTENCES), padding=True)["input_ids"]
    assert (
        ids == hf.tokenizer().tokenizer(list(hf.SENTENCES), padding=True)["input_ids"]
    )


@pytest.mark.parametrize("theirs", ["fused", "unusual"], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pickled", [False, True])
def test_there_and_back_in_half_precision(theirs, dtype, pickled, tmp_path):
    import torch

    model = hf.model(5, **hf.MODELS[theirs.name]).to(getattr(torch, dtype))
    hf.save(tmp_path / "source", model, theirs.extractor, pickled=pickled)
    # By way of a folder of ours, in which weights are float32.
    converted = convert.load(tmp_path / "source")
    own = convert.write(converted, tmp_path / "own")
    folder = convert.write(convert.load(own), tmp_path / "back", to="hf")
    back = hf.transformers().ClapModel.from_pretrained(folder)
    want = model.state_dict()
    assert back.state_dict().keys() == want.keys()
    for key, tensor in back.state_dict().items():
        assert tensor.dtype == want[key].dtype and torch.equal(tensor, want[key]), key


@pytest.mark.parametrize("theirs", hf.MODELS, indirect=True)
def test_spec_from_tensors_alone(theirs):
    """Without config.json: all but what leaves no trace in a tensor."""
    config = theirs.model.config.to_dict()
    with_config, _ = hf_clap.spec(theirs.state, config, theirs.folder)
    spec, notes = hf_clap.spec(theirs.state)
    lost = {"heads", "eps", "dropout", "drop_path", "image", "reduction", "mlp_ratio"}
    for side in ("audio", "text"):
        got, want = (getattr(x, side).options for x in (spec, with_config))
        assert {k: v for k, v in got.items() if k not in lost} == {
            k: v for k, v in want.items() if k not in lost
        }
    assert spec.audio.options["heads"] == with_config.audio.options["heads"]
    assert "no config.json: assumed 1 heads in the text tower" in notes[0]
    if theirs.name != "unusual":
        shapes = trees.shapes(spec)
        trees.fill(*hf_clap.table(spec), theirs.state, shapes)


@pytest.mark.parametrize("theirs", hf.MODELS, indirect=True)
def test_audio_from_the_same_features(theirs, clap):
    """Every mixture of clips that are longer and clips that are not."""
    fused = theirs.model.config.audio_config.enable_fusion
    frontend = clap.spec.frontend
    rng = np.random.default_rng(1)
    shape = (4, frontend.clip_frames, frontend.mels)
    views = (4,) if fused else ()
    mel = rng.normal(-30, 15, (shape[0], *views, *shape[1:])).astype(np.float32)
    mixtures = [[False, True, True, False], [True] * 4, [False] * 4]
    dual, variables = zoo.build(clap.spec), clap.variables
    encode = clap_encode(dual)
    for longer in mixtures if fused else mixtures[:1]:
        features = mel if fused else mel[:, None]
        want = theirs.audio(features, longer if fused else None)
        got = encode(variables, mel, np.array(longer) if fused else None)
        assert difference(got, want) < 1e-5


def clap_encode(dual):
    import jax

    return jax.jit(
        lambda variables, mel, longer: dual.encode_audio(variables, Sound(mel, longer))[
            0
        ][0]
    )


@pytest.mark.parametrize("theirs", hf.MODELS, indirect=True)
def test_audio_from_waves(theirs, clap):
    """Short clips and clips of exactly a window, front end and all."""
    window = theirs.extractor.max_length_s
    waves = hf.waves(theirs.extractor, (0.3 * window, 0.8 * window, window))
    features = [theirs.features(wave)["input_features"] for wave in waves]
    fused = theirs.model.config.audio_config.enable_fusion
    want = theirs.audio(np.concatenate(features), [False] * 3 if fused else None)
    rate_hz = theirs.extractor.sampling_rate
    got = clap.embed_audio([(wave, rate_hz) for wave in waves])
    assert difference(got, want) < 1e-5


@pytest.mark.parametrize("theirs", hf.MODELS, indirect=True)
def test_text(theirs, clap):
    texts = list(hf.SENTENCES)
    assert difference(clap.embed_text(texts), theirs.text(texts)) < 1e-5


def real_sounds(shared_data, longer):
    """Paths of real clips that are longer than 10 s, or not."""
    folder = shared_data / "fsdk_instruments"
    with (folder / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (float(row["duration_s"]) > 10.5) == longer]
    return [folder / row["path"] for row in rows[:2]]


def without_chance(monkeypatch):
    """Their random choices for long clips become fixed: our three views of a fused
    clip, the first window of another one.

    is_longer says the truth: their extractor sets it for one short clip in each batch
    without a longer one, and so for every short clip of the pipeline.
    """
    turn = itertools.count()
    places = (0, 0.5, 1)

    def choice(part):
        place = places[next(turn) % 3]
        return part[min(int(place * len(part)), len(part) - 1)]

    extractor = hf.transformers().ClapFeatureExtractor
    original = extractor._get_input_mel
    flags = []

    def get_input_mel(self, *arguments):
        mel, longer = original(self, *arguments)
        flags.append(longer)
        return mel, longer

    call = extractor.__call__

    def features(self, *arguments, **named):
        flags.clear()
        found = call(self, *arguments, **named)
        found["is_longer"][:, 0] = found["is_longer"].new_tensor(flags)
        return found

    monkeypatch.setattr(np.random, "choice", choice)
    monkeypatch.setattr(np.random, "randint", lambda start, end: start)
    monkeypatch.setattr(extractor, "_get_input_mel", get_input_mel)
    monkeypatch.setattr(extractor, "__call__", features)


@pytest.mark.parametrize("theirs", SIZES, indirect=True)
def test_their_pipeline_on_our_export(theirs, clap, shared_data, tmp_path, monkeypatch):
    """The whole way from files: our export in their pipeline, and `classify`."""
    without_chance(monkeypatch)
    folder = convert.write(convert.load(theirs.folder), tmp_path / "export", to="hf")
    classifier = hf.transformers().pipeline(
        "zero-shot-audio-classification", model=str(folder)
    )
    labels = ["a cello", "a dog barking", "church bells", "rain"]
    paths = real_sounds(shared_data, longer=False)
    clips = [(path, io.load(path, 48_000)) for path in paths]
    for path in real_sounds(shared_data, longer=True):
        wave = io.load(path, 48_000)
        if theirs.name == "unfused_default":
            # They hear one window, we average all of them.
            path = (wave[:480_000], 48_000)
        clips.append((path, wave))
    got = clap.classify([clip for clip, _ in clips], labels)
    for row, (_, wave) in zip(got, clips, strict=True):
        scores = {
            x["label"]: x["score"] for x in classifier(wave, candidate_labels=labels)
        }
        want = np.array([scores[label] for label in labels])
        assert np.ptp(want) > 0.01
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_trained_here_as_theirs(fused, tmp_path):
    """A LAION spec of ours: RoBERTa's eps goes into the config, so numbers are kept."""
    import jax
    import torch

    name = "laion_htsat_tiny_fusion_roberta" if fused else "laion_htsat_tiny_roberta"
    small = {
        "audio.options": {"width": 8, "depths": [1, 2], "heads": [2, 2], "image": 128},
        "text.options": {"width": 8, "depth": 1, "heads": 2, "mlp": 16},
        "vocab_size": hf.tokenizer().vocab_size,
        "embed_dim": 6,
        "frontend.clip_seconds": 2,
        "audio.options.classes": 3,  # their model has no place for this head
    }
    spec = zoo.get_spec(name, small)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (1 + 0.3 * rng.normal(size=x.shape)).astype(np.float32),
        trees.shapes(spec),
    )
    hf.tokenizer().save(tmp_path / "tokenizer")
    converted = convert.Converted(spec, variables, tokenizer=tmp_path / "tokenizer")
    folder = convert.write(converted, tmp_path / "theirs", to="hf")
    assert any("16-bit" in note for note in converted.notes)

    model, info = hf.transformers().ClapModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.text_config.layer_norm_eps == 1e-5
    assert model.logit_scale_t == model.logit_scale_a
    tokens, mask = hf.tokenizer()(hf.SENTENCES)
    views = (4,) if fused else ()
    mel = rng.normal(-30, 15, (5, *views, 201, 64)).astype(np.float32)
    longer = np.array([True, False, True, True, False])
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor(tokens.astype(np.int64)),
            attention_mask=torch.tensor(mask),
            input_features=torch.tensor(mel if fused else mel[:, None]),
            is_longer=torch.tensor(longer)[:, None],
        )
    dual = zoo.build(spec)
    za = clap_encode(dual)(variables, mel, longer if fused else None)
    zt = dual.encode_text(variables, tokens, mask)[0][0]
    assert difference(za, out.audio_embeds.numpy()) < 1e-5
    assert difference(zt, out.text_embeds.numpy()) < 1e-5
    logits = dual.score(variables["params"], za, zt)
    assert difference(logits, out.logits_per_audio.numpy()) < 1e-5
    # One scale here, so theirs are transposes of each other.
    assert difference(logits.T, out.logits_per_text.numpy()) < 1e-5


def test_the_second_scale_is_kept_between_layouts(tmp_path):
    """logit_scale_t: from their file to LAION's and back."""
    model = hf.model(4, **hf.MODELS["unfused"])
    source = hf.save(tmp_path / "source", model, hf.extractor(model, **hf.EXTRACTOR))
    converted = convert.load(source)
    laion = convert.write(converted, tmp_path / "laion.pt", to="laion")
    back = convert.write(convert.load(laion), tmp_path / "back", to="hf")
    tensors = load_file(back / "model.safetensors")
    assert tensors["logit_scale_t"] == np.float32(1.9)
    assert json.loads((back / "config.json").read_text())["model_type"] == "clap"
