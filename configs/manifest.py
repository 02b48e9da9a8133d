"""Your own sounds: a table of files with labels or captions, or a folder of sounds.

    launch/local.sh --config=configs/manifest.py:sounds.csv
    launch/local.sh --config=configs/manifest.py:sounds.csv,test=4,validation=3

Columns are found by their names (clap_jax/pipeline/manifest.py lists them) and what is
learnt and tested follows from them:

* `split` or `fold` column: rows of `test` are held out; unless given, that is the value
  test, else a validation split, else the last value. Rows of splits named test, eval,
  validation, valid, val and dev never train. Without such a column, or with one value
  in it, train on every row and test on the same.
* label column: trains on "the sound of <label>" and the like, clips of one label are no
  negatives of each other; tested by zero-shot classification. It wins over caption
  columns: captions are then made from labels alone.
* captions, without labels: trains on them; tested by retrieval.

The model is small and learns from scratch: minutes on a laptop for hundreds of clips.
Two CPU cores, 5 minutes: ESC-10, folds 1-3 to fold 4, accuracy 0.89 (mean of 3 seeds).
Use `--config.model=... --config.init_from=...` to start from something larger.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import splits
from clap_jax.text import prompts


def get_config(argument=None):
    """`:PATH[,test=VALUE][,validation=VALUE][,steps=N][,smoke]`."""
    options = config_lib.parse_argument(
        argument, path="", test="", validation="", steps=1200, smoke=False
    )
    if not options.path:
        raise config_lib.ConfigError(
            "configs/manifest.py needs a table or a folder: "
            "--config=configs/manifest.py:sounds.csv"
        )
    table = splits.inspect(options.path)
    train_rows, test_rows = splits.held_out(table, options.test, options.validation)

    config = config_lib.default()
    config.model = "small_conv"
    config.train.batch_size = 64
    config.train.total_steps = options.steps
    config.train.ema_decay = 0.99
    config.optim.learning_rate = 1e-3
    config.optim.warmup_percent = 5.0
    config.data.mel = "host"
    config.data.cache_gib = 2.0
    # Of so small a text tower a second program costs more than it saves.
    config.data.text_buckets = ()
    config.augment = {
        "gain_db": 10.0,
        "time_shift": 0.5,
        "time_stretch": 0.28,
        "mel_shift_bins": 2,
        "mixup_alpha": 0.4,
        "time_stripes": 2,
        "time_stripe_frames": 32,
        "mel_stripes": 2,
        "mel_stripe_bins": 8,
    }
    source = {"kind": "manifest", "path": options.path}
    labelled = bool(table["label_column"])
    if labelled:
        source |= {
            "label_column": table["label_column"],
            "templates": prompts.TEMPLATES["plain"],
            "group_by": "label",
        }
    config.data.sources = ({**source, "where": train_rows},)
    held_out = {**source, "where": test_rows}
    if labelled:
        config.evals.classes = {
            "kind": "zeroshot",
            "source": held_out,
            "templates": prompts.TEMPLATES["plain"],
        }
    else:
        config.evals.captions = {"kind": "retrieval", "source": held_out}
    config.checkpoint.every_steps = 500

    if options.smoke:
        config.model_overrides = {"audio": {"options": {"widths": (8, 8, 8, 8)}}}
        config.train.batch_size = 8
        config.train.total_steps = 2
        config.train.log_steps = 1
    return config
