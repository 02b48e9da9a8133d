"""Long clips and long texts as evaluators and the API see them: segments, sentences."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax.evals import hear
from clap_jax.evals.batches import Batches
from clap_jax.evals.hear import Heard
from clap_jax.models import spec as spec_lib
from clap_jax.models import temporal
from clap_jax.models.temporal import Song, Story
from clap_jax.pipeline.buckets import SEGMENT_FIELDS
from clap_jax.text.sentences import Sentences

NUMBERS_AT_A_TIME = 2**24
"""Of a block of scores: clips * texts * segments * sentences * heads."""


class SongEncoder(Batches):
    """What an encoder does with a model that hears segments (`spec.temporal`).

    A batch on the device is one of segments, whatever clips they are from, so that
    memory does not depend on how long a clip is.
    """

    spec: Any
    _dual: Any
    _tokenizer: Any

    def _compile_long(self) -> None:
        """Make what the methods below call."""
        self._encode_segments = jax.jit(
            partial(_encode_segments, self.spec, self._dual, self._mesh)
        )
        self._encode_story = jax.jit(partial(_encode_story, self._dual))
        self._score_block = jax.jit(self._dual.score)
        self._attention = jax.jit(partial(temporal.align, self.spec.temporal))

    @property
    def hears_segments(self) -> bool:
        """Whether clips and texts are compared by `compare`, not by one vector each."""
        return getattr(self.spec, "temporal", None) is not None

    def _silence(self, length: int) -> dict[str, np.ndarray]:
        width = spec_lib.features_width(self.spec)
        if width:
            return {"features": np.zeros(width, np.float32)}
        return super()._silence(length)

    def songs(self, parts: Iterable[Iterable[tuple[int, Heard]]], count: int) -> Song:
        """Numbered clips, each below `count`, as one `temporal.Song` of numpy arrays,
        padded to the longest; zeros, of which nothing is heard, for other numbers.

        parts: so many clips are in memory at a time. Several hosts each have their own
        clips, in equally many parts, and all get all.
        """
        blank = {"seconds": np.zeros(2, np.float32), "heard": np.bool_(False)}
        rows: list[list[Any]] = [[] for _ in range(count)]
        for clips in parts:
            for found, number, _ in self._each(self._encode_segments, clips, blank):
                rows[number].append(found)
        segments, width = max(map(len, rows), default=1) or 1, self.spec.embed_dim
        projection = np.zeros((count, segments, width), np.float32)
        seconds = np.zeros((count, segments, 2), np.float32)
        heard = np.zeros((count, segments), bool)
        for number, found in enumerate(rows):
            # Of one clip they come in order, from one host.
            for place, (vector, when, is_heard) in enumerate(found):
                projection[number, place] = vector
                seconds[number, place], heard[number, place] = when, is_heard
        there = seconds[..., 1] > 0
        heard = np.where(heard.any(1, keepdims=True), heard, there)
        total = np.where(heard[..., None], projection, 0).sum(1)
        return Song(_unit(total), _unit(projection), seconds, heard)

    def stories(self, texts: Sequence[str]) -> Story:
        """Texts as a `temporal.Story` of numpy arrays, M sentences each at most."""
        most = self.spec.temporal.sentences
        rows = Sentences(self._tokenizer, max(most, 1))(list(texts))
        return Story(*self._in_parts(self._encode_story, rows._asdict()))

    def sentences(self, text: str) -> list[str]:
        """The sentences of a text as `stories` has them."""
        rows = Sentences(self._tokenizer, self.spec.temporal.sentences)([text])
        places = self._tokenizer.places(text)
        return [
            text[places[begin][0] : places[end - 1][1]].strip()
            for begin, end in rows.spans[0]
            if end > begin
        ]

    def compare(self, song: Song, story: Story) -> np.ndarray:
        """The model's scaled score of every clip and text, float32 [A, T], made in
        blocks of bounded memory."""
        options = self.spec.temporal
        clips, segments = song.heard.shape
        texts = len(story.whole)
        numbers = temporal.numbers_per_pair(options, segments)
        rows = max(min(NUMBERS_AT_A_TIME // numbers, 64, texts), 1)
        columns = max(min(NUMBERS_AT_A_TIME // (numbers * rows), clips), 1)
        scores = np.empty((clips, texts), np.float32)
        params = self._variables["params"]
        for first in range(0, clips, columns):
            own = _block(song, first, columns)
            for start in range(0, texts, rows):
                block = self._score_block(params, own, _block(story, start, rows))
                into = scores[first : first + columns, start : start + rows]
                into[:] = np.asarray(block)[: into.shape[0], : into.shape[1]]
        return scores

    def attention(self, song: Song, story: Story) -> np.ndarray:
        """How much each sentence of a text attends to each segment of the clip of the
        same row, float32 [B, M, S]."""
        params = self._variables["params"]["temporal"]
        return np.asarray(self._attention(params, song, story))


def heard_segments(clip: dict[str, np.ndarray]) -> Heard:
    """A clip of a `Segmenter`, as `Batches` takes it: its segments are its pieces, and
    each is as long as until the next."""
    pieces = {name: clip[name] for name in SEGMENT_FIELDS if name in clip}
    begin, end = clip["seconds"].T
    return Heard(pieces, np.diff(begin, append=end[-1:]))


def _encode_segments(spec: Any, dual: Any, mesh: Any, variables: Any, batch: Any):
    """Of segments: what a song is the mean of, when they are, whether they are heard."""
    sound = hear.sound(batch, spec.frontend, mesh)
    (_, aux), _ = dual.encode_audio(variables, sound)
    projection = aux["projection"][:, 0].astype(jnp.float32)
    return projection, batch["seconds"], batch["heard"]


def _encode_story(dual: Any, variables: Any, ids: Any, mask: Any, spans: Any):
    (story, _), _ = dual.encode_text(variables, ids, mask, spans)
    return tuple(story)


def _block(rows: Any, start: int, count: int) -> Any:
    """`count` rows of a song or story from `start` on, the last one repeated."""
    places = np.minimum(np.arange(start, start + count), len(rows.whole) - 1)
    return jax.tree.map(lambda x: x[places], rows)


def _unit(x: np.ndarray) -> np.ndarray:
    """Vectors with length one; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
