"""Figures inside a page: its colours, its font, ids that stay apart."""

import re
from html.parser import HTMLParser

import numpy as np

from clap_jax.evals import plots, svg


def drawn(prefix="figure0", label="recall & <more>"):
    losses = {"train/a $5 loss": (np.arange(9), np.arange(9.0) + 1)}
    return svg.inline(plots.loss_figure(losses), label, prefix)


def test_colours_and_fonts_are_the_pages():
    text = drawn()
    assert not re.findall(r"#[0-9a-f]{6}", text)
    assert {"var(--ink)", "var(--line)", "var(--blue)"} <= set(
        re.findall(r"var\(--\w+\)", text)
    )
    assert "DejaVu" not in text and "var(--font)" in text
    assert ">Training loss<" in text and "a $5 loss" in text  # text stays text
    assert "http" not in text and "<style" not in text and "<?xml" not in text


def test_colours_of_the_data_stay():
    figure, axes = plots._figure(3, 2)
    axes.plot([0, 1], color="#123456")
    assert "#123456" in svg.inline(figure, "", "a")


def test_it_is_announced_and_as_large_as_drawn():
    opening = re.match("<svg[^>]*>", drawn())[0]
    assert (
        'role="img"' in opening and 'aria-label="recall &amp; &lt;more&gt;"' in opening
    )
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', opening)[1])
    assert f"width: {width * 4 / 3:.0f}px" in opening


class Ids(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.used = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            self.used |= set(re.findall(r"#([\w-]+)", value or ""))


def test_ids_are_unique_over_figures_and_all_there():
    page = Ids(drawn("figure0") + drawn("figure1"))
    assert len(page.ids) == len(set(page.ids)) > 2
    assert page.used == set(page.ids)


def test_equal_figures_give_equal_text():
    assert drawn() == drawn()
