"""A small CLAP on captions that a captioner wrote, as BLAT's: the end of the circle.

    python -m data.caption '{"kind": "synthetic", "part": "2/2"}' --by=captioner \
        --model=runs/captioner --out=runs/heard.jsonl
    python -m clap_jax.main --workdir=runs/circle \
        --config=configs/circle.py:part=2/2,generated=runs/heard.jsonl

`launch/circle.sh` runs all of it: a captioner learns from one half of the procedural
scenes, writes captions for the other half, and a CLAP that has seen nothing but these is
compared, on true captions of scenes that neither has heard, with one on the true
captions of the same half (without `generated`) and with one whose captioner got no tags.

With a table or folder of sounds, `configs/circle.py:sounds.csv,part=2/3,test_part=3/3`,
the same: a third for the captioner, a third for its captions, a third for the test.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources


def get_config(argument=None):
    """`:[PATH,][part=K/N][,test_part=K/N][,generated=FILE][,steps=N][,smoke]`.

    generated: captions to learn from; clips that have none there are left out.
    """
    options = config_lib.parse_argument(
        argument,
        path="",
        part="",
        test_part="",
        generated="",
        steps=1300,
        smoke=False,
    )
    config = config_lib.default()
    config.model = "small_transformer"
    config.train.batch_size = 64
    config.train.total_steps = options.steps
    config.optim.learning_rate = 1e-3
    config.optim.warmup_percent = 8.0
    config.data.mel = "host"
    config.data.cache_gib = 1.0
    config.data.text_buckets = ()

    source = {"kind": "synthetic", "split": "train", "examples": 16_000}
    test = {"kind": "synthetic", "split": "test", "examples": 250}
    if options.path:
        source = sources.section(options.path)
        test = {**source, "part": options.test_part}
    if options.smoke:
        smaller = {"options": {"depth": 1}}
        config.model_overrides = {"audio": smaller, "text": smaller}
        config.train.batch_size = 8
        config.train.total_steps = config.train.log_steps = 2
        if not options.path:
            source["examples"], test["examples"] = 32, 24
    source["part"] = options.part
    if options.generated:
        source |= {"generated": options.generated, "captions": "only"}
    config.data.sources = (source,)
    config.evals.scenes = {"kind": "retrieval", "source": test, "every_steps": 500}
    config.checkpoint.every_steps = 100
    return config
