"""Train or evaluate: `python -m clap_jax.main --config=configs/quickstart.py --workdir=DIR`.

The only module that defines absl flags.
"""

import os
import re
import shlex
import sys
import traceback
from logging import INFO, LogRecord
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

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
    "mode",
    "train",
    ["train", "eval", "plan"],
    "Train, evaluate the workdir's newest model, or plan: compile the training step for "
    "devices that need not be there, and say what it needs (workdir/plan.json).",
)
flags.DEFINE_string(
    "topology",
    None,
    "With --mode=plan: v5e:16x16, v6e:8x8, v5p:4x4x4 (a TPU slice; needs the extra "
    "'tpu', and no TPU), cpu:8 (virtual devices), local (this machine's devices).",
)
flags.DEFINE_integer(
    "hosts",
    0,
    "With --mode=plan: hosts of the topology; 0: as many as it has by itself.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "search",
    True,
    "With --mode=plan: compile other batch sizes too, to find the largest that fits. "
    "--nosearch also compiles at most 8 changes of a step that does not fit (else 16).",
)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        fail(f"unexpected argument(s): {' '.join(arguments[1:])}", status=2)
    check_plan_flags()
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    handler.addFilter(is_worth_showing)
    if FLAGS.mode == "plan" and FLAGS.topology != "local":
        os.environ["JAX_PLATFORMS"] = "cpu"  # or jax would look for a TPU to plan for
    # Imported here so that --help is quick and shows these flags alone.
    import jax

    flags_of_xla = os.environ.get("XLA_FLAGS", "")
    if has_virtual_devices(jax.config.jax_num_cpu_devices, flags_of_xla):
        # Virtual devices share the cores: two steps in flight would wait for each
        # other's threads in their collectives, for ever.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    from clap_jax import hosts
    from clap_jax.checkpoint import CheckpointError
    from clap_jax.train import examine, folds, loop

    config_file = config_flags.get_config_filename(FLAGS["config"])
    if "://" in (FLAGS.workdir or ""):
        fail(
            f"--workdir={FLAGS.workdir} is a URL, expected a folder that all hosts see "
            "(NFS, Filestore, Lustre, or a bucket that is mounted)",
            status=2,
        )
    workdir = Path(FLAGS.workdir or default_workdir(config_file))
    run = {"train": folds.train, "eval": folds.evaluate, "plan": plan}[FLAGS.mode]
    expected = (ValueError, OSError, ImportError, CheckpointError)
    expected += (loop.TrainingError, examine.Refused)
    try:
        if FLAGS.mode != "plan":  # which runs alone, and on no device
            hosts.start(FLAGS.config.mesh.heartbeat_seconds)
        run(FLAGS.config, workdir)
    except hosts.Preempted as stop:
        print(stop, file=sys.stderr)
        sys.exit(hosts.EXIT_RESTART)
    except (Exception, KeyboardInterrupt) as error:
        # Another host has died, or this one fails alone: it waits for nobody.
        again = hosts.again(error)
        sentence = again or out_of_memory(error)
        if sentence or isinstance(error, (*expected, hosts.HostsError)):
            tell(error, sentence)
        elif hosts.alone():
            raise
        else:
            traceback.print_exc()
        hosts.leave(hosts.EXIT_RESTART if again else 1)


def has_virtual_devices(number: int, xla_flags: str) -> bool:
    """Whether one CPU is to be several devices, in either of the two ways to say so."""
    flag = "xla_force_host_platform_device_count"
    asked = re.findall(rf"--{flag}=(\d+)", xla_flags)
    return max(number, *map(int, asked), 0) > 1


def plan(config: ConfigDict, workdir: Path) -> None:
    """What the training step needs on `--topology`."""
    from clap_jax.train import plan_report

    # The folder says where the plan lies, not what it is.
    said = [word for word in sys.argv[1:] if not word.startswith("--workdir=")]
    plan_report.run(
        config,
        workdir,
        topology_name=FLAGS.topology,
        hosts=FLAGS.hosts,
        search=FLAGS.search,
        command=shlex.join(["python", "-m", "clap_jax.main", *said]),
    )


def check_plan_flags() -> None:
    """--topology comes with --mode=plan, and only with it."""
    if FLAGS.mode == "plan" and not FLAGS.topology:
        fail("--mode=plan needs --topology, e.g. --topology=v5e:16x16", status=2)
    for name in ("topology", "hosts", "search"):
        if FLAGS.mode != "plan" and FLAGS[name].present:
            fail(f"--{name} is for --mode=plan, not --mode={FLAGS.mode}", status=2)


def tell(error: BaseException, sentence: str) -> None:
    """What went wrong is in the sentence; the traceback is for developers."""
    if os.environ.get("CLAP_JAX_TRACEBACK"):
        traceback.print_exc()
    hint = "(CLAP_JAX_TRACEBACK=1 shows where)"
    print(f"error: {sentence or error}\n{hint}", file=sys.stderr)


def out_of_memory(error: BaseException) -> str:
    """A sentence for a device whose memory is too small; "" for any other error."""
    from jax.errors import JaxRuntimeError

    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
            return (
                f"a device is out of memory ({text.splitlines()[0][:300]}). "
                "--mode=plan --topology=local says what a step needs, and what helps: "
                "more parts of a batch (--config.train.accumulate), "
                "--config.remat=blocks, a smaller --config.train.batch_size"
            )
        cause = cause.__cause__ or cause.__context__
    return ""


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
    """End with a message and an exit status, 2 for bad flags."""
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
