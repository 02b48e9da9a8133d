"""The Python API: load a model, embed sounds and texts, classify, compare, save.

import clap_jax
clap = clap_jax.load("runs/quickstart")
clap.classify(["dog.wav"], ["a dog barking", "rain falling"])
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clap_jax import checkpoint, sharding
from clap_jax import config as config_lib
from clap_jax.audio import crop, io
from clap_jax.evals import class_embeddings
from clap_jax.evals.encode import ModelEncoder
from clap_jax.models import zoo
from clap_jax.text import tokenize

# A path, the bytes of a file, or samples with their rate.
Audio = str | Path | bytes | tuple[np.ndarray, float]

# Decoded clips held at a time: 16 clips of three minutes at 48 kHz are half a GiB.
CLIPS_AT_A_TIME = 16


def load(path: str | Path, *, batch_size: int = 16) -> "Clap":
    """Load a model.

    Args:
        path: a workdir, one `checkpoints/<step>` of it, or a folder made by
            `Clap.save`.
        batch_size: rows that are encoded at a time.

    Raises:
        checkpoint.CheckpointError: `path` holds no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise checkpoint.CheckpointError(
            f"{folder} is not a folder: expected a workdir, a step of its checkpoints, "
            "or a saved model"
        )
    variables = checkpoint.load_variables(folder)
    home = checkpoint.find_home(folder)
    spec = zoo.read_spec(home / "spec.json")
    tokenizer = tokenize.load(str(home / "tokenizer"), spec.text_length)
    return Clap(spec, variables, tokenizer, batch_size=batch_size)


class Clap:
    """A language-audio model ready to use. Everything it returns is deterministic."""

    def __init__(
        self,
        spec: zoo.Spec,
        variables: dict[str, Any],
        tokenizer: tokenize.Tokenizer,
        *,
        batch_size: int = 16,
    ):
        self.spec, self.variables, self.tokenizer = spec, variables, tokenizer
        dual = zoo.build(spec)
        self._encoder = ModelEncoder(
            spec,
            dual,
            tokenizer,
            # One device: a call holds a few clips, not a global batch.
            mesh=sharding.make_mesh(devices=jax.local_devices()[:1]),
            batch_size=batch_size,
        ).using(_checked(variables, dual, spec))

    def embed_audio(self, audio: Audio | Sequence[Audio]) -> np.ndarray:
        """Embed sounds of any length, rate and channel count.

        A clip longer than the model's window is cut into windows side by side (the
        last one filled up); their vectors are averaged by the seconds that they
        cover, and normalised.

        Args:
            audio: paths, encoded bytes and `(samples, rate_hz)`, mixed; or one of
                them. Samples are `[t]`, `[t, channels]` or `[channels, t]`.

        Returns:
            float32 [n, E], L2-normalised; the same vector for the same clip, alone or
            among others.

        Raises:
            audio.io.AudioError: a clip cannot be read; names it and says why.
        """
        clips = _as_list(audio)
        rows = [
            self._embed(clips[start : start + CLIPS_AT_A_TIME])
            for start in range(0, len(clips), CLIPS_AT_A_TIME)
        ]
        return np.concatenate([np.zeros((0, self.spec.embed_dim), np.float32), *rows])

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embed texts: float32 [n, E], L2-normalised."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return np.zeros((0, self.spec.embed_dim), np.float32)
        return self._encoder.text(texts)

    def similarity(
        self, audio: Audio | Sequence[Audio], texts: str | Sequence[str]
    ) -> np.ndarray:
        """The model's scaled score of every sound and text, float32 [n, m]."""
        return self._encoder.score(self.embed_audio(audio), self.embed_text(texts))

    def classify(
        self,
        audio: Audio | Sequence[Audio],
        labels: Sequence[str],
        template: str | Sequence[str] = "This is a sound of {}.",
    ) -> np.ndarray:
        """Zero-shot class probabilities, float32 [n, C]; rows sum to 1.

        Args:
            labels: names of the classes, as they are to be read.
            template: a text with one `{}`, several, or the name of a set in
                `text.prompts.TEMPLATES`; embeddings are averaged over them.
        """
        classes = class_embeddings(self._encoder, labels, template)
        scores = self._encoder.score(self.embed_audio(audio), classes)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def save(self, folder: str | Path) -> None:
        """Write `spec.json`, `model.safetensors` and `tokenizer/`, for `load`."""
        folder = Path(folder)
        checkpoint.save_export(folder, self.variables)
        self.tokenizer.save(folder / "tokenizer")
        config_lib.write_text(folder / "spec.json", self.spec.to_json())

    def _embed(self, clips: list[Audio]) -> np.ndarray:
        """Decode in threads, encode all windows together, average each clip's."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            parts = list(pool.map(self._windows, range(len(clips)), clips))
        vectors = self._encoder.waves(np.concatenate([waves for waves, _ in parts]))
        ends = np.cumsum([len(waves) for waves, _ in parts])
        rows = []
        for vector, (_, seconds) in zip(np.split(vectors, ends[:-1]), parts):
            mean = (vector * (seconds / seconds.sum())[:, None]).sum(axis=0)
            rows.append(vector[0] if len(vector) == 1 else mean / np.linalg.norm(mean))
        return np.stack(rows).astype(np.float32)

    def _windows(self, position: int, clip: Audio) -> tuple[np.ndarray, np.ndarray]:
        """A clip as windows float32 [n, T] and the seconds that each covers [n]."""
        frontend = self.spec.frontend
        name = "" if isinstance(clip, str | Path) else f"clip {position}"
        if isinstance(clip, tuple):
            clip = (np.asarray(clip[0]), clip[1])
        wave = io.load(clip, frontend.rate_hz, name=name)
        if frontend.int16_trip:
            wave = io.quantise(wave)
        samples = frontend.clip_samples
        return crop.windows(wave, samples, samples, frontend.fill)


def _as_list(audio: Audio | Sequence[Audio]) -> list[Audio]:
    """One clip, or many, as a list; `(samples, rate_hz)` is one."""
    pair = isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[1], Real)
    return [audio] if pair or isinstance(audio, str | Path | bytes) else list(audio)


def _checked(variables: dict[str, Any], dual: Any, spec: zoo.Spec) -> dict[str, Any]:
    """The variables, after their paths and shapes are found to be those of the spec."""
    shapes = jax.eval_shape(dual.init, jax.random.key(0))
    return checkpoint.fill(shapes, variables, ".*", f"weights of {spec.name}")
