"""Examine a checkpoint: the 26 tasks of MS-CLAP, LAION-CLAP's, or your own tables.

    python -m clap_jax.main --mode=eval --workdir=runs/suite \
        --config=configs/eval_suite.py:suite=msclap,data_dir=DIR --config.init_from=CKPT

CKPT is any checkpoint, converted or not (a released .pt or .pth, a folder of Hugging
Face's, a workdir, an export); without it, the workdir's own newest model is examined.
results.json and report.html have every task: those whose data is not in DIR are listed as
absent, with the command that prepares it, and those that are refused with the reason. A
run that was stopped goes on behind the last task that was finished. The table, with the
source of each choice, is clap_jax/evals/tasks.py.

    suite=msclap | msclap2022 | laion | more | small, joined by "+"; all (but small)
    tasks=esc50+clotho      these alone
    sources=FILE.json       {"esc50": {"kind": "manifest", "path": ..., "label_column": ...}}:
                            data of other kinds, or elsewhere, for tasks of the table
    fold=4                  one fold of sets that have some: for models trained on the rest
    crop_seed=1             random crops of longer clips, as the papers' scripts take them
    accept=repeated_audio   go on in spite of a known trap (clap_jax/evals/traps.py)
    draws=1000              of the bootstrap that gives the intervals; batch_size=64
"""

from clap_jax import config as config_lib
from clap_jax.evals import suite


def get_config(argument=None):
    """`:suite=NAME[,data_dir=DIR][,tasks=A+B][,...]`; the smoke run trains, on nothing."""
    options = config_lib.parse_argument(
        argument,
        suite="msclap",
        data_dir="",
        tasks="",
        sources="",
        fold=0,
        accept="",
        crop_seed=-1,
        draws=1000,
        batch_size=64,
        smoke=False,
    )
    config = config_lib.default()
    config.model = "init_from"
    sources = suite.read_sources(options.sources) if options.sources else {}
    config.evals = suite.sections(
        options.suite,
        data_dir=options.data_dir,
        tasks=_words(options.tasks),
        sources=sources,
        fold=options.fold,
        accept=_words(options.accept),
        crop_seed=options.crop_seed if options.crop_seed >= 0 else None,
        batch_size=options.batch_size,
        draws=options.draws,
    )

    if options.smoke:
        scenes = {"kind": "synthetic", "split": "kinds", "examples": 24}
        config.evals = suite.sections(
            data_dir="/dev/null", sources={"fsd50k": scenes}, batch_size=8, draws=20
        )
        config.evals.fsd50k.accept = ("classes",)
        config.model = "small_transformer"
        config_lib.shrink(config, {"depth": 1}, {"depth": 1})
    return config


def _words(text):
    """What is joined by "+"."""
    return tuple(filter(None, text.split("+")))
