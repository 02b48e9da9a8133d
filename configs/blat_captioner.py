"""The captioner of BLAT's training pairs: Cnn14, GRU and a decoder that tags guide.

    python -m clap_jax.main --workdir=runs/captioner \
        --config=configs/blat_captioner.py:audiocaps.csv,audio=Cnn14_audioset.pth
    python -m clap_jax.main --workdir=runs/small --config=configs/blat_captioner.py:small
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources


def get_config(argument=None):
    options = config_lib.parse_argument(argument, path="", audio="", small=False, smoke=False, steps=2000,lr=1e-3,batch=64,vocab=400, drop=0.2, untagged=0.3, sched=0.3, smooth=0.1, width=96, audio_kind="convnet", swa=20.0, ema=0.0, aug=1)
    config = config_lib.default()
    config.task.name = "caption"
    config.model = "small_captioner"
    config.model_overrides = {"frontend": "small_16k", "audio": {"kind": "conv_transformer"}}
    config.train.batch_size = options.batch
    config.train.total_steps = options.steps
    config.train.swa_percent = options.swa
    config.train.ema_decay = options.ema
    config.optim.learning_rate = options.lr
    config.optim.warmup_percent = 5.0
    config.loss.label_smoothing = options.smooth
    config.task.scheduled_sampling = options.sched
    config.task.tag_drop = options.drop
    config.task.untagged = options.untagged
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 16_000},)
    config.data.vocab_size = options.vocab
    config.data.mel = "host"
    config.data.cache_gib = 1.5
    config.data.text_buckets = ()
    test = {"kind": "synthetic", "split": "test", "examples": 250}
    for name, tags in (("scenes", "source"), ("without_tags", "none")):
        config.evals[name] = {"kind": "captions", "source": test, "tags": tags, "every_steps": 500}
    return config
