"""What a compiled program computes and moves, and how fast a chip could be at best.

FLOPs are those of matrix products and convolutions (2 for a product and a sum), counted
in the compiled program: what is computed twice to save memory counts twice, loops count
as often as they run, and the work of a chip is its own part. Bytes are those that enter
and leave instructions (not the insides of fusions) from or to HBM.

The estimate is a roofline (Williams et al. 2009): a step takes at least as long as the
longest of computing, memory and links, each at its data sheet's rate. Real steps take
longer, since the three do not always overlap and no kernel reaches a peak.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from clap_jax.chips import Chip
from clap_jax.train.hlo import Array, Computation, Instruction, Program

# Instructions that move nothing by themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
    "conditional", "call", "after-all", "partition-id", "replica-id", "opt-barrier",
    "add-dependency", "domain", "iota",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


class Work(NamedTuple):
    """What one chip does in one step.

    flops: of matrix products in bfloat16, or in float32 at the default precision;
    float32_flops: of those in full float32; hbm_bytes: read from and written to HBM.
    """

    flops: float
    float32_flops: float
    hbm_bytes: float


class Estimate(NamedTuple):
    """Seconds that a step takes at least, and by what."""

    compute_s: float
    memory_s: float
    links_s: float

    @property
    def step_s(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        names = ("compute", "memory", "interconnect")
        return names[max(range(3), key=lambda place: self[place])]


def estimate(work: Work, sent_bytes: float, chip: Chip) -> Estimate:
    """The roofline of a step on `chip`, of which each sends `sent_bytes`."""
    compute_s = work.flops / chip.bf16_flops + work.float32_flops / chip.float32_flops
    return Estimate(
        compute_s,
        work.hbm_bytes / chip.hbm_bytes_per_s,
        sent_bytes / chip.link_bytes_per_s,
    )


def work(program: Program) -> Work:
    """Count the work of a chip in one step of a compiled program."""
    inside = {
        called
        for _, instruction, _ in program.executed()
        if instruction.opcode not in ("while", "conditional", "call", "async-start")
        for called in instruction.called
    }
    flops = {False: 0.0, True: 0.0}
    moved = 0.0
    for computation, instruction, times in program.executed():
        if not times:
            continue
        count = product_flops(computation, instruction)
        if count:
            flops[_is_float32(computation, instruction)] += times * count
        if computation.name not in inside:
            moved += times * hbm_bytes(program, computation, instruction)
    return Work(flops[False], flops[True], moved)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product or a convolution, 0 of all else."""
    match instruction.opcode:
        case "dot":
            contracted = _operand(computation, instruction, 0)
            axes = re.search(
                r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes
            )
            sizes = [contracted.shape[int(a)] for a in axes[1].split(",") if a]
            return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(sizes)
        case "convolution":
            return _convolution_flops(computation, instruction)
        case "custom-call" if "__cublas$" in instruction.attributes:
            contracted = _operand(computation, instruction, 0)
            axes = re.search(
                r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes
            )
            sizes = [contracted.shape[int(a)] for a in re.findall(r"\d+", axes[1])]
            return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(sizes)
        case "custom-call" if "__cudnn$conv" in instruction.attributes:
            return _convolution_flops(computation, instruction)
    return 0.0


def _is_float32(computation: Computation, instruction: Instruction) -> bool:
    exact = re.search(r"operand_precision=\{highest", instruction.attributes)
    dtypes = [_operand(computation, instruction, place).dtype for place in (0, 1)]
    return bool(exact) and all(dtype == "f32" for dtype in dtypes)


