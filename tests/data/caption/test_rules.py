"""Words that are replaced, and tables of them that cannot be used."""

import csv

import pytest

from data.caption.rules import FOLDER, Rules, RulesError


@pytest.mark.parametrize(
    "before, after",
    [
        ("A man speaks to his dog", "A person speaks to their dog"),
        ("WOMEN cheer, her friends too", "PEOPLE cheer, their friends too"),
        ("She is singing while he's typing", "They are singing while they're typing"),
        ("he’s out, she  was in", "they're out, they were in"),
        ("a man and a woman talk", "two people talk"),
        ("boys and girls at play", "children at play"),
        ("the man's boat", "the person's boat"),
        ("an old policeman shouts", "an old police officer shouts"),
        ("a father laughs with the baby", "a parent laughs with the baby"),
        # Parts of words and of compounds, and what can be heard, stay.
        ("a human mandolin in the theme", "a human mandolin in the theme"),
        ("man-made noise of a one-man band", "man-made noise of a one-man band"),
        ("a male voice and a female singer", "a male voice and a female singer"),
        ("", ""),
    ],
)
def test_neutral_words(before, after):
    rules = Rules("neutral")
    text, used = rules(before)
    assert text == after
    assert rules(after) == (after, {})  # nothing is left to replace
    assert bool(used) == (before != after)


def test_every_change_is_counted():
    _, used = Rules("neutral")("He is a man, the Man of men. His man!")
    assert used == {
        "he is > they are": 1,
        "man > person": 3,
        "men > people": 1,
        "his > their": 1,
    }


def test_every_rule_of_the_table_works():
    with open(FOLDER / "neutral.csv") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))[1:]
    rules = Rules("neutral")
    assert len(rows) > 60
    for words, instead in rows:
        assert rules(f"so {words}.") == (f"so {instead}.", {f"{words} > {instead}": 1})


def test_no_rules():
    rules = Rules("none")
    assert rules("a man") == ("a man", {}) and rules.origin() == {}


def test_own_rules(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        '\ufeffwords,instead\n# a comment\n\ndog,"big, old dog"\nA.C.,air\n'
    )
    rules = Rules(str(path))
    assert rules("Dog near the a.c. unit")[0] == "Big, old dog near the air unit"
    assert rules.origin() == {"table": str(path), "digest": rules.digest}
    path.write_text("words,instead\ndog,hound\n")
    assert Rules(str(path)).digest != rules.digest


@pytest.mark.parametrize(
    "content, message",
    [
        ("word,to\na,b\n", "line 1: the columns are word, to, expected words, instead"),
        ("words,instead\na\n", "line 2: expected words and what instead"),
        ("words,instead\na,\n", "line 2: expected words and what instead"),
        ("words,instead\nMan,x\nman,y\n", "line 3: 'man' has a rule already"),
        ("# only\n", "there are no rules"),
        (b"words,instead\na,\xff\n", "is not UTF-8 text"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RulesError, match=f"mine.csv: {message}"):
        Rules(str(path))


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(RulesError, match="did you mean 'neutral'"):
        Rules("neutrl")
    with pytest.raises(RulesError, match="none.csv: No such file"):
        Rules(str(tmp_path / "none.csv"))
