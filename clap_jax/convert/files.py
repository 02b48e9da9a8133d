"""Reading the tensors of any checkpoint without running anything that lies in it.

Tensors come as numpy views of the mapped file: nothing is read before it is used.
"""

import ctypes
import dataclasses
import json
import math
import mmap
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clap_jax.convert import pickles

SAFETENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".ckpt", ".bin")

# Where a container keeps its tensors.
_WRAPPERS = ("state_dict", "model")

# What a folder of Hugging Face's may hold, in the order in which it is looked for.
_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


class FileError(ValueError):
    """A file that is no checkpoint, or a damaged or unsafe one; the message says it."""


@dataclasses.dataclass
class Source:
    """The tensors of a checkpoint and what lay beside them.

    path: the file or folder. tensors: key -> array, views of the mapped file.
    wrapper: "" or the key of the container that held them ("state_dict", "model").
    beside: plain values of that container (epoch, name). config: `config.json` of a
    Hugging Face folder. notes: sentences on what was left out. areas: address and size
    of mapped memory, which only `tensors` look at.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    wrapper: str = ""
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    areas: list[tuple[int, int]] = dataclasses.field(default_factory=list, repr=False)

    def release(self) -> None:
        """Give back the memory of pages already read; they are read anew at need.

        Mapped files count as memory of the process while their pages stay. On systems
        without this call they do.
        """
        if sys.platform != "linux":
            return
        system = ctypes.CDLL(None)
        page = mmap.PAGESIZE
        for address, size in self.areas:
            start, end = -(-address // page) * page, (address + size) // page * page
            if end > start:
                system.madvise(
                    ctypes.c_void_p(start),
                    ctypes.c_size_t(end - start),
                    mmap.MADV_DONTNEED,
                )


def read(path: str | Path) -> Source:
    """The tensors of a file or of a Hugging Face folder.

    Files: safetensors, and PyTorch's pickles (.pt, .pth, .ckpt, .bin), which need
    torch; of those only tensors, plain values and numpy scalars are read, and one that
    wants anything else is refused before it runs. Errors: FileError on a missing,
    empty, damaged or unsafe file and on what is no checkpoint; ImportError without
    torch.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist")
    start = _start_of(path)
    if path.suffix in SAFETENSORS:
        return _safetensors(path)
    if path.suffix not in PICKLES:
        kinds = ", ".join(SAFETENSORS + PICKLES)
        raise FileError(f"{path} is not a checkpoint by its name, expected {kinds}")
    return _pickle(path, zipped=start[:4] == b"PK\x03\x04")


def _start_of(path: Path) -> bytes:
    """The first bytes, after those of some text that is often there instead."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise FileError(f"{path} is empty: the download or copy did not finish")
    if start.startswith(b"version https://git-lfs"):
        raise FileError(
            f"{path} is a Git LFS pointer, not the weights: run git lfs pull"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileError(f"{path} is a web page, not a checkpoint: download it again")
    return start


def _folder(path: Path) -> Source:
    found = next((name for name in _FOLDER if (path / name).is_file()), None)
    if found is None:
        raise FileError(f"{path} holds none of {', '.join(_FOLDER)}")
    if found.endswith(".index.json"):
        source = _sharded(path / found)
    else:
        source = read(path / found)
    if (path / "config.json").is_file():
        source.config = read_json(path / "config.json")
    source.path = path
    return source


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Errors: FileError naming the file."""
    try:
        tree = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise FileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict):
        raise FileError(f"{path} holds a {type(tree).__name__}, expected a table")
    return tree


def _sharded(index: Path) -> Source:
    """A model in several files, which `index` lists."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise FileError(f"{index} has no weight_map")
    whole = Source(index, {})
    for name in dict.fromkeys(places.values()):
        if Path(name).name != name:
            raise FileError(f"{index} names {name!r}, which is not in its folder")
        part = read(index.parent / name)
        whole.tensors |= part.tensors
        whole.areas += part.areas
        whole.notes += part.notes
    lost = [key for key in places if key not in whole.tensors]
    if lost:
        raise FileError(
            f"{index} lists {len(lost)} tensors that no file has: {lost[0]}"
        )
    return whole


def _safetensors(path: Path) -> Source:
    """8 bytes: length of the header; the header, JSON; the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 2 <= length <= size - 8:
            raise FileError(
                f"{path} is not a safetensors file, or only its beginning: its header "
                f"should have {length} bytes, the file has {size}"
            )
        text = file.read(length)
        area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise FileError(f"{path} has a damaged safetensors header: {error}") from error
    missing = 8 + length + max(ends, default=0) - size
    if missing > 0:
        raise FileError(
            f"{path} is cut off: {missing} of {size + missing} bytes are missing"
        )
    tensors = {
        key: _view(path, key, entry, area, 8 + length) for key, entry in header.items()
    }
    return Source(path, tensors, areas=[_area(np.frombuffer(area, np.uint8))])


