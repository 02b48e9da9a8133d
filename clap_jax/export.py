"""Both towers as StableHLO: programs that run without this package's model code.

    clap.export("served", batch_size=8)
    towers = clap_jax.export.load_export("served")
    za = towers.audio(waves)             # float32 [n, E]
    zt = towers.text(ids, mask)          # float32 [m, E]

A folder holds

    audio.stablehlo, text.stablehlo   what `jax.export.deserialize` reads
    export.json                       the inputs of both, batch size, platforms, scale
    model.safetensors                 the weights, which are inputs of the programs
    spec.json, tokenizer/             as in a saved model, which the folder is as well

Weights are not constants of the programs: the files stay small, one copy of the weights
serves both towers and all platforms, and no limit of two gigabytes is met. The first
argument of a program is a dict of those weights whose path it names, the others are

    audio   wave f32 [B, T], one window at the model's rate; the log-mel is inside
            mel f32 [B, 4, N, F], longer bool [B]   for a front end with views
            mel f32 [B, N, F], frames i32 [B]       for one that takes whole clips, of
                                                    any N from 32 on
    text    ids i32 [B, L], mask bool [B, L]

and both give unit vectors, f32 [B, E]. Waves are in [-1, 1] and taken as they are:
`audio.io.quantise` before, where the front end of the spec has `int16_trip`, makes them
what `Clap.embed_audio` hears. JAX reads what it wrote for half a year at least
(see the calling conventions of `jax.export`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from clap_jax import checkpoint, sharding
from clap_jax import config as config_lib
from clap_jax.evals import hear
from clap_jax.models import temporal, zoo

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

SIDES = ("audio", "text")

# Frames of the shortest mel that a tower for whole clips takes.
LEAST_FRAMES = 32

# What an exported folder holds.
_OWN = (
    "audio.stablehlo",
    "text.stablehlo",
    "export.json",
    checkpoint.WEIGHTS_FILE,
    "spec.json",
    "tokenizer",
)

# Kinds of numbers that an input of a dtype may be given as: no scale is guessed.
_KINDS = {"float32": "f", "int32": "iu", "bool": "b"}


class Program(NamedTuple):
    """One tower: its function of weights and inputs, and the inputs by name."""

    function: Callable[..., jax.Array]
    inputs: dict[str, jax.ShapeDtypeStruct]


def write(
    folder: Path,
    spec: zoo.Spec,
    variables: Mapping[str, Any],
    *,
    batch_size: int,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write the programs, the weights and what both are into `folder`.

    The platforms need not be here. Raises ValueError for unknown ones, for a batch size
    below 1 and for a folder that holds anything but an export.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(
            f"platforms are {list(platforms)}, expected some of {', '.join(PLATFORMS)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(x.name for x in folder.iterdir() if x.name not in _OWN)
    if others:
        raise ValueError(
            f"{folder} holds other things ({others[0]}): export to a folder of its own"
        )
    # Written last: without it the folder is no export.
    (folder / "export.json").unlink(missing_ok=True)
    described: dict[str, Any] = {
        "batch_size": batch_size,
        "platforms": list(platforms),
        "embed_dim": spec.embed_dim,
        "scale": float(np.exp(variables["params"]["logit_scale_a"])),
        "jax": jax.__version__,
    }
    for side, program in programs(spec, batch_size).items():
        weights = weights_of(side, sharding.flatten(variables))
        shapes = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in weights.items()
        }
        exported = jax_export.export(
            jax.jit(program.function), platforms=list(platforms)
        )(shapes, *program.inputs.values())
        (folder / f"{side}.stablehlo").write_bytes(exported.serialize())
        described[side] = {
            name: [
                [size if isinstance(size, int) else str(size) for size in shape.shape],
                shape.dtype.name,
            ]
            for name, shape in program.inputs.items()
        }
    checkpoint.save_export(folder, dict(variables))
    config_lib.write_text(folder / "spec.json", spec.to_json())
    config_lib.write_text(folder / "export.json", json.dumps(described, indent=2))


def programs(spec: zoo.Spec, batch_size: int) -> dict[str, Program]:
    """The functions of both towers, for weights by path, and their inputs."""
    dual, frontend = zoo.build(spec), spec.frontend

    def shape(*rest: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *rest), dtype)

    def audio(weights: Mapping[str, jax.Array], *heard: jax.Array) -> jax.Array:
        batch = dict(zip(sounds, heard, strict=True))
        (za, _), _ = dual.encode_audio(_tree(weights), hear.sound(batch, frontend))
        return temporal.whole(za)

    def text(
        weights: Mapping[str, jax.Array], ids: jax.Array, mask: jax.Array
    ) -> jax.Array:
        (zt, _), _ = dual.encode_text(_tree(weights), ids, mask)
        return temporal.whole(zt)

    mel = (frontend.clip_frames, frontend.mels)
    if frontend.views > 1:
        sounds = {"mel": shape(frontend.views, *mel), "longer": shape(dtype=jnp.bool_)}
    elif frontend.whole_clip:
        (frames,) = jax_export.symbolic_shape("N", constraints=[f"N >= {LEAST_FRAMES}"])
        mel = (frames, frontend.mels)
        sounds = {"mel": shape(*mel), "frames": shape(dtype=jnp.int32)}
    else:
        sounds = {"wave": shape(frontend.clip_samples)}
    words = {
        "ids": shape(spec.text_length, dtype=jnp.int32),
        "mask": shape(spec.text_length, dtype=jnp.bool_),
    }
    return {"audio": Program(audio, sounds), "text": Program(text, words)}


def weights_of(side: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that the program of one side takes, of all by path."""
    starts = (f"params/{side}/", f"params/{side}_projection/", f"state/{side}/")
    return {path: leaf for path, leaf in flat.items() if path.startswith(starts)}


