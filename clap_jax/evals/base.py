"""What an evaluator sees and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:  # at run time it would import jax, which reports do without
    from clap_jax.pipeline.sources import Source

# Embeddings are unit vectors; half-precision towers still normalise in float32.
NORM_TOLERANCE = 1e-2

FUSED_SCORE = "the model's own, of whole clips and texts and of attention over segments"
"""What a protocol says of comparing clips and texts by `encode_pairs`."""


class Encoder(Protocol):
    """A model as an evaluator sees it."""

    scale: float
    """The factor between a cosine and the model's score."""

    def audio(self, source: "Source") -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [n, E] of unit length, and which clips could be read.

        The second array is bool [n]; rows where it is False are ignored.
        """

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [m, E] of unit length."""


class Remembering:
    """An encoder that hears each source once, for several evaluations of it."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._heard: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def audio(self, source: "Source") -> tuple[np.ndarray, np.ndarray]:
        """As `Encoder.audio`, for the same object once."""
        if hears_segments(self._encoder):
            song, kept = self.source_songs(source)
            return song.whole, kept
        return self._once(source, self._encoder.audio)

    def source_songs(self, source: "Source") -> tuple[Any, np.ndarray]:
        """As `ModelEncoder.source_songs`, for the same object once."""
        return self._once(source, self._encoder.source_songs)

    def _once(self, source: "Source", hear: Callable[["Source"], Any]) -> Any:
        if id(source) not in self._heard:
            # With the source, so that its id is of no other while this lives.
            self._heard[id(source)] = source, hear(source)
        return self._heard[id(source)][1]


@dataclass(frozen=True)
class Miss:
    """A wrong answer, for people to read and hear.

    Attributes:
        direction: "t2a" (the query is a caption), "a2t" (a clip), "" (a clip whose
            class is asked for), or "written" (a clip that was answered in words).
        clip: position in the source of the clip that the question is about.
        truth: what is right: its caption, its class or classes, or the answer.
        found: what the model put first, a caption or a class; or what it wrote.
        found_clip: position of the clip that was put first, or that `found` describes;
            None where the answer is a class, or was written.
        rank: of the best right answer, from 1; None where it was written.
        similarity: of the query with that answer; of what was written with what is right.
        found_similarity: of the query with what was put first; None where that was
            written.
        score: what a similarity is.
    """

    direction: str
    clip: int
    truth: str
    found: str
    found_clip: int | None
    rank: int | None
    similarity: float
    found_similarity: float | None
    score: str = "cosine"


@dataclass(frozen=True)
class Written:
    """A caption that was written of a clip, for people to read and hear.

    Attributes:
        clip: position in the source.
        caption: as it was written.
        references: what people wrote of the clip.
        scores: metric -> its value for this clip.
    """

    clip: int
    caption: str
    references: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        metrics: name -> number; shares are between 0 and 1.
        arrays: what plots need: `similarity`, `recall_t2a`, `recall_a2t`, `confusion`,
            `average_precision`, `prompt_scores`.
        labels: names that belong to the axes of arrays: `captions`, `classes`,
            `prompts`.
        protocol: how the numbers were made (source, number of clips and captions,
            templates, ...), so that they can be compared with others; JSON values only.
        intervals: metric -> (low, high), in which it lies with 95 % confidence
            (`clap_jax.evals.bootstrap`); counts have none.
        misses: the worst answers, worst first.
        per_clip: metric -> float64 [n, 2], what each clip adds to the sum and to the
            count of a metric that is a mean over queries: the quotient of the two sums
            is the metric.
        clips: positions int64 [n] in the source of the clips that were asked about and
            could be read, in the order of `per_clip`.
        parts: int64 [n], the part that each of these was tested in, where the metrics
            are means over parts; None where they are not.
        written: captions that the model wrote, worst first.
    """

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    misses: tuple[Miss, ...] = ()
    per_clip: dict[str, np.ndarray] = field(default_factory=dict)
    clips: np.ndarray | None = None
    parts: np.ndarray | None = None
    written: tuple[Written, ...] = ()


def hears_segments(encoder: Encoder) -> bool:
    """Whether clips and texts are more than a vector each, see `encode_pairs`."""
    return getattr(encoder, "hears_segments", False)


def encode_audio(
    encoder: Encoder, source: "Source", unit: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the clips that could be read.

    Args:
        unit: whether the encoder gives vectors of length one.

    Returns:
        float32 [k, E] and the positions int64 [k] of these clips in the source.

    Raises:
        ValueError: wrong number of rows, no clip could be read, an embedding is not
            finite or not of unit length.
    """
    embeddings, kept = encoder.audio(source)
    embeddings, kept = np.asarray(embeddings), np.asarray(kept, bool)
    if embeddings.ndim != 2 or not len(embeddings) == len(kept) == len(source):
        raise ValueError(
            f"source '{source.name}' has {len(source)} clips, but the encoder returned "
            f"embeddings of shape {embeddings.shape} and {len(kept)} kept flags"
        )
    clips = np.flatnonzero(kept)
    if not len(clips):
        raise ValueError(
            f"source '{source.name}': none of its {len(source)} clips could be read, "
            "so there is nothing to evaluate"
        )
    what = f"audio of source '{source.name}'"
    checked = _unit if unit else _finite
    return checked(embeddings[clips], what, clips), clips


def encode_text(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts, float32 [m, E]; a text that repeats is encoded once.

    Equal texts so get equal embeddings even where the place in a batch changes the last
    bits, and tie exactly.

    Raises:
        ValueError: wrong number of rows, an embedding is not finite or not of unit
            length.
    """
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    embeddings = np.asarray(encoder.text(list(place)))
    if embeddings.ndim != 2 or len(embeddings) != len(place):
        raise ValueError(
            f"the encoder returned embeddings of shape {embeddings.shape} for "
            f"{len(place)} texts"
        )
    rows = _unit(embeddings, "texts", np.arange(len(place)))
    return rows[[place[text] for text in texts]]


def encode_pairs(
    encoder: Encoder, source: "Source", clips: np.ndarray, texts: Sequence[str]
) -> np.ndarray:
    """How alike an encoder that hears segments finds clips and texts: its score over
    `scale`, float32 [m, n] by text. clips: positions in the source."""
    song, _ = encoder.source_songs(source)
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    story = encoder.stories(list(places))
    found = encoder.compare(type(song)(*(x[clips] for x in song)), story)
    rows = found[:, [places[text] for text in texts]].T / np.float32(encoder.scale)
    return _finite(rows, "texts", np.arange(len(texts)))


def _finite(embeddings: np.ndarray, what: str, positions: np.ndarray) -> np.ndarray:
    """`embeddings` as float32 after a check; errors name a position."""
    embeddings = embeddings.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(embeddings)} embeddings of {what} are not finite "
            f"(NaN or infinite), the first at index {positions[broken[0]]}: has the "
            "training diverged?"
        )
    return embeddings


def _unit(embeddings: np.ndarray, what: str, positions: np.ndarray) -> np.ndarray:
    """As `_finite`; rows are of length one too."""
    embeddings = _finite(embeddings, what, positions)
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
    if len(wrong):
        raise ValueError(
            f"embeddings of {what} must have length 1, found {norms[wrong[0]]:.4g} at "
            f"index {positions[wrong[0]]}"
        )
    return embeddings
