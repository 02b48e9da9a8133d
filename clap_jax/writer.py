"""Where numbers go: metrics.jsonl always, the terminal, TensorBoard and W&B when asked.

`metrics.jsonl` holds one JSON object a line: `step`, then named values. On resume the
lines after the restored step are dropped, so that a run that was killed leaves the
same file as one that was not.
"""

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

from absl import logging

METRICS_FILE = "metrics.jsonl"


class Writer:
    """Writes the metrics of one run; only the first process of a job makes one."""

    def __init__(
        self,
        workdir: Path,
        total_steps: int,
        start_step: int = 0,
        tensorboard: bool = False,
        wandb_project: str = "",
        name: str = "",
    ):
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / METRICS_FILE
        drop_after(self.path, start_step)
        self._sinks = []
        if tensorboard:
            self._sinks.append(TensorBoard(workdir, start_step))
        if wandb_project:
            self._sinks.append(WeightsAndBiases(workdir, wandb_project, name))
        self._file = self.path.open("a")
        self._progress = Progress(total_steps, start_step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append one line; values that are not finite are written as null."""
        row = {"step": step} | {
            key: value if math.isfinite(value) else None
            for key, value in scalars.items()
        }
        self._file.write(json.dumps(row) + "\n")
        # On disk before any checkpoint of this step is, or a kill between the two
        # would lose the line.
        self._file.flush()
        os.fsync(self._file.fileno())
        for sink in self._sinks:
            sink.write(step, scalars)
        self._progress.log(step, scalars)

    def close(self) -> None:
        self._progress.close()
        for sink in self._sinks:
            sink.close()
        self._file.close()


class Silent:
    """The writer of every process but the first: takes the same calls, writes nothing."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def drop_after(path: Path, step: int) -> None:
    """Keep the lines of `path` up to and with `step`; drop later and broken ones."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    text = "".join(line + "\n" for line in kept)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def written_at(path: Path, step: int) -> set[str]:
    """The names of all values that `path` has for a step."""
    if not path.exists():
        return set()
    lines = path.read_text().splitlines()
    return {
        name for line in lines if _step_of(line) == step for name in json.loads(line)
    }


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # the last line of a killed run may be cut short


class Progress:
    """One bar on a terminal; elsewhere one plain line per log."""

    def __init__(self, total_steps: int, start_step: int):
        self._total, self._start = total_steps, start_step
        self._began = time.perf_counter()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Bar(
                *Bar.get_default_columns()[:3],
                TextColumn("[cyan]{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start_step, note=""
            )
            self._bar.start()

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Show where the run is, from the scalars of one written line."""
        if "train/loss" not in scalars:
            return
        note = (
            f"loss {scalars['train/loss']:.3f}  "
            f"{scalars.get('train/clips_per_s', math.nan):,.0f} clips/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
            return
        seconds = time.perf_counter() - self._began
        done = max(step - self._start, 1)
        remaining = seconds / done * (self._total - step)
        logging.info(
            "step %d/%d  %s  %s left", step, self._total, note, clock(remaining)
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class TensorBoard:
    """Event files in `workdir/tensorboard` (extra `tensorboard`)."""

    def __init__(self, workdir: Path, start_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "writer.tensorboard needs tensorboardX: "
                "pip install 'clap_jax[tensorboard]'"
            ) from error
        # What a killed run wrote after its last checkpoint is dropped.
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A Weights & Biases run (extra `wandb`); the same one whenever a workdir resumes."""

    def __init__(self, workdir: Path, project: str, name: str):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "writer.wandb_project needs wandb: pip install 'clap_jax[wandb]'"
            ) from error
        identity = hashlib.sha1(str(workdir.resolve()).encode()).hexdigest()[:12]
        self._run = wandb.init(
            project=project, name=name, dir=str(workdir), id=identity, resume="allow"
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()
