"""What parity tests share: relative differences, kept for the table at the end."""

import numpy as np
import pytest

from tests import parity_table


def difference(got, want) -> float:
    """Largest absolute difference over the largest absolute value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())


class Parity:
    """Compares with an oracle and remembers the worst difference of every column."""

    def __init__(self, reference):
        self.reference = reference

    def note(self, column: str, value: float) -> float:
        """Keep the largest value seen under one of the table's columns."""
        parity_table.note(self.reference.name, column, value)
        return value

    def check(self, column: str, key: str, x, tolerance: float) -> None:
        """`x` agrees with what the oracle stored under `key` (whole, or a tap)."""
        error = difference(self.reference.take(x, key), self.reference.io[key])
        assert self.note(column, error) <= tolerance, (key, error)

    def check_close(self, column: str, got, want, tolerance: float) -> None:
        """Two arrays agree."""
        assert self.note(column, difference(got, want)) <= tolerance

    def check_gradients(self, gradients, *, absolute=(), tolerance=1e-3) -> None:
        """Gradients by source key: norms of all, and values where they are stored.

        Keys that contain one of `absolute` have no gradient in theory (attention key
        biases): they are only compared absolutely. A norm of None is no gradient.
        """
        for key, want in self.reference.spec["grad"]["norms"].items():
            if want is None:
                assert not np.any(gradients.get(key, 0)), key
                continue
            norm = np.linalg.norm(np.asarray(gradients[key], np.float64))
            if any(part in key for part in absolute):
                assert abs(norm - want) <= 1e-5, (key, norm, want)
                continue
            error = self.note("gradients", abs(norm - want) / max(want, 1e-30))
            assert error <= tolerance, (key, norm, want)
        stored = [key for key in self.reference.io if key.startswith("grad/")]
        assert stored
        for key in stored:
            got = np.asarray(gradients[key.removeprefix("grad/")])
            error = difference(self.reference.take(got, key), self.reference.io[key])
            assert self.note("gradients", error) <= tolerance, (key, error)


@pytest.fixture(scope="session")
def parity(oracle):
    """Open an oracle by name for comparison."""
    return lambda name: Parity(oracle(name))
