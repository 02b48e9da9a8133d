"""`--mode=plan`: what a step would need on devices that need not be there.

The very step that training would run is compiled ahead of time, and everything that
follows is read from the compiled program: memory, FLOPs, collectives, and from these
and the table of chips a roofline estimate. No data is touched, and nothing runs.

With precision=bfloat16, gradients of bfloat16 products are summed over devices in
bfloat16 (XLA sums a product before it turns it into its parameter's float32): the table
of collectives says in which type each is done.
"""

import copy
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from absl import logging
from ml_collections import ConfigDict

import clap_jax
from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio.augment import Augment
from clap_jax.train import (
    answers,
    captions,
    collectives,
    heads,
    hlo,
    optim,
    roofline,
    specs,
    tasks,
    throughput,
)
from clap_jax.train import experiment as experiment_lib
from clap_jax.train import starts as starts_lib
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from clap_jax.train import topology as topology_lib
from clap_jax.train.experiment import Experiment
from clap_jax.train.state import TrainState
from clap_jax.train.topology import Topology

_SOME_STEPS = 1_000_000
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The two ways in which XLA says how much a program would have needed.
_NEEDED = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"\(([\d.]+)([KMGT]?)\) exceeds available",
    r"allocat\w* ([\d.]+)([KMGT]?)i?B",
)


class CompileError(ValueError):
    """The compiler gave up for another reason than memory; the message says which."""


class Memory(NamedTuple):
    """Bytes on one chip. needed: all that has to be there at once.

    Of a program that does not fit, the compiler only says what is needed.
    """

    needed: float
    arguments: float | None = None
    outputs: float | None = None  # those that do not take the place of arguments
    temporaries: float | None = None
    program: float | None = None


class Compiled(NamedTuple):
    """A step that was compiled, or that the compiler refused because of memory."""

    experiment: Experiment
    state: TrainState
    memory: Memory
    fits: bool | None  # None: nobody knows what there is
    program: hlo.Program | None
    xla: dict[str, float]  # XLA's own figures, which take loops to run once
    seconds: float


def experiment(config: ConfigDict, topology: Topology) -> Experiment:
    """The parts of a run as far as its step needs them; no file is read.

    But for model "init_from", which is the model of a checkpoint. A trained tokenizer
    is taken to have the `data.vocab_size` entries that it may have at most.
    Raises ConfigError and ValueError as training would.
    """
    loss = experiment_lib.check(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, topology.devices)
    sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
    if config.train.batch_size % topology.hosts:
        raise config_lib.ConfigError(
            f"train.batch_size={config.train.batch_size} is not divisible by "
            f"{topology.hosts} hosts"
        )
    starts = starts_lib.load(config) if config.model == starts_lib.MODEL else []
    spec = specs.unread(config, starts)
    targets = None
    if config.task.name == "classify":
        spec, targets = heads.labelled(config, spec, [])
    elif config.task.name == "answer":
        targets = answers.rows([], None, spec)
    elif config.task.name == "caption":
        targets = captions.rows(config, spec, 0, None, None)
    spec = specs.for_loss(spec, loss)
    spec = specs.for_captions(spec, config.task.caption_weight)
    dual, undropped = experiment_lib.duals(config, spec)
    return Experiment(
        config=config,
        workdir=Path(),
        mesh=mesh,
        spec=spec,
        dual=dual,
        undropped=undropped,
        tokenizer=None,
        sources=[],
        evaluations={},
        augment=config_lib.build(Augment, config.augment, "augment"),
        starts=[],
        targets=targets,
    )


