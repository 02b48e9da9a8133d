"""Every collective of a compiled program: kind, purpose, how often, how many bytes.

Bytes are given in two ways, for one chip and one step. "operand": what a chip puts in.
"sent": what leaves it when a ring of n chips does the work, the least for sums and
gathers (what chips pass on for others in an all-to-all is not counted):

    all-reduce          2 (n - 1) / n * operand
    reduce-scatter          (n - 1) / n * operand
    all-gather                  (n - 1) * operand   (the operand is one n-th)
    all-to-all              (n - 1) / n * operand
    collective-permute                    operand
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from clap_jax.train.hlo import Computation, Instruction, Program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)

# Where in the step a collective stands (its op_name) -> what it is for; the first match
# wins. Towers have names there; what is differentiated outside of them is the loss.
_PURPOSES = (
    ("batch norm", r"^(?!.*transpose\().*/(bn\d*|batch_?norm\w*)(/|$)"),
    ("loss", r"shard_map|jvp\((jit\((log_softmax|logsumexp)\)|ae,te->at)?\)"),
    ("gradients", r"transpose\(|scatter-add"),
)
# What is larger is no sum for the log.
_METRICS_BYTES = 1024
# A TPU spreads a collective over several fusions, beside other work. All have the same
# channel and chain; the first is called by an instruction of this name.
_SPREAD = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')
_ASYNC_START = "async-collective-start"


class Collective(NamedTuple):
    """One collective of the program.

    group: chips that work together. dtype: what is sent, in XLA's words ("bf16",
    "f32"; "bf16+f32" where both go together). count: how often a step does it.
    operand_bytes, sent_bytes: of a chip and all of these times (see the module's text).
    """

    kind: str
    purpose: str
    group: int
    dtype: str
    count: float
    operand_bytes: float
    sent_bytes: float
    op_name: str


def sent_share(kind: str, group: int) -> float:
    """Bytes that a chip sends for every byte that it puts in, over a ring."""
    if kind == "collective-permute":
        return 1.0
    if group <= 1:
        return 0.0
    if kind == "all-gather":
        return group - 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (group - 1) / group


def find(program: Program, chips: int, fsdp: int = 1) -> list[Collective]:
    """The collectives of one step that ever run.

    chips: devices of the program. fsdp: those that share parameters, to tell parameters
    that are gathered from the rest.
    """
    found = []
    for computation, instruction, times, caller in _sites(program):
        kind = instruction.opcode.removesuffix("-start")
        if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
            kind = "reduce-scatter"  # how a TPU writes it
        group = first_group(instruction, chips)
        places = _places(computation, instruction, caller)
        operand = sum(places.values())
        found.append(
            Collective(
                kind,
                purpose(kind, places, group, fsdp),
                len(group),
                _dtype(computation, instruction),
                times,
                operand * times,
                operand * times * sent_share(kind, len(group)),
                max(places, key=places.get, default=""),
            )
        )
    return found


def _dtype(computation: Computation, instruction: Instruction) -> str:
    """The types of the operands of a collective."""
    operands = (computation.instructions[name] for name in instruction.operands)
    return "+".join(sorted({array.dtype for one in operands for array in one.arrays}))


def _places(
    computation: Computation, instruction: Instruction, caller: Instruction | None
) -> dict[str, float]:
    """Where in the step the operands of a collective come from, with their bytes.

    XLA does several sums at once, and names one of them; of the others their makers
    tell, or those who use the result.
    """
    own = instruction.op_name or (caller.op_name if caller else "")
    own = own or _used_by(computation, instruction)
    places: dict[str, float] = {}
    for name in instruction.operands:
        operand = computation.instructions[name]
        place = _made_by(computation, operand) if len(instruction.operands) > 1 else ""
        size = sum(array.bytes for array in operand.arrays)
        places[place or own] = places.get(place or own, 0.0) + size
    return places


def _made_by(computation: Computation, made: Instruction) -> str:
    """The place of what made an operand."""
    passing = ("get-tuple-element", "bitcast", "copy", "copy-start", "copy-done")
    while made.opcode in passing and not made.op_name and made.operands:
        made = computation.instructions[made.operands[0]]
    return made.op_name


def _used_by(computation: Computation, made: Instruction) -> str:
    """The place of the first that uses a result."""
    users = (
        instruction.op_name
        for instruction in computation.instructions.values()
        if made.name in instruction.operands and instruction.op_name
    )
    return next(users, "")


class _Site(NamedTuple):
    computation: Computation
    instruction: Instruction
    times: float
    caller: Instruction | None  # the fusion around it


def _sites(program: Program) -> list[_Site]:
    """Where collectives are begun."""
    callers = {
        called: instruction
        for _, instruction, _ in program.executed()
        if instruction.opcode == "fusion"
        for called in instruction.called
    }
    sites: list[_Site] = []
    spread: dict[tuple, _Site] = {}
    for computation, instruction, times in program.executed():
        if instruction.opcode.removesuffix("-start") not in KINDS or not times:
            continue
        site = _Site(computation, instruction, times, callers.get(computation.name))
        part = _SPREAD.search(instruction.attributes)
        if part is None or site.caller is None:
            sites.append(site)
            continue
        key = (instruction.opcode, *part.groups())
        if key not in spread or site.caller.name.startswith(_ASYNC_START):
            spread[key] = site
    return sites + list(spread.values())


def purpose(
    kind: str, places: dict[str, float], group: tuple[int, ...], fsdp: int
) -> str:
    """What a collective is for, by where in the step most of its bytes come from.

    places: op_name -> bytes. group: see `first_group`. "fsdp" is parameters, or rows of
    them, that are fetched where they are needed; "metrics" the norms and counts of the
    log; "other" is what has no name.
    """
    between_shards = fsdp > 1 and sorted(group) == list(range(fsdp))
    sums = kind in ("all-reduce", "reduce-scatter")
    votes: Counter = Counter()
    for op_name, size in places.items():
        parts = _merged(op_name)
        for part in parts:
            votes[_named(part)] += size / len(parts)
    name = votes.most_common(1)[0][0] if votes else ""
    if name:
        return "fsdp" if name == "gradients" and not sums and fsdp > 1 else name
    if between_shards:
        return "fsdp"
    if re.fullmatch(r"jit\(\w+\)/\w+", max(places, key=places.get, default="")):
        # Sums of gradients may be done together with those of their norms.
        large = sums and sum(places.values()) > _METRICS_BYTES
        return "gradients" if large else "metrics"
    return "other"


def _named(op_name: str) -> str:
    matching = (name for name, pattern in _PURPOSES if re.search(pattern, op_name))
    return next(matching, "")


def _merged(op_name: str) -> list[str]:
    """The places of a collective that does the work of several, `jit(f)/(a:b:c)`."""
    several = re.fullmatch(r"(.*?/)\((.*:.*)\)", op_name)
    if several is None:
        return [op_name]
    return [several[1] + part for part in several[2].split(":")]


def first_group(instruction: Instruction, chips: int) -> tuple[int, ...]:
    """The first set of chips (places in the mesh) that work together.

    From any of the forms that XLA writes: `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`, rows
    of numbers in some order; `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`, along
    some axes of such numbers. Of a permutation, the chips of its longest chain.
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    if pairs:
        return _longest_chain(re.findall(r"(\d+),(\d+)", pairs[1]))
    mesh = re.search(
        r"replica_groups=@?mesh\w*\[(.*?)\]"
        r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" *\{('.*?)\}",
        text,
    )
    if mesh:
        return _along_axes(*mesh.groups())
    tiled = re.search(
        r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    )
    if tiled:
        return tuple(_numbers(tiled[2], tiled[3])[: int(tiled[1])].tolist())
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return tuple(_integers(listed[1])) if listed else tuple(range(chips))


def _along_axes(axes: str, shape: str, order: str, named: str) -> tuple[int, ...]:
    """The first group of a mesh, along the named axes or parts of them."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    if shape is None:
        devices = np.arange(math.prod(sizes.values()))
    else:
        devices = _numbers(shape, order)
    devices = devices.reshape(tuple(sizes.values()))
    # A part of an axis is written 'name':(sizes before it)its size.
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
    for axis, (name, size) in enumerate(sizes.items()):
        before_size = [part[1:] for part in parts if part[0] == name]
        if not before_size:
            devices = np.take(devices, [0], axis=axis)
        elif before_size[0][0]:
            before, own = map(int, before_size[0])
            steps = np.arange(own) * (size // before // own)
            devices = np.take(devices, steps, axis=axis)
    return tuple(devices.ravel().tolist())


def _numbers(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in rows of a shape whose axes are then reordered."""
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return (numbers.transpose(_integers(order)) if order else numbers).ravel()


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _longest_chain(pairs: Iterable[tuple[str, str]]) -> tuple[int, ...]:
    after = {int(source): int(target) for source, target in pairs}
    longest: list[int] = []
    for start in after:
        chain = [start]
        while (place := after.get(chain[-1])) is not None and place != start:
            chain.append(place)
        longest = max(longest, chain, key=len)
        if len(longest) == len(after):
            break
    return tuple(longest)


def table(found: Iterable[Collective]) -> list[dict]:
    """Rows by kind, purpose, group and type: counts, bytes of a chip; largest first."""
    sums: dict[tuple, list[float]] = {}
    for one in found:
        row = sums.setdefault((one.kind, one.purpose, one.group, one.dtype), [0.0] * 3)
        for place, value in enumerate((one.count, one.operand_bytes, one.sent_bytes)):
            row[place] += value
    rows = [
        {
            "kind": kind,
            "purpose": what,
            "group_chips": group,
            "dtype": dtype,
            "count": count,
            "operand_bytes": operand,
            "sent_bytes": sent,
        }
        for (kind, what, group, dtype), (count, operand, sent) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["sent_bytes"])


def by(found: Iterable[Collective], field: str) -> dict[str, float]:
    """Bytes that a chip sends, summed by "kind" or "purpose"."""
    sums: dict[str, float] = {}
    for one in found:
        name = getattr(one, field)
        sums[name] = sums.get(name, 0.0) + one.sent_bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
