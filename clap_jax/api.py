"""The Python API: load a model, embed sounds and texts, classify, compare, save.

import clap_jax
clap = clap_jax.load("runs/quickstart")
clap.classify(["dog.wav"], ["a dog barking", "rain falling"])
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clap_jax import checkpoint, convert, hub, sharding
from clap_jax import config as config_lib
from clap_jax import export as export_lib
from clap_jax.embed import Embedded, read_ahead
from clap_jax.embed.ahead import BUDGET_BYTES
from clap_jax.evals import class_embeddings
from clap_jax.evals.encode import ModelEncoder
from clap_jax.evals.hear import Heard
from clap_jax.models import classifier, zoo
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.text import tokenize
from clap_jax.text.late import LateTokenizer

# A path, the bytes of a file, or samples with their rate.
Audio = str | Path | bytes | tuple[np.ndarray, float]

# A clip, and what the model hears of it or why it cannot be had.
Read = tuple[Audio, Heard | None, Exception | None]


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    batch_size: int = 16,
) -> "Clap":
    """Load a model, ours or anybody's.

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
    if not isinstance(spec, zoo.Spec | ClassifierSpec):
        raise checkpoint.CheckpointError(
            f"{path} holds {spec.name} and no pair of towers that share a space: only "
            "such a pair can be loaded (one tower is what training starts from, with "
            "--config.init_from)"
        )
    for note in converted.notes:
        logging.info("%s: %s", path, note)
    own = getattr(spec, "tokenizer", "")
    where = str(tokenizer or converted.tokenizer or own)
    late = LateTokenizer(functools.partial(_load_tokenizer, where, spec))
    return Clap(
        spec,
        converted.variables,
        late if tokenizer is None else late.found,
        batch_size=batch_size,
        extra=converted.extra,
        origin=converted.origin,
    )


