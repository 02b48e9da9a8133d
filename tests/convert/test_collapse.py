"""The look at a converted model: made sounds, made texts, and how alike they are."""

import numpy as np
import pytest

from clap_jax import convert
from clap_jax.audio import mel
from clap_jax.convert import collapse, probe
from clap_jax.convert.starts import TowerStart
from clap_jax.models import zoo
from tests.convert import hf, small


def test_sounds_are_different_and_always_the_same():
    sounds = probe.waves(44_100, 3 * 44_100)
    assert sounds.shape == (8, 3 * 44_100)
    assert sounds.dtype == np.float32
    np.testing.assert_array_equal(sounds, probe.waves(44_100, 3 * 44_100))
    assert np.abs(sounds).max(axis=1) == pytest.approx(0.5, abs=1e-4)
    unit = sounds / np.linalg.norm(sounds, axis=1, keepdims=True)
    assert np.abs(unit @ unit.T - np.eye(8)).max() < 0.5


@pytest.mark.parametrize("name", ["laion_fused", "blat", "msclap2022"])
def test_sounds_are_what_the_tower_expects(name):
    frontend = small.spec(name).frontend
    sound = probe.sound(frontend)
    views = (4,) if name == "laion_fused" else ()
    assert sound.mel.shape == (8, *views, frontend.clip_frames, frontend.mels)
    if views:
        assert sound.longer.tolist() == [False, True] * 4
        assert (sound.mel[0, 0] == sound.mel[0, 3]).all()
        assert not (sound.mel[1, 0] == sound.mel[1, 3]).all()
    else:
        assert sound.longer is None
    assert (sound.frames is not None) == (name == "blat")


@pytest.mark.parametrize("name", list(small.FAMILIES))
def test_random_tokens_are_valid(name):
    spec = small.spec(name)
    ids, mask = probe.tokens(spec, None)
    assert ids.shape == mask.shape == (8, min(32, spec.text_length))
    assert 0 <= ids.min() <= ids.max() < spec.vocab_size
    assert len({row[seen].tobytes() for row, seen in zip(ids, mask)}) == 8
    if spec.text.kind == "clip_text":  # its end token has the highest id
        assert (ids.max(axis=1) == spec.vocab_size - 1).all()
    if spec.text.kind == "gpt2":
        assert ((ids == spec.text.options["end_id"]).sum(axis=1) >= 1).all()


@pytest.mark.parametrize("name", [*small.FAMILIES, small.CAPTIONER])
def test_random_weights_are_not_collapsed(name):
    spec = small.spec(name)
    notes = collapse.notes(convert.Converted(spec, small.variables(spec)))
    assert len(notes) == (1 if name == small.CAPTIONER else 2)
    for note, what in zip(notes, ("sounds", "texts of random tokens"), strict=False):
        assert note.startswith(f"embeddings of 8 made {what}: mean cosine ")


def test_texts_by_a_tokenizer(tmp_path):
    hf.tokenizer().save(tmp_path)
    over = {"audio.options": small.HTSAT, "text.options": small.BERT, "embed_dim": 6}
    over["vocab_size"] = hf.tokenizer().vocab_size
    spec = zoo.get_spec("laion_htsat_tiny_roberta", over)
    ids, mask = probe.tokens(spec, tmp_path)
    assert ids.shape == (8, 32)
    assert len({row.tobytes() for row in ids}) == 8
    assert mask[:, 0].all()
    converted = convert.Converted(spec, small.variables(spec), tokenizer=tmp_path)
    _, texts = collapse.notes(converted)
    assert texts.startswith("embeddings of 8 made texts: mean cosine ")


def test_a_tokenizer_of_another_model(tmp_path):
    """It is told, and the model is tried with random tokens."""
    hf.tokenizer().save(tmp_path)
    spec = small.spec("laion")
    converted = convert.Converted(spec, small.variables(spec), tokenizer=tmp_path)
    _, told, texts = collapse.notes(converted)
    assert told.startswith("WARNING: the tokenizer cannot be used: ")
    assert told.endswith("the model has 50")
    assert "texts of random tokens" in texts
    spec = small.spec("msclap2023")  # whose style wants GPT-2's tokens
    converted = convert.Converted(spec, small.variables(spec), tokenizer=tmp_path)
    assert "needs GPT-2's tokens" in collapse.notes(converted)[1]


def test_a_collapsed_tower_is_told():
    spec = small.spec("laion")
    variables = small.variables(spec)
    head = variables["params"]["text_projection"]["linear2"]
    head["kernel"] = head["kernel"] * np.float32(1e-4)
    sounds, texts = collapse.notes(convert.Converted(spec, variables))
    assert sounds.startswith("embeddings of 8 made sounds")
    assert texts.startswith(
        "WARNING: embeddings of 8 made texts of random tokens: mean"
    )
    assert "collapsed: the model cannot tell them apart" in texts
    head["kernel"] = head["kernel"] * np.float32(np.nan)
    _, texts = collapse.notes(convert.Converted(spec, variables))
    assert texts == "WARNING: embeddings of texts of random tokens are not finite"


@pytest.mark.parametrize("mean", [0.97, 0.999])
def test_the_limit(mean):
    """Random weights have a mean of up to 0.97; a broken port had 0.999."""
    rows = np.full((8, 9), 0.0)
    rows[:, 0] = np.sqrt(mean)
    rows[np.arange(8), np.arange(1, 9)] = np.sqrt(1 - mean)
    found = probe.closeness(rows.astype(np.float32))
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.largest == pytest.approx(mean, abs=1e-6)
    note = collapse.note("texts", rows.astype(np.float32))
    assert note.startswith("WARNING") == (mean > 0.99)
    assert f"mean cosine {mean:.3f}, largest {mean:.3f}" in note


def test_a_tower_alone_has_nothing_to_compare():
    start = TowerStart("text", "bert", {}, 10)
    assert collapse.notes(convert.Converted(start, {})) == []


def test_front_end_of_the_file_is_heard():
    """A wrong bank is 20 dB away, which the probe must not hide."""
    base = mel.FRONTENDS["msclap2022"]
    other = mel.FRONTENDS["msclap2023"]
    a, b = probe.sound(base).mel, probe.sound(other).mel[:, : base.clip_frames]
    assert np.abs(a - b).max() > 5
