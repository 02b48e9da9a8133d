"""Captions by T5: a tiny one of random weights, against transformers by itself."""

import itertools
import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from data.caption.answers import problem
from data.caption.clips import Clip
from data.caption.t5 import T5, T5Error
from tests.data.caption import cases

CLIPS = [Clip(name, tuple(tags)) for name, tags in cases.clips(60)]
SHORT = {"max_new_tokens": 8, "batch_size": 5}


def texts(writer, clips=CLIPS):
    return [answer.text for answer in writer.answers(clips)]


@pytest.mark.parametrize("beams", [1, 3])
def test_it_answers_as_transformers_does(tiny_t5, beams):
    """One clip after another, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    options = {"length_penalty": 1.5, "early_stopping": True} if beams > 1 else {}
    writer = T5(str(tiny_t5), beams=beams, tries=1, **SHORT)
    answers = list(writer.answers(CLIPS))
    good = 0
    for clip, answer in zip(CLIPS, answers, strict=True):
        prompt = "| ".join(clip.tags)
        found = model.generate(
            **tokenizer(prompt, return_tensors="pt"),
            max_new_tokens=8,
            num_beams=beams,
            no_repeat_ngram_size=3,
            **options,
        )
        text = tokenizer.decode(found[0], skip_special_tokens=True)
        wrong = problem(text, prompt, clip.tags, 50)
        assert answer.broken == ((wrong,) if wrong else ())
        assert answer.text == ("" if wrong else text)
        good += not wrong
    assert good > 20 and len({answer.text for answer in answers}) > 3


def test_groups_can_be_made_one_by_one(tiny_t5):
    writer = T5(str(tiny_t5), temperature=1.0, **SHORT | {"batch_size": 2})
    whole = list(writer.answers(CLIPS))
    assert writer.group == 32
    assert list(writer.answers(CLIPS[32:])) == whole[32:]


def test_equal_labels_get_equal_captions_unless_drawn(tiny_t5):
    clips = [Clip(f"{n}.wav", ("dog", "rain")) for n in range(12)]
    assert len(set(texts(T5(str(tiny_t5), beams=1, **SHORT), clips))) == 1
    drawn = T5(str(tiny_t5), temperature=1.0, **SHORT)
    assert len(set(texts(drawn, clips))) > 6
    assert texts(drawn, clips) == texts(drawn, clips)
    other = T5(str(tiny_t5), temperature=1.0, seed=1, **SHORT)
    assert texts(other, clips) != texts(drawn, clips)


def test_drawing_leaves_the_random_numbers_of_others_alone(tiny_t5):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    texts(T5(str(tiny_t5), temperature=1.0, **SHORT), CLIPS[:5])
    assert torch.equal(torch.rand(2), wanted)


def test_broken_answers_are_drawn_anew(tiny_t5):
    writer = T5(str(tiny_t5), beams=1, tries=3, max_words=5, **SHORT)
    answers = list(writer.answers(CLIPS))
    tries = {len(answer.broken) for answer in answers}
    assert tries == {0, 1, 2, 3}
    for answer in answers:
        assert bool(answer.text) == (len(answer.broken) < 3)
        assert len(answer.text.split()) <= 5
        assert set(answer.broken) <= {"too long", "empty", "repeats itself"}
    assert any(answer.broken and answer.text for answer in answers)


def test_prompts_and_origin(tiny_t5):
    writer = T5(str(tiny_t5), join=", ", prompt="caption: {}", beams=2, **SHORT)
    prompts = []
    tokenizer = writer._tokenizer
    writer._tokenizer = lambda texts, **options: (
        prompts.extend(texts) or tokenizer(texts, **options)
    )
    writer._tokenizer.batch_decode = None
    with pytest.raises(TypeError):
        next(writer.answers([Clip("x", ("dog", "rain"))]))
    assert prompts == ["caption: dog, rain"]
    origin = writer.origin()
    assert origin["kind"] == "t5" and origin["model"] == str(tiny_t5)
    assert "transformers " in origin["version"] and "torch " in origin["version"]
    settings = {"join": ", ", "prompt": "caption: {}", "beams": 2, "seed": 0}
    assert settings.items() <= origin["settings"].items()


def test_models_that_cannot_be_had(tiny_t5, tmp_path, monkeypatch):
    with pytest.raises(T5Error, match="no encoder-decoder model and tokenizer can be"):
        T5(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(T5Error, match=r"need PyTorch: pip install 'clap_jax\[torch\]'"):
        T5(str(tiny_t5))


def test_labels_beyond_what_the_model_reads(tiny_t5):
    tags = tuple(itertools.islice(itertools.cycle(cases.LABELS), 900))
    (answer,) = T5(str(tiny_t5), tries=1, **SHORT).answers([Clip("x", tags)])
    assert answer.text or answer.broken