def _tree(weights: Mapping[str, Any]) -> dict[str, Any]:
    tree = {"params": {}, "state": {}} | sharding.unflatten(weights)
    tree["state"] = {side: {} for side in SIDES} | tree["state"]
    return tree


class Towers:
    """What `load_export` gives: both towers as functions of numpy arrays.

    described: the content of `export.json`.
    """

    def __init__(self, folder: Path):
        from safetensors.numpy import load_file

        try:
            self.described = json.loads((folder / "export.json").read_text())
            flat = load_file(folder / checkpoint.WEIGHTS_FILE)
            found = {
                side: jax_export.deserialize(
                    bytearray((folder / f"{side}.stablehlo").read_bytes())
                )
                for side in SIDES
            }
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} is no exported model: there is no {error.filename} (write "
                "one with Clap.export)"
            ) from error
        platform = jax.default_backend().replace("gpu", "cuda")
        if platform not in self.described["platforms"]:
            raise ValueError(
                f"{folder} was exported for {', '.join(self.described['platforms'])}, "
                f"but this is {platform}: export it with platforms=('{platform}',)"
            )
        self._weights = {side: jax.device_put(weights_of(side, flat)) for side in SIDES}
        self._call = {side: jax.jit(found[side].call) for side in SIDES}

    def audio(self, *inputs: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, E] of sounds; the inputs are in the module's table."""
        return self._run("audio", inputs)

    def text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embeddings float32 [m, E] of tokenised texts."""
        return self._run("text", (ids, mask))

    def score(self, za: np.ndarray, zt: np.ndarray) -> np.ndarray:
        """The model's scaled score, float32 [n, m]."""
        return np.float32(self.described["scale"]) * (za @ zt.T)

    def _run(self, side: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Any number of rows, a batch at a time; the last row fills up the last one."""
        wanted, size = self.described[side], self.described["batch_size"]
        if len(inputs) != len(wanted):
            raise ValueError(f"{side} takes {', '.join(wanted)}, found {len(inputs)}")
        checked = []
        for value, (name, (shape, dtype)) in zip(inputs, wanted.items(), strict=True):
            value = np.asarray(value)
            fits = value.ndim == len(shape) and all(
                size == known or isinstance(known, str)
                for size, known in zip(value.shape[1:], shape[1:], strict=True)
            )
            if not fits:
                raise ValueError(
                    f"{name} has shape {value.shape}, expected (n, "
                    f"{', '.join(map(str, shape[1:]))})"
                )
            if value.dtype.kind not in _KINDS[dtype]:
                raise ValueError(f"{name} is {value.dtype}, expected {dtype}")
            checked.append(value.astype(dtype))
        rows = [np.zeros((0, self.described["embed_dim"]), np.float32)]
        for start in range(0, len(checked[0]), size):
            parts = [value[start : start + size] for value in checked]
            count = len(parts[0])
            filled = [
                np.concatenate([part, np.repeat(part[-1:], size - count, axis=0)])
                for part in parts
            ]
            out = self._call[side](self._weights[side], *filled)
            rows.append(np.asarray(out)[:count])
        return np.concatenate(rows)


def load_export(folder: str | Path) -> Towers:
    """The towers of an exported folder, on this machine's first device.

    Raises ValueError for a folder that holds none, and for another platform.
    """
    return Towers(Path(folder))
