"""Questions and answers of a training batch, from templates and what clips are known by."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax.text.answers import Template, Writer

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


def check(what: str, source: "Source", template: Template) -> None:
    """Raise ValueError, beginning with `what`, for a clip that cannot be asked."""
    for clip in range(len(source)):
        problem = template.problem(source.tags(clip), source.captions(clip))
        if problem:
            raise ValueError(
                f"{what}: clip {clip} ({source.id(clip)}) of source '{source.name}' "
                f"{problem}, which the task '{template.name}' needs"
            )


def texts(source: "Source", template: Template) -> Iterator[str]:
    """Every prompt and answer of a source, for a tokenizer to learn from."""
    for clip in range(len(source)):
        captions = source.captions(clip)
        each = captions if template.places - {"tags"} else captions[:1]
        for caption in each or ("",):
            for prompt in template.prompts:
                own = template._replace(prompts=(prompt,))
                yield " ".join(own.write(source.tags(clip), [caption])).strip()


class Answers:
    """What a training batch says of answers, in the place of captions.

    templates: of each source, in their order. writer: makes tokens; None where nothing
    is read. length: L, tokens of prompt and answer together.

    A row has `ids` int32 [L], `mask` bool [L] and `answer` bool [L]; see
    `text.answers.Rows`.
    """

    def __init__(
        self, templates: Sequence[Template], writer: Writer | None, length: int
    ):
        self._templates, self._writer = tuple(templates), writer
        self._length = length

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape (of one row) and dtype of each, by their names in a batch."""
        shape = (self._length,)
        return {
            "ids": (shape, np.dtype(np.int32)),
            "mask": (shape, np.dtype(bool)),
            "answer": (shape, np.dtype(bool)),
        }

    def blank(self, rows: int) -> dict[str, np.ndarray]:
        """Zeros for so many rows."""
        return {
            name: np.zeros((rows, *shape), dtype)
            for name, (shape, dtype) in self.fields.items()
        }

    def put(
        self,
        batch: dict[str, Any],
        row: int,
        which: int,
        tags: Sequence[str],
        captions: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        """Write prompt and answer for a clip of source number `which` into a row."""
        pair = self._templates[which].write(tags, captions, rng)
        found = self._writer([pair])
        for name, value in found._asdict().items():
            batch[name][row] = value[0]
