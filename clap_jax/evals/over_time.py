"""Clips over time, for probes: embeddings of their segments, whoever made them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from clap_jax.audio.io import AudioError
from clap_jax.evals.base import Encoder, hears_segments
from clap_jax.pipeline.features import Features

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

POOLED = "mean and standard deviation over the heard segments"
"""What `pooled` makes of a clip, for a result's protocol."""


def clips(encoder: Encoder, source: "Source") -> Iterator[tuple[int, Features]]:
    """Every clip that can be read, by its position: the features that the source holds
    or, where it has sound, the segments of a model that hears such.

    Raises ValueError where there is neither.
    """
    if getattr(source, "features_width", 0):
        yield from _kept(source)
        return
    if not hears_segments(encoder):
        raise ValueError(
            f"source '{source.name}' has no features of segments, and no model is there "
            "that hears segments: expected a source of kind features, which `clap-jax "
            "embed --segments` writes"
        )
    song, kept = encoder.source_songs(source)
    for clip in np.flatnonzero(kept):
        count = int((song.seconds[clip, :, 1] > 0).sum())
        fields = (song.segments, song.seconds, song.heard)
        yield int(clip), Features(*(rows[clip, :count] for rows in fields))


def _kept(source: "Source") -> Iterator[tuple[int, Features]]:
    for clip in range(len(source)):
        try:
            yield clip, source[clip]["audio"]
        except AudioError as error:
            logging.warning("%s", error)


def pooled(clip: Features) -> np.ndarray:
    """A clip of S segments as one vector float32 [2 D]: the mean and the standard
    deviation over those that are heard (all, where none is)."""
    rows = clip.features[clip.heard if clip.heard.any() else slice(None)]
    rows = rows.astype(np.float64)
    return np.concatenate([rows.mean(axis=0), rows.std(axis=0)]).astype(np.float32)


def vectors(encoder: Encoder, source: "Source") -> tuple[np.ndarray, np.ndarray]:
    """`pooled` of every clip, float32 [n, 2 D], and which could be read, bool [n]."""
    found = {clip: pooled(features) for clip, features in clips(encoder, source)}
    kept = np.isin(np.arange(len(source)), list(found))
    width = len(next(iter(found.values()), ()))
    rows = np.zeros((len(source), width), np.float32)
    for clip, vector in found.items():
        rows[clip] = vector
    return rows, kept
