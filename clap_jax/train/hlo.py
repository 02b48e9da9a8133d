"""Reads the text of a compiled program (HLO), as far as its costs need it.

A module is computations of instructions; loops, calls and fusions name the computations
that they run. `Program.runs` says how often each computation runs in one step, with the
trip counts of loops, which XLA's own cost analysis leaves out.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
    "pred": 8, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "token": 0, "opaque": 0,
}  # fmt: skip

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """The type of an array: on TPUs, memory space 1 is on the chip, not in HBM."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return math.prod(self.shape) * bits / 8


class Instruction(NamedTuple):
    """One line: its result (several arrays for a tuple), what it does with what."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str  # the text behind them
    is_root: bool

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs or applies."""
        if self.opcode.endswith(("-update", "-done")):  # of what has been started
            return ()
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)


class Computation(NamedTuple):
    """A list of instructions, in the order in which they run, by name as well."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions.values()) if i.is_root)


class Program(NamedTuple):
    """A compiled module.

    runs: how often a computation runs in a step; unknown_loops: names of loops whose
    trip count could not be read, which are taken to run once.
    """

    computations: dict[str, Computation]
    entry: str
    runs: dict[str, float]
    unknown_loops: tuple[str, ...]

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction that runs, where it stands and how often.

        The insides of fusions are there too, after the fusion itself.
        """
        for name, times in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times


def parse(text: str) -> Program:
    """Read `jax.stages.Compiled.as_text()`. Raises ValueError without an entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head:
                current = Computation(head[2], {})
                computations[head[2]] = current
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of the compiled program has no ENTRY computation")
    runs, unknown = _runs(computations, entry)
    return Program(computations, entry, runs, tuple(unknown))


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    open_at = rest.index("(")
    close_at = _closing(rest, open_at)
    arguments = rest[open_at + 1 : close_at]
    return Instruction(
        name=head[2],
        arrays=tuple(arrays(kind)),
        opcode=rest[:open_at],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[close_at + 1 :],
        is_root=bool(head[1]),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def arrays(kind: str) -> Iterator[Array]:
    """The arrays of a type, in their order; tuples are flattened."""
    for dtype, shape, layout in _ARRAY.findall(kind):
        sizes = [int(size.lstrip("<=")) for size in shape.split(",") if size]
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(dtype, tuple(sizes), int(space[1]) if space else 0)


def _runs(
    computations: dict[str, Computation], entry: str
) -> tuple[dict[str, float], list[str]]:
    """How often each computation runs, callers before those they call."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name].instructions.values():
            for called in instruction.called:
                visit(called)
        order.append(name)

    visit(entry)
    runs = dict.fromkeys(reversed(order), 0.0)
    runs[entry] = 1.0
    unknown = []
    for name in runs:
        for instruction in computations[name].instructions.values():
            times = 1.0
            if instruction.opcode == "while":
                trips = trip_count(computations, name, instruction)
                times = 1.0 if trips is None else trips
                if trips is None:
                    unknown.append(instruction.name)
            for called in instruction.called:
                if called in runs:
                    runs[called] += runs[name] * times
    return runs, unknown


def trip_count(
    computations: dict[str, Computation], where: str, loop: Instruction
) -> int | None:
    """How often a loop's body runs, or None if its text does not tell.

    Either XLA says so, or the condition compares one counter, which goes up by ones,
    with a constant.
    """
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    name = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    condition = computations.get(name[1]) if name else None
    if condition is None:
        return None
    limits = [
        int(instruction.arguments)
        for instruction in condition.instructions.values()
        if instruction.opcode == "constant"
        and re.fullmatch(r"-?\d+", instruction.arguments)
    ]
    if len(limits) != 1:
        return None
    start = _counter_start(computations[where], condition, loop)
    return max(limits[0] - start, 0)


def _counter_start(
    where: Computation, condition: Computation, loop: Instruction
) -> int:
    """What the counter is before the loop: a constant, else taken to be 0."""
    index = next(
        (
            re.search(r"index=(\d+)", instruction.attributes)
            for instruction in condition.instructions.values()
            if instruction.opcode == "get-tuple-element"
        ),
        None,
    )
    before = where.instructions.get(loop.operands[0]) if loop.operands else None
    if index is None or before is None or before.opcode != "tuple":
        return 0
    counter = where.instructions.get(before.operands[int(index[1])])
    while counter is not None and counter.opcode in ("copy", "bitcast"):
        counter = where.instructions.get(counter.operands[0])
    if counter is None or counter.opcode != "constant":
        return 0
    return int(counter.arguments) if counter.arguments.lstrip("-").isdigit() else 0
