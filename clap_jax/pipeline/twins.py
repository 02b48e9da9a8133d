"""Twins: a clip whose sections change places, and the caption that is true of it.

A twin is a pair like any other. Beside its original it is the hardest of negatives, in
both directions: the same sounds and the same sentences, but not in the same order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax.audio import io
from clap_jax.pipeline import order
from clap_jax.pipeline.exclude import SomeSource
from clap_jax.text import sections as text_sections
from clap_jax.text import sentences

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

FADE_SECONDS = 0.01
SLACK_SECONDS = 1.0
"""So much later than the end of the sound may a section end."""

Spans = Sequence[tuple[float, float]]


class Turned(NamedTuple):
    """How a clip becomes its twin.

    order: which section comes at each place; spans: begin and end of those of the clip,
    in seconds, or in percent of it; captions: true of the twin; which: the places, among
    the clip's, of those that they were made of.
    """

    order: list[int]
    spans: Spans
    percent: bool
    captions: list[str]
    which: list[int]


class TwinsSource(SomeSource):
    """Every clip of a source, and behind each its twin: 2 i and 2 i + 1.

    With `data.read_together = 2` both come into one batch, but where its edge divides
    the 16 clips that are then shuffled among each other (`order.POOL_BLOCKS`): most of
    them where batches are larger.
    Sections are those that captions name with their times ("From 0:30 to 1:10 ..."), or
    that the source knows of (`sections(index)`), where a caption has a sentence for each.
    What lies between, before and behind sections stays where it is. The order is drawn
    by the clip's id, once, from all but the clip's own; of several captions the twin has
    those that agree about the times.
    A clip without a twin stands twice, as a positive of itself: fewer than two sections,
    sections that overlap, times that cannot be moved ("the first 20%") or mean something
    only beside the length of the sound ("[1:30]" to the end; seconds and percent).

    longest_seconds: clips with sections beyond are none either: where training hears a
        part of them, drawn anew for each, the two parts need not have the same sections.

    Twins of clips whose sections end more than a second after the sound are damaged
    clips (AudioError). Raises ValueError for a source of features, which have no sound.
    """

    def __init__(self, source: "Source", longest_seconds: float = math.inf):
        if getattr(source, "features_width", 0):
            raise ValueError(
                f"source {source.name!r}: twins: its clips are features, expected sound"
            )
        places = np.repeat(np.arange(len(source)), 2)
        super().__init__(source, places, "each with its sections in another order too")
        self._longest_seconds = longest_seconds

    def __getattr__(self, name: str) -> Any:
        if name in ("sections", "generated", "audio_path"):  # not true of a twin
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        found = super().__getattr__(name)
        return self._weights if name == "caption_weights" else found

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip as the source gives it, or its twin."""
        return self._example(index, super().__getitem__(index))

    def _read(self, indices: Sequence[int]) -> list[Mapping[str, Any] | Exception]:
        found = []
        for index, example in zip(indices, super()._read(indices), strict=True):
            try:
                if isinstance(example, Mapping):
                    example = self._example(index, example)
            except io.AudioError as error:
                example = error
            found.append(example)
        return found

    def _example(self, index: int, example: Mapping[str, Any]) -> dict[str, Any]:
        turned, name = self._turned(index), self.id(index)
        if turned is None:
            return {**example, "id": name}
        wave, rate_hz = io.read(example["audio"], name)
        spans = np.array(turned.spans, float)
        if turned.percent:
            spans *= len(wave) / rate_hz / 100
        wave = rearranged(wave, rate_hz, spans, turned.order, name)
        return {
            **example,
            "audio": (wave, rate_hz),
            "captions": turned.captions,
            "id": name,
            "group": self.group(index),
        }

    def _turned(self, index: int) -> Turned | None:
        """How a twin is made; None of an original, and where there is no twin."""
        if index % 2 == 0:
            return None
        own = self._own(index)
        known = getattr(self._source, "sections", lambda index: None)(own)
        captions = self._source.captions(own)
        found = turned(captions, known, self._source.id(own))
        if found and not found.percent and found.spans[-1][1] > self._longest_seconds:
            return None
        return found

    def _weights(self, index: int) -> list[float] | None:
        weights = self._source.caption_weights(self._own(index))
        found = self._turned(index)
        if weights is None or found is None:
            return weights
        kept = [weights[place] for place in found.which]
        total = sum(kept)
        return [weight / total for weight in kept] if total else None

    def captions(self, index: int) -> list[str]:
        """Captions of a clip, or those that are true of its twin."""
        found = self._turned(index)
        return super().captions(index) if found is None else found.captions

    def group(self, index: int) -> str:
        """A twin is no positive of its original, nor of other twins."""
        own = super().group(index)
        return own if self._turned(index) is None else f"{own}, as {self.id(index)}"

    def id(self, index: int) -> str:
        """What the clip is called."""
        return f"{super().id(index)}{', twin' if index % 2 else ''}"

    def digest(self) -> str:
        """Short hex of the source's own, with twins."""
        return order.digest([self._source.digest(), "twins"])