class Clap:
    """A language-audio model ready to use. Everything it returns is deterministic.

    Or a classifier that was finetuned from one, which has no text tower: `classify`
    gives the probabilities of its own `labels`, and `stream` their scores.

    spec: what the model is. variables: its weights, as numpy arrays. tokenizer: of its
    texts. extra, origin: tensors of the checkpoint that it came from which the model
    itself does not use, and what that checkpoint was, for writing it back.
    """

    def __init__(
        self,
        spec: zoo.Spec | ClassifierSpec,
        variables: dict[str, Any],
        tokenizer: tokenize.Tokenizer | LateTokenizer | None,
        *,
        batch_size: int = 16,
        extra: Mapping[str, np.ndarray] | None = None,
        origin: convert.Origin | None = None,
    ):
        self.spec, self.variables, self.tokenizer = spec, variables, tokenizer
        self.extra, self.origin = dict(extra or {}), origin
        self._batch_size = batch_size
        self.is_classifier = isinstance(spec, ClassifierSpec)
        build = classifier.build if self.is_classifier else zoo.build
        self._dual = build(spec)
        self._encoder = ModelEncoder(
            spec,
            self._dual,
            tokenizer,
            # One device: a call holds a few clips, not a global batch.
            mesh=sharding.make_mesh(devices=jax.local_devices()[:1]),
            batch_size=batch_size,
        ).using(_checked(variables, self._dual, spec))

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

    def _vectors(self, audio: Audio | Sequence[Audio]) -> np.ndarray:
        """Embeddings; of a classifier the scores of its classes, float32 [n, C]."""
        rows = [np.zeros((0, self._encoder.width), np.float32)]
        with contextlib.closing(self._read(_as_list(audio), 4, 0)) as groups:
            for group in groups:
                for _, _, error in group:
                    if error is not None:
                        raise error
                rows.append(self._encode([part for _, part, _ in group]))
        return np.concatenate(rows)

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
        """The model's scaled score of every sound and text, float32 [n, m]."""
        return self.score(self.embed_audio(audio), self.embed_text(texts))

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

        Args:
            labels: names of the classes, as they are to be read. A classifier has its
                own (`labels`) and takes none.
            template: a text with one `{}`, several, or the name of a set in
                `text.prompts.TEMPLATES`; embeddings are averaged over them.
            head: of a classifier with several.

        Raises:
            ValueError: no labels for a pair of towers, or some for a classifier.
        """
        if self.is_classifier:
            if labels is not None:
                raise ValueError(
                    f"{self.spec.name} is a classifier with classes of its own "
                    f"({', '.join(self.labels(head)[:5])}, ...): leave out labels"
                )
            return self.head_probabilities(self._vectors(audio), head)
        if labels is None:
            raise ValueError(
                f"labels is missing: {self.spec.name} can be asked for any classes"
            )
        classes = self.embed_labels(labels, template)
        return self.probabilities(self.embed_audio(audio), classes)

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

    def stream(
        self, audio: Iterable[Audio], *, threads: int = 4, every: int = 0
    ) -> Iterator[Embedded]:
        """Embed any number of sounds, in bounded memory; a bad one does not stop it.

        Sounds are decoded in threads while others are encoded. Vectors are those of
        `embed_audio`.

        Args:
            threads: sounds decoded at a time.
            every: sounds that are encoded together are counted anew after so many, so
                that a stream which begins there has the same bits; 0: never.

        Yields:
            For every sound, in order, an `Embedded` with its vector and its seconds, or
            with the reason why there is none.
        """
        with contextlib.closing(self._read(audio, threads, every)) as groups:
            for group in groups:
                yield from self._embedded(group)

    def digest(self) -> str:
        """Short hex of spec and weights: other weights, another digest."""
        text = self.spec.to_json() + sharding.digest(self.variables)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

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

    def save(self, folder: str | Path) -> None:
        """Write a folder for `load`: `spec.json`, `model.safetensors`, `tokenizer/`.

        And, for a model that came from another system's checkpoint, what of that one
        the model does not use (`extra.safetensors`, `origin.json`), so that it can be
        written back whole. The tokenizer is left out when it cannot be had now. A model
        that lies there is replaced.

        Raises:
            ValueError: the folder holds other things than a model.
        """
        folder, tokenizer = Path(folder), self._tokenizer()
        model = convert.Converted(self.spec, self.variables, self.extra, self.origin)
        convert.write(model, folder, overwrite=True)
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer")

    def _tokenizer(self) -> tokenize.Tokenizer | None:
        """The tokenizer, loaded by now; None when it cannot be had."""
        if self.is_classifier or not isinstance(self.tokenizer, LateTokenizer):
            return None if self.is_classifier else self.tokenizer
        try:
            return self.tokenizer.found
        except ValueError as error:
            logging.warning("saved without a tokenizer: %s", error)
            return None

    def _read(
        self, audio: Iterable[Audio], threads: int, every: int
    ) -> Iterator[list[Read]]:
        """Clips in order, decoded ahead, in groups to encode together.

        A group has windows for a batch, fewer where they fill the memory, at the end,
        and after `every` clips.
        """
        read = read_ahead(
            lambda item: self._windows(*item),
            enumerate(audio),
            threads=threads,
            ahead=2 * self._batch_size + threads,
            size=_bytes,
        )
        group: list[Read] = []
        windows = held_bytes = 0
        for (position, clip), part, error in read:
            group.append((clip, part, error))
            if part is not None:
                windows += len(part.seconds)
                held_bytes += _bytes(part)
            is_full = windows >= self._batch_size or held_bytes >= BUDGET_BYTES
            if is_full or (every and (position + 1) % every == 0):
                yield group
                group, windows, held_bytes = [], 0, 0
        if group:
            yield group

    def _embedded(self, group: Sequence[Read]) -> Iterator[Embedded]:
        """What `_read` gives, encoded."""
        parts = [part for _, part, error in group if error is None]
        vectors = iter(self._encode(parts) if parts else ())
        for clip, part, error in group:
            if error is not None:
                why = str(error).removeprefix(f"{clip}: ")
                yield Embedded(clip, None, error=why)
                continue
            vector, seconds = next(vectors), float(part.seconds.sum())
            if np.isfinite(vector).all():
                yield Embedded(clip, vector, seconds)
            else:
                yield Embedded(clip, None, error="its embedding is not finite")

    def _encode(self, parts: list[Heard]) -> np.ndarray:
        """What `_windows` made of each clip to float32 [n, E].

        All windows are encoded together, and each clip's are averaged.
        """
        return self._encoder.clips(parts)

    def _windows(self, position: int, clip: Audio) -> Heard:
        """A clip as the model takes it: windows and the seconds that each covers."""
        name = "" if isinstance(clip, str | Path) else f"clip {position}"
        if isinstance(clip, tuple):
            clip = (np.asarray(clip[0]), clip[1])
        return self._encoder.hear(clip, name)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Rows of [n, C] as shares that sum to 1."""
    scores = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return scores / scores.sum(axis=1, keepdims=True)


def _bytes(part: Heard) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(part))


def _load_tokenizer(where: str, spec: zoo.Spec) -> tokenize.Tokenizer:
    """The tokenizer of a model, checked against its embedding table."""
    advice = "pass tokenizer=FOLDER to clap_jax.load, a folder with tokenizer.json"
    if not where:
        raise ValueError(f"{spec.name} came without a tokenizer: {advice}")
    try:
        found = tokenize.load(where, spec.text_length, spec.tokenizer_style)
    except ValueError as error:
        raise ValueError(f"{spec.name} needs a tokenizer: {advice}. {error}") from error
    if found.vocab_size > spec.vocab_size:
        raise ValueError(
            f"the tokenizer {where} has {found.vocab_size} entries, but {spec.name} "
            f"was made for {spec.vocab_size}: {advice}"
        )
    return found


def _as_list(audio: Audio | Sequence[Audio]) -> list[Audio]:
    """One clip, or many, as a list; `(samples, rate_hz)` is one."""
    pair = isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[1], Real)
    return [audio] if pair or isinstance(audio, str | Path | bytes) else list(audio)


def _checked(variables: dict[str, Any], dual: Any, spec: zoo.Spec) -> dict[str, Any]:
    """The variables, after their paths and shapes are found to be those of the spec."""
    shapes = jax.eval_shape(dual.init, jax.random.key(0))
    return checkpoint.fill(shapes, variables, ".*", f"weights of {spec.name}")
