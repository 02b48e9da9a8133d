"""Writing a model as a folder of ours or as a checkpoint of another project."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from clap_jax import checkpoint, sharding
from clap_jax.convert import (
    collapse,
    files,
    hf_config,
    hf_frontend,
    layouts,
    rules,
    starts,
    writing,
)
from clap_jax.convert import models as models_lib
from clap_jax.convert.models import Converted, load
from clap_jax.convert.starts import TowerStart
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec

# What no other system's models have: a decoder that helped in training.
_AUXILIARY = ("params/caption/", "state/caption/")

TARGETS = ("clap_jax", "hf", "laion", "msclap", "blat")

# How the PyTorch file of each project begins.
_CONTAINERS = {
    "laion": lambda state, beside: (
        {"epoch": 0, "name": "clap_jax"} | beside | {"state_dict": state}
    ),
    "msclap": lambda state, beside: beside | {"model": state},
    "clapcap": lambda state, beside: beside | {"model": state},
    "blat": lambda state, beside: beside | {"state_dict": state},
}
_TORCH_FILE = {"laion": "model.pt", "msclap": "model.pth", "blat": "model.pth"}

# All that a folder of ours, or of Hugging Face's, may hold.
_OWN = (
    models_lib.SPEC_FILE,
    starts.TOWER_FILE,
    checkpoint.WEIGHTS_FILE,
    models_lib.EXTRA_FILE,
    models_lib.ORIGIN_FILE,
    "tokenizer",
)
_HF = (
    checkpoint.WEIGHTS_FILE,
    "config.json",
    hf_frontend.FILE,
    hf_frontend.PROCESSOR_FILE,
    *writing.TOKENIZER_FILES,
)


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "clap_jax",
    *,
    dtype: str | None = None,
    tokenizer: str | Path | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    check: bool = True,
) -> tuple[Path, Converted]:
    """`load`, look for collapsed embeddings (if `check`), and `write`.

    Returns where the result lies and what was loaded, with notes on all that was found.
    Errors: as `load` and `write`; nothing is written then.
    """
    if to in TARGETS:
        writing.check_destination(*_place(Path(destination), to, overwrite))
    converted = load(source, tokenizer)
    _check_target(converted, to)
    if check:
        converted.notes += collapse.notes(converted)
        converted.release()
    where = write(
        converted, destination, to, dtype=dtype, prefix=prefix, overwrite=overwrite
    )
    return where, converted


def write(
    converted: Converted,
    folder: str | Path,
    to: str = "clap_jax",
    *,
    dtype: str | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model, whole or not at all, and return where it lies.

    folder: a folder; for "laion", "msclap" and "blat" a file, or a folder to put one
    in. to: a name in `TARGETS`. dtype: "float32", "float16" or "bfloat16", to which
    weights are rounded; by default that of the checkpoint that the model came from,
    where it returns to that layout, else float32. prefix: what every key begins with
    ("module." for LAION's); by default as in that checkpoint, else nothing.
    Errors: ValueError on a model that the layout cannot hold and where something is in
    the way; ConversionError that lists every tensor without a place, and those that are
    not exact in the dtype of the original.
    """
    _check_target(converted, to)
    place = _place(Path(folder), to, overwrite)
    if to == "clap_jax":
        with writing.destination(*place) as fresh:
            _write_own(converted, fresh, dtype)
        return place[0]
    name, origin = _layout(converted.spec, to), converted.origin
    losses = layouts.LAYOUTS[name].losses(converted.spec)
    converted.notes += [note for note in losses if note not in converted.notes]
    makers, tied = _source_tensors(converted, name, dtype)
    if to == "hf":
        with writing.destination(*place) as fresh:
            _write_hf(converted, fresh, makers)
        return place[0]
    came = origin is not None and origin.layout == name
    beside = origin.beside if came else {}
    if prefix is None:
        prefix = origin.prefix if came else ""
    with writing.destination(*place) as fresh:
        writing.write_torch(
            fresh,
            {prefix + key: make for key, make in makers.items()},
            {prefix + key: prefix + other for key, other in tied.items()},
            converted.release,
            lambda state: _CONTAINERS[name](state, beside),
        )
    return place[0]


def _place(path: Path, to: str, overwrite: bool) -> tuple[Path, bool, tuple[str, ...]]:
    """What `writing.destination` takes: where, whether it may be replaced, what by."""
    if to in _TORCH_FILE:
        is_file = path.suffix in files.PICKLES
        return path if is_file else path / _TORCH_FILE[to], overwrite, ()
    return path, overwrite, _OWN if to == "clap_jax" else _HF


