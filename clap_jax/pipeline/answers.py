"""Questions and answers of a training batch, from templates and what clips are known by."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clap_jax.pipeline.ops import draw_caption
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
    is read. length: L, tokens of prompt and answer together, at most.

    A row has `ids` int32 [L], `mask` bool [L] and `answer` bool [L]; see
    `text.answers.Rows`.
    """

    def __init__(
        self, templates: Sequence[Template], writer: Writer | None, length: int
    ):
        self._templates, self.writer = tuple(templates), writer
        self._length = length

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape (of one row of full length) and dtype of each, by their names."""
        shape = (self._length,)
        return {
            "ids": (shape, np.dtype(np.int32)),
            "mask": (shape, np.dtype(bool)),
            "answer": (shape, np.dtype(bool)),
        }

    def draw(
        self, which: int, source: "Source", clip: int, rng: np.random.Generator
    ) -> tuple[str, str]:
        """A prompt, and the answer for a clip of `source`, which is number `which`.

        The caption is drawn as in contrastive runs, as likely as its source says.
        """
        template, captions = self._templates[which], []
        if template.places - {"tags"}:
            captions.append(draw_caption(source, clip, rng))
        return template.write(source.tags(clip), captions, rng)

    def beside(
        self, source: "Source", clip: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """What else a row says of a clip, by name; drawn after its text."""
        return {}
