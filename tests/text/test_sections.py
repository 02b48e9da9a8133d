"""Time-stamped captions: what is read, what is wrong, crops and orders."""

import pytest

from clap_jax.pipeline.pieces import PiecesSource
from clap_jax.text import sections


def spans(text, duration=200.0):
    return [section.seconds(duration) for section in sections.parse(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("From 0:30 to 1:10 a guitar plays.", [(30, 70)]),
        ("0:30-1:10: a guitar.", [(30, 70)]),
        ("A guitar (0:30 – 1:10) and drums (01:10—02:00).", [(30, 70), (70, 120)]),
        ("Between 30 s and 70 s there is a guitar.", [(30, 70)]),
        ("between 30 and 70 seconds", [(30, 70)]),
        ("from 1 to 2.5 minutes", [(60, 150)]),
        ("1:00:05 to 1:02:07, drums", [(3605, 3727)]),
        ("From 20% to 45% of the song.", [(40, 90)]),
        ("from 20 to 45 percent", [(40, 90)]),
        ("The first 20% is quiet, the last 10% loud.", [(0, 40), (180, 200)]),
        ("during the last 30 seconds", [(170, 200)]),
        ("the first 1:05", [(0, 65)]),
        ("At 1:05 the drums stop.", [(65, 65)]),
        ("[00:30] Verse. [01:10] Chorus.", [(30, 70), (70, 200)]),
        ("From 0:30 until 1:10 and from 1:10 till 1:20", [(30, 70), (70, 80)]),
    ],
)
def test_marks_that_are_read(text, expected):
    found = spans(text)
    assert len(found) == len(expected)
    for span, known in zip(found, expected):
        assert span == pytest.approx(known)


@pytest.mark.parametrize(
    "text",
    [
        "Between 90 and 120 bpm in 4/4.",
        "From 20 Hz to 20 kHz, at 120 beats a minute.",
        "Track 2 - 1:10 is the best, recorded at 3:30 pm.",
        "From 1990 to 1995 they played 12 to 15 shows; at 5 they slept.",
        "0:30 and 1:10 are given. A ratio of 10:1.",
        "From 20% to 1:10 nothing.",
        "",
    ],
)
def test_what_is_no_mark(text):
    assert sections.parse(text) == []
    assert sections.within(text, 0, 5, 20) == text


def test_what_is_wrong_is_said():
    text = "From 1:10 to 0:30 drums. From 0:00 to 0:50 bass. 0:40-1:00: flute. At 9:00 end."
    assert sections.check(text, 100) == [
        "'1:10 to 0:30' ends before it has begun",
        "'At 9:00' lies beyond the sound, which is 1:40 long",
        "'0:00 to 0:50' and '0:40-1:00' overlap",
    ]
    assert (
        sections.check("From 0:00 to 0:31 drums, from 0:30 to 1:40 bass.", 99.4) == []
    )


def test_the_caption_of_a_crop():
    text = (
        "A calm song. From 0:00 to 0:30 there is a drum. From 0:30 to 1:10 we hear a "
        "bell. 1:10-1:40: wind howls! At 1:20 a door slams. Nobody sings."
    )
    assert sections.within(text, 0, 100, 100) == text
    assert sections.within(text, 40, 80, 100) == (
        "A calm song. From 0:00 to 0:30 we hear a bell. 0:30-0:40: wind howls! "
        "Nobody sings."
    )
    assert sections.within(text, 75, 100, 100) == (
        "A calm song. 0:00-0:25: wind howls! At 0:05 a door slams. Nobody sings."
    )


def test_percent_become_those_of_the_crop():
    text = "From 20% to 45% of it, rain. The first 50% is loud. The last 10% is soft."
    assert sections.within(text, 0, 100, 200) == (
        "From 40% to 90% of it, rain. The first 100% is loud."
    )
    assert sections.within(text, 150, 200, 200) == "The last 40% is soft."
    mixed = "From 10 s to 70 s and from 1 to 2 minutes it rains. [01:10] End."
    assert sections.within(mixed, 30, 120, 120) == (
        "From 0 s to 40 s and from 0.5 to 1.5 minutes it rains. [00:40] End."
    )
    assert sections.within("From 0:00 to 0:10 drums.", 20, 30, 30) == ""


def test_crops_that_are_none():
    with pytest.raises(ValueError, match="a crop from 5 s to 50 s of 40 s"):
        sections.within("At 0:03 x.", 5, 50, 40)


@pytest.mark.parametrize("style", ["timing", "percent"])
def test_captions_of_pieces_are_read(style):
    source = PiecesSource(style=style, examples=30)
    for index in range(30):
        text, edges = source.captions(index)[0], source.piece(index).edges
        assert sections.check(text, edges[-1], slack_seconds=2.0) == []
        found, known = sections.timed(text, edges[-1]), source.sections(index)
        assert [s[2] for s in found] == [s[2] for s in known]
        for a, b in zip(found, known):
            assert a[:2] == pytest.approx(b[:2], abs=0.005 * edges[-1] + 1e-6)
        half = edges[-1] / 2
        cropped = sections.within(text, half, edges[-1], edges[-1])
        kept = [s for s in known if s[1] >= half + 1]
        assert len(sections.parse(cropped)) in (len(kept), len(kept) - 1)
        assert sections.check(cropped, half, slack_seconds=2.0) == []


def test_sections_in_another_order():
    text = "Calm. From 0:00 to 0:20 we hear a drum. Then from 0:20 to 1:00 Bach. End."
    found = sections.timed(text, 60)
    new, now = sections.reordered(text, found, [1, 0], 60)
    assert new == (
        "Calm. From 0:00 to 0:40 Bach. Then from 0:40 to 1:00 we hear a drum. End."
    )
    assert [s[:2] for s in now] == [(0, 40), (40, 60)]
    assert sections.timed(new, 60) == now
    assert sections.reordered(new, now, [1, 0], 60)[0] == text
    with pytest.raises(ValueError, match="no order of 2"):
        sections.reordered(text, found, [0, 0], 60)
    with pytest.raises(ValueError, match="overlap"):
        sections.reordered(text, [(0, 30, "drum"), (20, 60, "Bach")], [1, 0], 60)
    with pytest.raises(ValueError, match="no 'flute'"):
        sections.reordered(text, [(0, 30, "drum"), (30, 60, "flute")], [1, 0], 60)
    first = "The first 20 s are loud. From 0:20 to 1:00 it is soft."
    with pytest.raises(ValueError, match="cannot be moved"):
        sections.reordered(first, sections.timed(first, 60), [1, 0], 60)


def test_gaps_keep_their_place():
    assert sections.moved([(5, 10), (12, 30), (30, 34)], [2, 0, 1]) == [
        (5, 9),
        (11, 16),
        (16, 34),
    ]
