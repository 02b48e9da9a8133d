"""Captions of clips from a captioner: what it is told of each, and what it says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clap_jax.evals.encode import ModelEncoder
from clap_jax.evals.hear import Heard
from clap_jax.models import captioner, decode
from clap_jax.pipeline import tags as tags_lib
from clap_jax.text.answers import Writer

# Seeds are 32 bits.
SEEDS = 2**32


class Caption(NamedTuple):
    """What was written of a clip.

    score: the sum of the log-probabilities of its tokens over their number to the power
    alpha (see `models.decode_options.Options`).
    """

    text: str
    score: float


class Captioning:
    """Writes captions with one set of variables, always in the same way.

    Args:
        encoder: of a captioner, with variables.
        method: "greedy", "beam" or "sample"; count: captions a clip.
        options: as `models.captioner.decoding` takes them.

    Raises:
        ValueError: a model without tokenizer, an unknown option, values that mean
            nothing.
    """

    def __init__(
        self,
        encoder: ModelEncoder,
        method: str = "beam",
        count: int = 1,
        options: Mapping[str, Any] | None = None,
    ):
        tokenizer = getattr(encoder.tokenizer, "found", encoder.tokenizer)
        if tokenizer is None:
            raise ValueError(f"{encoder.spec.name} has no tokenizer to write with")
        self._encoder, self._writer = encoder, Writer(tokenizer)
        self.options: decode.Options = captioner.decoding(
            encoder.spec,
            method,
            count,
            end_id=self._writer.ending[0],
            pad_id=tokenizer.pad_id,
            options=options,
        )

    def told(
        self,
        clip: Heard,
        draw: tuple[int, int],
        tags: Sequence[str] | np.ndarray | None,
    ) -> Heard:
        """A clip with what else the captioner is told.

        draw: a seed and a number, from which sampling draws. tags: of a guided
        captioner, as `pipeline.tags.row` takes them; others are not told any.
        Raises ValueError: tags that it does not know.
        """
        more = {"draw": np.array([draw], np.uint32)}
        spec = self._encoder.spec
        if spec.is_guided:
            width = spec.decoder.options["tags"]
            more["tags"] = tags_lib.row(tags, spec.tag_names, width)[None]
        return Heard(clip.pieces | more, clip.seconds)

    def write(self, clips: Iterable[tuple[int, Heard]]) -> dict[int, list[Caption]]:
        """Captions of numbered clips that have been `told`, best first, by number.

        A beam search on a small vocabulary may find fewer than were asked for.
        """
        found = self._encoder.write_captions(clips, self.options)
        return {number: self._read(captions) for number, captions in found.items()}

    def _read(self, captions: decode.Captions) -> list[Caption]:
        rows = zip(captions.ids, captions.lengths, captions.scores, strict=True)
        return [
            Caption(self._writer.read(ids[:length]), float(score))
            for ids, length, score in rows
            if length
        ]
