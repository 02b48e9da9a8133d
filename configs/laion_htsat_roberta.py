"""LAION-CLAP, not fused: HTSAT-tiny and RoBERTa-base (arXiv 2211.06687, section 4.1).

    python -m clap_jax.main --workdir=runs/laion \
        --config=configs/laion_htsat_roberta.py:train.csv,audio=htsat_audioset.ckpt

Paper's recipe for AudioCaps + Clotho + LAION-Audio-630K (about 680 k pairs): global
batch 2304 (3 x 8 GPUs of 96), Adam, rate 1e-4, 3200 steps of warm-up, cosine to 0, 45
epochs, no weight decay, no clipping, float32, SpecAugment. HTSAT starts from the model
that its authors trained on AudioSet at 48 kHz (HTSAT-fullset-imagenet-map=0.467.ckpt:
`audio=`), RoBERTa from the hub. The paper's text says betas (0.99, 0.9), its scripts
use (0.9, 0.999): the scripts' are taken. Batch 768 for AudioCaps + Clotho alone, 4608
with AudioSet.
Expected there: ESC-50 zero-shot 89.1 %, US8K 73.2 %, VGGSound 29.1 %; text-to-audio R@1
AudioCaps 32.7 %, Clotho 15.6 %; with AudioSet's keyword-to-caption 36.1 and 16.1 %.
Deviates: captions of one clip are no negatives of each other (`loss.multi_positive`);
without `audio=` HTSAT starts fresh.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"width": 16, "depths": (1, 1), "heads": (2, 2)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}

# RoBERTa's two sizes; the model's row has the first.
TEXT = {"base": {}, "large": {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096}}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,size=tiny|base|large][,text=base|large][,smoke]`."""
    options = config_lib.parse_argument(
        argument, path="", audio="", size="tiny", text="base", smoke=False
    )
    config = config_lib.default()
    config.model = f"laion_htsat_{options.size}_roberta"
    if options.text not in TEXT:
        raise config_lib.ConfigError(config_lib.unknown("text", options.text, TEXT))
    config.model_overrides = {"text": {"options": TEXT[options.text]}}
    config.init_from = (options.audio, f"FacebookAI/roberta-{options.text}")

    config.train.batch_size = 2304
    config.train.total_epochs = 45.0
    config.train.seed = 3407
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-4
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 3200
    config.optim.clip_norm = 0.0

    config.data.sources = (sources.section(options.path),)
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 1000

    if options.smoke:
        config_lib.shrink(config, **SMALL)
    return config
