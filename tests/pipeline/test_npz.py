"""Arrays of an .npz, from several threads."""

import contextlib
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clap_jax.pipeline import npz


def test_one_thread_reads_at_a_time(monkeypatch):
    """Of several, each of which gets all arrays."""
    file = io.BytesIO()
    np.savez(file, **{f"array{i}": np.full((i + 1, 2), i) for i in range(20)})
    plain, reading, most = np.load, [], []

    @contextlib.contextmanager
    def watched(*arguments, **options):
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.01)
        with plain(*arguments, **options) as arrays:
            yield arrays
        reading.pop()

    monkeypatch.setattr(npz.np, "load", watched)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(npz.load, [file.getvalue()] * 24))
    assert max(most) == 1
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
