"""LAION-CLAP's larger model for music and sound: HTSAT-base and RoBERTa-base.

    python -m clap_jax.main --workdir=runs/laion_base \
        --config=configs/laion_htsat_base.py:train.csv,audio=htsat_base_audioset.ckpt

The family of music_audioset_epoch_15_esc_90.14.pt and music_speech_audioset_...89.98.pt
(and of Hugging Face's larger_clap_general): not fused, trained on music, AudioSet and
LAION-Audio-630K, with speech about 4 M pairs; the epoch is the one that was best on
ESC-50, 15. Their recipe was not published. Taken here: that of the paper with AudioSet,
global batch 4608 (48 GPUs of 96), Adam 1e-4, 3200 steps of warm-up, cosine, 45 epochs,
no weight decay, float32.
Expected of the released models: ESC-50 zero-shot 90.1 % and GTZAN 71 % (music and
AudioSet), 90.0 % and 51 % (with speech). Not confirmed: batch, number of epochs, and
what HTSAT-base started from.
Deviates: captions of one clip are no negatives of each other; without `audio=` HTSAT
starts fresh; labels of music need captions in your table.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"width": 16, "depths": (1, 1), "heads": (2, 2)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,smoke]`; the smoke run uses synthetic sounds."""
    options = config_lib.parse_argument(argument, path="", audio="", smoke=False)
    config = config_lib.default()
    config.model = "laion_htsat_base_roberta"
    config.init_from = (options.audio, "FacebookAI/roberta-base")

    config.train.batch_size = 4608
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
