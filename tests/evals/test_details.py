"""What a page shows of one evaluation."""

import numpy as np
import pytest

from clap_jax.evals import Result, details
from clap_jax.evals.excerpts import Excerpts
from tests.evals.pages import Page

CONFUSION = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
CLASSES = ["a", "b<i>", "c"]


@pytest.fixture
def single():
    return Result({}, {"confusion": CONFUSION}, {"classes": CLASSES})


def test_classes_in_numbers(single):
    a, b, c = details.class_rows(single)
    assert a == ("a", 4, 0.75, 0.6, None, ("b<i>", 1))
    assert b == ("b<i>", 0, None, 0, None, None)
    assert c == ("c", 4, 0.5, 1, None, ("a", 2))
    (table,) = Page(details.classes_table(single)).tables
    assert table[1] == ["a", "4", "75.0 %", "60.0 %", "b<i> (1)"]
    assert table[2] == ["b<i>", "0", "–", "0.0 %", "–"]


def test_classes_of_several_labels():
    arrays = {"average_precision": np.array([0.25, np.nan])}
    result = Result({}, arrays, {"classes": ["a", "b"]})
    (table,) = Page(details.classes_table(result)).tables
    assert table[1:] == [["a", "25.0 %"], ["b", "–"]]
    assert details.confusion_table(result) == ""


def test_confusion_as_a_table(single):
    page = Page(details.confusion_table(single))
    (table,) = page.tables
    assert table == [
        ["true class", *CLASSES],
        ["a", "3", "1", ""],
        ["b<i>", "", "", ""],
        ["c", "2", "", "2"],
    ]
    assert "a → b<i>: 1 (25 %)" in page.values("title")
    assert page.values("style").count("--s: 0.50") == 2


def test_confusion_of_many_classes_shows_the_hardest():
    counts = np.diag(np.arange(1, 71))
    counts[60:, 0] = 100
    result = Result(
        {}, {"confusion": counts}, {"classes": [f"k{i}" for i in range(70)]}
    )
    page = Page(details.confusion_table(result))
    assert "50 hardest of 70" in page.text
    shown = [row[0] for row in page.tables[0][1:]]
    assert len(shown) == 50 and set(shown) >= {f"k{i}" for i in range(60, 70)}


def test_prompts_as_a_table():
    result = Result(
        {"zeroshot_acc": 0.5},
        {"prompt_scores": np.array([0.5, 0.75, 0.25])},
        {"prompts": ["all", "the {}", "{}"]},
    )
    page = Page(details.prompts_table(result))
    assert page.tables[0][1:] == [
        ["all", "50.0 %", "–"],
        ["the {}", "75.0 %", "+25.0"],
        ["{}", "25.0 %", "−25.0"],
    ]
    assert "From worst to best: 50.0 points" in page.text


def test_one_prompt_is_no_comparison():
    result = Result({}, {"prompt_scores": np.array([0.5])}, {"prompts": ["{}"]})
    assert details.prompts_table(result) == ""


def test_worst_answers_are_shown_and_heard(results, sources):
    found = details.misses(results, sources, 2, Excerpts())
    assert set(found) == {"pairs [red]/a", "kinds", "tags"}  # few has no mistakes
    page = Page(found["pairs [red]/a"])
    assert page.text.count("right pair at rank") == 4
    misses = results["pairs [red]/a"].misses
    for direction in ("t2a", "a2t"):
        worst = next(miss for miss in misses if miss.direction == direction)
        assert f"rank {worst.rank}" in page.text
        assert worst.truth in page.text and worst.found in page.text
        assert f"sounds/<{worst.clip}>.wav" in page.text
    silent = page.text.count("(sound cannot be read)")  # clip 3, wherever it stands
    assert page.tags.count("audio") == 8 - silent >= 6
    labels = [
        v for tag, name, v in page.attributes if (tag, name) == ("audio", "aria-label")
    ]
    assert all(labels) and len(labels) == 8 - silent
    assert Page(found["kinds"]).tags.count("audio") == 2


def test_without_sources_there_is_no_sound(results):
    found = details.misses(results, {}, 2, Excerpts())
    assert all("<audio" not in text for text in found.values())


def test_a_small_budget_is_shared(results, sources):
    size = sum(map(len, details.misses(results, sources, 1, Excerpts()).values()))
    found = details.misses(results, sources, 6, Excerpts(size))
    for name, text in found.items():
        assert "<audio" in text, name
    assert any("too large" in text for text in found.values())


def test_a_clip_that_cannot_be_read_is_named(results, sources):
    sources["kinds"].broken = range(12)
    text = Page(details.misses(results, sources, 2, Excerpts())["kinds"]).text
    assert "(sound cannot be read)" in text
