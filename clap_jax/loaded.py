"""What all loaded models have in common: reading sounds, encoding them, saving."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clap_jax import checkpoint, convert, sharding
from clap_jax.embed import Embedded, read_ahead
from clap_jax.embed.ahead import BUDGET_BYTES
from clap_jax.evals.encode import ModelEncoder
from clap_jax.evals.hear import Heard
from clap_jax.models import captioner, classifier, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.text import tokenize
from clap_jax.text.late import LateTokenizer

# A path, the bytes of a file, or samples with their rate.
Audio = str | Path | bytes | tuple[np.ndarray, float]

# A clip, and what the model hears of it or why it cannot be had.
Read = tuple[Audio, Heard | None, Exception | None]

Spec = zoo.Spec | ClassifierSpec | CaptionerSpec

_BUILD = {
    zoo.Spec: zoo.build,
    ClassifierSpec: classifier.build,
    CaptionerSpec: captioner.build,
}


class Loaded:
    """A model ready to use. Everything it returns is deterministic.

    spec: what the model is. variables: its weights, as numpy arrays. tokenizer: of its
    texts. extra, origin: tensors of the checkpoint that it came from which the model
    itself does not use, and what that checkpoint was, for writing it back.
    """

    def __init__(
        self,
        spec: Spec,
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
        self.is_captioner = isinstance(spec, CaptionerSpec)
        model = _BUILD[type(spec)](spec)
        self._encoder = ModelEncoder(
            spec,
            model,
            tokenizer,
            # One device: a call holds a few clips, not a global batch.
            mesh=sharding.make_mesh(devices=jax.local_devices()[:1]),
            batch_size=batch_size,
        ).using(_checked(variables, model, spec))

    @property
    def width(self) -> int:
        """How many numbers `stream` gives of a sound."""
        return self._encoder.width

    def _vectors(self, audio: Audio | Sequence[Audio]) -> np.ndarray:
        """Embeddings; of a classifier the scores of its classes, float32 [n, C]."""
        rows = [np.zeros((0, self._encoder.width), np.float32)]
        with contextlib.closing(
            self._read(as_list(audio), 4, 0, self._encoder.hear)
        ) as groups:
            for group in groups:
                for _, _, error in group:
                    if error is not None:
                        raise error
                rows.append(self._encode([part for _, part, _ in group]))
        return np.concatenate(rows)

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
        with contextlib.closing(
            self._read(audio, threads, every, self._encoder.hear)
        ) as groups:
            for group in groups:
                yield from self._embedded(group)

    def digest(self) -> str:
        """Short hex of spec and weights: other weights, another digest."""
        text = self.spec.to_json() + sharding.digest(self.variables)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

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
        self,
        audio: Iterable[Audio],
        threads: int,
        every: int,
        hear: Callable[[Any, str], Heard],
    ) -> Iterator[list[Read]]:
        """Clips in order, decoded ahead by `hear`, in groups to encode together.

        A group has windows for a batch, fewer where they fill the memory, at the end,
        and after `every` clips.
        """
        read = read_ahead(
            lambda item: heard(hear, *item),
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
        """What the encoder heard of each clip to float32 [n, E].

        All windows are encoded together, and each clip's are averaged.
        """
        return self._encoder.clips(parts)


def heard(hear: Callable[[Any, str], Heard], position: int, clip: Audio) -> Heard:
    """A clip as the model takes it; one without a name is called by its position."""
    name = "" if isinstance(clip, str | Path) else f"clip {position}"
    if isinstance(clip, tuple):
        clip = (np.asarray(clip[0]), clip[1])
    return hear(clip, name)


def _bytes(part: Heard) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(part))


def load_tokenizer(where: str, spec: zoo.Spec | CaptionerSpec) -> tokenize.Tokenizer:
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


def as_list(audio: Audio | Sequence[Audio]) -> list[Audio]:
    """One clip, or many, as a list; `(samples, rate_hz)` is one."""
    pair = isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[1], Real)
    return [audio] if pair or isinstance(audio, str | Path | bytes) else list(audio)


def _checked(variables: dict[str, Any], dual: Any, spec: zoo.Spec) -> dict[str, Any]:
    """The variables, after their paths and shapes are found to be those of the spec."""
    shapes = jax.eval_shape(dual.init, jax.random.key(0))
    return checkpoint.fill(shapes, variables, ".*", f"weights of {spec.name}")
