"""Captions of clips from a captioner: what it is told of each, and what it says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax.evals.encode import ModelEncoder
from clap_jax.evals.hear import Heard
from clap_jax.models import captioner, decode, decode_options
from clap_jax.pipeline import guides
from clap_jax.pipeline import tags as tags_lib
from clap_jax.pipeline.tags import TagRule
from clap_jax.text.answers import Writer

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

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

    @property
    def blank(self) -> dict[str, np.ndarray]:
        """What a clip is `told`, when it is nothing."""
        found = {"draw": np.zeros(2, np.uint32)}
        spec = self._encoder.spec
        if spec.is_guided:
            found["tags"] = np.zeros(spec.decoder.options["tags"], np.float32)
        return found

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
        found = self._encoder.write_captions(clips, self.options, self.blank)
        return {number: self._read(captions) for number, captions in found.items()}

    def losses(
        self,
        clips: Iterable[tuple[int, Heard]],
        texts: Mapping[int, Sequence[str]],
        most: int,
    ) -> dict[int, tuple[float, int]]:
        """How unlikely people's captions of numbered clips are: the sum of the negative
        log-likelihoods of their tokens and endings, and how many these are, by number.

        clips: `told`. texts: the captions of each, `most` at most.
        """
        size = (most, self._writer.length)
        blank = {"ids": np.zeros(size, np.int32), "own": np.zeros(size, bool)}
        shown = []
        for number, clip in clips:
            rows = self._writer([("", text) for text in texts[number]])
            own = {name: values.copy() for name, values in blank.items()}
            own["ids"][: len(rows.ids)], own["own"][: len(rows.ids)] = (
                rows.ids,
                rows.mask,
            )
            more = {name: values[None] for name, values in own.items()}
            shown.append((number, Heard(clip.pieces | more, clip.seconds)))
        found = self._encoder.caption_losses(shown, self.blank | blank)
        return {
            number: (float(losses.sum()), self._tokens(texts[number]))
            for number, losses in found.items()
        }

    def _tokens(self, texts: Sequence[str]) -> int:
        """Tokens of captions, with their endings."""
        return int(self._writer([("", text) for text in texts]).mask.sum())

    def _read(self, captions: decode.Captions) -> list[Caption]:
        rows = zip(captions.ids, captions.lengths, captions.scores, strict=True)
        return [
            Caption(self._writer.read(ids[:length]), float(score))
            for ids, length, score in rows
            if length
        ]


class OfSource(NamedTuple):
    """What a captioner made of the n clips of a source.

    texts: the best caption of each. kept: bool [n], which could be read. losses:
    float64 [n, 2], of people's captions of each the sum over tokens and their number; None if unknown.
    said: how, for a protocol.
    """

    texts: list[str]
    kept: np.ndarray
    losses: np.ndarray | None
    said: dict[str, Any]


def of_source(
    encoder: ModelEncoder,
    source: "Source",
    references: Sequence[Sequence[str]],
    decoding: Mapping[str, Any] | None = None,
    tags: str | Sequence[str] = guides.SOURCE,
    tag_rule: str = "0.3_top5",
) -> OfSource:
    """Captions of all clips of a source by an encoder of a captioner with variables.

    Args:
        references: people's captions of each clip.
        decoding: method, and whatever else `Captioning` takes as options.
        tags, tag_rule: where the tags of a guided captioner come from, as
            `config.task.tags` and `config.task.tag_rule`.

    Raises:
        ValueError: a model that is no captioner; what `Captioning` and `Guides` raise.
    """
    spec = getattr(encoder, "spec", None)
    if not hasattr(spec, "captioner"):
        raise ValueError(
            "captions: the model writes none, and no other writer is given: expected a "
            "captioner, or `write`"
        )
    options = dict(decoding or {})
    method = options.pop("method", "beam")
    captioning = Captioning(encoder, method, options=options)
    said = {"decoding": decode_options.described(captioning.options)}
    guide = None
    if spec.is_guided:
        rule = TagRule.parse(tag_rule)
        soft = spec.decoder.options["guide"] == "keyword"
        guide = guides.Guides(tags, spec.tag_names, rule=rule, soft=soft)
        guide.report(source)
        said["tags"] = tags
    texts, kept = [""] * len(source), np.zeros(len(source), bool)
    losses, most = np.zeros((len(source), 2)), max(map(len, references))
    for clips in encoder.middles(source):
        told = [
            (
                number,
                captioning.told(clip, (0, number), guide and guide.of(source, number)),
            )
            for number, clip in clips
        ]
        for number, captions in captioning.write(told).items():
            texts[number], kept[number] = captions[0].text if captions else "", True
        known = dict(enumerate(references))
        for number, pair in captioning.losses(told, known, most).items():
            losses[number] = pair
    return OfSource(texts, kept, losses, said)