def compile_step(config: ConfigDict, topology: Topology) -> Compiled:
    """Compile the step of `config` for `topology`, for batches of full length.

    Where patches or words are left out it is the last stage's, which sees everything:
    it needs most, and has to fit. A program that is too big is no error. Raises
    CompileError where the compiler itself fails.
    """
    parts = experiment(config, topology)
    model, mesh = parts.undropped, parts.mesh
    params = state_lib.abstract_variables(model, config, mesh)["params"]
    optimizer = optim.make_optimizer(config.optim, params, _schedule(config))
    state = state_lib.abstract_state(model, config, mesh, optimizer)
    update = step_lib.make_update(
        config, parts.spec, model, optimizer, mesh, parts.augment
    )
    began = time.perf_counter()
    try:
        with topology_lib.compiling(topology):
            compiled = step_lib.compile_step(
                update, state, parts.abstract_batch(), mesh
            )
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise CompileError(
                f"the compiler for {topology.name} failed, which is its own fault: "
                f"{str(error).splitlines()[0][:300]}. Where a tensor is too large for "
                "it, fewer clips at once may do (train.accumulate, more chips)"
            ) from error
        seconds = time.perf_counter() - began
        return Compiled(parts, state, Memory(needed), False, None, {}, seconds)
    memory = _memory(compiled.memory_analysis())
    chip = topology.chip
    fits = None if chip is None else memory.needed <= chip.usable_bytes
    xla = compiled.cost_analysis() or {}
    wanted = ("flops", "bytes accessed", "transcendentals")
    return Compiled(
        parts,
        state,
        memory,
        fits,
        hlo.parse(compiled.as_text()),
        {name: xla[name] for name in wanted if name in xla},
        time.perf_counter() - began,
    )


def _schedule(config: ConfigDict) -> optax.Schedule:
    """The config's, over some length where epochs tell it, which nobody has counted."""
    steps = config.train.total_steps or _SOME_STEPS
    return optim.make_schedule(
        config.optim, config_lib.warmup_steps(config, steps), steps
    )


def needed_bytes(message: str) -> float | None:
    """What a program that ran out of memory would have needed, from XLA's message.

    None where it is another error.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _NEEDED:
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * _UNITS[found[2]]
    return math.inf


def _memory(stats: Any) -> Memory:
    """Bytes of a compiled program; arguments that are given away count once."""
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = (
        stats.argument_size_in_bytes,
        outputs,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    return Memory(float(sum(parts)), *map(float, parts))


def shard_bytes(tree: Any) -> int:
    """Bytes of one chip's part of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe(made: Compiled, topology: Topology) -> dict[str, Any]:
    """Everything that is known of a compiled step, as it stands in the JSON."""
    parts = made.experiment
    config, mesh, spec = parts.config, parts.mesh, parts.spec
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    return {
        "model": {
            "name": spec.name,
            "parameters": state_lib.count_parameters(made.state.params),
            "precision": config.precision,
            "remat": config.remat,
            "optimizer": config.optim.name,
            "momentum_dtype": config.optim.momentum_dtype,
            # Memory has to be enough for the last stage, which is what was compiled.
            "last_stage_of_dropping": parts.dual is not parts.undropped,
        },
        "mesh": {
            "topology": topology.name,
            "device_kind": topology.device_kind,
            "devices": mesh.size,
            "hosts": topology.hosts,
            "data": mesh.shape["data"],
            "fsdp": mesh.shape["fsdp"],
        },
        "batch": {
            "clips": batch_size,
            "clips_per_chip": batch_size // mesh.size,
            "clips_per_host": batch_size // topology.hosts,
            "accumulate": accumulate,
            "clips_per_chip_at_once": batch_size // mesh.size // accumulate,
        },
        "loss": tasks.loss_facts(config, spec, mesh),
        "memory_per_chip": _describe_memory(made, topology),
        "fits": made.fits,
        **(_describe_program(made, topology) if made.program else {}),
        "compile_seconds": round(made.seconds, 1),
    }


def _describe_memory(made: Compiled, topology: Topology) -> dict[str, Any]:
    state, memory, chip = made.state, made.memory, topology.chip
    figures: dict[str, Any] = {
        "parameters_bytes": shard_bytes(state.params),
        "optimizer_bytes": shard_bytes(state.opt_state),
        "average_bytes": shard_bytes(state.average),
        "batch_bytes": shard_bytes(made.experiment.abstract_batch()),
        "arguments_bytes": memory.arguments,
        "outputs_bytes": memory.outputs,
        "temporaries_bytes": memory.temporaries,
        "program_bytes": memory.program,
        "peak_bytes": memory.needed if math.isfinite(memory.needed) else None,
    }
    if chip is not None:
        figures |= {
            "hbm_bytes": chip.hbm_bytes,
            "usable_bytes": chip.usable_bytes,
            "headroom_bytes": chip.usable_bytes - memory.needed,
        }
    return figures


