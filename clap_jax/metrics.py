"""Metrics as `(sum, count)` pairs: exact means over ragged batches, steps and hosts."""

from typing import Any, NamedTuple

Scalar = Any  # a float, or a scalar array of numpy or jax


class Mean(NamedTuple):
    """A mean in two parts, so that merging is exact (no mean of means)."""

    sum: Scalar
    count: Scalar

    def compute(self) -> float:
        """The mean as a Python float; NaN when nothing was counted."""
        count = float(self.count)
        return float(self.sum) / count if count else float("nan")


def compute(totals: dict[str, Mean]) -> dict[str, float]:
    """The mean of every accumulator."""
    return {key: mean.compute() for key, mean in totals.items()}
