"""The figures of a log line: what they count, and against what."""

import math

import jax
import pytest
from absl import logging

from clap_jax.models import zoo
from clap_jax.train import throughput

# A transformer on paper: multiply-adds of its weight matrices and of its attention.
WIDTH, DEPTH, MLP, TOKENS = 128, 3, 512, 16


@pytest.fixture(scope="module")
def spec():
    text = {"width": WIDTH, "depth": DEPTH, "mlp": MLP, "heads": 4}
    return zoo.get_spec(
        "small_transformer",
        {"text": {"options": text}, "text_length": TOKENS, "embed_dim": 32},
    )


def counted(spec, **options):
    return throughput.model_flops(zoo.build(spec, **options), spec, 1)


def test_model_flops_are_those_of_paper_and_pencil(spec):
    """Half as many tokens take away half of the matrices and 3/4 of attention."""
    half = zoo.get_spec(
        "small_transformer",
        {"text": {"options": spec.text.options}, "text_length": TOKENS // 2}
        | {"embed_dim": 32},
    )
    matrices = DEPTH * TOKENS * (4 * WIDTH**2 + 2 * WIDTH * MLP)
    attention = DEPTH * 2 * TOKENS**2 * WIDTH
    expected = 3 * 2 * (matrices / 2 + attention * 3 / 4)
    found = counted(spec) - counted(half)
    # Norms, softmax and activations come on top.
    assert expected < found < 1.15 * expected


def test_scores_are_counted_once_a_pair(spec):
    dual = zoo.build(spec)
    small, large = (throughput.model_flops(dual, spec, b) for b in (1, 1001))
    assert large - small == 3 * 2 * 1000 * spec.embed_dim


def test_a_lap_is_the_time_since_the_last_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    meter = throughput.Meter(batch_size=8, step=3, peak=1e12)
    for step in range(3, 13):
        meter.count(8e9 if step > 5 else 1e9)
    with meter.waiting():
        now[0] += 1
    with meter.paused():
        now[0] += 50
    now[0] += 3
    line = meter.lap(13)
    assert line.pop("train/device_memory_gib") > 0.05
    assert line == pytest.approx(
        {
            "train/clips_per_s": 20.0,
            "train/pairs_per_s": 160.0,
            "train/step_ms": 400.0,
            "train/data_wait_fraction": 0.25,
            "train/mfu": 0.118,  # 3 steps of 1 and 7 of 8 GFLOP a clip
        }
    )
    now[0] += 1
    assert meter.lap(14)["train/clips_per_s"] == pytest.approx(8.0)


def test_a_processor_without_a_data_sheet_is_measured(monkeypatch):
    """Eight virtual devices are not eight processors."""
    assert throughput._measured_flops() > 0
    monkeypatch.setattr(throughput, "_measured_flops", lambda: 3e10)
    for devices in (jax.devices()[:1], jax.devices()):
        assert throughput.peak_flops(devices) == 3e10
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert throughput.peak_flops(jax.devices()) == 6e10


def test_a_chip_without_a_row_has_no_mfu(monkeypatch):
    class Device:
        device_kind, platform = "NVIDIA GeForce", "gpu"

    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: said.append(text % a))
    monkeypatch.setattr(throughput, "_measured_flops", pytest.fail)
    peak = throughput.peak_flops([Device()] * 4)
    assert math.isnan(peak)
    (warning,) = said
    assert "clap_jax/chips.py has no row for 'NVIDIA GeForce'" in warning
    meter = throughput.Meter(batch_size=8, step=0, peak=peak)
    meter.count(1e9)
    assert math.isnan(meter.lap(1)["train/mfu"])


def test_a_known_chip_is_looked_up(monkeypatch):
    class Device:
        device_kind = "some chip"

    class Chip:
        bf16_flops = 2e14

    found = {"some chip": Chip}
    monkeypatch.setattr(throughput.chips, "find", found.get)
    assert throughput.peak_flops([Device()] * 4) == 8e14
