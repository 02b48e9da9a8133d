"""One API over all families: checkpoints of other systems load with one line."""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from absl import logging

import clap_jax
from clap_jax import checkpoint, convert, hub, sharding
from clap_jax.models import zoo
from tests import small_models

# Row of the zoo -> the layouts that it is found in.
LAYOUTS = {
    "laion_htsat_tiny_roberta": ("laion", "hf"),
    "laion_htsat_tiny_fusion_roberta": ("laion", "hf"),
    "laion_pann14_bert": ("laion",),
    "msclap2022": ("msclap",),
    "msclap2023": ("msclap",),
    "blat": ("blat",),
}
CASES = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family as a folder of ours, and as each checkpoint of another system."""
    root = tmp_path_factory.mktemp("families")
    for name, layouts in LAYOUTS.items():
        small_models.save(name, root / name)
        converted = convert.load(root / name)
        for layout in layouts:
            convert.write(converted, root / f"{name}-{layout}", layout)
    return root


def find(folders, name, layout):
    """The path of a foreign checkpoint, a file or a folder."""
    folder = folders / f"{name}-{layout}"
    return folder if layout == "hf" else next(folder.iterdir())


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_foreign_checkpoint_is_the_same_model(folders, name, layout):
    own = clap_jax.load(folders / name)
    clap = clap_jax.load(
        find(folders, name, layout), tokenizer=folders / name / "tokenizer"
    )
    found = sharding.flatten(clap.variables)
    for path, leaf in sharding.flatten(own.variables).items():
        np.testing.assert_array_equal(found.pop(path), leaf)
    assert all("/audio/tag/" in path for path in found)
    assert clap.spec.frontend.rate_hz == own.spec.frontend.rate_hz
    assert clap.spec.embed_dim == own.spec.embed_dim
    assert clap.origin.layout == layout
    assert clap.extra or layout == "hf"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_family_embeds_and_classifies(folders, name):
    layout = LAYOUTS[name][0]
    clap = clap_jax.load(
        find(folders, name, layout),
        tokenizer=folders / name / "tokenizer",
        batch_size=1,
    )
    dim = clap.spec.embed_dim
    clips = [
        small_models.sound(1.0, 16_000),
        # Longer than any window, so that views, windows and whole clips differ.
        small_models.sound(12.0, 44_100, seed=1),
    ]
    za = clap.embed_audio(clips)
    assert za.shape == (2, dim)
    assert za.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(za, axis=1), 1, rtol=1e-5)
    assert za[0] @ za[1] < 0.99999
    assert np.abs(clap.embed_audio(clips[::-1])[::-1] - za).max() < 1e-6

    zt = clap.embed_text(small_models.TEXTS)
    assert zt.shape == (3, dim)
    scale = np.exp(clap.variables["params"]["logit_scale_a"])
    np.testing.assert_allclose(clap.score(za, zt), scale * za @ zt.T, rtol=1e-4)
    chances = clap.probabilities(za, zt)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("layout", ["laion", "msclap"])
def test_what_was_not_used_is_kept_for_the_way_back(folders, tmp_path, layout):
    name = {"laion": "laion_pann14_bert", "msclap": "msclap2022"}[layout]
    source = find(folders, name, layout)
    clap = clap_jax.load(source, tokenizer=folders / name / "tokenizer")
    clap.save(tmp_path / "ours")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert {"extra.safetensors", "origin.json"} < names
    back = convert.write(
        clap_jax.convert.load(tmp_path / "ours"), tmp_path / "back", layout
    )
    first, again = convert.load(source), convert.load(back)
    assert first.origin == again.origin
    assert first.extra.keys() == again.extra.keys()
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    # And a second time, from what was saved.
    clap_jax.load(tmp_path / "ours").save(tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names


@pytest.fixture
def offline(monkeypatch):
    """No hub; the ids of tokenizers that were asked for."""
    asked = []

    def fail(where):
        asked.append(where)
        raise OSError("offline")

    monkeypatch.setattr("clap_jax.text.tokenize._download", fail)
    return asked


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A BLAT file with the vocabulary of the published one, so that it is known."""
    folder = tmp_path_factory.mktemp("published")
    model = small_models.spec("blat", zoo.SPECS["blat"].vocab_size)
    converted = convert.Converted(model, small_models.variables(model))
    return convert.write(converted, folder / "blat.pth", "blat")


def test_the_tokenizer_is_needed_at_the_first_text_only(published, offline):
    clap = clap_jax.load(published, batch_size=1)
    assert clap.embed_audio(small_models.sound(1.0, 32_000)).shape == (1, 1024)
    assert not offline
    message = "pass tokenizer=FOLDER to clap_jax.load.*prajjwal1/bert-medium.*offline"
    with pytest.raises(ValueError, match=message):
        clap.embed_text("a dog")
    assert offline == ["prajjwal1/bert-medium"]


