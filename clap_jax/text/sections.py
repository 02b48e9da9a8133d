"""Captions with time-stamped sections: read, checked, cut to a crop, reordered.

What is read as a section ("-" also as a dash, seconds and minutes also in short, the
clock also with hours):

* "from 0:30 to 1:10", "0:30-1:10:", "between 30 s and 70 s", "from 20% to 45%";
* "the first 20%", "the last 30 seconds";
* "[0:30]": from there to the next such mark, or the end;
* "at 1:05": a moment.

A number without a unit ("between 90 and 120 bpm") is none. The words of a section are
the sentence that its mark is in (`clap_jax.text.sentences.split`).
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from clap_jax.text import sentences

_CLOCK = r"(?:\d{1,2}:)?\d{1,3}:\d\d(?:\.\d+)?(?!\d|:\d)(?!\s?[ap]\.?m\b)"
_UNIT = r"\s?(?:seconds?\b|secs?\b|s\b|minutes?\b|mins?\b|%|percent\b|per\scent\b)"
_NUMBER = r"\d+(?:\.\d+)?"
_MARK = re.compile(
    rf"""
    (?<![\d:.])(?P<from>{_CLOCK}|{_NUMBER}(?={_UNIT}|\s?(?:to|until|till|and|[-–—])))
        (?P<from_unit>{_UNIT})?
        \s?(?P<link>to|until|till|and|[-–—])\s?
        (?P<to>{_CLOCK}|{_NUMBER}(?={_UNIT}))(?P<to_unit>{_UNIT})?
    |\b(?P<side>first|last)\s(?P<part>{_CLOCK}|{_NUMBER}(?={_UNIT}))(?P<part_unit>{_UNIT})?
    |\[(?P<mark>{_CLOCK})\]
    |\bat\s(?P<at>{_CLOCK}|{_NUMBER}(?={_UNIT}))(?P<at_unit>{_UNIT})?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LEAD = re.compile(
    r"(?:then|next|now|later|afterwards|finally|first|after (?:that|this)"
    r"|following (?:that|this)),?\s+",
    re.IGNORECASE,
)
# Words that lose their capital when they no longer begin a sentence.
_SMALL = frozenset(
    "a an the there this that these we one it its some someone somebody what here in on "
    "from between at with several many two three four".split()
)
LEAST_SECONDS = 1.0  # of a section in a crop, and 1 % of it: less is written as nothing


@dataclasses.dataclass(frozen=True)
class Value:
    """A time as it is written: amount in its unit, "clock" (seconds), "seconds",
    "minutes" or "percent"; where its digits are in the text."""

    amount: float
    unit: str
    place: tuple[int, int]

    def seconds(self, duration_seconds: float) -> float:
        factor = {"percent": duration_seconds / 100, "minutes": 60.0}
        return self.amount * factor.get(self.unit, 1.0)


@dataclasses.dataclass(frozen=True)
class Section:
    """What a mark says: times in seconds, or percent of the whole.

    form: "range", "first", "last", "mark" or "moment". end: that of the whole if None,
    `begin` of a moment. begin: None for the "last" so much, which its value then says.
    place: characters of the mark. values: the times that are written.
    """

    begin: float | None
    end: float | None
    unit: str
    place: tuple[int, int]
    form: str
    values: tuple[Value, ...]

    def seconds(self, duration_seconds: float) -> tuple[float, float]:
        """Begin and end in seconds, in a whole of this duration."""
        factor = duration_seconds / 100 if self.unit == "percent" else 1.0
        if self.form == "last":
            whole = duration_seconds
            return whole - self.values[0].seconds(whole), whole
        end = duration_seconds if self.end is None else self.end * factor
        return self.begin * factor, end


