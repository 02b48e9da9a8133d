"""What accelerators can do: the one table of chip rates, and where its numbers stand.

Peak rates are those of vendors' data sheets, without sparsity; no program reaches them.
For TPUs they come from the "System architecture" tables of the Cloud TPU documentation
(pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)"), for GPUs from
NVIDIA's data sheets. A row describes one device as jax counts them.
"""

from typing import NamedTuple

GB, GIB, MIB = 1e9, 2**30, 2**20


class Chip(NamedTuple):
    """One accelerator, as its vendor describes it.

    bf16_flops: FLOP/s of bfloat16 matrix products. float32_flops: of such products in
    full float32 (on TPUs six passes of bfloat16, which is what XLA makes of precision
    "highest"). hbm_bytes: memory; usable_bytes: what a program may take of it.
    hbm_bytes_per_s: reading and writing memory. link_bytes_per_s: what one device sends
    to its neighbours, over all of its links together (half of the two-way rate that
    data sheets give).
    """

    name: str
    bf16_flops: float
    float32_flops: float
    hbm_bytes: float
    usable_bytes: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float


def _tpu(
    name: str, tflops: float, hbm_gib: float, usable_gib: float, hbm_gb_s: float,
    link_gb_s: float,
) -> Chip:  # fmt: skip
    """usable_gib: the limit that libtpu's compiler names when a program is too big."""
    return Chip(
        name,
        bf16_flops=tflops * 1e12,
        float32_flops=tflops * 1e12 / 6,
        hbm_bytes=hbm_gib * GIB,
        usable_bytes=usable_gib * GIB,
        hbm_bytes_per_s=hbm_gb_s * GB,
        link_bytes_per_s=link_gb_s * GB,
    )


def _gpu(
    name: str, tflops: float, float32_tflops: float, hbm_mib: float, hbm_gb_s: float,
    link_gb_s: float,
) -> Chip:  # fmt: skip
    """hbm_mib: what nvidia-smi says, not quite the gigabytes of the name. Of it jax
    takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; launch/gpu.sh
    raises that to 92 %."""
    return Chip(
        name,
        bf16_flops=tflops * 1e12,
        float32_flops=float32_tflops * 1e12,
        hbm_bytes=hbm_mib * MIB,
        usable_bytes=0.92 * hbm_mib * MIB,
        hbm_bytes_per_s=hbm_gb_s * GB,
        link_bytes_per_s=link_gb_s * GB,
    )


# By `jax.Device.device_kind`.
CHIPS: dict[str, Chip] = {
    # "TPU v4": 275 teraflops, 32 GiB, 1200 GBps. Links: six of 50 GB/s a way (Jouppi et
    # al. 2023, arXiv 2304.01433, table 4). One device a chip ("megacore").
    "TPU v4": _tpu("TPU v4", 275, 32, 30.75, 1200, 300),
    # "TPU v5e": 197 TFLOPs, 16 GB, 819 GBps, interconnect 1600 Gbps (two-way 400 GBps).
    "TPU v5 lite": _tpu("TPU v5e", 197, 16, 15.75, 819, 200),
    # "TPU v5p": 459 TFLOPs, 95 GiB, 2765 GBps, 4800 Gbps (two-way 1200 GBps). The
    # compiler has 95.74 GiB.
    "TPU v5": _tpu("TPU v5p", 459, 95.74, 95.74, 2765, 600),
    # "TPU v6e": 918 TFLOPs, 32 GB, 1638 GBps, two-way 800 GBps.
    "TPU v6 lite": _tpu("TPU v6e", 918, 32, 31.25, 1638, 400),
    # "TPU7x": a chip of 2307 TFLOPs, 192 GiB, 7380 GBps and two-way 1200 GBps is two
    # devices. (The links belong to the chip; each device is given half.)
    "TPU7x": _tpu("TPU7x, one of two cores", 1153.5, 96, 94.75, 3690, 300),
    # "NVIDIA A100 Tensor Core GPU" data sheet, SXM: 312 TFLOPS, FP32 19.5; 40 GB at
    # 1555 GB/s or 80 GB at 2039 GB/s; NVLink 600 GB/s.
    "NVIDIA A100-SXM4-40GB": _gpu("A100 40 GB", 312, 19.5, 40960, 1555, 300),
    "NVIDIA A100-SXM4-80GB": _gpu("A100 80 GB", 312, 19.5, 81920, 2039, 300),
    # The same, PCIe: 80 GB at 1935 GB/s; PCIe Gen4, 64 GB/s. (Here and below, cards
    # are given PCIe's rate: NVLink bridges join only two or four of them.)
    "NVIDIA A100-PCIE-40GB": _gpu("A100 40 GB PCIe", 312, 19.5, 40960, 1555, 32),
    "NVIDIA A100 80GB PCIe": _gpu("A100 80 GB PCIe", 312, 19.5, 81920, 1935, 32),
    # "NVIDIA H100 Tensor Core GPU" data sheet, SXM: 1979 TFLOPS with sparsity, FP32 67,
    # 80 GB at 3.35 TB/s, NVLink 900 GB/s; PCIe: 1513 TFLOPS with sparsity, FP32 51, 80
    # GB at 2 TB/s, PCIe Gen5, 128 GB/s.
    "NVIDIA H100 80GB HBM3": _gpu("H100 SXM", 989.5, 67, 81559, 3350, 450),
    "NVIDIA H100 PCIe": _gpu("H100 PCIe", 756.5, 51, 81559, 2000, 64),
    # "NVIDIA H200 Tensor Core GPU" data sheet, SXM: as H100, 141 GB at 4.8 TB/s; NVL:
    # 1671 TFLOPS with sparsity, FP32 60, the same memory, PCIe Gen5, 128 GB/s.
    "NVIDIA H200": _gpu("H200 SXM", 989.5, 67, 143771, 4800, 450),
    "NVIDIA H200 NVL": _gpu("H200 NVL", 835.5, 60, 143771, 4800, 64),
    # "NVIDIA L4 Tensor Core GPU" data sheet: 242 TFLOPS with sparsity, FP32 30.3, 24 GB
    # at 300 GB/s, PCIe Gen4 x16, 64 GB/s.
    "NVIDIA L4": _gpu("L4", 121, 30.3, 23034, 300, 32),
    # "NVIDIA DGX B200" data sheet, an eighth of its GPUs: 36 PFLOPS with sparsity, 1440
    # GB at 64 TB/s, NVLink 14.4 TB/s; FP32 75 ("NVIDIA Blackwell" architecture brief).
    "NVIDIA B200": _gpu("B200", 2250, 75, 183359, 8000, 900),
}  # fmt: skip


def find(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`, or None if the table does not have it.

    By the whole name: what goes on after a known one ("NVIDIA H200 NVL", "... MIG
    1g.18gb") is another card, or a slice of one, with other rates.
    """
    return CHIPS.get(device_kind)
