"""The report in a real browser: it loads without a network or an error, and it plays.

Needs Chromium (Debian, Ubuntu: apt-get install chromium). Where CI is set, a missing
browser fails; elsewhere these tests are then skipped, with that sentence.
CLAP_JAX_TEST_SCREENSHOTS keeps pictures in a folder, for people to look at.
"""

import os
from pathlib import Path

import pytest

from tests.evals import browser

MISSING = (
    "no Chromium was found, which the test of report.html in a browser needs: install it "
    "(Debian, Ubuntu: apt-get install chromium), or set CLAP_JAX_TEST_BROWSER to its path"
)


@pytest.fixture(scope="module")
def opened(written, tmp_path_factory):
    program = browser.find()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with browser.Browser(
        program, tmp_path_factory.mktemp("browser") / "profile"
    ) as one:
        one.emulate(1280, 900)
        one.open(written)
        yield one


def test_nothing_is_said_and_nothing_is_asked_of_a_network(opened, written):
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in opened.events if event[0] in said] == []
    urls = {
        parameters["request"]["url"]
        for name, parameters in opened.events
        if name == "Network.requestWillBeSent"
    }
    others = {url for url in urls if not url.startswith("data:")}
    assert others == {written.resolve().as_uri()}


def test_a_script_that_fails_would_be_seen(opened, written, tmp_path):
    broken = tmp_path / "broken.html"
    text = written.read_text(encoding="utf-8")
    broken.write_text(text.replace("</main>", "</main><script>nothing()</script>"))
    opened.open(broken)
    assert "Runtime.exceptionThrown" in {name for name, _ in opened.events}
    opened.open(written)


def test_every_sound_has_its_length_and_plays(opened):
    sounds = opened.run(
        """Promise.all([...document.querySelectorAll("audio")].map(async audio => {
          if (audio.readyState < 1) await new Promise((done, failed) => {
            audio.addEventListener("loadedmetadata", done);
            audio.addEventListener("error", () => failed(audio.error.message));
            audio.load();
          });
          const where = audio.parentElement.querySelector(".where").innerText;
          return [audio.duration, where, audio.ariaLabel];
        }))"""
    )
    assert len(sounds) > 10
    for duration, where, label in sounds:
        # "sounds/<7>.wav, 4.0 s", or "..., 0.5 – 5.5 of 9.0 s"
        words = where.rpartition(",")[2].split()
        whole = len(words) == 2
        seconds = float(words[0]) if whole else float(words[2]) - float(words[0])
        assert duration == pytest.approx(seconds, abs=0.15), where
        assert label
    played = opened.run(
        """(async () => {
          const [first, second] = document.querySelectorAll("audio");
          const running = audio => new Promise(done => {
            audio.addEventListener("timeupdate", () => audio.currentTime > 0 && done());
          });
          await first.play(); await running(first);
          const heard = !first.paused;
          await second.play(); await running(second);
          const found = [heard, first.paused, second.paused, second.currentTime > 0];
          second.pause();
          return found;
        })()"""
    )
    assert played == [True, True, False, True]  # the second one stops the first


def test_drawings_are_drawn_and_announced(opened):
    drawings = opened.run(
        """[...document.querySelectorAll("svg")].map(svg => {
          const box = svg.getBoundingClientRect();
          const image = svg.querySelector("image");
          return [box.width, box.height, svg.ariaLabel ?? svg.getAttribute("aria-label"),
                  !image || image.getBoundingClientRect().width > 50];
        })"""
    )
    assert len(drawings) == 7
    for width, height, label, has_image in drawings:
        assert width > 200 and height > 100 and label and has_image
    broken = opened.run(
        "[...document.images].filter(x => !x.complete || !x.naturalWidth).length"
    )
    assert broken == 0


def test_tables_sort(opened):
    column = opened.run(
        """(() => {
          const table = document.querySelector("table.sortable");
          const values = () => [...table.tBodies[0].rows].map(row => row.cells[0].innerText);
          const first = values(), button = table.tHead.querySelector("button");
          button.click();
          const down = values(), said = button.parentElement.ariaSort;
          button.click();
          return [first, down, said, values()];
        })()"""
    )
    first, down, said, up = column
    assert sorted(first) == sorted(down) == sorted(up) and down == up[::-1]
    assert said == "descending"


@pytest.mark.parametrize(
    ("name", "width", "scheme", "media"),
    [
        ("light", 1280, "light", ""),
        ("dark", 1280, "dark", ""),
        ("narrow", 360, "dark", ""),
        ("print", 800, "dark", "print"),
    ],
)
def test_it_fits_light_dark_narrow_and_printed(opened, name, width, scheme, media):
    opened.emulate(width, 900, scheme, media)
    fits, background, ink, nav = opened.run(
        """(() => {
          const root = document.documentElement, style = getComputedStyle(document.body);
          const nav = getComputedStyle(document.querySelector("nav"));
          return [root.scrollWidth <= root.clientWidth,
                  getComputedStyle(root).getPropertyValue("--page"), style.color,
                  nav.display];
        })()"""
    )
    dark = scheme == "dark" and not media
    assert background.strip() == ("#10151c" if dark else "#f3f5f8")
    assert ink == ("rgb(228, 233, 240)" if dark else "rgb(28, 36, 48)")
    assert (nav == "none") == bool(media)
    # Wide tables scroll inside their cards; paper is as wide as it is.
    assert fits or media
    folder = os.environ.get("CLAP_JAX_TEST_SCREENSHOTS")
    if folder:
        height = opened.run("document.documentElement.scrollHeight")
        opened.emulate(width, min(height, 8000), scheme, media)
        Path(folder).mkdir(parents=True, exist_ok=True)
        opened.screenshot(Path(folder) / f"{name}.png")
