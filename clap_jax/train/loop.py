"""The training loop. Read `train` from top to bottom."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import checkpoint, metrics, sharding
from clap_jax import config as config_lib
from clap_jax.checkpoint import Checkpoints
from clap_jax.evals import Result, encode, report
from clap_jax.train import experiment as experiment_lib
from clap_jax.train import optim
from clap_jax.train import state as state_lib
from clap_jax.train import step as step_lib
from clap_jax.train.experiment import Experiment, every
from clap_jax.train.state import TrainState
from clap_jax.writer import Silent, Writer, clock

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
    """
    began = time.perf_counter()
    experiment = experiment_lib.build(config, workdir)
    mesh = experiment.mesh
    total_steps = config_lib.total_steps(config, experiment.examples())
    schedule = optim.make_schedule(
        config.optim, config_lib.warmup_steps(config, total_steps), total_steps
    )

    # --- state: fresh, or the newest checkpoint's ---------------------------------
    variables = experiment.init_variables()
    optimizer = optim.make_optimizer(config.optim, variables["params"], schedule)
    state = state_lib.make_state(variables, optimizer, config.train.ema_decay > 0)
    state = state_lib.shard_state(state, mesh)
    dataset = experiment.train_dataset()

    with contextlib.ExitStack() as opened:
        iterator = opened.enter_context(contextlib.closing(iter(dataset)))
        checkpoints = opened.enter_context(_checkpoints(config, workdir))
        start_step = checkpoints.latest_step() or 0
        if start_step:
            state = state_lib.restored(state, checkpoints, iterator)
            logging.info("resumed from step %d", start_step)
        if start_step > total_steps:
            raise config_lib.ConfigError(
                f"{workdir} is at step {start_step}, the config ends at {total_steps}: "
                "raise train.total_steps, or use another --workdir"
            )

        # --- compile before the first step ----------------------------------------
        update = _compiled(experiment, optimizer, state, dataset.blank_batch())
        experiment.keep()
        writer = opened.enter_context(_writer(config, workdir, total_steps, start_step))
        timer = Timer(config.train.batch_size, start_step)
        results: dict[str, Result] = {}

        for step in range(start_step, total_steps + 1):
            last = step == total_steps
            # A restored step was evaluated and saved by the run that reached it.
            reached = step > start_step

            due = experiment.due(step, last) if reached or last else []
            due_save = last or every(config.checkpoint.every_steps, step)
            if reached and (due or due_save):
                with timer.paused():
                    _check_finite(step, _fetch(state, schedule))

            # 1. Evaluate the state as it stands (at the end always: for the report).
            scores: dict[str, float] = {}
            if due:
                with timer.paused():
                    variables = state_lib.evaluation_variables(state)
                    results |= experiment.evaluate(variables, due)
                    scores = evaluation_scores({name: results[name] for name in due})
                    if reached:
                        writer.write(step, scores)

            # 2. Save state and iterator.
            if reached and (due_save or config.checkpoint.best_metric in scores):
                with timer.paused():
                    checkpoints.save(step, state_lib.to_items(state), iterator, scores)
            if last:
                break

            # 3. Next batch.
            with timer.waiting():
                batch = next(iterator)

            # 4. Step. Nothing may move between host and device by accident.
            with jax.transfer_guard("disallow"):
                state = update(state, sharding.to_global(batch, mesh))

            # 5. Log.
            if every(config.train.log_steps, step + 1) or step + 1 == total_steps:
                line = _fetch(state, schedule)
                state = state_lib.reset_totals(state, mesh)
                _check_finite(step + 1, line)
                _check_clips(step + 1, line, config.data.max_bad_fraction)
                del line["steps"]
                writer.write(step + 1, line | timer.lap(step + 1))

        checkpoints.wait()

    if jax.process_index() == 0:
        write_report(experiment, results, total_steps)
        seconds = time.perf_counter() - began
        logging.info("done in %s: everything is in %s", clock(seconds), workdir)
    return results


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """`--mode=eval`: every evaluation of the config on the workdir's newest model."""
    step = int(checkpoint.find_step(workdir).name)
    experiment = experiment_lib.build(config, workdir)
    variables = checkpoint.load_variables(workdir)
    results = experiment.evaluate(variables, list(experiment.evaluations))
    if jax.process_index() == 0:
        write_report(experiment, results, step)
        logging.info("results are in %s", workdir / "results.json")
    return results


