"""Train or evaluate: `python -m clap_jax.main --config=configs/quickstart.py --workdir=DIR`.

The only module that defines absl flags.
"""

import os
import re
import sys
from logging import INFO, LogRecord
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a Python file with get_config(arg), e.g. configs/quickstart.py or "
    "configs/manifest.py:sounds.csv. Any key of clap_jax/config.py can be overridden: "
    "--config.train.batch_size=128",
    lock_config=True,
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: checkpoints, metrics.jsonl, plots, report. Running the same "
    "command again goes on where it stopped. Default: under runs/, by the config.",
)
flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or evaluate the workdir's newest model."
)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        fail(f"unexpected argument(s): {' '.join(arguments[1:])}", status=2)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    handler.addFilter(is_worth_showing)
    # Imported here so that --help is quick and shows these flags alone.
    import jax

    if jax.config.jax_num_cpu_devices > 1:
        # Virtual devices share the cores: two steps in flight would wait for each
        # other's threads in their collectives, for ever.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    from clap_jax.checkpoint import CheckpointError
    from clap_jax.train import loop

    config_file = config_flags.get_config_filename(FLAGS["config"])
    workdir = Path(FLAGS.workdir or default_workdir(config_file))
    run = {"train": loop.train, "eval": loop.evaluate}[FLAGS.mode]
    expected = (ValueError, OSError, ImportError, CheckpointError, loop.TrainingError)
    try:
        run(FLAGS.config, workdir)
    except expected as error:
        if os.environ.get("CLAP_JAX_TRACEBACK"):
            raise
        # What went wrong is in the sentence; the traceback is for developers.
        fail(f"{error}\n(CLAP_JAX_TRACEBACK=1 shows where)", status=1)


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parser, but a key that does not exist or a bad value is one sentence."""
    try:
        return FLAGS(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        if os.environ.get("CLAP_JAX_TRACEBACK"):
            raise
        # An error inside get_config comes with its traceback: its last line says it.
        lines = [line for line in str(error).splitlines() if line.strip()]
        fail(f"{lines[-1].strip()}\n(--help lists the flags)", status=2)


def fail(message: str, status: int) -> None:
    """End with a message and an exit status: 1 for a failed run, 2 for bad flags."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def is_worth_showing(record: LogRecord) -> bool:
    """Orbax logs each of its steps at our level; of others, only warnings are shown."""
    own = str(Path(__file__).parent) + os.sep
    return record.levelno > INFO or record.pathname.startswith(own)


def default_workdir(config: str) -> str:
    """runs/quickstart for configs/quickstart.py, runs/manifest-a_csv for ...:a.csv."""
    file, _, argument = config.partition(":")
    words = "_".join(re.findall(r"\w+", argument))
    return "-".join(filter(None, (f"runs/{Path(file).stem}", words)))


def entry() -> None:
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    entry()
