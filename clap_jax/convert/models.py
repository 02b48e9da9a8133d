"""A checkpoint of any family as a model of ours, with what it takes to go back."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clap_jax import checkpoint, sharding
from clap_jax.convert import files, layouts, starts, trees, writing
from clap_jax.convert.rules import ConversionError
from clap_jax.convert.starts import TowerStart
from clap_jax.models import lora, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec

SPEC_FILE = "spec.json"
EXTRA_FILE = "extra.safetensors"
ORIGIN_FILE = "origin.json"

AnySpec = zoo.Spec | CaptionerSpec | ClassifierSpec | TowerStart


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model came from.

    layout: a name in `layouts.LAYOUTS`, or "start". prefix: what every key began with.
    tensors: key without the prefix -> dtype, in the order of the file. beside: plain
    values of its container (epoch, name).
    """

    layout: str
    prefix: str
    tensors: dict[str, str]
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Converted:
    """A model as `zoo.build(spec)` or `captioner.build(spec)` takes it.

    variables: float32 numpy arrays, views of the file where it has that dtype. extra:
    tensors of the source that the model does not use. origin: None for a model that was
    trained here. notes: sentences on what was found, assumed or left out. tokenizer:
    a folder with its files. layout: of what was read, "clap_jax" for our own. release:
    gives back the memory of pages already read.
    """

    spec: AnySpec
    variables: dict[str, Any]
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    origin: Origin | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    tokenizer: Path | None = None
    layout: str = "clap_jax"
    release: Callable[[], None] = lambda: None


def load(path: str | Path, tokenizer: str | Path | None = None) -> Converted:
    """Read a checkpoint of any known family, or a model of ours.

    path: a LAION-CLAP .pt, MS-CLAP or BLAT .pth, a folder of Hugging Face's, one tower
    to start from (.ckpt, .pth, .safetensors, .bin or folder), or a folder of ours: an
    export, a workdir or one of its steps. tokenizer: a folder with the tokenizer's
    files, for files that come without. Nothing that lies in a file is run.
    Errors: FileError on what is no checkpoint of these; ConversionError that lists
    every tensor that is missing, too many, or of a wrong shape or dtype; ValueError on
    a config that our towers do not have; ImportError for PyTorch's files without torch.
    """
    path = Path(path)
    if path.name == checkpoint.WEIGHTS_FILE and _is_own(path.parent):
        path = path.parent
    if tokenizer is not None and not writing.has_tokenizer(Path(tokenizer)):
        raise files.FileError(f"{tokenizer} is not a folder with a tokenizer in it")
    if (path / starts.TOWER_FILE).is_file():
        found = _own_start(path)
    elif _is_own(path):
        found = _own(path)
    else:
        found = _foreign(files.read(path))
    if tokenizer is not None:
        found.tokenizer = Path(tokenizer)
    if found.tokenizer is None and hasattr(found.spec, "tokenizer"):
        wanted = f" (it is {found.spec.tokenizer})" if found.spec.tokenizer else ""
        found.notes.append(
            f"no tokenizer comes with it{wanted}; --tokenizer=FOLDER gives it one"
        )
    return found


def _is_own(path: Path) -> bool:
    """Whether a folder is an export, a start, a workdir, or a step of one."""
    if any((path / name).is_file() for name in (SPEC_FILE, starts.TOWER_FILE)):
        return True
    return (path / "model").is_dir() and path.parent.name == "checkpoints"


def _foreign(source: files.Source) -> Converted:
    layout, prefix, tensors = layouts.recognise(source)
    dtypes = {key: array.dtype.name for key, array in tensors.items()}
    origin = Origin(layout, prefix, dtypes, source.beside)
    folder = source.path if source.path.is_dir() else None
    if layout == layouts.START:
        spec, notes = starts.spec(tensors, source.config)
        variables, extra, fresh = starts.fill(spec, tensors)
        notes += fresh
    else:
        module = layouts.LAYOUTS[layout]
        given = (source.config, folder) if layout == "hf" else ()
        spec, notes = module.spec(tensors, *given)
        table = module.table(spec)
        variables, extra = trees.fill(*table, tensors, trees.shapes(spec))
        notes += [
            f"{name} differs from {entry.same_as}, of which it should be another name; "
            "the model uses the latter"
            for entry in table[1]
            if entry.same_as
            for name in entry.names
            if name in extra
        ]
    narrowed = [key for key, name in dtypes.items() if name == "float64"]
    if narrowed:
        notes.append(f"{len(narrowed)} tensors of float64 were rounded to float32")
    return Converted(
        spec,
        variables,
        extra,
        origin,
        [*source.notes, *notes],
        folder if folder and writing.has_tokenizer(folder) else _cached(spec),
        layout,
        source.release,
    )


