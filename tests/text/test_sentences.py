"""Sentences of long captions, in characters and in tokens."""

import numpy as np
import pytest

from clap_jax.text import sentences, tokenize

SONG = (
    "A calm piano opens the piece. From 0:30 to 1:10, drums enter at 4.5 dB, "
    'e.g. a snare! Then Mr. Smith sings (loudly). "Is it over?" No.\n'
    "- The last part, from 80% on, fades out"
)
PARTS = [
    "A calm piano opens the piece.",
    "From 0:30 to 1:10, drums enter at 4.5 dB, e.g. a snare!",
    "Then Mr. Smith sings (loudly).",
    '"Is it over?"',
    "No.",
    "- The last part, from 80% on, fades out",
]


def parts(text):
    return [text[begin:end] for begin, end in sentences.split(text)]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenize.train([SONG] * 2, 400, length=64)


def test_split():
    assert parts(SONG) == PARTS
    assert parts("one") == ["one"]
    assert parts("  a dog barks. ") == ["a dog barks."]
    assert parts("Wait... What? Yes!! 3 bars.") == [
        "Wait...",
        "What?",
        "Yes!!",
        "3 bars.",
    ]
    assert parts("lower. case goes on. Then not.") == [
        "lower. case goes on.",
        "Then not.",
    ]
    assert parts("Sonata No. 5 in C. By J. S. Bach.") == [
        "Sonata No. 5 in C. By J. S. Bach."
    ]
    assert parts("") == parts(" \n ") == []


def test_spans_hold_the_tokens_of_each_sentence(tokenizer):
    found = sentences.Sentences(tokenizer, 8)([SONG, "One. Two words. "])
    assert {name: array.shape for name, array in found._asdict().items()} == {
        "ids": (2, 64),
        "mask": (2, 64),
        "spans": (2, 8, 2),
    }
    spans = found.spans
    assert spans.dtype == np.int32
    for row, wanted in enumerate((PARTS, ["One.", "Two words."])):
        count = len(wanted)
        texts = [
            tokenizer.text(found.ids[row, begin:end]).strip()
            for begin, end in spans[row, :count]
        ]
        assert texts == wanted
        assert (spans[row, count:] == 0).all()
        # One behind the other, between the special tokens at both ends.
        assert spans[row, 0, 0] == 1
        assert (spans[row, 1:count, 0] == spans[row, : count - 1, 1]).all()


def test_short_neighbours_become_one(tokenizer):
    spans = sentences.Sentences(tokenizer, 3)([SONG]).spans[0]
    ids = tokenizer([SONG])[0][0]
    texts = [tokenizer.text(ids[begin:end]).strip() for begin, end in spans]
    assert texts[1] == PARTS[1] and " ".join(texts).split() == SONG.split()
    (one,) = sentences.Sentences(tokenizer, 1)([SONG]).spans[0]
    assert one.tolist() == [spans[0, 0], spans[-1, 1]]


def test_what_is_cut_off_has_no_span(tokenizer):
    short = tokenizer.shorter(12)
    spans = sentences.Sentences(short, 6)([SONG]).spans[0]
    begun = (spans[:, 1] > spans[:, 0]).sum()
    assert 1 <= begun < 6 and spans.max() == 11


def test_errors(tokenizer):
    with pytest.raises(ValueError, match="0 sentences at most, expected 1 or more"):
        sentences.Sentences(tokenizer, 0)([SONG])
    with pytest.raises(ValueError, match="text 0 is ' ', expected words"):
        sentences.Sentences(tokenizer, 2)([" "])