def evaluation_scores(results: dict[str, Result]) -> dict[str, float]:
    """Metrics under their logged names, `eval/<name>/<metric>`."""
    return {
        f"eval/{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }


def write_report(experiment: Experiment, results: dict[str, Result], step: int) -> None:
    """Table on the terminal, `plots/`, `results.json` and `report.html`."""
    workdir = experiment.workdir
    context = {
        "model": experiment.spec.name,
        "step": step,
        "seed": experiment.config.train.seed,
        "clip": encode.hearing(experiment.spec.frontend),
    }
    report.write_results(workdir, results, context)
    report.write_report(
        workdir, results, workdir / "metrics.jsonl", context, title=experiment.spec.name
    )
    report.print_table(results)


def _compiled(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    blank: dict[str, np.ndarray],
) -> Callable[[TrainState, dict], TrainState]:
    """The step, compiled for the shapes of a blank batch; logs what it costs."""
    began = time.perf_counter()
    mesh, config = experiment.mesh, experiment.config
    loss = step_lib.make_loss(
        experiment.dual,
        experiment.spec.frontend,
        experiment.augment,
        config.loss.multi_positive,
    )
    update = step_lib.make_step(
        loss, experiment.dual, optimizer, config.train.seed, config.train.ema_decay
    )
    batch = sharding.to_global(blank, mesh)
    compiled = step_lib.compile_step(update, state, batch, mesh)
    cost = compiled.cost_analysis() or {}
    logging.info(
        "%s: %.2f M parameters, batch %d on %d device(s), %.1f GFLOP a step, "
        "compiled in %.1f s",
        experiment.spec.name,
        state_lib.count_parameters(state.params) / 1e6,
        config.train.batch_size,
        mesh.size,
        cost.get("flops", float("nan")) / 1e9,
        time.perf_counter() - began,
    )
    return compiled


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


def _fetch(state: TrainState, schedule) -> dict[str, float]:
    """The means since the last line; the only wait for the device between two lines."""
    totals, clips, step = jax.device_get((state.totals, state.clips, state.step))
    line = {f"train/{key}": value for key, value in metrics.compute(totals).items()}
    return line | {
        "steps": int(totals["grad_norm"].count),
        "train/learning_rate": float(schedule(int(step) - 1)),
        "train/bad_clips": int(clips.sum),
        "train/clips": int(clips.count),
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


class Timer:
    """Where the time goes between two lines of the log."""

    def __init__(self, batch_size: int, step: int):
        self._batch_size, self._step = batch_size, step
        self._began, self._paused, self._waited = time.perf_counter(), 0.0, 0.0

    def paused(self) -> "_Clock":
        """Evaluations and saves are priced out of the throughput."""
        return _Clock(self, "_paused")

    def waiting(self) -> "_Clock":
        """Time in which the loop waits for data."""
        return _Clock(self, "_waited")

    def lap(self, step: int) -> dict[str, float]:
        """Throughput since the last call."""
        now = time.perf_counter()
        seconds = max(now - self._began - self._paused, 1e-9)
        steps = step - self._step
        scalars = {
            "train/clips_per_s": steps * self._batch_size / seconds,
            "train/step_ms": seconds / steps * 1e3,
            "train/data_wait_fraction": self._waited / seconds,
        }
        self._began, self._paused, self._waited = now, 0.0, 0.0
        self._step = step
        return scalars


class _Clock:
    def __init__(self, timer: Timer, name: str):
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        seconds = time.perf_counter() - self._began
        setattr(self._timer, self._name, getattr(self._timer, self._name) + seconds)