def _describe_program(made: Compiled, topology: Topology) -> dict[str, Any]:
    parts, program = made.experiment, made.program
    config, chips = parts.config, parts.mesh.size
    batch_size = config.train.batch_size
    work = roofline.work(program)
    model = throughput.model_flops(tasks.build(parts.spec), parts.spec, batch_size)
    hardware = work.flops + work.float32_flops
    found = collectives.find(program, chips, config.mesh.fsdp)
    sent = sum(one.sent_bytes for one in found)
    described = {
        "flops": {
            "model_per_clip": model,
            "model_per_step": model * batch_size,
            "model_per_chip_and_step": model * batch_size / chips,
            "hardware_per_chip_and_step": hardware,
            "hardware_float32_per_chip_and_step": work.float32_flops,
            "hardware_per_step": hardware * chips,
            "hardware_per_clip": hardware * chips / batch_size,
            "hardware_over_model": hardware * chips / (model * batch_size),
            "xla_per_chip_loops_once": made.xla.get("flops"),
        },
        "hbm_traffic_per_chip": {
            "bytes": work.hbm_bytes,
            "xla_bytes_loops_once": made.xla.get("bytes accessed"),
        },
        "collectives_per_chip": {
            "sent_bytes": sent,
            "sent_bytes_by_kind": collectives.by(found, "kind"),
            "sent_bytes_by_purpose": collectives.by(found, "purpose"),
            "rows": collectives.table(found),
            "loops_of_unknown_length": list(program.unknown_loops),
        },
    }
    if topology.chip is not None:
        described["roofline"] = _describe_roofline(
            roofline.estimate(work, sent, topology.chip),
            model * batch_size / chips,
            batch_size,
            topology,
        )
    return described


def _describe_roofline(
    estimate: roofline.Estimate,
    model_flops: float,
    batch_size: int,
    topology: Topology,
) -> dict[str, Any]:
    chip = topology.chip
    return {
        "chip": chip._asdict(),
        "compute_seconds": estimate.compute_s,
        "memory_seconds": estimate.memory_s,
        "interconnect_seconds": estimate.links_s,
        "bound": estimate.bound,
        "step_seconds_at_least": estimate.step_s,
        "step_seconds_without_overlap": sum(estimate),
        "clips_per_s_at_most": batch_size / estimate.step_s,
        "mfu_at_most": model_flops / estimate.step_s / chip.bf16_flops,
    }


FORMULAS = {
    "model_flops": "3 * (encoding one clip and one text + 2 * B * E) a clip, from the "
    "un-rematerialised forward pass (clap_jax/train/throughput.py)",
    "hardware_flops": "matrix products and convolutions of the compiled program, loops "
    "as often as they run (clap_jax/train/roofline.py)",
    "sent_bytes": "ring of n chips: all-reduce 2 (n-1)/n, reduce-scatter and all-to-all "
    "(n-1)/n, all-gather (n-1), collective-permute 1, times the bytes that a chip puts "
    "in (clap_jax/train/collectives.py)",
    "peak": "arguments + outputs that take no argument's place + temporaries + program",
    "roofline": "seconds = max(compute, memory, interconnect), each at the rate of the "
    "data sheet (clap_jax/chips.py)",
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    found = {"clap_jax": clap_jax.__version__, "jax": jax.__version__}
    try:
        found["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


def changed(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """A copy of `config` with dotted keys replaced."""
    config = copy.deepcopy(config)
    for key, value in overrides.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
    return config


def write(path: Path, plan: dict[str, Any]) -> None:
    """The plan as JSON, for people as well."""
    text = json.dumps(rounded(plan), indent=2, allow_nan=False)
    config_lib.write_text(path, text + "\n")


def rounded(value: Any) -> Any:
    """Figures with six digits, whole numbers without a point."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else float(f"{value:.6g}")
    return value


Compile = Callable[[ConfigDict], Compiled]


def compiler(topology: Topology) -> Compile:
    """`compile_step` for a topology, which says what it does and how long it took."""

    def run(config: ConfigDict) -> Compiled:
        settings = (
            f"batch {config.train.batch_size}, accumulate {config.train.accumulate}, "
            f"remat {config.remat}, {config.precision}, loss.impl {config.loss.impl}, "
            f"fsdp {config.mesh.fsdp}"
        )
        logging.info("compiling for %s: %s ...", topology.name, settings)
        made = compile_step(config, topology)
        fits = {True: "fits", False: "does not fit", None: "(no limit known)"}
        logging.info(
            "... %.0f s: %.2f GiB a chip, %s",
            made.seconds,
            made.memory.needed / 2**30,
            fits[made.fits],
        )
        return made

    return run