def _cached(spec: AnySpec) -> Path | None:
    """The folder of the spec's tokenizer in the local cache of the hub, if it is there.

    Nothing is downloaded.
    """
    hub_id = getattr(spec, "tokenizer", "")
    if not hub_id:
        return None
    if Path(hub_id).is_dir():
        return Path(hub_id) if writing.has_tokenizer(Path(hub_id)) else None
    import huggingface_hub  # at first use: it takes a while to import

    with contextlib.suppress(ValueError):  # a path that was there once is no id
        for name in ("tokenizer.json", "vocab.json", "vocab.txt"):
            found = huggingface_hub.try_to_load_from_cache(hub_id, name)
            if isinstance(found, str):
                return Path(found).parent
    return None


def _own(path: Path) -> Converted:
    """A folder of ours: an export with its extras, a workdir, a step."""
    home = checkpoint.find_home(path)
    spec = read_any_spec(home / SPEC_FILE)
    extra: dict[str, np.ndarray] = {}
    origin, release = None, []
    if (path / checkpoint.WEIGHTS_FILE).is_file():
        source = files.read(path / checkpoint.WEIGHTS_FILE)
        flat = dict(source.tensors)
        release.append(source.release)
        if (path / EXTRA_FILE).is_file():
            kept = files.read(path / EXTRA_FILE)
            extra = kept.tensors
            release.append(kept.release)
        if (path / ORIGIN_FILE).is_file():
            origin = _read_origin(path / ORIGIN_FILE)
    else:
        flat = sharding.flatten(checkpoint.load_variables(path))
    variables = _checked(flat, trees.shapes(spec), path)
    if isinstance(spec, CaptionerSpec) and spec.lora_rank:
        spec, variables = lora.merged(spec, variables)
    folder = home / "tokenizer"
    return Converted(
        spec,
        variables,
        extra,
        origin,
        tokenizer=folder if folder.is_dir() else _cached(spec),
        release=lambda: [give() for give in release] and None,
    )


def _own_start(path: Path) -> Converted:
    spec = starts.read_start(path / starts.TOWER_FILE)
    source = files.read(path / checkpoint.WEIGHTS_FILE)
    variables = {"params": {}, "state": {}} | sharding.unflatten(source.tensors)
    folder = path / "tokenizer"
    return Converted(
        spec,
        variables,
        tokenizer=folder if folder.is_dir() else None,
        release=source.release,
    )


def read_any_spec(path: Path) -> zoo.Spec | CaptionerSpec | ClassifierSpec:
    """The spec of a `spec.json`, of a model, of a captioner or of a classifier.

    Errors: ValueError naming the file.
    """
    found = files.read_json(path)
    for kind, spec in (("captioner", CaptionerSpec), ("classifier", ClassifierSpec)):
        if kind in found:
            try:
                return spec.from_json(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not a {kind}'s spec: {error}") from error
    return zoo.read_spec(path)


def _read_origin(path: Path) -> Origin:
    try:
        return Origin(**files.read_json(path))
    except TypeError as error:
        raise files.FileError(f"{path} is damaged: {error}") from error


def _checked(
    flat: Mapping[str, np.ndarray], shapes: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The variables as float32, after their paths and shapes are those of the spec."""
    wanted = sharding.flatten(shapes)
    errors = [f"{name}: not in {path}" for name in wanted if name not in flat]
    errors += [
        f"{name}: the model has no such parameter"
        for name in flat.keys() - wanted.keys()
    ]
    errors += [
        f"{name}: shape {np.shape(flat[name])}, expected {leaf.shape}"
        for name, leaf in wanted.items()
        if name in flat and np.shape(flat[name]) != leaf.shape
    ]
    if errors:
        raise ConversionError(sorted(errors))
    filled = {name: np.asarray(flat[name], leaf.dtype) for name, leaf in wanted.items()}
    return trees.with_empty(shapes, sharding.unflatten(filled))
