"""Arrays of an .npz in memory, read by any number of threads."""

import io
import threading

import numpy as np

# NumPy reads the header of an array with `ast`, which threads cannot use at a time in some
# versions of Python (3.11.7 was seen to): one of them ends with "SystemError: AST
# constructor recursion depth mismatch" (cpython issue 106905).
_ONE_AT_A_TIME = threading.Lock()


def load(data: bytes) -> dict[str, np.ndarray]:
    """All arrays by their names; none of them can be an object, which would be code.

    Raises ValueError, EOFError, OSError or zipfile.BadZipFile for what is no .npz.
    """
    with _ONE_AT_A_TIME, np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
