"""Captions by template: "The sounds of A, B and C"."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clap_jax
from clap_jax import config as config_lib
from clap_jax.pipeline import order
from clap_jax.text import prompts
from data.caption.answers import Answer
from data.caption.clips import Clip

FILE = Path(__file__).with_name("templates.json")
KEYS = {"source", "one", "several"}


class TemplateError(ValueError):
    """Templates that cannot be used; says which and why."""


class Templates:
    """One of the sets of templates of a file.

    name: the set. file: JSON {name: {"one": [template for a clip with one label, ...],
        "several": [...], "source": "where from"}}; a template has one {}, for the label
        or for all labels as "A, B and C". Of several templates, a clip's id and `seed`
        decide which it gets.

    Raises TemplateError.
    """

    group = 1024

    def __init__(self, name: str = "laion", file: str | Path = FILE, seed: int = 0):
        sets = _read(Path(file).expanduser())
        if name not in sets:
            raise TemplateError(config_lib.unknown("set of templates", name, sets))
        self.name, self._seed = name, seed
        self._one, self._several = sets[name]["one"], sets[name]["several"]

    def __call__(self, clip: Clip) -> str:
        """The caption of a clip with one label or more."""
        names = clip.names
        several = len(names) > 1
        templates = self._several if several else self._one
        place = zlib.crc32(f"{self._seed}/{clip.id}".encode(errors="replace"))
        return prompts.render(templates[place % len(templates)], listed(names))

    def answers(self, clips: Iterable[Clip]) -> Iterator[Answer]:
        """A caption for every clip."""
        return (Answer(self(clip)) for clip in clips)

    def origin(self) -> dict[str, Any]:
        """The name of the set, and a digest of its templates."""
        digest = order.digest([self._one, self._several])
        return {
            "kind": "template",
            "model": self.name,
            "version": f"clap_jax {clap_jax.__version__}",
            "settings": {"templates": digest, "seed": self._seed},
        }


def listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence: "A", "A and B", "A, B and C"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _read(file: Path) -> dict[str, dict[str, list[str]]]:
    try:
        sets = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TemplateError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise TemplateError(f"{file}: is not JSON: {error}") from None
    if not isinstance(sets, Mapping) or not sets:
        raise TemplateError(f"{file}: expected an object with sets of templates")
    for name, templates in sets.items():
        if not isinstance(templates, Mapping) or not set(templates) <= KEYS:
            raise TemplateError(
                f"{file}: {name}: expected an object with {', '.join(sorted(KEYS))}"
            )
        for key in ("one", "several"):
            found = templates.get(key)
            if not isinstance(found, list) or not found:
                raise TemplateError(f"{file}: {name}: {key} is no list of templates")
            for template in found:
                try:
                    prompts.render(template, "label")
                except ValueError as error:
                    raise TemplateError(f"{file}: {name}: {error}") from None
    return sets