def _area(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def _view(path: Path, key: str, entry: Any, area: mmap.mmap, base: int) -> np.ndarray:
    kind = _DTYPES.get(entry.get("dtype"))
    if kind is None:
        raise FileError(
            f"{path}: {key} is of dtype {entry.get('dtype')}, expected one of "
            f"{', '.join(_DTYPES)}"
        )
    try:
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        count = math.prod(shape)
        if end - start != count * np.dtype(kind).itemsize or start < 0:
            raise ValueError(f"{end - start} bytes for shape {shape}")
        if not count:
            return np.zeros(shape, kind)
        return np.frombuffer(area, kind, count, base + start).reshape(shape)
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: {key} is damaged: {error}") from error


def _pickle(path: Path, zipped: bool) -> Source:
    try:
        # Files of PyTorch before 1.6 are no archives and cannot be mapped.
        found = pickles.load(path, mapped=zipped)
    except pickles.UnsafeError as error:
        raise FileError(
            f"{path}: its pickle asks for {error.name}, which could run code; nothing "
            "was run. Expected tensors, plain values and numpy scalars only"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # of many kinds, by what is wrong with the file
        text = " ".join(str(error).split())[:200]
        raise FileError(
            f"{path}: it is damaged, cut off or no PyTorch file ({text})"
        ) from error
    source = _unwrapped(path, found)
    if zipped:
        # Mapped privately. Whoever wrote to a page would lose it when it is released.
        for array in source.tensors.values():
            array.flags.writeable = False
        # A strided tensor spans more memory than is its own, and the pages of a file
        # from a machine of the other byte order are written to while it is read.
        if _is_native(path):
            whole = (x for x in source.tensors.values() if x.flags.c_contiguous)
            source.areas = [_area(x) for x in whole if x.size]
    return source


def _is_native(path: Path) -> bool:
    """Whether the numbers in a PyTorch archive have this machine's byte order."""
    with zipfile.ZipFile(path) as archive:
        orders = [x for x in archive.namelist() if x.endswith("/byteorder")]
        return all(archive.read(x).decode() == sys.byteorder for x in orders)


def _unwrapped(path: Path, found: Any) -> Source:
    """Tensors out of their container."""
    beside: dict[str, Any] = {}
    wrapper = ""
    notes = []
    if isinstance(found, Mapping):
        names = [name for name in _WRAPPERS if isinstance(found.get(name), Mapping)]
        if names:
            wrapper = names[0]
            others = {k: v for k, v in found.items() if k != wrapper}
            found = found[wrapper]
            plain = (str, int, float, bool)
            beside = {k: v for k, v in others.items() if isinstance(v, plain)}
            left = [str(k) for k in others if k not in beside]
            if left:
                notes.append(f"left out, not part of the model: {', '.join(left)}")
    if not isinstance(found, Mapping) or not found:
        raise FileError(
            f"{path} holds a {type(found).__name__} without tensors, expected a state "
            f"dict, alone or under {' or '.join(_WRAPPERS)}"
        )
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for key, value in found.items():
        try:
            tensors[str(key)] = _array(value)
        except (TypeError, RuntimeError) as error:
            problems.append(f"{key} ({error})")
    if problems:
        raise FileError(
            f"{path}: {len(problems)} entries are not plain tensors: "
            f"{'; '.join(problems[:5])}"
        )
    return Source(path, tensors, wrapper, beside, notes=notes)


def _array(value: Any) -> np.ndarray:
    """A view of a torch tensor's memory."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"a {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise TypeError("a sparse, quantised or empty tensor")
    value = value.detach()
    if value.dtype == torch.bfloat16:
        return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def to_torch(array: np.ndarray) -> Any:
    """A torch tensor of the same values and dtype, sharing memory where it can."""
    torch = pickles.import_torch()
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
