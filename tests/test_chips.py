"""The table of chip rates: complete, plausible, and found by jax's names."""

import math

import pytest

from clap_jax import chips
from clap_jax.train import topology
from tests.train.slices import needs_libtpu


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_rates_are_in_units_that_make_sense(kind):
    chip = chips.CHIPS[kind]
    assert all(value > 0 and math.isfinite(value) for value in chip[1:])
    assert 1e14 < chip.bf16_flops < 1e16
    assert chip.float32_flops < chip.bf16_flops
    assert 1e10 < chip.hbm_bytes < 1e12
    assert 0.9 * chip.hbm_bytes < chip.usable_bytes <= chip.hbm_bytes
    assert 1e11 < chip.hbm_bytes_per_s < 1e13
    # Links are slower than memory by far, and no chip is slower on all counts.
    assert chip.link_bytes_per_s < chip.hbm_bytes_per_s / 3
    # FLOPs for each byte of memory traffic: data sheets of these years say 150 to 700.
    assert 150 < chip.bf16_flops / chip.hbm_bytes_per_s < 700


def test_figures_of_the_data_sheets():
    v5e = chips.find("TPU v5 lite")
    assert (v5e.bf16_flops, v5e.hbm_bytes_per_s) == (197e12, 819e9)
    assert v5e.link_bytes_per_s == 1600e9 / 8
    assert v5e.usable_bytes == 15.75 * 2**30
    assert chips.find("TPU v5").link_bytes_per_s == 4800e9 / 8
    assert chips.find("TPU v6 lite").bf16_flops == 918e12
    assert chips.find("NVIDIA H200").hbm_bytes == 143_771 * 2**20
    assert chips.find("NVIDIA H200 NVL").bf16_flops == 1671e12 / 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5", "TPU v5p"),
        ("TPU v5 lite", "TPU v5e"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_a_chip_is_found_by_its_kind(kind, name):
    assert chips.find(kind).name == name


@pytest.mark.parametrize(
    "kind",
    ["cpu", "TPU v9", "NVIDIA L40S", "", "TPU v5 lit", "NVIDIA H200 MIG 1g.18gb"],
)
def test_what_is_not_in_the_table_is_none(kind):
    assert chips.find(kind) is None


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_slices_have_rows(name):
    found = topology.find(name)
    assert len(found.devices) == 4
    assert found.chip.name.removeprefix("TPU ") == name.split(":")[0]
