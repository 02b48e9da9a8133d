"""Arrays of an .npz, from several threads."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clap_jax.pipeline import npz


def test_many_threads_read_at_a_time():
    """Of which each would end another one's reading of a header, see there."""
    file = io.BytesIO()
    np.savez(file, **{f"array{i}": np.full((i + 1, 2), i) for i in range(20)})
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(npz.load, [file.getvalue()] * 200))
    finally:
        sys.setswitchinterval(before)
    for arrays in found:
        for i in range(20):
            np.testing.assert_array_equal(arrays[f"array{i}"], np.full((i + 1, 2), i))


def test_what_is_none():
    with pytest.raises(ValueError):
        npz.load(b"neither")
    file = io.BytesIO()
    np.savez(file, objects=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        npz.load(file.getvalue())
