"""The largest batch that fits, and what helps a step that does not: by compiling.

Nothing here is a rule of thumb: what is called fitting was compiled and fits.
"""

import math
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.train import plan, tasks
from clap_jax.train.plan import Compile, Compiled
from clap_jax.train.topology import Topology

# The search ends after so many programs, with what it knows by then.
MOST_COMPILES = 8
# What helps is sought with at most so many programs, and so many with --nosearch.
MOST_CHANGES, FEW_CHANGES = 16, 8
# Sizes are multiples of so many clips a chip, once there are more than that.
CLIPS = 8


class Sizes(NamedTuple):
    """What is known of batch sizes: those that were compiled.

    Memory need not grow with the batch (loss.impl=auto is decided by it), so that a
    size may fit above one that does not.
    """

    needed: dict[int, float]  # bytes
    fits: dict[int, bool]

    @property
    def fitting(self) -> int:
        """The largest that fits, 0: none was found."""
        return max((size for size, fits in self.fits.items() if fits), default=0)

    @property
    def too_big(self) -> int:
        """The smallest above it that does not fit, 0: none was found."""
        above = (n for n, fits in self.fits.items() if not fits and n > self.fitting)
        return min(above, default=0)

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
                    "fits": self.fits[size],
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
    sizes = Sizes({}, {})

    def add(size: int, found: Compiled) -> None:
        sizes.needed[size], sizes.fits[size] = found.memory.needed, bool(found.fits)

    add(config.train.batch_size, made)
    while len(sizes.needed) < MOST_COMPILES:
        size = _next_size(sizes, unit, topology.chip.usable_bytes)
        if size is None:
            break
        try:
            found = compile_for(plan.changed(config, {"train.batch_size": size}))
        except plan.CompileError as error:
            logging.warning("the search ends with what it knows: %s", error)
            break
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

    def helps(self, before: Compiled) -> bool:
        """Whether it saves memory, or may: what does not fit can be of unknown size."""
        if self.made is None:
            return False
        needed = self.made.memory.needed
        return not math.isfinite(needed) or needed < before.memory.needed


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


def combined(
    config: ConfigDict, devices: int, useless: Container[str]
) -> Iterator[dict[str, Any]]:
    """What is left when no single change is enough, least costly first.

    useless: single changes, as flags, that save nothing by themselves or cannot be.
    """
    turned = {"precision": "bfloat16", "remat": "blocks"}
    base = {
        key: value
        for key, value in turned.items()
        if config[key] != value and flags({key: value}) not in useless
    }
    yield base
    parts = [
        {"train.accumulate": parts}
        for parts in accumulations(config, devices)
        if flags({"train.accumulate": parts}) not in useless
    ]
    for part in parts:
        yield base | part
    most = parts[-1] if parts else {}
    for fsdp in (8, 4, 2):
        shards = {"mesh.fsdp": fsdp, "mesh.data": -1}
        possible = config.mesh.fsdp < fsdp <= devices and devices % fsdp == 0
        if possible and flags(shards) not in useless:
            yield base | most | shards
            return


def what_helps(
    made: Compiled,
    config: ConfigDict,
    topology: Topology,
    compile_for: Compile,
    most: int = MOST_CHANGES,
) -> dict[str, Any]:
    """Compile every knob of a step that does not fit; name the cheapest that fits.

    The cheapest by the roofline. Combinations are tried, until one fits, only if no
    single change is enough; none that comes to a config that was compiled before.
    most: programs to compile, after which "stopped" is true.
    """
    devices = made.experiment.mesh.size
    parts = made.experiment
    # That of a classifier sends nothing round, and has no other way either.
    impl = tasks.loss_facts(config, parts.spec, parts.mesh).get("impl", "ring")

    def turn(overrides: dict[str, Any]) -> Knob:
        try:
            found = compile_for(plan.changed(config, overrides))
        except ValueError as error:  # not every model has every knob
            described = {"overrides": flags(overrides), "cannot_be": str(error)}
            return Knob(overrides, None, described)
        return Knob(overrides, found, _describe(overrides, found, made, topology))

    singles = list(knobs(config, devices, impl))
    tried = [turn(overrides) for overrides in singles[:most]]
    stopped = len(singles) > most
    if not any(knob.fits for knob in tried):
        useless = {flags(knob.overrides) for knob in tried if not knob.helps(made)}
        done = [config, *(plan.changed(config, knob.overrides) for knob in tried)]
        seen = {config_lib.to_json(one) for one in done}
        for overrides in combined(config, devices, useless):
            effective = config_lib.to_json(plan.changed(config, overrides))
            if effective in seen:
                continue
            if len(tried) >= most:
                stopped = True
                break
            seen.add(effective)
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
        "stopped": stopped,
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
