"""The largest batch that fits, and what helps a step that does not: by compiling.

Nothing here is a rule of thumb: what is called fitting was compiled and fits.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from clap_jax.train import plan
from clap_jax.train import step as step_lib
from clap_jax.train.plan import Compile, Compiled
from clap_jax.train.topology import Topology

# The search ends after so many programs, with what it knows by then.
MOST_COMPILES = 8
# Sizes are multiples of so many clips a chip, once there are more than that.
CLIPS = 8


class Sizes(NamedTuple):
    """What is known of batch sizes: those that were compiled, with their bytes."""

    needed: dict[int, float]
    fitting: int  # the largest that fits, 0: none was found
    too_big: int  # the smallest that does not, 0: none was found

    def describe(self, step: int) -> dict[str, Any]:
        return {
            "largest_batch_that_fits": self.fitting or None,
            "smallest_batch_that_does_not": self.too_big or None,
            "step_clips": step,
            "is_exact": bool(self.too_big) and self.too_big - self.fitting <= step,
            "compiled": [
                {
                    "batch": size,
                    "peak_bytes": needed if math.isfinite(needed) else None,
                    "fits": size <= self.fitting,
                }
                for size, needed in sorted(self.needed.items())
            ],
        }


def largest_batch(
    made: Compiled, config: ConfigDict, topology: Topology, compile_for: Compile
) -> dict[str, Any]:
    """Search for the largest global batch of `config`, other settings as they are.

    made: the step of the config's own batch. Two sizes give a line (memory grows with
    the batch and has a part that does not); the size where it meets the limit is
    compiled, then its neighbours, until one fits and the next one does not.
    """
    unit = made.experiment.mesh.size * config.train.accumulate
    unit = math.lcm(unit, topology.hosts)
    sizes = Sizes({}, 0, 0)

    def add(size: int, found: Compiled) -> None:
        nonlocal sizes
        sizes.needed[size] = found.memory.needed
        if found.fits:
            sizes = sizes._replace(fitting=max(sizes.fitting, size))
        else:
            smaller = min(sizes.too_big or size, size)
            sizes = sizes._replace(too_big=smaller)

    add(config.train.batch_size, made)
    while len(sizes.needed) < MOST_COMPILES:
        size = _next_size(sizes, unit, topology.chip.usable_bytes)
        if size is None:
            break
        found = compile_for(plan.changed(config, {"train.batch_size": size}))
        add(size, found)
    return sizes.describe(step_of(sizes.fitting, unit))


def step_of(size: int, unit: int) -> int:
    """How finely sizes near this one are told apart, in clips."""
    return unit * CLIPS if size > unit * CLIPS else unit


def _next_size(sizes: Sizes, unit: int, limit_bytes: float) -> int | None:
    """The size to compile next; None when the answer stands."""
    step = step_of(sizes.fitting, unit)
    if sizes.too_big and sizes.too_big - sizes.fitting <= step:
        return None
    if len(sizes.needed) == 1:
        only = next(iter(sizes.needed))
        # The other end of the line: a half, or double.
        second = only * 2 if sizes.fitting else _down(only // 2, unit)
        return second if second and second != only else None
    aim = _down(_meets(sizes.needed, limit_bytes, unit), step)
    lowest = sizes.fitting + step
    highest = sizes.too_big - step if sizes.too_big else 2 * max(sizes.needed)
    highest = max(_down(highest, step), unit)
    size = min(max(aim, lowest), highest)
    return None if size in sizes.needed else size


def _meets(needed: dict[int, float], limit_bytes: float, unit: int) -> int:
    """Where the line through the two largest known sizes meets the limit."""
    known = [(size, n) for size, n in sorted(needed.items()) if math.isfinite(n)]
    if len(known) < 2:
        return max(needed) // 2
    (small, low), (large, high) = known[-2:]
    slope = (high - low) / (large - small)
    if slope <= 0:
        return 2 * large
    return max(int(small + (limit_bytes - low) / slope), unit)


def _down(size: int, step: int) -> int:
    return int(size) // step * step


class Knob(NamedTuple):
    """One change of the config and what came of it; made is None if it cannot be."""

    overrides: dict[str, Any]
    made: Compiled | None
    described: dict[str, Any]

    @property
    def fits(self) -> bool:
        return self.made is not None and bool(self.made.fits)


def knobs(config: ConfigDict, devices: int, impl: str) -> Iterator[dict[str, Any]]:
    """Changes that may lower the memory, one at a time, that the config allows.

    impl: how the loss is done now.
    """
    if config.precision == "float32":
        yield {"precision": "bfloat16"}
    if config.remat == "none":
        yield {"remat": "dots"}
    if config.remat != "blocks":
        yield {"remat": "blocks"}
    if impl != "ring" and devices > 1:
        yield {"loss.impl": "ring"}
    for fsdp in (2, 4, 8):
        if config.mesh.fsdp < fsdp <= devices and devices % fsdp == 0:
            yield {"mesh.fsdp": fsdp, "mesh.data": -1}
    for more in accumulations(config, devices):
        yield {"train.accumulate": more}


def accumulations(config: ConfigDict, devices: int) -> list[int]:
    """Larger numbers of parts that divide the batch: twice, four, eight times."""
    now = config.train.accumulate
    rows = config.train.batch_size // devices
    return [now * by for by in (2, 4, 8) if rows % (now * by) == 0]


def combined(config: ConfigDict, devices: int) -> Iterator[dict[str, Any]]:
    """What is left when no single change is enough, least costly first."""
    smaller = {"precision": "bfloat16"} if config.precision == "float32" else {}
    if smaller:
        yield smaller | {"remat": "blocks"}
    for parts in accumulations(config, devices):
        yield smaller | {"remat": "blocks", "train.accumulate": parts}
    most = accumulations(config, devices)[-1:] or [config.train.accumulate]
    for fsdp in (8, 4, 2):
        if config.mesh.fsdp < fsdp <= devices and devices % fsdp == 0:
            yield smaller | {
                "remat": "blocks",
                "train.accumulate": most[0],
                "mesh.fsdp": fsdp,
                "mesh.data": -1,
            }
            return


def what_helps(
    made: Compiled, config: ConfigDict, topology: Topology, compile_for: Compile
) -> dict[str, Any]:
    """Compile every knob of a step that does not fit; name the cheapest that fits.

    The cheapest by the roofline. Combinations are tried, until one fits, only if no
    single change is enough.
    """
    devices = made.experiment.mesh.size
    impl = step_lib.choose_loss(config, made.experiment.spec, made.experiment.mesh)[0]

    def turn(overrides: dict[str, Any]) -> Knob:
        try:
            found = compile_for(plan.changed(config, overrides))
        except ValueError as error:  # not every model has every knob
            described = {"overrides": flags(overrides), "cannot_be": str(error)}
            return Knob(overrides, None, described)
        return Knob(overrides, found, _describe(overrides, found, made, topology))

    tried = [turn(overrides) for overrides in knobs(config, devices, impl.impl)]
    if not any(knob.fits for knob in tried):
        for overrides in combined(config, devices):
            tried.append(turn(overrides))
            if tried[-1].fits:
                break
    best = min(
        (knob for knob in tried if knob.fits),
        key=lambda knob: knob.described["step_seconds_at_least"],
        default=None,
    )
    return {
        "tried": [knob.described for knob in tried],
        "cheapest_that_fits": flags(best.overrides) if best else None,
    }


def _describe(
    overrides: dict[str, Any], found: Compiled, before: Compiled, topology: Topology
) -> dict[str, Any]:
    """A row of the table: memory, what was saved, and what it costs."""
    row = {
        "overrides": flags(overrides),
        "temporaries_bytes": found.memory.temporaries,
        "peak_bytes": found.memory.needed,
        "saved_bytes": before.memory.needed - found.memory.needed,
        "fits": found.fits,
    }
    described = plan.describe(found, topology)
    if "flops" in described:
        row["hardware_over_model_flops"] = described["flops"]["hardware_over_model"]
        row["step_seconds_at_least"] = described["roofline"]["step_seconds_at_least"]
    return row


def flags(overrides: dict[str, Any]) -> str:
    """Overrides as one writes them on the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())
