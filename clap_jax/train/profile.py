"""A window of steps under `jax.profiler`, for TensorBoard's profile plugin."""

from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict


class Window:
    """Traces `profile.steps` steps, from `profile.first_step` steps after the start on.

    The first steps of a run are not like the others. The trace of every host goes to
    `workdir/profile`; steps 0 is no trace.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start_step: int):
        self._folder = workdir / "profile"
        self._first = start_step + config.first_step
        self._end = self._first + config.steps
        self._running = False

    def at(self, step: int, state: Any) -> None:
        """To be called before every step, and after the last one; `state` is what the
        steps before it made, which the trace begins and ends with."""
        if self._first <= step < self._end and not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step >= self._end and self._running:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """End the trace if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logging.info(
                "a trace of steps %d to %d is in %s: tensorboard --logdir=%s",
                self._first,
                self._end,
                self._folder,
                self._folder.parent,
            )
