"""Finetune on your labelled sounds, from any checkpoint or from scratch.

    python -m clap_jax.main --workdir=runs/finetune \
        --config=configs/finetune.py:sounds.csv,init=630k-audioset-best.pt
    python -m clap_jax.main --workdir=runs/scratch --config=configs/finetune.py:sounds.csv

A head on the audio tower's projection learns the label column; there is no text tower.
`test=VALUE` and `validation=VALUE` are values of the split or fold column, or of
`column=NAME`, and mean what they mean in configs/manifest.py: one row in such a column
never trains. With `folds` every value of that column is tested once, by a run of its own
in runs/finetune/fold_<value> (the same command goes on where it stopped), and the report
has their means (ESC-50: 5 folds, UrbanSound8K: 10). A cell with several labels
(`separator=";"`, or by name: comma, semicolon, bar, space, tab) makes it multi-label,
with a sigmoid for each class. `init` is a workdir, a saved model, a file of another
system or a hub id, and brings its own model and front end; without it `model` is a row
of the zoo.

freeze: only the head learns, and the towers run as in evaluation. hidden: widths of the
head's layers before the last, as 1024 or 512x512. decay: every block has so much of the
rate of the one above it. mixup: alpha of Beta(alpha, alpha). recipe:

* own: AdamW, rate 1e-3 from scratch; from a checkpoint 3e-4 with decay 0.75, and 3e-3
  for the head, which alone is fresh; cosine, label smoothing 0.1, strong augmentation
  with mixup.
* laion: LAION-CLAP's, `evaluate/eval_linear_probe.py` and scripts: Adam 1e-4, batch 160
  (on each of their 24 GPUs), 100 epochs, cosine without warm-up, no decay; `freeze` is
  their `--lp-freeze`, `hidden=1024` their `--lp-mlp`, `mixup=0.5` their `--mixup`.
* msclap: MS-CLAP's (arXiv 2206.04769): Adam 1e-4, with `freeze` 1e-3, 30 epochs; a head
  of one layer, or of three (`hidden=512x512`; widths and batch are not stated: 64).
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import splits

RECIPES = ("own", "laion", "msclap")


def get_config(argument=None):
    """`:TABLE[,init=CKPT][,model=ROW][,test=VALUE][,validation=VALUE][,column=NAME]
    [,folds][,separator=TEXT][,recipe=NAME][,freeze][,hidden=WIDTHS][,decay=NUMBER]
    [,mixup=ALPHA][,epochs=N][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        path="",
        init="",
        model="small_conv",
        test="",
        validation="",
        column="",
        folds=False,
        separator="",
        recipe="own",
        freeze=False,
        hidden="",
        decay=0.0,
        mixup=-1.0,
        epochs=0.0,
        smoke=False,
    )
    if options.recipe not in RECIPES:
        raise config_lib.ConfigError(
            config_lib.unknown("recipe", options.recipe, RECIPES)
        )
    config = config_lib.default()
    config.task.name = "classify"
    config.task.hidden = widths(options.hidden)
    config.model = options.model
    if options.init:
        config.model, config.init_from = "init_from", options.init
        config.init_pattern = r"(?!params/heads/).*"
    set_recipe(config, options)
    config.data.mel = "host"
    config.data.cache_gib = 2.0
    config.checkpoint.every_steps = 500
    if options.smoke:
        smoke(config)
    else:
        set_data(config, options)
    return config


def widths(text):
    """`512x256` as (512, 256)."""
    try:
        return tuple(int(width) for width in text.split("x") if text)
    except ValueError:
        raise config_lib.ConfigError(
            f"hidden is {text!r}, expected widths such as 1024 or 512x512"
        ) from None


def set_recipe(config, options):
    """How long, how fast, with which augmentation."""
    fresh = 10.0 if options.recipe == "own" and options.init else 1.0
    towers = 0.0 if options.freeze else 1.0
    config.optim.lr_multipliers = (("heads/.*", fresh), (".*", towers))
    config.train.batch_size = 64
    config.optim.schedule = "cosine"
    if options.recipe == "own":
        config.train.total_epochs = options.epochs or 100.0
        config.train.ema_decay = 0.99
        config.loss.label_smoothing = 0.1
        config.optim.learning_rate = 3e-4 if options.init else 1e-3
        config.optim.layer_decay = options.decay or (0.75 if options.init else 1.0)
        config.optim.warmup_percent = 5.0
        config.augment = {
            "gain_db": 10.0,
            "time_shift": 0.5,
            "time_stretch": 0.28,
            "mel_shift_bins": 2,
            "mixup_alpha": 0.4 if options.mixup < 0 else options.mixup,
            "time_stripes": 2,
            "time_stripe_frames": 32,
            "mel_stripes": 2,
            "mel_stripe_bins": 8,
        }
        return
    config.optim.name = "adam"
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0
    config.optim.learning_rate = 1e-4
    config.optim.layer_decay = options.decay or 1.0
    config.augment = {"mixup_alpha": max(options.mixup, 0.0)}
    if options.recipe == "laion":
        config.train.batch_size = 160
        config.train.total_epochs = options.epochs or 100.0
    else:
        config.train.total_epochs = options.epochs or 30.0
        config.optim.schedule = "constant"
        config.task.dropout = 0.0
        if options.freeze:
            config.optim.learning_rate = 1e-3


def set_data(config, options):
    """The rows to learn from, and those to test on."""
    if not options.path:
        raise config_lib.ConfigError(
            "configs/finetune.py needs a table or a folder: "
            "--config=configs/finetune.py:sounds.csv"
        )
    separator = splits.separator(options.separator)
    table = splits.inspect(options.path, options.column, separator)
    if not table["label_column"]:
        raise config_lib.ConfigError(f"{options.path} has no column of labels to learn")
    if options.folds:
        train, test = set_folds(config, options, table)
    else:
        train, test = splits.held_out(table, options.test, options.validation)
    source = {"kind": "manifest", "path": options.path}
    source |= {"label_column": table["label_column"], "separator": separator}
    config.data.sources = ({**source, "where": train},)
    config.evals.classes = {"kind": "classifier", "source": {**source, "where": test}}
    # Of the whole table: a class, or a cell with several, may be missing in some folds.
    loss = "bce" if table["multi_label"] else "ce"
    config.task.heads = {"labels": {"labels": tuple(table["labels"]), "loss": loss}}


def set_folds(config, options, table):
    """A run for each fold; returns the rows of the last, which alone is planned."""
    if options.test or options.validation:
        raise config_lib.ConfigError(
            "folds tests every value in its turn: leave out test and validation"
        )
    config.folds = tuple(
        {"name": name, "train": train, "test": test}
        for name, train, test in splits.folds(table)
    )
    return config.folds[-1]["train"], config.folds[-1]["test"]


def smoke(config):
    """One step of a tiny model on scenes that the package makes itself."""
    config.model, config.init_from = "small_conv", ""
    config.model_overrides = {"audio": {"options": {"widths": (8, 8)}}}
    config.train.batch_size = 8
    config.train.total_epochs = 0.0
    config.train.total_steps = 1
    config.train.log_steps = 1
    kinds = {"kind": "synthetic", "split": "kinds", "examples": 52}
    config.data.sources = (kinds,)
    config.data.threads = 2
    config.evals.classes = {
        "kind": "classifier",
        "source": {**kinds, "seed": 1},
        "batch_size": 8,
    }
