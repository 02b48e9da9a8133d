"""Whether a caption names what a clip is tagged with."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clap_jax.pipeline import order
from clap_jax.text import prompts
from data.caption.answers import words

FILE = Path(__file__).with_name("tag_words.json")

# Of a tag they say nothing that a caption would have to say, too.
_STOP = frozenset("a an the of and or in on by with to etc s sound sounds".split())
_VOWELS = frozenset("aeiouy")
_DOUBLED = frozenset("bdgkmnprtv")  # not hiss, yell, buzz, which end so themselves
_LOST_E = re.compile(r"[^aeiou][aeiouy][^aeiouwxy]")
_SILENT_E = re.compile(r"[^e]e$")
_IRREGULAR = {
    **{"men": "man", "women": "woman", "children": "child", "people": "person"},
    **{"mice": "mouse", "geese": "goose", "feet": "foot", "wolves": "wolf"},
    **{"leaves": "leaf", "knives": "knife", "hooves": "hoof", "buses": "bus"},
    **{"spoke": "speak", "spoken": "speak", "said": "say", "ran": "run"},
    **{"sang": "sing", "sung": "sing", "rang": "ring", "rung": "ring"},
    **{"blew": "blow", "blown": "blow", "drove": "drive", "driven": "drive"},
    **{"rode": "ride", "ridden": "ride", "flew": "fly", "flown": "fly"},
    **{"wept": "weep", "shot": "shoot", "broke": "break", "broken": "break"},
}


class TagWordsError(ValueError):
    """A table that cannot be used; says where and why."""


class TagWords:
    """Knows by which words captions name tags.

    A tag is named by any of the parts between its commas ("Vehicle horn, car horn,
    honking"), or any of the phrases that the table has for it: the caption has all the
    phrase's words, in any order, whatever their number or form (bark, barks, barking,
    barked). What stands in brackets is left out.

    file: JSON {tag: [phrase, ...]}; tags in any case, with blanks or underscores.

    Raises TagWordsError.
    """

    def __init__(self, file: str | Path = FILE):
        self._more = _read(Path(file).expanduser())
        self.digest = order.digest(sorted(self._more.items()))
        self._known: dict[str, list[frozenset[str]]] = {}

    def share(self, tags: Iterable[str], caption: str) -> float:
        """The share of the tags that the caption names.

        Tags without any word (an id, a sign) do not count; 1 where none is left.
        """
        found = stems(words(caption))
        named = [
            any(phrase <= found for phrase in phrases)
            for phrases in map(self.phrases, dict.fromkeys(tags))
            if phrases
        ]
        return sum(named) / len(named) if named else 1.0

    def phrases(self, tag: str) -> list[frozenset[str]]:
        """Each a set of stems, any of which names the tag; [] where it has no words."""
        if tag not in self._known:
            name = prompts.class_name(tag)
            own = re.split(r",|/|\bor\b", re.sub(r"\(.*?\)", " ", name))
            texts = [*own, *self._more.get(_key(tag), ())]
            sets = [_phrase(text) for text in texts]
            self._known[tag] = [one for one in sets if one]
        return self._known[tag]


def _key(tag: str) -> str:
    return prompts.class_name(tag).lower()


def _phrase(text: str) -> frozenset[str]:
    """The stems of a phrase; a word that says little is left out beside others."""
    every = [word for word in words(text) if any(map(str.isalpha, word))]
    telling = [word for word in every if word not in _STOP]
    return stems(telling or [word for word in every if word.startswith("sound")])


def stems(found: Sequence[str]) -> frozenset[str]:
    """The stems of words."""
    return frozenset(map(stem, found))


def stem(word: str) -> str:
    """A word without its ending for number, person or tense: "dogs" and "dog", "sneezing"
    and "sneeze", "hummed" and "humming" each come to one. It need not be a word."""
    word = word.lower().replace("’", "'").removesuffix("'s").strip("'")
    word = _IRREGULAR.get(word, word)
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        start = word.removesuffix(ending)
        if start == word or word.endswith("eed") or len(start) < 2:
            continue
        if not _VOWELS & set(start):
            break  # sing, string, shed
        if len(start) > 3 and start[-1] == start[-2] and start[-1] in _DOUBLED:
            return start[:-1]
        # Short words keep their e, or care would be car: typing is of type.
        return f"{start}e" if _LOST_E.fullmatch(start) else start
    silent = len(word) > 4 or word.endswith("le")
    return word[:-1] if silent and _SILENT_E.search(word) else word


def _read(file: Path) -> dict[str, list[str]]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TagWordsError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise TagWordsError(f"{file}: is not JSON: {error}") from None
    if not isinstance(table, Mapping):
        raise TagWordsError(f"{file}: expected an object of tags with lists of phrases")
    found: dict[str, list[str]] = {}
    for tag, phrases in table.items():
        listed = isinstance(phrases, list) and phrases
        if not listed or not all(isinstance(p, str) and _phrase(p) for p in phrases):
            raise TagWordsError(
                f"{file}: {tag!r} has {phrases!r:.60}, expected a list of phrases"
            )
        if _key(tag) in found:
            raise TagWordsError(f"{file}: {tag!r} is there twice")
        found[_key(tag)] = phrases
    return found
