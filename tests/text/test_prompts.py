"""Sentences made from class names."""

import pytest

from clap_jax.text import prompts


def test_every_template_takes_a_label():
    for name, templates in prompts.TEMPLATES.items():
        assert isinstance(templates, tuple) and templates, name
        assert len(set(templates)) == len(templates)
        for template in templates:
            prompts.check(template, described=True)
            (text,) = prompts.sentences([template], "dog", ["It barks."])
            assert "dog" in text or "It barks." in text


def test_published_prompts():
    assert prompts.TEMPLATES["laion"] == ("This is a sound of {}.",)
    assert prompts.TEMPLATES["msclap"] == ("this is the sound of {}",)
    assert len(prompts.TEMPLATES["plain"]) == 5


@pytest.mark.parametrize("template", ["no label", "{} and {}", "{label}", "", None])
def test_bad_templates_are_named(template):
    with pytest.raises(ValueError, match="exactly once"):
        prompts.render(template, "dog")


def test_braces_of_labels_are_not_templates():
    assert prompts.render("the sound of {}", "{} {0}") == "the sound of {} {0}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Dog_bark", "dog bark"),
        ("air_conditioner", "air conditioner"),
        ("  Sea   waves ", "sea waves"),
        ("dogBark", "dog bark"),
        ("TV", "tv"),
        ("Male speech, man speaking", "male speech, man speaking"),
        ("hi-hat", "hi-hat"),
        ("", ""),
    ],
)
def test_class_names(raw, expected):
    assert prompts.class_name(raw) == expected


def test_expand_is_labels_by_templates():
    assert prompts.expand(["{}", "a {}!"], ["dog", "cat"]) == [
        ["dog", "a dog!"],
        ["cat", "a cat!"],
    ]
    assert prompts.expand("a {}", (name for name in ["dog"])) == [["a dog"]]


def test_descriptions_follow_labels():
    templates = ["{}", "{}: {description}", "{description} ({})"]
    own = ["It {} barks.", "{description}"]
    assert prompts.sentences(templates, "dog", own) == [
        "dog",
        "dog: It {} barks.",
        "dog: {description}",
        "It {} barks. (dog)",
        "{description} (dog)",
    ]


@pytest.mark.parametrize(
    ("template", "described", "message"),
    [
        ("{}: {description}", False, "wants descriptions, but there are none"),
        ("{} {} {description}", True, "once each"),
        ("{description} {description}", True, "once each"),
        ("no label", True, "exactly once"),
        (None, True, "exactly once"),
    ],
)
def test_templates_that_descriptions_cannot_use(template, described, message):
    with pytest.raises(ValueError, match=message):
        prompts.check(template, described)
