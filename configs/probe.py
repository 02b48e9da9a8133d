"""Linear or MLP probe: a small head on a frozen model's vectors of your labelled sounds.

    python -m clap_jax.main --mode=eval --workdir=runs/probe \
        --config=configs/probe.py:sounds.csv,init=runs/quickstart
    python -m clap_jax.main --mode=eval --workdir=runs/probe_mlp \
        --config=configs/probe.py:sounds.csv,init=630k-audioset-best.pt,recipe=laion_mlp

`init` is any checkpoint: a workdir, a saved model, a file of another system, a hub id.
A `split` column says what is tested (test, else eval, else a validation split) and what
the strength of the penalty is chosen by (a validation split, else some of the training
rows); a `fold` column, or `column=NAME`, gives cross-validation over its values (ESC-50:
5 folds, UrbanSound8K: 10), and `test=VALUE` only tests that one. A table without such a
column is divided by chance into `folds` parts. The penalty is never chosen by test clips.

recipe: linear (ours: full-batch L-BFGS, penalty swept), laion_linear and laion_mlp
(LAION-CLAP: Adam 1e-4, 100 epochs, batch 160, on the projection before L2; the MLP is
1024 wide, dropout 0.1), msclap_linear and msclap_mlp (MS-CLAP: Adam 1e-3, 30 epochs, one
layer or three). clap_jax/evals/recipes.py has them with their sources. features:
projection, normalised or embedding. separator: between the labels of a
cell, such as ";", or by name: comma, semicolon, bar, space, tab. Vectors
are kept in the workdir, so that another recipe with the same --workdir only fits.
Expected: the papers' tables are with their own checkpoints, ESC-50 about 0.93 (MS-CLAP
2022, frozen features).
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import splits

# Two parts of scenes that the package makes itself.
SMOKE = {
    "kind": "probe",
    "source": {"kind": "synthetic", "split": "kinds", "examples": 52},
    "parts": {"train": {"seed": 0}, "test": {"seed": 1}},
    "test": ("test",),
    "options": {"strengths": (0.1,)},
    "batch_size": 8,
}


def get_config(argument=None):
    """`:TABLE[,init=CKPT][,recipe=NAME][,features=NAME][,test=VALUE]
    [,validation=VALUE][,column=NAME][,folds=N][,separator=TEXT][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        path="",
        init="",
        recipe="linear",
        features="projection",
        test="",
        validation="",
        column="",
        folds=5,
        separator="",
        smoke=False,
    )
    config = config_lib.default()
    config.model = "init_from"
    config.init_from = options.init
    config.train.total_steps = 1  # of the smoke run; nothing else trains
    if options.smoke:
        config.model = "small_conv"
        config.model_overrides = {
            "audio": {"options": {"widths": (8, 8)}},
            "text": {"options": {"depth": 1}},
        }
        config.train.batch_size = 8
        config.train.log_steps = 1
        train = {"kind": "synthetic", "split": "train", "examples": 16}
        config.data.sources = (train,)
        config.evals.probe = SMOKE
        return config
    if not options.path:
        raise config_lib.ConfigError(
            "configs/probe.py needs a table or a folder: "
            "--config=configs/probe.py:sounds.csv,init=CHECKPOINT"
        )
    table = splits.inspect(options.path, options.column)
    if not table["label_column"]:
        raise config_lib.ConfigError(
            f"{options.path} has no column of labels to probe for"
        )
    separator = splits.separator(options.separator)
    source = {"kind": "manifest", "path": options.path}
    source |= {"label_column": table["label_column"], "separator": separator}
    config.evals.probe = {
        "kind": "probe",
        "source": source,
        "recipe": options.recipe,
        "features": options.features,
        **divided(table, options),
    }
    return config


def divided(table, options):
    """How the rows are divided: options of the evaluator."""
    column, values = splits.division(table)
    if not column:
        return {"folds": options.folds}
    reserved = splits.reserved_values(values)
    test = options.test or (reserved[0] if reserved else "")
    validation = options.validation or next((v for v in reserved if v != test), "")
    # What is neither tested nor for validation, but reserved, is left alone.
    used = [v for v in values if v not in reserved or v in (test, validation)]
    return {
        "parts": {value or "none": {"where": {column: [value]}} for value in used},
        "test": (test,) if test else (),
        "validation": validation,
    }
