"""How good the captions are that a model writes of clips it has not heard."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, caption_scores
from clap_jax.evals.base import Encoder, Result, Written, encode_audio, encode_text
from clap_jax.evals.caption_scores import Scores
from clap_jax.pipeline.guides import SOURCE

if TYPE_CHECKING:
    from clap_jax.evals.captioning import OfSource
    from clap_jax.pipeline.sources import Source

Write = Callable[["Source"], tuple[Sequence[str], np.ndarray]]
"""Writes a caption for each clip of a source, in order, and says which clips could be
read, bool [n]; the captions of the others are ignored."""

EXAMPLES = 12
"""So many captions are kept for people to read, from the worst to the best."""


class Captions:
    """Holds written captions against those of people.

    Metrics: of the model itself `loss`, the mean cross entropy of the tokens of people's
    captions, each after the true ones before it; those of `caption_scores.measure`;
    `CLAP_score`, the mean cosine of a caption and its clip in a CLAP, and
    `CLAP_score_references`, the same of people's captions, which is what to compare it
    with; and `bad_clips`, left out because they could not be read. What cannot be had stands in the protocol under `absent`, with
    what would help. Means over clips have intervals.
    """

    def __init__(
        self,
        source: "Source",
        write: Write | None = None,
        clap: Encoder | None = None,
        sentence_model: str | Path = "",
        training_captions: str | Path | Sequence[str] = (),
        tokenizer: str = "auto",
        decoding: str | Mapping[str, Any] = "",
        tags: str | Sequence[str] = SOURCE,
        tag_rule: str = "0.3_top5",
        draws: int = bootstrap.DRAWS,
    ):
        """Reads all captions, so that a bad source fails before any training.

        Args:
            source: clips with captions, the references.
            write: what writes; by default the captioner that is run.
            clap: of the CLAP score; by default the encoder that is run, if it is a pair
                of towers.
            sentence_model: id or folder of a sentence-BERT; "" for no similarity.
            training_captions: what the captioner was trained on: captions, or a table as
                `data.sources` takes it.
            tokenizer: a name of `caption_scores.TOKENIZERS`.
            decoding: how `write` finds its captions, for the protocol; without `write`,
                the captioner's method and options, such as {"method": "beam",
                "beams": 3} (see `models.captioner.decoding`).
            tags, tag_rule: where the tags of a guided captioner come from; see
                `captioning.of_source`.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: empty source, a clip with no or an empty caption, unknown
                tokenizer.
        """
        if not len(source):
            raise ValueError(f"captions: source '{source.name}' has no clips")
        if tokenizer not in caption_scores.TOKENIZERS:
            known = caption_scores.TOKENIZERS
            raise ValueError(config_lib.unknown("tokenizer", tokenizer, known))
        self.source, self.write, self.clap = source, write, clap
        self.sentence_model, self.tokenizer = sentence_model, tokenizer
        self.decoding, self.draws = decoding, draws
        self.tags, self.tag_rule = tags, tag_rule
        self.references = [list(source.captions(clip)) for clip in range(len(source))]
        for clip, own in enumerate(self.references):
            if not own or not all(text.strip() for text in own):
                what = "an empty caption" if own else "no caption"
                raise ValueError(
                    f"captions: clip {clip} of source '{source.name}' has {what}"
                )
        self.training = _training(training_captions)

    def run(self, encoder: Encoder) -> Result:
        """Has every clip captioned, and measures.

        Returns:
            Metrics as above. `per_clip` and `intervals` of those that are means over
            clips; `written`, the captions of some clips.

        Raises:
            ValueError: a model that does not write, another number of captions than
                clips, no clip could be read, embeddings are not finite.
        """
        own = self._own(encoder)
        texts, clips = self._written(own)
        clap = self.clap if self.clap is not None else encoder
        missing = _clap_problem(clap)
        if not missing:
            za, heard = encode_audio(clap, self.source)
            both = np.isin(clips, heard)
            texts = [text for text, kept in zip(texts, both) if kept]
            clips, za = clips[both], za[np.isin(heard, clips[both])]
        references = [self.references[clip] for clip in clips]
        found = caption_scores.measure(
            texts, references, self.tokenizer, self.sentence_model, self.training
        )
        if missing:
            found.absent["CLAP_score"] = missing
        else:
            _add_clap_scores(found, clap, za, texts, references)
        if own.losses is not None:
            total, count = own.losses[clips].sum(axis=0)
            found.metrics["loss"] = float(total / count)
        return Result(
            metrics={
                **found.metrics,
                "bad_clips": float(len(self.source) - len(clips)),
            },
            protocol=self._says(found, references) | own.said,
            intervals=bootstrap.intervals(
                len(clips),
                lambda weights: {
                    name: bootstrap.means(values, weights)
                    for name, values in found.per_clip.items()
                },
                self.draws,
            ),
            per_clip={
                name: np.stack([values, np.ones(len(clips))], axis=1)
                for name, values in found.per_clip.items()
            },
            clips=clips,
            written=_examples(found, clips, texts, references),
        )

    def _own(self, encoder: Encoder) -> "OfSource":
        """What is written of the clips."""
        from clap_jax.evals import captioning  # at first use: it takes JAX

        if self.write is not None:
            said = {"decoding": self.decoding} if self.decoding else {}
            return captioning.OfSource(*self.write(self.source), None, said)
        return captioning.of_source(
            encoder,
            self.source,
            self.references,
            self.decoding or None,
            self.tags,
            self.tag_rule,
        )

    def _written(self, own: "OfSource") -> tuple[list[str], np.ndarray]:
        """The captions of the clips that could be read, and these clips, int64 [n]."""
        texts, kept = own.texts, np.asarray(own.kept, bool)
        if not len(texts) == len(kept) == len(self.source):
            raise ValueError(
                f"captions: source '{self.source.name}' has {len(self.source)} clips, "
                f"but {len(texts)} captions and {len(kept)} kept flags were written"
            )
        clips = np.flatnonzero(kept)
        if not len(clips):
            raise ValueError(
                f"captions: none of the {len(kept)} clips of source "
                f"'{self.source.name}' could be read"
            )
        return [" ".join(texts[clip].split()) for clip in clips], clips

    def _says(
        self, found: Scores, references: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        counts = [len(own) for own in references]
        fewest, most = min(counts), max(counts)
        said = {
            "kind": "captions",
            "source": self.source.name,
            "clips": len(counts),
            "captions": sum(counts),
            "captions_per_clip": f"{fewest} to {most}" if fewest < most else f"{most}",
            "tokenizer": found.tokenizer,
            "intervals": bootstrap.describe(self.draws),
        }
        if "sentence_similarity" in found.metrics:
            said["sentence_model"] = str(self.sentence_model)
        if self.training:
            said["training_captions"] = len(self.training)
        if found.absent:
            said["absent"] = caption_scores.described(found.absent)
        return said


def _training(captions: str | Path | Sequence[str]) -> list[str]:
    """The captions of a table, or those that are given."""
    if not isinstance(captions, str | Path):
        return list(captions)
    from clap_jax.pipeline import sources

    section = sources.section(str(captions)) | {"check_files": False}
    source = sources.build_source(section.pop("kind"), "training captions", section)
    return [text for clip in range(len(source)) for text in source.captions(clip)]


def _clap_problem(encoder: Encoder) -> str:
    """Why a model cannot tell how well texts fit sounds, "" if it can."""
    spec = getattr(encoder, "spec", None)
    if not hasattr(encoder, "text") or hasattr(spec, "captioner"):
        return "the model is no CLAP: give one as `clap`"
    return ""


def _add_clap_scores(
    found: Scores,
    clap: Encoder,
    za: np.ndarray,
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
) -> None:
    """Cosines of clips with what was written of them, and with what people wrote.

    Where nothing was written it is 0: not every text tower can read an empty text.
    """
    flat = [text for own in references for text in own]
    zt = encode_text(clap, [text or flat[0] for text in (*texts, *flat)])
    zt = zt.astype(np.float64)
    zt[: len(texts)] *= np.array([bool(text) for text in texts])[:, None]
    clip_of = np.repeat(np.arange(len(texts)), [len(own) for own in references])
    cosines = (zt[len(texts) :] * za[clip_of]).sum(axis=1)
    found.per_clip["CLAP_score"] = (zt[: len(texts)] * za).sum(axis=1)
    sums, counts = np.bincount(clip_of, cosines), np.bincount(clip_of)
    found.per_clip["CLAP_score_references"] = sums / counts
    for name in ("CLAP_score", "CLAP_score_references"):
        found.metrics[name] = float(found.per_clip[name].mean())


_RANKED_BY = ("SPIDEr", "CIDEr_D", "CLAP_score", "sentence_similarity")
_SHOWN = (*_RANKED_BY, "ROUGE_L")


def _examples(
    found: Scores,
    clips: np.ndarray,
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
) -> tuple[Written, ...]:
    """Captions at even distances from the worst to the best, by the first metric of
    `_RANKED_BY` that there is."""
    order = np.arange(len(clips))
    for name in _RANKED_BY:
        if name in found.per_clip:
            order = np.argsort(found.per_clip[name], kind="stable")
            break
    places = np.linspace(0, len(clips) - 1, min(EXAMPLES, len(clips))).round()
    return tuple(
        Written(
            clip=int(clips[row]),
            caption=texts[row],
            references=tuple(references[row]),
            scores={
                name: float(found.per_clip[name][row])
                for name in _SHOWN
                if name in found.per_clip
            },
        )
        for row in order[places.astype(int)]
    )
