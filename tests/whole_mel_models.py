"""Small models of the two kinds that need the mel of whole clips, and their sounds."""

import dataclasses
from typing import Any

import jax
import numpy as np

from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.models.dual import Dual
from tests.pipeline.clips import RATE_HZ, TinySource, wave

# Clips of 0.64 s: 65 frames of 16 mels.
FRONTEND = {
    "rate_hz": RATE_HZ,
    "clip_seconds": 0.64,
    "n_fft": 256,
    "window_samples": 256,
    "hop_samples": 80,
    "mels": 16,
    "fmax_hz": 3800.0,
}
TEXT = {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "position_table": 32}
SHARED = {
    "frontend": FRONTEND,
    "text.options": TEXT,
    "embed_dim": 24,
    "text_length": 12,
    "vocab_size": 64,
    "tokenizer": "",
}
HTSAT = {"width": 16, "depths": (1, 1), "heads": (2, 2), "window": 4, "image": 64}
PANN = {"widths": (8, 12, 16)}

FUSED = zoo.get_spec(
    "laion_htsat_tiny_fusion_roberta", SHARED | {"audio.options": HTSAT}
)
WHOLE = zoo.get_spec("blat", SHARED | {"audio.options": PANN})
SPECS = {"fused": FUSED, "whole": WHOLE}

SECONDS = (0.3, 0.64, 0.645, 1.0, 3.7, 0.012, 2.0, 0.7)
"""Shorter than a window, equal, longer by less than a hop, longer; hardly a frame."""


class UnequalSource(TinySource):
    """Tones of different lengths."""

    def __init__(self, count: int = len(SECONDS), name: str = "unequal"):
        super().__init__(count, name)

    def wave(self, index: int) -> np.ndarray:
        return wave(index, SECONDS[index % len(SECONDS)])

    def __getitem__(self, index: int) -> dict:
        audio = (self.wave(index), RATE_HZ)
        return super().__getitem__(index) | {"audio": audio}


def with_options(spec: zoo.Spec, **options) -> zoo.Spec:
    """The spec with other options of its audio tower."""
    audio = dataclasses.replace(spec.audio, options=spec.audio.options | options)
    return dataclasses.replace(spec, audio=audio)


def random_variables(dual: Dual) -> dict[str, Any]:
    """Numbers as weights and statistics might be, without compiling an initialiser."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(dual.init, jax.random.key(0))

    def draw(path: str, leaf: Any) -> np.ndarray:
        x = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("logit_scale_a"):
            return np.float32(2)
        if path.endswith("bn0/mean"):
            return 5 * x - 30
        if path.endswith("var"):
            return np.exp(0.2 * x) * (200 if "bn0" in path else 1)
        if path.endswith("scale"):
            return 1 + 0.1 * x
        if leaf.ndim < 2:
            return 0.1 * x
        # Centred, or else loudness would drown everything in a few layers.
        inputs = tuple(range(leaf.ndim - 1))
        return (x - x.mean(inputs)) * np.float32(2 / np.prod(leaf.shape[:-1]) ** 0.5)

    return sharding.map_with_path(draw, shapes)
