"""Captions by template."""

import json
from collections import Counter

import pytest

from clap_jax.text import prompts
from data.caption.clips import Clip
from data.caption.templates import FILE, TemplateError, Templates


@pytest.mark.parametrize(
    "tags, caption",
    [
        (["Dog_bark"], "The sound of dog bark"),
        (["Dog", "Rain"], "The sounds of dog and rain"),
        (["dog", "rain", "carHorn"], "The sounds of dog, rain and car horn"),
        (["{}", "_"], "The sounds of {} and _"),
    ],
)
def test_the_papers_templates(tags, caption):
    assert Templates("laion")(Clip("x", tuple(tags))) == caption


def test_wordings_are_spread_over_clips():
    templates = Templates("plain")
    counts = Counter(templates(Clip(f"clip{n}", ("dog",))) for n in range(1000))
    wordings = prompts.TEMPLATES["plain"]
    assert set(counts) == {prompts.render(one, "dog") for one in wordings}
    assert min(counts.values()) > 150
    # By the clip's name, whatever comes before it; the seed makes them others.
    again = [answer.text for answer in templates.answers([Clip("clip7", ("dog",))])]
    assert again == [templates(Clip("clip7", ("dog",)))]
    other = Templates("plain", seed=1)
    assert any(
        other(Clip(f"clip{n}", ("dog",))) != templates(Clip(f"clip{n}", ("dog",)))
        for n in range(20)
    )


def test_every_set_says_where_it_is_from():
    for name, templates in json.loads(FILE.read_text()).items():
        assert templates["source"]
        for tags in (("dog",), ("dog", "rain")):
            assert "dog" in Templates(name)(Clip("x", tags))


def test_own_templates(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": {"one": ["so {}"], "several": ["so: {}!"]}}))
    templates = Templates("mine", path)
    assert templates(Clip("x", ("a", "b", "c"))) == "so: a, b and c!"
    before = templates.origin()
    path.write_text(json.dumps({"mine": {"one": ["so {}"], "several": ["so: {}"]}}))
    assert Templates("mine", path).origin()["settings"] != before["settings"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "mine.json: is not JSON"),
        ("[]", "mine.json: expected an object with sets"),
        ('{"mine": []}', "mine: expected an object with one, several, source"),
        ('{"mine": {"one": ["{}"]}}', "mine: several is no list of templates"),
        ('{"mine": {"one": ["x"], "several": ["{}"]}}', "mine: template 'x' must have"),
        ('{"yours": {"one": ["{}"], "several": ["{}"]}}', "unknown set of templates"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(TemplateError, match=message):
        Templates("mine", path)
    with pytest.raises(TemplateError, match="no.json: No such file"):
        Templates("mine", tmp_path / "no.json")
