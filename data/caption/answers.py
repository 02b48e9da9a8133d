"""What a model answers when it is asked for a caption, and what is wrong with it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from data.caption.clips import Clip

_WORD = re.compile(r"[\w'’]+")
_LABEL = re.compile(r"\s*(?:caption|description|answer|output)\s*:\s*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(?:i['’]m sorry|i am sorry|sorry,|i can['’]?t|i cannot|i['’]m unable|"
    r"i am unable|as an ai)\b",
    re.IGNORECASE,
)
_QUOTES = ('""', "''", "“”", "‘’", "``")

REPEATS = 4
"""A word so many times in a row is no language."""


class Answer(NamedTuple):
    """A caption, "" where no answer was any good.

    broken: what was wrong with the answers before it. version: of the model, where only
    the answer says it.
    """

    text: str
    broken: tuple[str, ...] = ()
    version: str = ""


class Writer(Protocol):
    """Makes captions of clips."""

    group: int
    """Clips that are written together: a job goes on at a multiple of it."""

    def origin(self) -> dict[str, Any]:
        """kind, model, version, and the settings that captions depend on."""

    def answers(self, clips: Iterable[Clip]) -> Iterator[Answer]:
        """An answer for every clip, in order; the first clip begins a group."""


def clean(text: str) -> str:
    """An answer without what models put around it: blanks, quotes, "Caption:"."""
    text = _LABEL.sub("", text.strip(), count=1) if _LABEL.match(text) else text.strip()
    for first, last in _QUOTES:
        inner = text[1:-1]
        if text == first + inner + last and first not in inner and last not in inner:
            text = inner.strip()
    return text


def problem(text: str, prompt: str, names: Sequence[str], max_words: int) -> str:
    """What is wrong with a cleaned answer to a prompt with labels, "" for nothing."""
    said, asked, labels = words(text), words(prompt), words(" ".join(names))
    if not any(letter.isalpha() for letter in text):
        return "empty"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "half a character"  # which no file of UTF-8 can hold
    if _REFUSAL.match(text):
        return "refuses"
    if "\n" in text:
        return "several lines"
    if len(said) > max_words:
        return "too long"
    # Labels alone are a prompt too; a sentence may well hold them side by side.
    is_instruction = len(asked) > len(labels) + 2
    if sorted(said) == sorted(labels) or said == asked:
        return "repeats the prompt"
    if is_instruction and f" {' '.join(asked)} " in f" {' '.join(said)} ":
        return "repeats the prompt"
    for start in range(len(said) - REPEATS + 1):
        if len(set(said[start : start + REPEATS])) == 1:
            return "repeats itself"
    return ""


def words(text: str) -> list[str]:
    """The words of a caption, in lower case; parts of compounds are words."""
    return _WORD.findall(text.lower())