def clock(seconds: float) -> str:
    """A time as it is read on a player, to the second: "1:05", "1:02:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- reading ---


def parse(text: str) -> list[Section]:
    """The sections that a text names, in the order of the text; [] for none."""
    found = [section for m in _MARK.finditer(text) if (section := _section(m))]
    marks = [i for i, section in enumerate(found) if section.form == "mark"]
    for i, following in itertools.pairwise(marks):
        found[i] = dataclasses.replace(found[i], end=found[following].begin)
    return found


def _value(match: re.Match, group: str, unit: str | None = None) -> Value:
    """A written time; unit: what it has if none is written with it."""
    digits = match[group]
    place = match.span(group)
    if ":" in digits:
        parts = [float(part) for part in digits.split(":")]
        return Value(sum(p * 60**i for i, p in enumerate(parts[::-1])), "clock", place)
    written = (match[f"{group}_unit"] or unit or "").strip().lower()
    known = {"s": "seconds", "m": "minutes"}
    return Value(float(digits), known.get(written[:1], "percent"), place)


def _section(match: re.Match) -> Section | None:
    if match["side"]:
        value = _value(match, "part")
        amount = value.seconds(100)  # of percent, percent
        unit = "percent" if value.unit == "percent" else "seconds"
        form = match["side"].lower()
        ends = (0.0, amount) if form == "first" else (None, None)
        return Section(*ends, unit, match.span(), form, (value,))
    if match["mark"]:
        value = _value(match, "mark")
        return Section(value.amount, None, "seconds", match.span(), "mark", (value,))
    if match["at"]:
        value = _value(match, "at")
        unit = "percent" if value.unit == "percent" else "seconds"
        amount = value.seconds(100)
        return Section(amount, amount, unit, match.span(), "moment", (value,))
    before = match.string[: match.start()].lower().split()[-1:]
    if match["link"].lower() == "and" and before != ["between"]:
        return None
    end = _value(match, "to")
    begin = _value(match, "from", match["to_unit"])
    if (begin.unit == "percent") != (end.unit == "percent"):
        return None
    if ":" not in match["from"] and ":" in match["to"] and not match["from_unit"]:
        return None  # "track 2 - 1:10"
    unit = "percent" if end.unit == "percent" else "seconds"
    times = begin.seconds(100), end.seconds(100)
    return Section(*times, unit, match.span(), "range", (begin, end))


def sentence_sections(text: str) -> list[tuple[tuple[int, int], list[Section]]]:
    """Each sentence, as characters, and the sections that are named in it."""
    sections = parse(text)
    return [
        (place, [s for s in sections if place[0] <= s.place[0] < place[1]])
        for place in sentences.split(text)
    ]


def timed(text: str, duration_seconds: float) -> list[tuple[float, float, str]]:
    """Begin and end in seconds and the sentence of each section that a text names.

    Of sentences that name one section with a beginning and an end; sorted by time.
    """
    found = [
        (*sections[0].seconds(duration_seconds), text[slice(*place)])
        for place, sections in sentence_sections(text)
        if len(sections) == 1 and sections[0].form != "moment"
    ]
    return sorted(found)


def check(text: str, duration_seconds: float, slack_seconds: float = 1.0) -> list[str]:
    """What is wrong with the sections of a text on so long a sound, in words.

    An end before its beginning, what lies beyond the end, sections that overlap; times
    that are off by no more than `slack_seconds` are right. [] if nothing is wrong.
    """
    problems, spans = [], []
    for section in parse(text):
        begin, end = section.seconds(duration_seconds)
        words = repr(text[slice(*section.place)])
        if end < begin or (end == begin and section.form != "moment"):
            problems.append(f"{words} ends before it has begun")
        elif max(begin, end) > duration_seconds + slack_seconds or begin < 0:
            problems.append(
                f"{words} lies beyond the sound, which is {clock(duration_seconds)} long"
            )
        elif section.form != "moment":
            spans.append((begin, end, words))
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end - slack_seconds:
            problems.append(f"{first} and {second} overlap")
    return problems


# --- writing ---


def _written(value: Value, seconds: float, duration_seconds: float, old: str) -> str:
    """A new time as the old one was written."""
    seconds = max(seconds, 0.0)
    if value.unit == "percent":
        return f"{100 * seconds / duration_seconds:.0f}"
    if value.unit == "clock":
        new = clock(seconds)
        return "0" + new if re.match(r"0\d:", old) and re.match(r"\d:", new) else new
    if value.unit == "minutes":
        return f"{round(seconds / 60, 2):g}"
    return f"{seconds:.0f}"


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    """The text with other words at some places (begin, end, words)."""
    for begin, end, words in sorted(edits, reverse=True):
        text = text[:begin] + words + text[end:]
    return text


def _times(
    text: str, new: dict[Value, float], duration_seconds: float
) -> list[tuple[int, int, str]]:
    """Edits that write new times, in seconds of a whole of so many."""
    return [
        (*v.place, _written(v, seconds, duration_seconds, text[slice(*v.place)]))
        for v, seconds in new.items()
    ]


def within(
    text: str, start_seconds: float, end_seconds: float, duration_seconds: float
) -> str:
    """The caption of a crop, from `start_seconds` to `end_seconds` of the whole.

    Sentences that name a section (or a moment) of which the crop has nothing are left
    out, since they would not be true; in the others, times become those in the crop,
    percent those of its length. Sentences without times stay: without any the text is
    unchanged, and "" is what is left where every sentence was about other times.
    Raises ValueError for a crop that is empty or reaches beyond the whole.
    """
    if not 0 <= start_seconds < end_seconds <= duration_seconds + 1e-3:
        raise ValueError(
            f"a crop from {start_seconds} s to {end_seconds} s of {duration_seconds} s"
        )
    length = end_seconds - start_seconds
    edits: list[tuple[int, int, str]] = []
    found = sentence_sections(text)
    follow = [place[0] for place, _ in found[1:]] + [len(text)]
    for (place, sections), following in zip(found, follow):
        new: dict[Value, float] | None = {}
        for section in sections:
            edges = _cropped(section, start_seconds, length, duration_seconds)
            if edges is None:
                new = None
                break
            new |= dict(zip(section.values, edges))
        if new is None:
            edits.append((place[0], following, ""))
        else:
            edits += _times(text, new, length)
    return _edited(text, edits).strip() if edits else text


def _cropped(
    section: Section, start_seconds: float, length: float, duration_seconds: float
) -> tuple[float, ...] | None:
    """What to write of a section in a crop of this length; None outside of it."""
    begin, end = section.seconds(duration_seconds)
    begin, end = begin - start_seconds, end - start_seconds
    if section.form == "moment":
        return (begin,) if 0 <= begin < length else None
    held = min(end, length) - max(begin, 0.0)
    least = length / 100 if section.unit == "percent" else LEAST_SECONDS
    if held <= 0 or held < min(least, (end - begin) / 2):
        return None
    if section.form in ("first", "last"):
        return (held,)
    return max(begin, 0.0), min(end, length)


def reordered(
    text: str,
    sections: Sequence[tuple[float, float, str]],
    order: Sequence[int],
    duration_seconds: float,
) -> tuple[str, list[tuple[float, float, str]]]:
    """The caption of a whole whose sections were put into another order.

    sections: begin and end in seconds and words of each, sorted, that do not overlap
    (see `timed`); the words are in the text. order: which of them comes at each place;
    what lies between sections keeps its place and length. The words of the sections
    change places, with times moved as the sound is ("Then", "Next" stay in their place).
    Returns the text, and the sections as they are now. Raises ValueError for sections
    that overlap or whose words are not in the text, an order that is none, and times
    that cannot be moved ("the first 20%").
    """
    if sorted(order) != list(range(len(sections))):
        raise ValueError(f"{list(order)} is no order of {len(sections)} sections")
    spans = moved([(begin, end) for begin, end, _ in sections], order)
    places = []
    for _, _, words in sections:
        begin = text.find(words, places[-1][1] if places else 0)
        if begin < 0:
            raise ValueError(f"the caption has no {words!r}, or not in its place")
        places.append((begin, begin + len(words)))
    leads = [_lead(words) for _, _, words in sections]
    edits, now = [], []
    for slot, which in enumerate(order):
        old_begin, _, words = sections[which]
        shift = spans[slot][0] - old_begin
        bare = _shifted(words, shift, duration_seconds)[len(leads[which]) :]
        words = _joined(leads[slot], bare)
        edits.append((*places[slot], words))
        now.append((*spans[slot], words))
    return _edited(text, edits), now


def moved(
    spans: Sequence[tuple[float, float]], order: Sequence[int]
) -> list[tuple[float, float]]:
    """Where sections of a new order begin and end; gaps between them stay in place.

    Raises ValueError for spans that are not sorted, or overlap.
    """
    edges = [edge for span in spans for edge in span]
    if edges != sorted(edges):
        raise ValueError(f"sections that overlap, or are not sorted: {list(spans)}")
    found: list[tuple[float, float]] = []
    for slot, which in enumerate(order):
        gap = spans[slot][0] - spans[slot - 1][1] if slot else 0.0
        begin = found[-1][1] + gap if slot else spans[0][0]
        found.append((begin, begin + spans[which][1] - spans[which][0]))
    return found


def _lead(words: str) -> str:
    match = _LEAD.match(words)
    return match.group() if match else ""


def _joined(lead: str, words: str) -> str:
    """A sentence with another beginning, and capitals as they have to be."""
    first = words.split(maxsplit=1)[0]
    if not lead:
        return words[0].upper() + words[1:]
    small = first.lower().strip(",") in _SMALL
    return lead + (words[0].lower() if small else words[0]) + words[1:]


def _shifted(words: str, shift_seconds: float, duration_seconds: float) -> str:
    """The words with all their times later by so much."""
    new = {}
    for section in parse(words):
        if section.form in ("first", "last"):
            raise ValueError(f"a section that cannot be moved: {words!r}")
        for value in section.values:
            new[value] = value.seconds(duration_seconds) + shift_seconds
    return _edited(words, _times(words, new, duration_seconds))
