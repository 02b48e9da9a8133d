"""Long clips of your own, on a laptop: which song a text is about, and when.

    python -m data.caption songs/ --by=music --out=captions.jsonl     # without captions
    python -m clap_jax.main --workdir=runs/songs \
        --config=configs/songs.py:songs/,generated=captions.jsonl,init=runs/quickstart
    clap-jax search --model=runs/songs --query=@text.txt --plot=when.png songs/

A table or folder of songs with long captions, or with those that `data.caption` writes by
ear. Songs are heard in segments of 2.56 s by a small transformer, of which two minutes go
into a batch (cut at random, the caption with it: sections beyond the cut go); captions
are read in sentences. `init` gives the audio tower its weights, which then change at a
tenth of the rate. `twins` adds songs of up to `seconds` with the sections that their
captions name in another order, as hard negatives, most in the same batch. A larger
model: configs/collap_roberta.py.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources


def get_config(argument=None):
    """`:PATH[,generated=FILE][,init=CKPT][,test=PATH][,twins][,batch=16][,seconds=120]
    [,steps=N][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        path="",
        generated="",
        init="",
        test="",
        twins=False,
        batch=16,
        seconds=120.0,
        steps=600,
        smoke=False,
    )
    if not (options.path or options.smoke):
        raise config_lib.ConfigError(
            "configs/songs.py needs a table or a folder: --config=configs/songs.py:songs/"
        )
    config = config_lib.default()
    config.model = "small_transformer"
    config.model_overrides = {
        "text": {"options": {"position_table": 512}},
        "text_length": 400,
        "temporal": {
            "heads": 4,
            "sentences": 16,
            "hop_seconds": 2.56,
            "longest_seconds": options.seconds,
        },
    }
    config.init_from = options.init
    config.train.batch_size = options.batch
    config.train.total_steps = options.steps
    config.optim.learning_rate = 1e-3
    config.optim.warmup_percent = 5.0
    if options.init:
        config.init_pattern = "(params|state)/audio/.*"
        config.optim.lr_multipliers = (("audio/.*", 0.1), (".*", 1.0))
    config.data.text_buckets = (128, 256)
    config.data.audio_buckets = (options.seconds / 4, options.seconds / 2)
    config.data.cache_gib = 2.0
    config.checkpoint.every_steps = 100

    if options.smoke:
        pieces = {"kind": "pieces", "seconds": (48, 50), "style": "timing"}
        source = pieces | {"split": "train", "examples": 4, "twins": True}
        test = pieces | {"split": "test", "examples": 4}
        config.evals.songs = {"kind": "retrieval", "source": test}
        config.data.read_together = 2
        shrink(config)
    else:
        source = sources.section(options.path)
    if options.generated:
        source |= {"generated": options.generated, "captions": "only"}
    if options.twins:
        source |= {"twins": options.seconds}
        config.data.read_together = 2
    config.data.sources = (source,)
    if options.test:
        test = sources.section(options.test)
        config.evals.songs = {"kind": "retrieval", "source": test, "every_steps": 200}
    return config


def shrink(config):
    """Small enough for a test."""
    config.model_overrides.audio = {"options": {"depth": 1}}
    config.model_overrides.text.options.depth = 1
    config.model_overrides.text_length = 64
    config.model_overrides.temporal.longest_seconds = 20.0
    config.train.batch_size = 8
    config.train.total_steps = config.train.log_steps = 1
    config.data.audio_buckets = config.data.text_buckets = ()
