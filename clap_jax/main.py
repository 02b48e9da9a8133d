"""Train or evaluate: `python -m clap_jax.main --config=configs/quickstart.py --workdir=DIR`.

The only module that defines absl flags.
"""

import os
import sys
from logging import INFO
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
    "command again goes on where it stopped. Default: runs/<name of the config>",
)
flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or evaluate the workdir's newest model."
)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument(s): {' '.join(arguments[1:])}")
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    # Orbax tells each of its steps at our level; its warnings are welcome.
    handler.addFilter(
        lambda record: record.levelno > INFO or "clap_jax" in record.pathname
    )
    # Imported here so that --help is quick and shows these flags alone.
    from clap_jax.checkpoint import CheckpointError
    from clap_jax.train import loop

    workdir = Path(FLAGS.workdir or _default_workdir())
    run = {"train": loop.train, "eval": loop.evaluate}[FLAGS.mode]
    try:
        run(FLAGS.config, workdir)
    except (ValueError, CheckpointError, loop.TrainingError) as error:
        if os.environ.get("CLAP_JAX_TRACEBACK"):
            raise
        # What went wrong is in the sentence; the traceback is for developers.
        logging.error("%s", error)
        logging.error("(set CLAP_JAX_TRACEBACK=1 for the traceback)")
        sys.exit(1)


def _default_workdir() -> str:
    """runs/quickstart for configs/quickstart.py."""
    file = config_flags.get_config_filename(FLAGS["config"])
    return f"runs/{Path(file.partition(':')[0]).stem}"


def entry() -> None:
    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    entry()
