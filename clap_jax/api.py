"""The Python API: load a model, embed sounds and texts, classify, compare, save.

import clap_jax
clap = clap_jax.load("runs/quickstart")
clap.classify(["dog.wav"], ["a dog barking", "rain falling"])

Captioners are in `clap_jax.captions`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import logging

from clap_jax import checkpoint, convert, hub
from clap_jax import config as config_lib
from clap_jax import export as export_lib
from clap_jax.captions import CaptionWriter
from clap_jax.evals.hear import Heard
from clap_jax.evals.zeroshot import class_embeddings, class_scores, class_texts
from clap_jax.findings import Alignment, ClassesOverTime, Classified, Found
from clap_jax.loaded import Audio, Loaded, as_list, heard, load_tokenizer
from clap_jax.models import classifier, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.models.temporal import Song, Story
from clap_jax.text.late import LateTokenizer


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    batch_size: int = 16,
) -> "Clap | CaptionWriter":
    """Load a model, ours or anybody's: a captioner as a `CaptionWriter`, others as a
    `Clap`.

    Args:
        path: one of
            * a workdir, one `checkpoints/<step>` of it, or a folder of `Clap.save`;
            * a folder of Hugging Face's `ClapModel`;
            * a file of LAION-CLAP (.pt), MS-CLAP or BLAT (.pth), or whatever else
              `clap_jax.convert` recognises (PyTorch's files need the extra `torch`);
            * the hub id of one of these: "owner/name" or "owner/name/file.pt". The
              local cache comes first.
        tokenizer: a folder of tokenizer files, or a hub id, for a checkpoint without
            them. Without it, the tokenizer that the model was made with is fetched from
            the hub (or its cache) at the first text; sounds do without.
        batch_size: rows that are encoded at a time.

    Raises:
        checkpoint.CheckpointError: `path` holds no model, or one tower alone.
        hub.HubError: `path` looks like a hub id, but cannot be had.
        ValueError: what lies there is damaged, or of no known layout.
    """
    found = hub.find(path)
    if not found.exists():
        raise checkpoint.CheckpointError(
            f"{path} does not exist: expected a workdir, a saved model, a checkpoint "
            "of another system, or the hub id of one"
        )
    converted = convert.load(found)
    spec = converted.spec
    if not isinstance(spec, zoo.Spec | ClassifierSpec | CaptionerSpec):
        raise checkpoint.CheckpointError(
            f"{path} holds {spec.name} and no pair of towers that share a space: only "
            "such a pair, a classifier or a captioner can be loaded (one tower is what "
            "training starts from, with --config.init_from)"
        )
    for note in converted.notes:
        logging.info("%s: %s", path, note)
    own = getattr(spec, "tokenizer", "")
    where = str(tokenizer or converted.tokenizer or own)
    late = LateTokenizer(functools.partial(load_tokenizer, where, spec))
    kind = CaptionWriter if isinstance(spec, CaptionerSpec) else Clap
    return kind(
        spec,
        converted.variables,
        late if tokenizer is None else late.found,
        batch_size=batch_size,
        extra=converted.extra,
        origin=converted.origin,
    )


class Clap(Loaded):
    """A language-audio model: a pair of towers that share a space.

    Or a classifier that was finetuned from one, which has no text tower: `classify`
    gives the probabilities of its own `labels`, and `stream` their scores.
    """

    def embed_audio(self, audio: Audio | Sequence[Audio]) -> np.ndarray:
        """Embed sounds of any length, rate and channel count.

        A clip longer than the model's window is cut into windows side by side (the
        last one filled up); their vectors are averaged by the seconds that they
        cover, and normalised. A fused model hears any clip at once, as one window of
        the whole and three of its parts, and BLAT hears it whole, up to five minutes.

        Args:
            audio: paths, encoded bytes and `(samples, rate_hz)`, mixed; or one of
                them. Samples are `[t]`, `[t, channels]` or `[channels, t]`.

        Returns:
            float32 [n, E], L2-normalised; the same vector for the same clip, alone or
            among others.

        Raises:
            audio.io.AudioError: a clip cannot be read; names it and says why.
            ValueError: the model is a classifier.
        """
        self._check_pair("embed_audio")
        return self._vectors(audio)

    def embed_over_time(self, audio: Audio) -> tuple[np.ndarray, np.ndarray]:
        """Embed each part of one sound by itself.

        Parts are the segments of a model that hears segments, and else the windows that
        `embed_audio` averages; a fused model's one is the whole clip, as BLAT's is up to
        five minutes.

        Returns:
            float32 [S, E], L2-normalised (of a classifier the scores of its classes, [S,
            C]), and float32 [S, 2], where each part begins and ends in seconds.

        Raises:
            audio.io.AudioError: the sound cannot be read.
        """
        if self.hears_segments:
            song = self._songs([audio])
            return song.segments[0], song.seconds[0]
        part = heard(self._encoder.hear, 0, audio)
        ends = np.cumsum(part.seconds, dtype=np.float32)
        pieces = [
            Heard({k: rows[i : i + 1] for k, rows in part.pieces.items()}, held[None])
            for i, held in enumerate(part.seconds)
        ]
        seconds = np.stack([ends - part.seconds, ends], axis=1)
        return self._encode(pieces), seconds

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embed texts: float32 [n, E], L2-normalised. ValueError for a classifier."""
        self._check_pair("embed_text")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return np.zeros((0, self.spec.embed_dim), np.float32)
        return self._encoder.text(texts)

    def similarity(
        self, audio: Audio | Sequence[Audio], texts: str | Sequence[str]
    ) -> np.ndarray:
        """The model's scaled score of every sound and text, float32 [n, m].

        Of a model that hears segments, with what attention finds in time; `score` of
        its embeddings is without.
        """
        if not self.hears_segments:
            return self.score(self.embed_audio(audio), self.embed_text(texts))
        texts = [texts] if isinstance(texts, str) else list(texts)
        clips = as_list(audio)
        if not clips or not texts:
            return np.zeros((len(clips), len(texts)), np.float32)
        story = self._encoder.stories(texts)
        return self._encoder.compare(self._songs(clips), story)

    def align(self, audio: Audio, text: str) -> Alignment:
        """Where in a sound a text, and each of its sentences, is heard.

        Args:
            audio: one sound of any length, as `embed_audio` takes them.

        Raises:
            audio.io.AudioError: the sound cannot be read.
            ValueError: the model hears no segments.
        """
        if not self.hears_segments:
            raise ValueError(
                f"align needs a model that hears segments, such as a run of "
                f"configs/collap_roberta.py: {self.spec.name} has one vector a sound"
            )
        song = self._songs([audio])
        (found,) = self._alignments(song, self._encoder.stories([text]), text)
        return found

    def search(
        self, audio: Iterable[Audio], text: str, *, threads: int = 4
    ) -> Iterator[Found]:
        """How well a text fits each of any number of sounds, and where it does.

        Sounds are decoded in threads while others are encoded; a bad one does not stop
        it. threads: sounds decoded at a time.

        Yields:
            For every sound, in order, a `Found` with its score, and its `Alignment`
            where the model hears segments; or with the reason why there is none.

        Raises:
            ValueError: the model is a classifier.
        """
        self._check_pair("search")
        encoder, hears = self._encoder, self.hears_segments
        query = encoder.stories([text]) if hears else encoder.text([text])

        def compare(parts: list[Heard]) -> Iterable[tuple[float, Alignment | None]]:
            if not hears:
                scores = self.score(self._encode(parts), query)[:, 0]
                return ((float(score), None) for score in scores)
            song = encoder.songs([enumerate(parts)], len(parts))
            scores = encoder.compare(song, query)[:, 0].tolist()
            return zip(scores, self._alignments(song, query, text), strict=True)

        for item, found, error in self._compared(audio, threads, compare):
            yield Found(item, error=error) if error else Found(item, *found)

    def _compared(
        self,
        audio: Iterable[Audio],
        threads: int,
        compare: Callable[[list[Heard]], Iterable[Any]],
    ) -> Iterator[tuple[Audio, Any, str]]:
        """Each sound, what `compare` gives for it among others, or why there is none."""
        with contextlib.closing(
            self._read(audio, threads, 0, self._encoder.hear)
        ) as groups:
            for group in groups:
                parts = [part for _, part, error in group if error is None]
                found = iter(compare(parts) if parts else ())
                for clip, _, error in group:
                    if error is None:
                        yield clip, next(found), ""
                    else:
                        yield clip, None, str(error).removeprefix(f"{clip}: ")

    @property
    def hears_segments(self) -> bool:
        """Whether `align` and `search` can say where in a sound a text is heard."""
        return self._encoder.hears_segments

    def _alignments(self, song: Song, story: Story, text: str) -> list[Alignment]:
        """Of one text with each of some songs."""
        sentences = [text]
        if self.spec.temporal.sentences:
            sentences = self._encoder.sentences(text)
        clips = len(song.whole)
        story = Story(*(np.repeat(x, clips, axis=0) for x in story))
        rows = self._encoder.attention(song, story)[:, : len(sentences)]
        counts = (song.seconds[..., 1] > 0).sum(1)
        return [
            Alignment(row[:, :n].mean(0), row[:, :n], seconds[:n], sentences)
            for row, seconds, n in zip(rows, song.seconds, counts, strict=True)
        ]

    def _songs(self, clips: Sequence[Audio]) -> Song:
        """Sounds as segments; one is decoded at a time."""
        parts = (
            [(number, heard(self._encoder.hear, number, clip))]
            for number, clip in enumerate(clips)
        )
        return self._encoder.songs(parts, len(clips))

    def score(self, za: np.ndarray, zt: np.ndarray) -> np.ndarray:
        """The model's scaled score of embeddings [n, E] and [m, E], float32 [n, m]."""
        return self._encoder.score(za, zt)

    def classify(
        self,
        audio: Audio | Sequence[Audio],
        labels: Sequence[str] | None = None,
        template: str | Sequence[str] = "This is a sound of {}.",
        *,
        head: str = "",
    ) -> np.ndarray:
        """Class probabilities, float32 [n, C]; zero-shot, rows sum to 1.

        A model that hears segments scores a class as it does texts, with what attention
        finds in time (`similarity`), by the mean over the templates.

        Args:
            labels: names of the classes, as they are to be read. A classifier has its
                own (`labels`) and takes none.
            template: a text with one `{}`, several, or the name of a set in
                `text.prompts.TEMPLATES`; embeddings are averaged over them.
            head: of a classifier with several.

        Raises:
            ValueError: no labels for a pair of towers, or some for a classifier.
        """
        if self.hears_segments and labels is not None:
            texts = class_texts(labels, template)
            scores = self.similarity(audio, [text for own in texts for text in own])
            return _softmax(class_scores(scores, texts))
        return self.class_probabilities(labels, template, head)(self._vectors(audio))

    def classify_each(
        self,
        audio: Iterable[Audio],
        labels: Sequence[str] | None = None,
        template: str | Sequence[str] = "This is a sound of {}.",
        *,
        head: str = "",
        threads: int = 4,
    ) -> Iterator[Classified]:
        """As `classify`, of any number of sounds, each in its turn; a bad one does not
        stop it. threads: sounds decoded at a time, while others are encoded.
        """
        if not (self.hears_segments and labels is not None):
            probabilities = self.class_probabilities(labels, template, head)
            for row in self.stream(audio, threads=threads):
                known = row.vector is not None
                own = probabilities(row.vector[None])[0] if known else None
                yield Classified(row.item, own, row.error)
            return
        texts = class_texts(labels, template)
        story = self._encoder.stories([text for own in texts for text in own])

        def compare(parts: list[Heard]) -> np.ndarray:
            song = self._encoder.songs([enumerate(parts)], len(parts))
            return _softmax(class_scores(self._encoder.compare(song, story), texts))

        for item, found, error in self._compared(audio, threads, compare):
            if found is not None and not np.isfinite(found).all():
                found, error = None, "its scores are not finite"
            yield Classified(item, found, error)

    def classify_over_time(
        self,
        audio: Audio,
        labels: Sequence[str] | None = None,
        template: str | Sequence[str] = "This is a sound of {}.",
        *,
        head: str = "",
    ) -> ClassesOverTime:
        """Class probabilities of each part of one sound, by `embed_over_time`.

        Arguments and errors as of `classify`; silence has probabilities, too.
        """
        probabilities = self.class_probabilities(labels, template, head)
        vectors, seconds = self.embed_over_time(audio)
        return ClassesOverTime(probabilities(vectors), seconds)

    def class_probabilities(
        self,
        labels: Sequence[str] | None = None,
        template: str | Sequence[str] = "This is a sound of {}.",
        head: str = "",
    ) -> Callable[[np.ndarray], np.ndarray]:
        """What makes vectors [n, E] (of a classifier its scores) into probabilities;
        arguments and errors as of `classify`."""
        if self.is_classifier:
            if labels is not None:
                raise ValueError(
                    f"{self.spec.name} is a classifier with classes of its own "
                    f"({', '.join(self.labels(head)[:5])}, ...): leave out labels"
                )
            return functools.partial(self.head_probabilities, head=head)
        if labels is None:
            raise ValueError(
                f"labels is missing: {self.spec.name} can be asked for any classes"
            )
        classes = self.embed_labels(labels, template)
        return functools.partial(self.probabilities, classes=classes)

    def labels(self, head: str = "") -> tuple[str, ...]:
        """The classes of a classifier, in the order of `classify`'s columns.

        head: its name, where there are several.
        """
        return self._head(head)[1].labels

    def head_probabilities(self, scores: np.ndarray, head: str = "") -> np.ndarray:
        """What `stream` gives for a classifier, [n, all classes], as probabilities of
        one head's classes, float32 [n, C]: they sum to 1 where each clip is of one class
        and are each by itself where it may be of several."""
        name, found = self._head(head)
        scores = scores[:, self.spec.columns[name]]
        if found.loss == "bce":
            return 1 / (1 + np.exp(-scores))
        return _softmax(scores)

    def _head(self, name: str) -> tuple[str, classifier.HeadSpec]:
        if not self.is_classifier:
            raise ValueError(f"{self.spec.name} is no classifier: it has no classes")
        heads = self.spec.heads
        name = name or (next(iter(heads)) if len(heads) == 1 else "")
        if name not in heads:
            raise ValueError(config_lib.unknown("head", name, heads))
        return name, heads[name]

    def caption(self, audio: Audio | Sequence[Audio], *_: Any, **__: Any) -> NoReturn:
        """Raises ValueError: neither towers nor classifiers write."""
        raise ValueError(
            f"{self.spec.name} writes no captions: it compares sounds with texts, or "
            "names classes. caption needs a captioner, such as a run of "
            "configs/blat_captioner.py or MS-CLAP's clapcap"
        )

    def _check_pair(self, what: str) -> None:
        if self.is_classifier:
            raise ValueError(
                f"{what} needs a pair of towers, and {self.spec.name} here is a "
                "classifier: classify(audio) gives the probabilities of its labels"
            )

    def embed_labels(
        self,
        labels: Sequence[str],
        template: str | Sequence[str] = "This is a sound of {}.",
    ) -> np.ndarray:
        """Classes as vectors, float32 [C, E]; arguments as `classify` takes them."""
        return class_embeddings(self._encoder, labels, template)

    def probabilities(self, za: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Softmax of the scores of [n, E] and [C, E]: float32 [n, C]."""
        return _softmax(self.score(za, classes))

    def export(
        self,
        folder: str | Path,
        *,
        batch_size: int = 8,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> None:
        """Write both towers as StableHLO, for `clap_jax.export.load_export`.

        What is written, and what the functions take, stands there.
        """
        self._check_pair("export")
        folder, tokenizer = Path(folder), self._tokenizer()
        export_lib.write(
            folder,
            self.spec,
            self.variables,
            batch_size=batch_size,
            platforms=platforms,
        )
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer")


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Rows of [n, C] as shares that sum to 1."""
    scores = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return scores / scores.sum(axis=1, keepdims=True)
