"""What models answer, and what counts as no caption."""

import pytest

from data.caption.answers import clean, problem
from data.caption.endpoint import PROMPT

TAGS = ("church bells", "rain")


@pytest.mark.parametrize(
    "raw, text",
    [
        ("  A dog barks. \n", "A dog barks."),
        ('"A dog barks."', "A dog barks."),
        ("“A dog barks.”", "A dog barks."),
        ("Caption: a dog barks", "a dog barks"),
        ('**"A dog"', '**"A dog"'),
        ("'", "'"),
        ('"A" and "B"', '"A" and "B"'),
    ],
)
def test_wrappings_are_taken_off(raw, text):
    assert clean(raw) == text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Church bells ring in the rain.", ""),
        ("church bells, rain and wind", ""),
        ("It rains, and rains, and rains, and rains.", ""),
        ("", "empty"),
        ("... 12!", "empty"),
        ("A dog \ud83d barks", "half a character"),
        ("I'm sorry, but I can't help with that.", "refuses"),
        ("As an AI language model, I hear nothing", "refuses"),
        ("Bells ring.\nRain falls.", "several lines"),
        ("rain " * 2 + "falls " + "and on " * 24, "too long"),
        ("church bells, rain", "repeats the prompt"),
        ("Rain, church bells", "repeats the prompt"),
        ("church bells| rain", "repeats the prompt"),
        ("the rain rain rain rain", "repeats itself"),
    ],
)
def test_answers_to_labels_alone(text, expected):
    assert problem(text, "church bells| rain", TAGS, 50) == expected


def test_answers_to_an_instruction():
    prompt = PROMPT.replace("{}", ", ".join(TAGS))
    assert problem(f"Sure! {prompt} Bells.".replace("\n", " "), prompt, TAGS, 90) == (
        "repeats the prompt"
    )
    assert problem("Church bells, rain and thunder", prompt, TAGS, 90) == ""
