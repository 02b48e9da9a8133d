"""The training loop. Read `train` from top to bottom."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import hosts, metrics, sharding
from clap_jax.checkpoint import Checkpoints
from clap_jax.evals import Result
from clap_jax.train import examine, optim, programs, tasks, throughput
from clap_jax.train import experiment as experiment_lib
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from clap_jax.train.experiment import Experiment, every
from clap_jax.train.profile import Window
from clap_jax.train.state import TrainState
from clap_jax.writer import METRICS_FILE, Silent, Writer, clock, written_at

# The share of bad clips is judged against at least so many, so that one broken clip in
# the first batch does not stop a run.
BAD_CLIPS_OVER_AT_LEAST = 1000


class TrainingError(RuntimeError):
    """A run that must not go on; the message says why."""


def train(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """Train (or go on with) the run in `workdir`, evaluate, write the report.

    The order of operations inside the loop makes resuming exact: what step s's
    checkpoint holds is what the loop had when it came to step s.
    Returns the final evaluations.
    Raises hosts.Preempted, on all hosts at the same step and once everything is saved,
    when one of them was told to end (SIGTERM).
    """
    began = time.perf_counter()
    hosts.check_shared(workdir)
    experiment = experiment_lib.build(config, workdir)
    mesh = experiment.mesh
    total_steps = config_lib.total_steps(config, experiment.examples())
    schedule = optim.make_schedule(
        config.optim, config_lib.warmup_steps(config, total_steps), total_steps
    )

    # --- state: fresh, or the newest checkpoint's ---------------------------------
    params = state_lib.abstract_variables(experiment.dual, config, mesh)["params"]
    optimizer = optim.make_optimizer(config.optim, params, schedule)
    dataset = experiment.train_dataset()

    with contextlib.ExitStack() as opened:
        iterator = opened.enter_context(contextlib.closing(iter(dataset)))
        checkpoints = opened.enter_context(_checkpoints(config, workdir))
        start_step = checkpoints.latest_step() or 0
        examine.check_hosts(experiment, iterator, start_step)
        if start_step == 0:
            variables = experiment.init_variables()
            state = state_lib.fresh_state(variables, optimizer, config, mesh)
        else:
            wanted = state_lib.abstract_state(experiment.dual, config, mesh, optimizer)
            state = state_lib.restored(wanted, checkpoints, iterator)
            logging.info("resumed from step %d", start_step)
        if start_step > total_steps:
            raise config_lib.ConfigError(
                f"{workdir} is at step {start_step}, the config ends at {total_steps}: "
                "raise train.total_steps, or use another --workdir"
            )

        # --- compile before the first step ----------------------------------------
        steps = (start_step, total_steps)
        update_at = _compiled(experiment, optimizer, state, steps)
        experiment.keep()
        writer = opened.enter_context(_writer(config, workdir, total_steps, start_step))
        meter, ahead = _meter(experiment, start_step), programs.Ahead()
        window = Window(config.profile, workdir, start_step)
        opened.callback(window.close)
        results: dict[str, Result] = {}
        preemption = opened.enter_context(hosts.Preemption())
        examine.interruptible(experiment, preemption)

        for step in range(start_step, total_steps + 1):
            last = step == total_steps
            # A restored step was saved by the run that reached it, and evaluated, but
            # for what that run was told to leave when it was told to end.
            reached = step > start_step
            due = experiment.due(step, last)
            new = due if reached else _unwritten(experiment, step, due)
            due = due if last else new
            due_save = last or every(config.checkpoint.every_steps, step)
            stopping = preemption.reached()
            if reached and (due or due_save or stopping):
                # Waits for the steps under way, which is time of training.
                _check_finite(step, _fetch(state, schedule, config))

            # 1. Evaluate the state as it stands (at the end always: for the report).
            scores: dict[str, float] = {}
            if due and not stopping:
                with meter.paused():
                    variables = state_lib.evaluation_variables(state)
                    found = _evaluated(experiment, variables, due)
                stopping = found is None
                results |= found or {}
                scores = examine.scores({name: results[name] for name in new if found})
                if scores:
                    writer.write(step, scores)

            # 2. Save state and iterator.
            if (reached and (due_save or stopping)) or (
                config.checkpoint.best_metric in scores
            ):
                with meter.paused():
                    checkpoints.save(step, state_lib.to_items(state), iterator, scores)
            if stopping:
                checkpoints.wait()
                raise hosts.Preempted(_told_to_end(step, total_steps, workdir))
            if window.due(step):
                jax.block_until_ready(state)
                with meter.paused():
                    window.at(step)
            if last:
                break

            # 3. Next batch.
            with meter.waiting():
                batch = next(iterator)

            # 4. Step. Nothing may move between host and device by accident.
            batch, update = sharding.to_global(batch, mesh), update_at(step)
            if not update.ready(batch):
                jax.block_until_ready(state)
                with meter.paused():
                    update.prepare(batch)
            with jax.transfer_guard("disallow"):
                state = update(state, batch)
                ahead.wait(state.step)
            meter.count(update.clip_flops(batch))

            # 5. Log.
            if every(config.train.log_steps, step + 1) or step + 1 == total_steps:
                line = _fetch(state, schedule, config)
                state = state_lib.reset_totals(state, mesh)
                _check_finite(step + 1, line)
                _check_clips(step + 1, line, config.data.max_bad_fraction)
                del line["steps"]
                writer.write(step + 1, line | meter.lap(step + 1))

        checkpoints.wait()

    if jax.process_index() == 0:
        examine.write_report(experiment, results, total_steps)
        seconds = time.perf_counter() - began
        logging.info("done in %s: everything is in %s", clock(seconds), workdir)
    return results


def _unwritten(experiment: Experiment, step: int, due: list[str]) -> list[str]:
    """Those of the evaluations `due` at a restored step that metrics.jsonl lacks."""
    if step == 0:
        return []
    # Process 0 wrote the file, and says what it has.
    first = jax.process_index() == 0
    written = written_at(experiment.workdir / METRICS_FILE, step) if first else set()
    missing = [
        not any(key.startswith(f"eval/{name}/") for key in written) for name in due
    ]
    missing = hosts.from_first(np.array(missing, bool))
    return [name for name, is_missing in zip(due, missing, strict=True) if is_missing]


def _told_to_end(step: int, total_steps: int, workdir: Path) -> str:
    if step == 0:
        return (
            f"told to end (SIGTERM) before the first of {total_steps} steps: nothing "
            f"to save in {workdir}. The same command begins again"
        )
    return (
        f"told to end (SIGTERM): step {step} of {total_steps} is saved in {workdir}. "
        "The same command goes on from there"
    )


def _evaluated(
    experiment: Experiment, variables: Any, due: list[str]
) -> dict[str, Result] | None:
    """The evaluations; None when the run was told to end meanwhile."""
    try:
        return experiment.evaluate(variables, due)
    except hosts.Preempted:
        return None


def _compiled(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    steps: tuple[int, int],
) -> Callable[[int], programs.Programs]:
    """What makes each step from the first of `steps` on to the last: step -> update.

    A run that leaves out patches or words has a second stage, which sees everything.
    Batches of full length are compiled for now, since they need most, and shorter ones
    when the first comes; the log says what each costs, and how the loss is made.
    """
    mesh, config, spec = experiment.mesh, experiment.config, experiment.spec
    logging.info("%s", tasks.loss_facts(config, spec, mesh)["reason"])
    begin, end = steps
    boundary = experiment.undropped_from(end)
    most, full = experiment.lengths().programs, experiment.abstract_batch()
    state = jax.tree.map(_abstract, state)  # it will be given away
    # As on paper: loops and what is computed again would be counted otherwise.
    on_paper = experiment_lib.duals(config, spec, remat="none")

    def compiled(
        dual: tasks.Model, counted: tasks.Model, what: str
    ) -> programs.Programs:
        update = step_lib.make_update(
            config, spec, dual, optimizer, mesh, experiment.augment, end
        )

        def make(batch: programs.Batch) -> tuple[jax.stages.Compiled, float]:
            began, lengths = time.perf_counter(), programs.of_batch(batch)
            compiled = step_lib.compile_step(update, state, batch, mesh)
            logging.info(
                "%s%s: %.2f M parameters, batch %d on %d device(s), compiled in %.1f s "
                "for %s: program %d of %d at most",
                spec.name,
                what,
                state_lib.count_parameters(state.params) / 1e6,
                config.train.batch_size,
                mesh.size,
                time.perf_counter() - began,
                lengths,
                made.count + 1,
                most,
            )
            flops = throughput.model_flops(
                counted, spec, config.train.batch_size, *lengths
            )
            return compiled, flops

        made = programs.Programs(make)
        made.prepare(full)
        return made

    first, last = None, None
    if begin < boundary:
        what = f" up to step {boundary}, with drops"
        first = compiled(experiment.dual, on_paper[0], what)
    if max(begin, boundary) < end:
        last = compiled(experiment.undropped, on_paper[1], "")
    if (made := first or last) is not None:
        flops = made.clip_flops(full)
        logging.info(
            "%.4g GFLOP a clip, %.4g TFLOP a step",
            flops / 1e9,
            flops * config.train.batch_size / 1e12,
        )
    return lambda step: first if step < boundary else last


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _meter(experiment: Experiment, step: int) -> throughput.Meter:
    """Counts from `step` on against what the devices can do."""
    peak = throughput.peak_flops(list(experiment.mesh.devices.flat))
    logging.info("all devices reach %.4g TFLOP/s at best", peak / 1e12)
    config = experiment.config
    pairs = config.task.name == "contrastive"
    return throughput.Meter(config.train.batch_size, step, peak, pairs)


def _checkpoints(config: ConfigDict, workdir: Path) -> contextlib.closing:
    return contextlib.closing(
        Checkpoints(
            workdir / "checkpoints",
            config.checkpoint.keep,
            config.checkpoint.best_metric,
        )
    )


def _writer(
    config: ConfigDict, workdir: Path, total_steps: int, start_step: int
) -> contextlib.closing:
    """The writer; on all processes but the first one that writes nothing."""
    if jax.process_index():
        return contextlib.closing(Silent())
    return contextlib.closing(
        Writer(
            workdir,
            total_steps,
            start_step,
            tensorboard=config.writer.tensorboard,
            wandb_project=config.writer.wandb_project,
            name=workdir.name,
        )
    )


def _fetch(state: TrainState, schedule, config: ConfigDict) -> dict[str, float]:
    """The means since the last line; the only wait for the device between two lines."""
    totals, clips, step = jax.device_get((state.totals, state.clips, state.step))
    # The device counts to 2^32; how often it began anew follows from the steps.
    turns = round((int(step) * config.train.batch_size - int(clips.count)) / 2**32)
    line = {f"train/{key}": value for key, value in metrics.compute(totals).items()}
    return line | {
        "steps": int(totals["grad_norm"].count),
        "train/learning_rate": float(schedule(int(step) - 1)),
        "train/bad_clips": int(clips.sum),
        "train/clips": int(clips.count) + max(turns, 0) * 2**32,
    }


def _check_finite(step: int, line: dict[str, float]) -> None:
    """Stop a run that has diverged, before its state is saved.

    Since the last line of the log; nothing may have been counted since (NaN).
    """
    sums = {name: line[f"train/{name}"] for name in ("loss", "grad_norm", "param_norm")}
    if line["steps"] and not np.isfinite(list(sums.values())).all():
        raise TrainingError(
            f"not finite by step {step}: {sums}. Lower optim.learning_rate, set "
            "optim.clip_norm, or use precision=float32; the last checkpoint is sound"
        )


def _check_clips(step: int, line: dict[str, float], max_bad_fraction: float) -> None:
    """Stop a run that eats bad data."""
    bad, clips = line["train/bad_clips"], line["train/clips"]
    if bad > max_bad_fraction * max(clips, BAD_CLIPS_OVER_AT_LEAST):
        raise TrainingError(
            f"{bad} of {clips} clips could not be read by step {step}, more than "
            f"data.max_bad_fraction={max_bad_fraction}. The warnings above name them: "
            "mend them and run the same command again, or raise the fraction"
        )
