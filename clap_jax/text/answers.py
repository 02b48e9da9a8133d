"""Tasks as text: what a language model is asked about a clip, and what it answers.

Multi-task audio pretraining (Pengi, Deshmukh et al. 2023, arXiv 2305.11834; "HTSAT-22"
of MS-CLAP 2023, arXiv 2309.05767) writes the answer of every task as text. The tasks are
data, in `assets/tasks.json`: for each its prompts, how the answer is made, and where
that comes from. Prompts and answers have places for what is known of a clip:

    {tags}      its labels as people write them, joined by ", "
    {caption}   one of its captions
    {question}  and {reply}: of a caption such as "is a dog barking? yes", what stands
                before and behind its first question mark
"""

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax.text.prompts import class_name
from clap_jax.text.tokenize import Tokenizer

PLACES = ("tags", "caption", "question", "reply")
_PLACE = re.compile(r"\{(.*?)\}")


class Template(NamedTuple):
    """One task: its name, its prompts, its answer, and where these come from."""

    name: str
    prompts: tuple[str, ...]
    answer: str
    source: str

    @property
    def places(self) -> set[str]:
        """What has to be known of a clip."""
        return {place for text in self._texts for place in _PLACE.findall(text)}

    @property
    def _texts(self) -> tuple[str, ...]:
        return (*self.prompts, self.answer)

    def write(
        self,
        tags: Sequence[str],
        captions: Sequence[str],
        rng: np.random.Generator | None = None,
    ) -> tuple[str, str]:
        """Prompt and answer for a clip: one of the prompts and one of the captions,
        drawn from `rng`; without it the first."""

        def pick(texts: Sequence[str]) -> str:
            return texts[0 if rng is None else rng.integers(len(texts))]

        prompt, known = pick(self.prompts), {}
        if self.places & {"tags"}:
            known["tags"] = ", ".join(class_name(tag) for tag in tags)
        if self.places - {"tags"}:
            known["caption"] = " ".join(pick(captions).split())
            question, _, reply = known["caption"].partition("?")
            known["question"], known["reply"] = question.strip() + "?", reply.strip()
        return _filled(prompt, known), _filled(self.answer, known)

    def problem(self, tags: Sequence[str], captions: Sequence[str]) -> str:
        """What keeps a clip from being asked, in words; "" where nothing does."""
        if "tags" in self.places and not any(class_name(tag) for tag in tags):
            return "has no tag"
        if self.places - {"tags"} and not captions:
            return "has no caption"
        if self.places & {"question", "reply"}:
            for caption in captions:
                question, _, reply = caption.partition("?")
                if not question.strip() or not reply.strip():
                    return (
                        f"has the caption {caption!r:.80}, expected a question, a "
                        "question mark and the reply"
                    )
        return ""


def _filled(text: str, known: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: known[found[1]], text)


def template(name: str, prompts: Sequence[str], answer: str, source: str) -> Template:
    """A checked `Template`.

    Raises ValueError for no prompt, an empty answer, and places that do not exist.
    """
    made = Template(name, tuple(prompts), answer, source)
    if not made.prompts or not answer.strip():
        raise ValueError(
            f"task {name!r} needs a prompt (it may be empty) and an answer"
        )
    for place in sorted(made.places - set(PLACES)):
        problem = config_lib.unknown("place in a text", place, PLACES)
        raise ValueError(f"task {name!r}: {problem}")
    return made


@functools.cache
def tasks() -> dict[str, Template]:
    """All tasks of `assets/tasks.json`, by name."""
    file = resources.files("clap_jax.text") / "assets" / "tasks.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {name: template(name, **entry) for name, entry in found.items()}


def task(name: str) -> Template:
    """A task by its name. ValueError with the names that come close."""
    if name not in tasks():
        raise ValueError(config_lib.unknown("task of a source", name, tasks()))
    return tasks()[name]


class Rows(NamedTuple):
    """Prompts and answers as tokens, L of each row.

    ids: int32 [n, L], prompt, answer, ending, padding. mask: bool [n, L], True where
    there is a token. answer: bool [n, L], True for the answer's tokens and its ending.
    """

    ids: np.ndarray
    mask: np.ndarray
    answer: np.ndarray


class Writer:
    """Prompts and answers to tokens of a language model, and its tokens to answers.

    Nothing begins a row (the sound does); what the tokenizer puts behind a text ends an
    answer: MS-CLAP's lone space and <|endoftext|>, or the </s> of one trained here. An
    answer is read up to the first of these tokens, as clapcap's captions are. An answer
    that is too long is cut, and has no ending then; a prompt takes half of L at most.
    Can be pickled. Raises ValueError for a tokenizer that does not say how a text ends.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.length = tokenizer, tokenizer.length
        self.ending = tokenizer.ending

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Rows:
        """Rows of (prompt, answer)."""
        size = (len(pairs), self.length)
        ids = np.full(size, self.tokenizer.pad_id, np.int32)
        mask, answer = np.zeros(size, bool), np.zeros(size, bool)
        for row, (prompt, text) in enumerate(pairs):
            asked = self.prompt(prompt)
            found = [*asked, *self.answer(text, bool(prompt))][: self.length]
            ids[row, : len(found)] = found
            mask[row, : len(found)] = True
            answer[row, len(asked) : len(found)] = True
        return Rows(ids, mask, answer)

    def count(self, pair: tuple[str, str]) -> int:
        """Tokens of a row, L at most."""
        return int(self([pair]).mask.sum())

    def shorter(self, length: int) -> "Writer":
        """The same writer, of rows with fewer tokens."""
        made = copy.copy(self)
        made.tokenizer, made.length = self.tokenizer.shorter(length), length
        return made

    def prompt(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        found = self.tokenizer.pieces(text) if text else []
        return found[: self.length // 2]

    def answer(self, text: str, behind_a_prompt: bool) -> list[int]:
        """Tokens of an answer with its ending; behind a prompt, and a space."""
        if not text.strip():
            raise ValueError(f"an answer is {text!r}, expected words")
        spaced = f" {text}" if behind_a_prompt else text
        return [*self.tokenizer.pieces(spaced), *self.ending]

    def read(self, ids: Sequence[int]) -> str:
        """The answer that a model has written, up to its end."""
        ids = [int(token) for token in ids]
        end = ids.index(self.ending[0]) if self.ending[0] in ids else len(ids)
        return self.tokenizer.text(ids[:end]).strip()
