"""A window of steps under `jax.profiler`, for TensorBoard's profile plugin."""

from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict


class Window:
    """Traces `profile.steps` steps, from `profile.first_step` steps after the start on.

    The first steps of a run are not like the others. The trace goes to
    `workdir/profile`; of several processes each has a folder there, since those of one
    host would give their traces the same name. steps 0 is no trace.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start_step: int):
        self._folder = workdir / "profile"
        if jax.process_count() > 1:
            self._folder /= f"process-{jax.process_index()}"
        self._workdir, self._start = workdir, start_step
        self._first = start_step + config.first_step
        self._end = self._first + config.steps
        self._running = False
        self._pending = config.steps > 0

    def due(self, step: int) -> bool:
        """Whether the trace is to begin or to end before `step`.

        To be asked before every step and after the last one; what the steps before
        made should be waited for, and then `at` be called.
        """
        if self._running:
            return step >= self._end
        return self._first <= step < self._end

    def at(self, step: int) -> None:
        """Begin or end the trace where it is due."""
        if self._running:
            self.close()
        elif self.due(step):
            jax.profiler.start_trace(self._folder)
            self._running, self._pending = True, False

    def close(self) -> None:
        """End the trace if one is running; warn if there has been none."""
        if self._pending:
            self._pending = False
            logging.warning(
                "no trace: the run ended before step %d (profile.first_step=%d, "
                "counted from step %d, where it started)",
                self._first,
                self._first - self._start,
                self._start,
            )
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logging.info(
                "a trace of steps %d to %d is in %s: tensorboard --logdir=%s",
                self._first,
                self._end,
                self._folder,
                self._workdir,
            )