def _operand(computation: Computation, instruction: Instruction, place: int) -> Array:
    return computation.instructions[instruction.operands[place]].arrays[0]


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """2 * outputs * kernel, without what falls on padding or between dilated samples.

    A TPU writes batched matrix products so, with the batch as a window of which one
    place at a time counts.
    """
    left, right = (_operand(computation, instruction, place) for place in (0, 1))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    inputs, kernel, outputs = labels.groups()
    out = instruction.arrays[0]
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(re.findall(r"(\w+)=([\w\-]+)", window[1])) if window else {}
    pairs = 1.0
    for number, label in enumerate(sorted(set(kernel) & set("0123456789"))):
        pairs *= _window_pairs(
            size=right.shape[kernel.index(label)],
            given=left.shape[inputs.index(label)],
            made=out.shape[outputs.index(label)],
            stride=_each(fields, "stride", number, 1),
            low=_each(fields, "pad", number, 0),
            left_dilate=_each(fields, "lhs_dilate", number, 1),
            right_dilate=_each(fields, "rhs_dilate", number, 1),
        )
    features = right.shape[kernel.index("i")] * out.shape[outputs.index("f")]
    return 2.0 * out.shape[outputs.index("b")] * features * pairs


def _each(fields: dict[str, str], name: str, number: int, default: int) -> int:
    """A window's number along one dimension; of a padding, the lower one."""
    if name not in fields:
        return default
    parts = fields[name].split("x")
    return int(parts[number].split("_")[0])


def _window_pairs(
    size: int,
    given: int,
    made: int,
    stride: int,
    low: int,
    left_dilate: int,
    right_dilate: int,
) -> float:
    """Pairs of an output and a kernel place whose input exists, along one dimension."""
    place = np.arange(made)[:, None] * stride + np.arange(size) * right_dilate - low
    exists = (place >= 0) & (place <= (given - 1) * left_dilate)
    return float((exists & (place % left_dilate == 0)).sum())


def hbm_bytes(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """What an instruction reads from HBM and writes to it.

    Of arrays that are only sliced the slices count, and of those that are updated in
    place the update.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0.0
    results = instruction.arrays
    operands = [
        array
        for name in instruction.operands
        for array in computation.instructions[name].arrays
    ]
    if opcode in ("copy-start", "slice-start"):  # of a copy, and where it is going
        ends = results[:2]
        return min(end.bytes for end in ends) * sum(end.space == 0 for end in ends)
    if opcode in _SLICES:
        return _in_hbm(results) * 2
    if opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]].arrays
        return _in_hbm(update) * 2
    if opcode == "fusion":
        fused = program.computations[instruction.called[0]]
        return _fused_bytes(fused, operands, results)
    return _in_hbm(operands) + _in_hbm(results)


def _fused_bytes(fused: Computation, operands: list[Array], results: tuple) -> float:
    """What a fusion reads and writes."""
    parameters = sorted(
        (i for i in fused.instructions.values() if i.opcode == "parameter"),
        key=lambda i: int(i.arguments),
    )
    total = 0.0
    flat = [array for parameter in parameters for array in parameter.arrays]
    if len(flat) != len(operands):
        return _in_hbm(operands) + _in_hbm(results)
    for parameter in parameters:
        users = [i for i in fused.instructions.values() if parameter.name in i.operands]
        for array in parameter.arrays:
            total += min(
                _in_hbm((array,)),
                sum(_read(fused, user, parameter, array) for user in users),
            )
    root = fused.root
    made = (
        [fused.instructions[n] for n in root.operands]
        if root.opcode == "tuple"
        else [root]
    )
    if sum(len(one.arrays) for one in made) != len(results):
        return total + _in_hbm(results)
    for one in made:
        if one.opcode == "dynamic-update-slice":
            total += _in_hbm(fused.instructions[one.operands[1]].arrays)
        else:
            total += _in_hbm(one.arrays)
    return total


def _read(
    fused: Computation, user: Instruction, parameter: Instruction, array: Array
) -> float:
    """What one user inside a fusion reads of a parameter's array."""
    del fused
    first = user.operands[0] == parameter.name
    if user.opcode in _SLICES and first:
        return sum(made.bytes for made in user.arrays)
    if user.opcode == "dynamic-update-slice" and first:
        return 0.0
    return array.bytes


def _in_hbm(arrays) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)
