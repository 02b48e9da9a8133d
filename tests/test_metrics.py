"""(sum, count) accumulators."""

import math

from clap_jax import metrics
from clap_jax.metrics import Mean


def test_means_of_totals():
    totals = {"loss": Mean(6.0 + 2.0, 3 + 1), "scale": Mean(5.0, 1)}
    assert metrics.compute(totals) == {"loss": 2.0, "scale": 5.0}


def test_nothing_counted_is_nan():
    assert math.isnan(Mean(0.0, 0).compute())
