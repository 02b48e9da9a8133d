"""What only time can tell: which caption belongs to which order of the same sections.

    clap-jax embed --segments --model=runs/quickstart --out=runs/pieces/train \
        '{"kind": "pieces", "split": "train", "examples": 768, "alike": 4, "sections": [4, 6], "seconds": [120, 180]}'
    clap-jax embed --segments --model=runs/quickstart --out=runs/pieces/test \
        '{"kind": "pieces", "split": "test", "gallery": "order", "sections": [5, 5], "seconds": [120, 180]}'
    python -m clap_jax.main --workdir=runs/pieces/full \
        --config=configs/pieces.py:runs/pieces/train,test=runs/pieces/test

Pieces of minutes in sections (clap_jax/pipeline/pieces.py), heard by a frozen tower in
segments of its window, captions of 100 words and more. The test gallery is 120 pieces of
the same five sections in all their orders, none of which was in training: who does not
know of time finds one in 120. `without=` leaves out a part of the model.
R@1 in percent, text to audio and audio to text, of three seeds, on two cores:

| | seed 0 | seed 1 | seed 2 | minutes a run |
|---|---|---|---|---|
| all of it (`steps=250`) | 100, 100 | 100, 100 | 100, 100 | 20, beside tests |
| the same (`steps=150`) | 100, 100 | 100, 100 | 92.5, 85.0 | 2.5 on an idle machine |
| `without=attention` (`steps=150`) | 0.8, 0.0 | 0.8, 0.8 | 0.0, 0.8 | 6 |
| `without=positions` (`steps=150`) | 1.7, 0.8 | 0.8, 0.8 | 0.0, 0.8 | 6 |
| `without=sentences` (`steps=150`) | 0.0, 0.8 | 0.8, 0.8 | 0.8, 0.8 | 4 |

`when`: of the 600 sentences about a section, attention has its centre inside the section
for 100 % (all of it, three seeds, 250 steps); after 150 for 90, 100 and 62 %.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# What a model is without: changes of `temporal`, and rates of the parameters.
WITHOUT = {
    "": ({}, ()),
    # Whole embeddings alone, the means of all segments and of the text.
    "attention": ({"mix_init": 0.0}, (("temporal/.*", 0.0),)),
    "positions": ({"positions": False}, ()),
    "sentences": ({"sentences": 0}, ()),
}


def get_config(argument=None):
    """`:FEATURES,test=FEATURES[,without=attention|positions|sentences][,width=96][,seconds=2.56][,steps=N][,seed=N][,smoke]`.

    width, seconds: D of the features, and how long a segment is.
    """
    options = config_lib.parse_argument(
        argument,
        path="",
        test="",
        without="",
        width=96,
        seconds=2.56,
        steps=1500,
        seed=0,
        smoke=False,
    )
    if options.without not in WITHOUT:
        raise config_lib.ConfigError(
            config_lib.unknown("without", options.without, tuple(WITHOUT)[1:])
        )
    temporal, rates = WITHOUT[options.without]
    config = config_lib.default()
    config.model = "small_conv"
    config.model_overrides = {
        "frontend": {"clip_seconds": options.seconds},
        "audio": {"kind": "features", "options": {"width": options.width}},
        "text": {"options": {"position_table": 512}},
        "text_length": 288,
        "temporal": {"heads": 4, "sentences": 12, "hop_seconds": options.seconds}
        | temporal,
    }
    config.train.batch_size = 64
    config.train.total_steps = options.steps
    config.train.seed = options.seed
    config.optim.learning_rate = 2e-3
    config.optim.warmup_percent = 5.0
    config.optim.lr_multipliers = (*rates, (".*", 1.0))
    config.data.text_buckets = (224,)
    config.data.audio_buckets = (180.0,)
    # Neighbours are the same sections in another order.
    config.data.read_together = 4
    config.checkpoint.every_steps = 500

    if options.smoke:
        # Pieces themselves, by a tower that is not frozen.
        pieces = {"kind": "pieces", "seconds": (120, 121), "sections": (5, 5)}
        source = pieces | {"split": "train", "examples": 16, "alike": 2}
        test = pieces | {"split": "test", "gallery": "order", "examples": 6}
        config.model_overrides = config_lib.plain(config.model_overrides) | {
            "frontend": {"clip_seconds": 2.0},
            "audio": {"options": {"widths": (8, 8)}},
            "temporal": {"hop_seconds": 2.0, "longest_seconds": 8.0, "sentences": 4},
        }
        config.train.batch_size = 8
        config.train.total_steps = config.train.log_steps = 1
        config.data.text_buckets = config.data.audio_buckets = ()
        config.data.read_together = 1
    else:
        source, test = (
            sources.section(path) | {"kind": "features"}
            for path in (options.path, options.test)
        )
    config.data.sources = (source,)
    config.evals.orders = {"kind": "retrieval", "source": test, "every_steps": 500}
    if not (options.smoke or options.without in ("attention", "sentences")):
        config.evals.when = {"kind": "localisation", "source": test}
    return config
