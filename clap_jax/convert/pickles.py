"""PyTorch's files by an unpickler that knows a few names and runs nothing else.

`torch.load(weights_only=True)` does that, but understands pickles of protocol 2 only,
and not all files are (one of LAION's music models is said to be of protocol 4), and it
refuses what training left beside the weights. For those there is `Unpickler`, which
runs as little.
"""

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np

# What training leaves beside the weights: Lightning's callbacks, a sampler's arrays.
# Something that does nothing stands in for it.
_LEFT_OVER = (
    "pytorch_lightning.",
    "lightning.",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
)

_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class LeftOver:
    """Stands for an object that nobody needs; it takes any arguments and state."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        return object.__new__(cls)


class UnsafeError(pickle.UnpicklingError):
    """A pickle asks for something that is not a tensor, a plain value or a scalar."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(f"unsupported GLOBAL {name}")


def import_torch() -> Any:
    """torch, at first use. Errors: ImportError that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "PyTorch's files need PyTorch: pip install clap_jax[torch]"
        ) from error
    return torch


def load(path: Path, *, mapped: bool) -> Any:
    """What a file of PyTorch holds, on the CPU; its tensors mapped, where it can be.

    Errors: UnsafeError, before anything is run; ImportError without torch; and of many
    kinds on damaged files.
    """
    torch = import_torch()
    options = {"map_location": "cpu", "mmap": mapped}
    with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy()):
        # Of protocols other than 2, before it fails.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        try:
            return torch.load(path, weights_only=True, **options)
        except pickle.UnpicklingError as error:
            name = _unsupported(str(error))
            if name and not name.startswith(_LEFT_OVER):
                raise UnsafeError(name) from error
            if not name and "Unsupported operand" not in str(error):
                raise
    return torch.load(path, weights_only=False, pickle_module=_module(), **options)


def _unsupported(text: str) -> str:
    for start in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
        if start in text:
            return text.partition(start)[2].split()[0]
    return ""


def _numpy() -> list[Any]:
    """Numpy scalars, which the optimizer state of LAION's files holds.

    Their pickles name numpy's modules as they were before numpy 2, or as they are now.
    """
    import _codecs

    scalar = np._core.multiarray.scalar
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [*((scalar, name) for name in _SCALAR), np.dtype, *kinds, _codecs.encode]


def _known() -> dict[str, Any]:
    """Every name that a pickle may ask for."""
    import _codecs

    import torch

    return {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
        "torch.Size": torch.Size,
        "numpy.dtype": np.dtype,
        **dict.fromkeys(_SCALAR, np._core.multiarray.scalar),
        "_codecs.encode": _codecs.encode,
    }


# In Python, since the C one does not let BUILD be overridden.
class Unpickler(pickle._Unpickler):
    """Finds the names of `_known` (and storages, by PyTorch's own subclass) only."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full.startswith(_LEFT_OVER):
            return LeftOver
        try:
            return _known()[full]
        except KeyError:
            raise UnsafeError(full.removeprefix("builtins.")) from None

    def load_build(self) -> None:
        if isinstance(self.stack[-2], LeftOver):
            self.stack.pop()
            return
        # Otherwise it could set any attribute of what `find_class` gave.
        if not isinstance(self.stack[-2], np.dtype | OrderedDict):
            raise UnsafeError(f"the state of a {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _module() -> Any:
    """What torch.load wants of a pickle module."""

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="clap_jax")
