"""Audio towers that embed windows of sound, one or several side by side."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clap_jax import config as config_lib
from clap_jax import convert, hub, sharding
from clap_jax.audio.mel import FRONTENDS, Frontend
from clap_jax.convert.starts import TowerStart
from clap_jax.evals import hear
from clap_jax.models import spec as spec_lib
from clap_jax.models import zoo
from clap_jax.models.tower import rows

OUTPUTS = ("embedding", "projection")
"""Of what comes out: the tower's own, or behind the head, before it is normalised."""


class AudioTower(NamedTuple):
    """A tower with its weights.

    name: where it was loaded from. frontend: of one window. width: D. digest: short hex
    of all that makes a vector but the sound. encode: int16 [B, T] to float32 [B, D].
    """

    name: str
    frontend: Frontend
    width: int
    digest: str
    encode: Callable[[np.ndarray], jax.Array]


def load(
    path: str | Path, output: str = "embedding", window_seconds: float | None = None
) -> AudioTower:
    """A tower, of any model or alone, as `convert.load` takes it, or by its hub id.

    window_seconds: length of what it hears at a time, None for its front end's own.
    Raises ValueError for what is no audio tower that hears windows, has no such output,
    or cannot hear windows of that length.
    """
    if output not in OUTPUTS:
        raise ValueError(config_lib.unknown("output", output, OUTPUTS))
    found = hub.find(path)
    if not found.exists():
        raise ValueError(f"{path} does not exist: expected a model or an audio tower")
    converted = convert.load(found)
    spec, variables = converted.spec, converted.variables
    frontend = _frontend(path, spec)
    if window_seconds is not None:
        frontend = dataclasses.replace(frontend, clip_seconds=window_seconds)
    function = jax.jit(partial(_encode, _vectors(path, spec, output), frontend))
    one = jax.ShapeDtypeStruct((1, frontend.clip_samples), np.int16)
    try:
        width = jax.eval_shape(function, variables, one).shape[-1]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot hear windows of {frontend.clip_seconds:g} s: {error}"
        ) from error
    # Options alone: the tower's name says nothing of what it computes.
    said = f"{dataclasses.asdict(frontend)} {_options(spec)} {output}"
    text = said + sharding.digest(variables)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    encode = partial(function, jax.device_put(variables))
    return AudioTower(str(path), frontend, width, digest, encode)


def load_all(
    paths: Sequence[str | Path],
    output: str = "embedding",
    window_seconds: float | None = None,
) -> list[AudioTower]:
    """Towers whose embeddings are to stand side by side: windows of the first one's
    length, unless it is given. Raises ValueError as `load`."""
    towers = [load(paths[0], output, window_seconds)]
    seconds = towers[0].frontend.clip_seconds
    return towers + [load(path, output, seconds) for path in paths[1:]]


def _frontend(path: str | Path, spec: Any) -> Frontend:
    if isinstance(spec, TowerStart):
        if spec.side != "audio" or spec.kind not in FRONTENDS:
            known = [kind for kind in zoo.AUDIO_TOWERS if kind in FRONTENDS]
            raise ValueError(
                f"{path} holds {spec.name} alone, expected {' or '.join(known)}, of "
                "which the front end is known, or a whole model"
            )
        return FRONTENDS[spec.kind]
    if spec_lib.features_width(spec):
        raise ValueError(f"{path}: {spec.name} hears features, expected one of sound")
    if spec.frontend.whole_mel:
        raise ValueError(
            f"{path}: {spec.name} hears clips as a whole, expected a model that hears "
            "windows"
        )
    return spec.frontend


def _options(spec: Any) -> dict[str, Any]:
    tower = spec if isinstance(spec, TowerStart) else spec.audio
    return {"kind": tower.kind, "options": tower.options}


def _vectors(path: str | Path, spec: Any, output: str) -> Callable[..., jax.Array]:
    """`(variables, sound) -> [B, D]`."""
    if output == "projection":
        if not isinstance(spec, zoo.Spec):
            raise ValueError(f"{path}: {spec.name} has no projection, but an embedding")
        dual = zoo.build(spec)

        def project(variables: Any, sound: Any) -> jax.Array:
            (_, aux), _ = dual.encode_audio(variables, sound)
            return aux["projection"].reshape(rows(sound), -1)

        return project
    options = _options(spec)
    tower = zoo.AUDIO_TOWERS[options["kind"]].tower(options["options"])

    def embed(variables: Any, sound: Any) -> jax.Array:
        own = {
            name: variables.get(name, {}).get("audio", {})
            for name in ("params", "state")
        }
        (embedding, _), _ = tower.apply(own, sound)
        return embedding

    return embed


def _encode(
    vectors: Callable[..., jax.Array], frontend: Frontend, variables: Any, wave: Any
) -> jax.Array:
    found = vectors(variables, hear.sound({"wave": wave}, frontend))
    return found.astype(np.float32)