def turned(
    captions: Sequence[str],
    known: Sequence[tuple[float, float, str]] | None,
    seed: str,
) -> Turned | None:
    """How a clip with these captions becomes its twin, or None where there is none.

    known: begin and end in seconds and the words of each section, which are sentences of
    captions that do not themselves say when; None: as the captions say. seed: what the
    order is drawn by.
    """
    found: Turned | None = None
    for place, caption in enumerate(captions):
        parts, percent = timed(caption)
        if not text_sections.parse(caption) and known and _told(caption, known):
            parts = known
        if len(parts) < 2 or (found and not _agree(found, parts, percent)):
            continue
        if found is None:
            way = another(_generator(seed), len(parts))
        try:
            # Times in percent are of any length: of 100 s they are the seconds.
            words, _ = text_sections.reordered(caption, parts, way, 100.0)
        except ValueError:
            continue
        if words == caption:
            continue
        if found is None:
            spans = [(begin, end) for begin, end, _ in parts]
            found = Turned(way, spans, percent, [], [])
        found.captions.append(words)
        found.which.append(place)
    return found


def timed(caption: str) -> tuple[list[tuple[float, float, str]], bool]:
    """The sections that a caption names with times, and whether these are in percent.

    [] where they depend on the length of the sound in another way.
    """
    parts, twice = (text_sections.timed(caption, seconds) for seconds in (100.0, 200.0))
    if parts == twice:
        return parts, False
    doubled = sorted((2 * begin, 2 * end, words) for begin, end, words in parts)
    return (parts, True) if doubled == twice else ([], False)


def _told(caption: str, known: Sequence[tuple[float, float, str]]) -> bool:
    """Whether a caption has a sentence for each section, its very words."""
    said = {caption[begin:end].strip() for begin, end in sentences.split(caption)}
    return {words.strip() for _, _, words in known} <= said


def _generator(seed: str) -> np.random.Generator:
    return np.random.default_rng(list(seed.encode("utf-8", "surrogatepass")))


def _agree(found: Turned, parts: Sequence[tuple], percent: bool) -> bool:
    """Whether sections are, to a second or one in a hundred, where they were found."""
    if percent != found.percent or len(parts) != len(found.spans):
        return False
    return bool(np.allclose([p[:2] for p in parts], found.spans, rtol=0, atol=1.0))


def rearranged(
    wave: np.ndarray,
    rate_hz: float,
    spans: np.ndarray | Spans,
    order: Sequence[int],
    name: str = "a clip",
) -> np.ndarray:
    """A wave, float32 [t], whose sections come in another order.

    spans: begin and end of each in seconds, sorted, without overlaps. order: which of
    them comes at each place. Where waves meet they fade within 10 ms. Raises AudioError,
    which calls the clip by `name`, for sections beyond its end.
    """
    seconds = len(wave) / rate_hz
    last = max(end for _, end in spans)
    if last > seconds + SLACK_SECONDS or max(begin for begin, _ in spans) >= seconds:
        raise io.AudioError(
            f"{name}: a section ends at {last:g} s, the sound at {seconds:.1f} s: "
            "correct the caption"
        )
    edges = np.minimum(np.rint(np.float64(spans) * rate_hz).astype(int), len(wave))
    parts = [wave[: edges[0, 0]]]
    for slot, which in enumerate(order):
        parts.append(wave[slice(*edges[which])])
        following = edges[slot + 1, 0] if slot + 1 < len(edges) else len(wave)
        parts.append(wave[edges[slot, 1] : following])
    ramp = np.linspace(0, 1, max(int(FADE_SECONDS * rate_hz), 2), dtype=np.float32)
    parts = [_faded(part, ramp) for part in parts if len(part)]
    return np.concatenate(parts)


def another(rng: np.random.Generator, count: int) -> list[int]:
    """An order of 0 ... count - 1, not that one; count > 1."""
    while True:
        order = rng.permutation(count).tolist()
        if order != sorted(order):
            return order


def _faded(part: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    faded = np.array(part, np.float32)
    length = min(len(ramp), len(faded))
    faded[:length] *= ramp[:length]
    faded[-length:] *= ramp[:length][::-1]
    return faded
