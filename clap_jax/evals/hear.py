"""How sounds reach a model: what it hears of a clip, in arrays and in words."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.audio import crop
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import Frontend
from clap_jax.models import spec as spec_lib
from clap_jax.models.temporal import Temporal
from clap_jax.models.tower import Sound
from clap_jax.pipeline.segments import Segmenter

MAX_WHOLE_SECONDS = 300
"""Models that take whole clips get longer ones in equal parts of at most this length."""


class Heard(NamedTuple):
    """A clip as a model takes it, in n pieces of one shape.

    pieces: "wave" float32 [n, T], or "mel" float32 [n, ...] with "longer" bool [n] or
        "frames" int32 [n], as in a batch.
    seconds: float32 [n], how much of the clip each piece holds: its weight in the mean.
    """

    pieces: dict[str, np.ndarray]
    seconds: np.ndarray


def hearing(
    frontend: Frontend,
    crop_seed: int | None = None,
    temporal: Temporal | None = None,
) -> str:
    """What evaluations hear of a clip, in words. temporal: of a model with segments."""
    rate = f"at {frontend.rate_hz} Hz"
    if temporal is not None:
        return (
            f"segments of {frontend.clip_seconds} s every {temporal.hop_seconds} s "
            f"{rate}, the middle of clips above {temporal.longest_seconds} s"
        )
    if frontend.whole_clip:
        return f"whole clips {rate}, above {MAX_WHOLE_SECONDS} s in equal parts"
    long = "the middle of longer"
    if frontend.views > 1:
        long = "longer ones shrunk and in three fixed windows"
    if crop_seed is not None:
        random = {"the middle of longer": "a random window of longer"}
        long = random.get(long, "longer ones shrunk and in three random windows")
        long += f" (seed {crop_seed})"
    short = {"repeat": "repeated", "repeatpad": "repeated whole, then silence"}
    fill = f"shorter {short.get(frontend.fill, 'with silence')}"
    return f"{frontend.clip_seconds} s {rate}, {long}, {fill}"


def front_end(frontend: Frontend) -> str:
    """The log-mel in words."""
    sizes = f"window {frontend.window_samples}, hop {frontend.hop_samples}"
    bank = f"{frontend.mels} {frontend.bank} mel bands"
    bands = f"{bank} {frontend.fmin_hz:g}-{frontend.fmax_hz:g} Hz"
    trip = ", samples through int16" if frontend.int16_trip else ""
    words = f"{bands}, {sizes}, FFT {frontend.n_fft}{trip}"
    return "; beside it ".join([words, *map(front_end, frontend.beside)])


def segmenter(spec: Any, shorter_seconds: Sequence[float] = ()) -> Segmenter | None:
    """What cuts long clips for a model that hears segments; None for others.

    shorter_seconds: lengths of clips for which there are counts of segments below the
    full one, see `Segmenter`.
    """
    options = getattr(spec, "temporal", None)
    if options is None:
        return None
    made = Segmenter(
        spec.frontend,
        options.hop_seconds,
        options.longest_seconds,
        shorter=(),
        features_width=spec_lib.features_width(spec),
    )
    shorter = [made.count(seconds) for seconds in shorter_seconds]
    return dataclasses.replace(made, shorter=tuple(shorter))


def middle(clip: Mapping[str, Any], frontend: Frontend, seconds: float) -> Heard:
    """A finished clip (`Prepare.example`) that is `seconds` long, in one piece.

    Of one that comes whole and is longer than `MAX_WHOLE_SECONDS`, the middle.
    """
    if frontend.whole_clip:
        mel = crop.center_crop(clip["mel"], _longest(frontend))
        clip = {"mel": mel, "frames": np.int32(len(mel))}
    return pieces(clip, frontend, seconds)


def sound(
    batch: Mapping[str, jax.Array], frontend: Frontend, mesh: Mesh | None = None
) -> Sound:
    """What the audio tower gets of a batch: log-mels in float32, as they came or from
    waves, int16 or float32, and what is known of their length. A tuple of mels where
    the front end has others beside it.

    mesh: that the rows are split over, if they are, inside jit.
    """
    if "features" in batch:  # of segments, in place of their mels
        mel = batch["features"][..., None, :]
    elif "mel" in batch:
        mel = batch["mel"].astype(jnp.float32)
    else:
        log_mel = partial(frontend_lib.log_mels, frontend=frontend, xp=jnp)
        if mesh is not None and mesh.size > 1:
            # The compiler does not split a Fourier transform: every device would get
            # the waves of all, and transform them all.
            rows = sharding.batch_sharding(mesh).spec
            log_mel = jax.shard_map(log_mel, mesh=mesh, in_specs=rows, out_specs=rows)
        mel = log_mel(batch["wave"])  # of each segment by itself, where there are some
    return Sound(mel, batch.get("longer"), batch.get("frames"))


def pieces(clip: Mapping[str, Any], frontend: Frontend, seconds: float) -> Heard:
    """A finished clip (`Prepare.example`) that is `seconds` long."""
    if not frontend.whole_clip:
        pieces = {name: np.asarray(value)[None] for name, value in clip.items()}
        return Heard(pieces, np.array([seconds], np.float32))
    parts = crop.even_parts(clip["mel"], _longest(frontend))
    frames = np.array([len(part) for part in parts], np.int32)
    length, silence = crop.static_length(len(parts[0])), frontend_lib.FLOOR_DB
    mel = np.stack([crop.pad(part, length, silence) for part in parts])
    shares = (frames / frames.sum()).astype(np.float32)
    return Heard({"mel": mel, "frames": frames}, shares * np.float32(seconds))


def _longest(frontend: Frontend) -> int:
    """Frames of the longest piece of a whole clip."""
    return frontend.frames(round(MAX_WHOLE_SECONDS * frontend.rate_hz))
