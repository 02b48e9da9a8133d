"""The four views of a fused model: a whole clip shrunk to one window, and three windows.

Source: Wu et al. 2023 (arXiv 2211.06687) as coded in LAION-AI/CLAP,
`training/data.py`, `get_audio_features` with `data_truncating="fusion"`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float

from clap_jax.audio.mel import VIEWS

Starts = Sequence[int | np.integer]


def views(
    mel: Float[np.ndarray, "T F"],
    clip_frames: int,
    starts: Starts | None = None,
    rng: np.random.Generator | None = None,
    antialias: bool = False,
) -> tuple[Float[np.ndarray, "V N F"], bool]:
    """Global, front, middle and back view of a clip, in this order.

    mel: log-mel of the whole clip, T at least `clip_frames` (fill shorter ones first).
    starts: first frames of the three windows. Not given, `rng` draws them; without
        either they are fixed, see `fixed_starts`. antialias: see `resize`.
    Returns [4, N, F] of the dtype of `mel`, N = `clip_frames`, and whether the clip is
    longer than the window. One that is not comes four times. So does one that is longer
    by less than a hop, with as many frames as a window: the reference's rule.
    Errors: ValueError on a mel that is too short and on starts that do not fit.
    """
    frames = len(mel)
    if frames < clip_frames:
        raise ValueError(f"a clip of {frames} frames, expected {clip_frames} or more")
    if frames == clip_frames:
        return np.repeat(mel[None], VIEWS, axis=0), False
    if starts is None and rng is not None:
        starts = random_starts(frames, clip_frames, rng)
    elif starts is None:
        starts = fixed_starts(frames, clip_frames)
    last = frames - clip_frames
    if len(starts) != VIEWS - 1 or not 0 <= min(starts) <= max(starts) <= last:
        raise ValueError(
            f"starts are {list(starts)}, expected {VIEWS - 1} from 0 to {last}"
        )
    stacked = np.empty((VIEWS, clip_frames, mel.shape[1]), mel.dtype)
    stacked[0] = resize(mel, clip_frames, antialias)
    for view, start in enumerate(starts, 1):
        stacked[view] = mel[start : start + clip_frames]
    return stacked, True


def thirds(frames: int, clip_frames: int) -> list[np.ndarray]:
    """The legal starts of a window, split in three parts as `np.array_split` does.

    With one start too many (T = N + 1) the last part is empty.
    """
    return np.array_split(np.arange(frames - clip_frames + 1), VIEWS - 1)


def random_starts(
    frames: int, clip_frames: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """A start from each third, uniformly (training); 0 where a third is empty.

    The reference draws at inference as well, so that a long clip has another embedding
    each time (LAION-AI/CLAP issues 90 and 166).
    """
    parts = thirds(frames, clip_frames)
    return tuple(int(rng.choice(part)) if len(part) else 0 for part in parts)


def fixed_starts(frames: int, clip_frames: int) -> tuple[int, ...]:
    """First start of the first third, centre of the middle one, last of the last."""
    front, middle, back = thirds(frames, clip_frames)
    # As above, an empty third starts at 0.
    middle = int(middle[len(middle) // 2]) if len(middle) else 0
    return int(front[0]), middle, int(back[-1]) if len(back) else 0


def resize(
    mel: Float[np.ndarray, "T F"], frames: int, antialias: bool = False
) -> Float[np.ndarray, "N F"]:
    """Bilinear resize along time, half-pixel centres, to `frames` frames.

    Plain, every frame is made of two neighbours: what the published fused models were
    trained with, and torch's `interpolate(align_corners=False)`. With `antialias` it
    is made of all that it stands for: torchvision's `Resize` since 0.17, and so the
    reference package with the torchvision of today. Values of long clips differ by dB.
    Returns the dtype of `mel`; computed in float32.
    """
    if antialias:
        whole = mel.astype(np.float32, copy=False)
        return (_smoother(len(mel), frames) @ whole).astype(mel.dtype, copy=False)
    # Places are rounded to float32 as in torch: in long clips they are a little off.
    scale = np.float64(np.float32(len(mel)) / np.float32(frames))
    place = (scale * (np.arange(frames) + 0.5) - 0.5).astype(np.float32)
    place = np.maximum(place, 0)
    left = np.minimum(place.astype(np.int64), len(mel) - 1)
    right = np.minimum(left + 1, len(mel) - 1)
    weight = np.clip(place - left.astype(np.float32), 0, 1)[:, None]
    return ((1 - weight) * mel[left] + weight * mel[right]).astype(mel.dtype)


def _smoother(size: int, frames: int) -> Any:
    """Sparse [frames, size], in each row a triangle over two frames' worth of entries.

    In float32, as torch computes it.
    """
    scale, half = np.float32(size) / np.float32(frames), np.float32(0.5)
    width = max(scale, np.float32(1))
    centre = scale * (np.arange(frames, dtype=np.float32) + half)
    first = np.maximum((centre - width + half).astype(np.int64), 0)
    end = np.minimum((centre + width + half).astype(np.int64), size)
    columns = first[:, None] + np.arange((end - first).max())
    distance = np.abs(columns.astype(np.float32) - centre[:, None] + half)
    values = np.maximum(1 - distance / width, 0)
    values[columns >= end[:, None]] = 0
    values /= values.sum(axis=1, keepdims=True)
    rows = np.arange(0, values.size + 1, values.shape[1])
    entries = (values.ravel(), np.minimum(columns, size - 1).ravel(), rows)
    return scipy.sparse.csr_array(entries, shape=(frames, size))
