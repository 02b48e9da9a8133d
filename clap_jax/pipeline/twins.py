"""Twins: a clip whose sections change places, and the caption that is true of it.

A twin is a pair like any other. Beside its original it is the hardest of negatives, in
both directions: the same sounds and the same sentences, but not in the same order.
"""

from collections.abc import Sequence

import numpy as np

from clap_jax.text import sections as text_sections

FADE_SECONDS = 0.01

Sections = Sequence[tuple[float, float, str]]
"""Begin and end in seconds and the words of each section, sorted."""


def twin(
    wave: np.ndarray,
    rate_hz: int,
    caption: str,
    sections: Sections,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str, list[tuple[float, float, str]]] | None:
    """A wave with its sections in another order, its caption and its sections.

    wave: float32 [t], t > 0. sections: as a source's `sections(index)` or
    `clap_jax.text.sections.timed` give them, their words in the caption. What lies
    between, before and behind them stays where it is; where waves meet they fade within
    10 ms. Returns the wave float32 [t]; or None where there is no twin: fewer than two
    sections, sections that overlap or lie beyond the wave, or times that cannot be
    moved. The order is drawn evenly from all but the clip's own.
    """
    if len(sections) < 2:
        return None
    duration_seconds = len(wave) / rate_hz
    order = another(rng, len(sections))
    try:
        words, now = text_sections.reordered(caption, sections, order, duration_seconds)
    except ValueError:
        return None
    if words == caption:
        return None
    edges = np.rint([np.float64(s[:2]) * rate_hz for s in sections]).astype(int)
    if edges.max() > len(wave) + rate_hz or edges.min() < 0:
        return None
    edges = np.minimum(edges, len(wave))
    parts = [wave[: edges[0, 0]]]
    for slot, which in enumerate(order):
        parts.append(wave[slice(*edges[which])])
        following = edges[slot + 1, 0] if slot + 1 < len(edges) else len(wave)
        parts.append(wave[edges[slot, 1] : following])
    ramp = np.linspace(0, 1, max(int(FADE_SECONDS * rate_hz), 2), dtype=np.float32)
    parts = [_faded(part, ramp) for part in parts if len(part)]
    return np.concatenate(parts), words, now


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