def test_saved_without_a_tokenizer(published, offline, tmp_path):
    """It is left out, not made up; the folder loads, and says what it lacks."""
    clap_jax.load(published).save(tmp_path / "m")
    assert not (tmp_path / "m" / "tokenizer").exists()
    clap = clap_jax.load(tmp_path / "m")
    with pytest.raises(ValueError, match="blat needs a tokenizer"):
        clap.embed_text("a dog")


def test_a_tokenizer_of_unknown_origin_must_be_given(folders):
    clap = clap_jax.load(find(folders, "blat", "blat"))
    with pytest.raises(ValueError, match="blat came without a tokenizer: pass"):
        clap.embed_text("a dog")


def test_a_tokenizer_of_another_model_is_refused(folders, tmp_path):
    other = small_models.tokenizer("plain", 30)
    size = other.vocab_size
    other.tokenizer.add_tokens([f"<{number}>" for number in range(50)])
    other.save(tmp_path)
    message = f"has {size + 50} entries, but blat was made for {size}"
    with pytest.raises(ValueError, match=message):
        clap_jax.load(find(folders, "blat", "blat"), tokenizer=tmp_path)


def test_notes_are_logged(folders, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *a: said.append(text % a))
    path = find(folders, "msclap2023", "msclap")
    notes = convert.load(path).notes
    said.clear()
    clap_jax.load(path)
    assert notes
    assert [line for line in said if line.startswith(f"{path}: ")] == [
        f"{path}: {note}" for note in notes
    ]


def test_one_tower_is_no_model(folders, tmp_path):
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="--config.init_from"):
        clap_jax.load(tmp_path)


# --- the hub ---------------------------------------------------------------------


class FakeHub:
    """`huggingface_hub.snapshot_download` over folders on this disk."""

    def __init__(self, root, cached=(), online=True):
        self.root, self.cached, self.online = root, set(cached), online
        self.calls = []

    def __call__(self, repository, allow_patterns, local_files_only):
        self.calls.append((repository, tuple(allow_patterns), local_files_only))
        known = (self.root / repository).is_dir()
        if local_files_only and repository not in self.cached:
            raise FileNotFoundError("not in the cache\nmore words")
        if not local_files_only and not (self.online and known):
            raise OSError("no connection\nmore words")
        return str(self.root / repository)


@pytest.fixture
def fake_hub(tmp_path, folders, monkeypatch):
    """A hub with a folder of Hugging Face's and one of files."""
    shutil.copytree(
        find(folders, "laion_htsat_tiny_roberta", "hf"), tmp_path / "laion" / "unfused"
    )
    (tmp_path / "lukewys" / "files").mkdir(parents=True)
    shutil.copy(
        find(folders, "laion_pann14_bert", "laion"),
        tmp_path / "lukewys" / "files" / "best.pt",
    )

    def make(**options):
        found = FakeHub(tmp_path, **options)
        monkeypatch.setattr("huggingface_hub.snapshot_download", found)
        return found

    monkeypatch.chdir(tmp_path.parent)
    return make


def test_a_hub_id_loads(fake_hub):
    made = fake_hub()
    assert clap_jax.load("laion/unfused").spec.name == "hf_clap_unfused"
    assert [call[2] for call in made.calls] == [True, True, False]
    assert "model*.safetensors" in made.calls[-1][1]


def test_the_local_cache_comes_first(fake_hub):
    made = fake_hub(cached=["laion/unfused"], online=False)
    clap_jax.load("laion/unfused")
    assert [call[2] for call in made.calls] == [True]


def test_one_file_of_a_repository(fake_hub):
    made = fake_hub()
    clap = clap_jax.load("lukewys/files/best.pt")
    assert clap.spec.audio.kind == "pann"
    assert made.calls[-1] == ("lukewys/files", ("best.pt",), False)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("laion/nothing", "cannot be had from there: no connection .one file of"),
        ("lukewys/files", r"has no model\*\.safetensors or pytorch_model\*\.bin"),
        ("lukewys/files/worst.pt", "has no worst.pt"),
    ],
)
def test_what_the_hub_has_not(fake_hub, where, message):
    fake_hub()
    with pytest.raises(hub.HubError, match=message):
        clap_jax.load(where)


@pytest.mark.parametrize(
    "where", ["/laion/unfused", "runs/a/checkpoints/3", "model.pt", "./laion/unfused"]
)
def test_what_is_no_hub_id(fake_hub, where):
    made = fake_hub()
    with pytest.raises(checkpoint.CheckpointError, match="does not exist"):
        clap_jax.load(where)
    assert not made.calls


def test_what_is_here_is_not_looked_for(fake_hub, tmp_path, monkeypatch):
    made = fake_hub()
    monkeypatch.chdir(tmp_path)
    clap_jax.load("laion/unfused")
    assert not made.calls


def test_specs_of_small_models_are_those_of_the_zoo(folders):
    """What the tests of this file rely on: only sizes differ."""
    for name in LAYOUTS:
        spec = json.loads((folders / name / "spec.json").read_text())
        row = json.loads(zoo.SPECS[name].to_json())
        assert spec["frontend"] == row["frontend"]
        assert spec["name"] == name
