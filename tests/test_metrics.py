"""(sum, count) accumulators."""

import math

import pytest

from clap_jax import metrics
from clap_jax.metrics import Mean


def test_merging_is_exact_over_ragged_parts():
    merged = metrics.merge({"loss": Mean(6.0, 3)}, {"loss": Mean(2.0, 1)})
    assert metrics.compute(merged) == {"loss": 2.0}


def test_nothing_counted_is_nan():
    assert math.isnan(Mean(0.0, 0).compute())


def test_merging_different_metrics_names_them():
    with pytest.raises(ValueError, match="accuracy"):
        metrics.merge({"loss": Mean(1, 1)}, {"accuracy": Mean(1, 1)})
