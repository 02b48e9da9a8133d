"""The frame of a page."""

import re

from clap_jax.evals import page
from tests.evals.pages import Page


def test_everything_that_is_text_is_escaped():
    evil = '<img src=x onerror="alert(1)">&amp;'
    body = page.section(evil, page.facts({evil: [evil, {"a": evil}]}), page.note(evil))
    body += page.links({"a": evil}) + page.tiles([("a", evil, evil, evil, evil)])
    found = Page(page.page(evil, body, evil))
    assert "img" not in found.tags
    assert found.text.count(evil) == 13


def test_colours_of_both_themes_are_all_defined():
    used = set(re.findall(r"var\((--[\w-]+)", page.STYLE)) - {"--font", "--cell", "--s"}
    for theme in (page.LIGHT, page.DARK):
        assert used <= set(re.findall(r"(--[\w-]+):", theme))


def contrast(theme, one, other):
    """Contrast of WCAG 2 between two variables of a theme."""

    def luminance(name):
        colour = re.search(rf"{name}: #(\w{{6}})", theme)[1]
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(luminance(name) for name in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_both_themes():
    for theme in (page.LIGHT, page.DARK):
        for text in ("--ink", "--muted", "--blue", "--green", "--red"):
            for ground in ("--panel", "--page", "--head", "--tint"):
                assert contrast(theme, text, ground) >= 4.5, (text, ground, theme)


def test_anchors_are_ids_and_unique():
    taken = []
    for name in ("eval a/b", "Eval A B", "汽车", "汽车!", "a\" onload='x"):
        taken.append(page.anchor(name, taken))
    assert taken == ["eval-a-b", "eval-a-b-2", "part", "part-2", "a-onload-x"]


def test_facts_as_people_write_them():
    values = [True, False, 12000, 0.25, None, ["a", 1], {"b": 2}]
    texts = [page.fact_text(value) for value in values]
    assert texts == ["yes", "no", "12,000", "0.25", "–", "a · 1", "b 2"]


def test_files_are_written_whole(tmp_path):
    path = page.write(tmp_path / "new" / "a.html", "ä")
    assert path.read_bytes() == "ä".encode()
    page.write(path, b"bytes")
    assert [p.name for p in path.parent.iterdir()] == ["a.html"]
    assert path.read_bytes() == b"bytes"