def _check_target(converted: Converted, to: str) -> None:
    """ValueError when the model cannot be written so."""
    spec = converted.spec
    if to not in TARGETS:
        raise ValueError(
            f"--to={to} is not known, expected one of {', '.join(TARGETS)}"
        )
    if to == "clap_jax":
        return
    kinds = {TowerStart: (), ClassifierSpec: (), CaptionerSpec: ("msclap",)}
    names = kinds.get(type(spec), TARGETS)
    if to not in names:
        raise ValueError(
            f"{spec.name} can be written as {' or '.join(('clap_jax', *names))}, not {to}"
        )
    layouts.LAYOUTS[_layout(spec, to)].check(spec)


def _layout(spec: models_lib.AnySpec, to: str) -> str:
    """A family's captioners have a layout of their own."""
    return "clapcap" if isinstance(spec, CaptionerSpec) else to


def _source_tensors(
    converted: Converted, name: str, dtype: str | None
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """How to make every tensor of a layout, and which are other names of which."""
    origin = converted.origin
    table, extras = layouts.LAYOUTS[name].table(converted.spec)
    left_out = layouts.LEFT_OUT.get(name, ())
    flat = {
        path: leaf
        for path, leaf in sharding.flatten(converted.variables).items()
        if not path.startswith((*_AUXILIARY, *left_out))
    }
    steps = rules.steps_back(table, flat)
    tied = {
        key: entry.same_as
        for entry in extras
        if entry.same_as in steps
        for key in entry.names
    }
    kept = dict(converted.extra)
    if origin is not None and origin.layout == name:
        names, dtypes = list(origin.tensors), origin.tensors
        known = steps.keys() | kept.keys() | tied.keys()
        if not known.issuperset(names):  # extra.safetensors is lost
            kept = _anew(converted, name) | kept
    else:
        made = _anew(converted, name)
        # Tensors that two layouts have in common stay what they were.
        common = {k: kept[k] for k in made.keys() & kept.keys()}
        kept = made | {k: x for k, x in common.items() if x.shape == made[k].shape}
        names, dtypes = [*steps, *kept, *(key for key in tied if key not in kept)], {}
    tied = {key: other for key, other in tied.items() if key not in kept}
    makers = {key: lambda step=step: step.make(flat) for key, step in steps.items()}
    makers |= {key: lambda array=array: array for key, array in kept.items()}
    makers |= {key: makers[other] for key, other in tied.items()}
    errors = [f"{k}: in the original; cannot be made" for k in names if k not in makers]
    errors += [f"{key}: not in the original" for key in steps.keys() - set(names)]
    if errors:
        raise rules.ConversionError(errors)
    return writing.casts({k: makers[k] for k in names}, dtypes, dtype), tied


def _anew(converted: Converted, name: str) -> dict[str, np.ndarray]:
    """Tensors of a layout that the model does not have, as a strict load needs them."""
    made = layouts.LAYOUTS[name].buffers(converted.spec)
    if name == "hf":
        # Their logits of texts use this one, and ours use the other for both.
        scale = converted.variables["params"]["logit_scale_a"]
        made["logit_scale_t"] = np.array(scale, np.float32)
    return made


def _write_own(converted: Converted, folder: Path, dtype: str | None) -> None:
    spec = converted.spec
    folder.mkdir()
    flat = sharding.flatten(converted.variables)
    makers = {path: lambda leaf=leaf: np.asarray(leaf) for path, leaf in flat.items()}
    makers = writing.casts(makers, {}, dtype)
    checkpoint.write_safetensors(
        folder / checkpoint.WEIGHTS_FILE,
        writing.lazy(makers, converted.release),
        {"format": "clap_jax"},
    )
    converted.release()
    name = starts.TOWER_FILE if isinstance(spec, TowerStart) else models_lib.SPEC_FILE
    (folder / name).write_text(spec.to_json())
    if converted.extra:
        checkpoint.write_safetensors(
            folder / models_lib.EXTRA_FILE, converted.extra, {"format": "clap_jax"}
        )
    if converted.origin is not None:
        origin = json.dumps(dataclasses.asdict(converted.origin), indent=1)
        (folder / models_lib.ORIGIN_FILE).write_text(origin + "\n")
    if converted.tokenizer is not None:
        writing.copy_tokenizer(converted.tokenizer, folder / "tokenizer")


def _write_hf(
    converted: Converted, folder: Path, makers: Mapping[str, Callable[[], np.ndarray]]
) -> None:
    spec = converted.spec
    folder.mkdir()
    tensors = writing.lazy(makers, converted.release)
    checkpoint.write_safetensors(
        folder / checkpoint.WEIGHTS_FILE, tensors, {"format": "pt"}
    )
    config = hf_config.from_spec(spec)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = hf_frontend.to_settings(spec.frontend)
    (folder / hf_frontend.FILE).write_text(json.dumps(settings, indent=2) + "\n")
    if converted.tokenizer is not None:
        writing.copy_tokenizer(converted.tokenizer, folder)
