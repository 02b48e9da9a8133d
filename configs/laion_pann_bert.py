"""LAION-CLAP's other pair of towers: PANN-14 and BERT-base (arXiv 2211.06687, Table 2).

    python -m clap_jax.main --workdir=runs/laion_pann \
        --config=configs/laion_pann_bert.py:train.csv,audio=Cnn14_audioset.pth

Recipe for AudioCaps + Clotho, on which the paper compares towers: global batch 768 (8
GPUs of 96), Adam, rate 1e-4, 500 steps of warm-up (PANN; HTSAT has 3200), cosine, 45
epochs, no weight decay, float32, SpecAugment. PANN starts from AudioSet
(PANN-fullset-map=0.439.ckpt: `audio=`; the published Cnn14 fits as well), BERT from the
hub. `audio_model=pann10` or `pann6` are the smaller towers.
Expected there, not confirmed: best mAP@10 on AudioCaps 34.3 % (audio to text) and 44.3
% (text to audio), on Clotho 10.8 and 17.7 %. No weights were released.
Deviates: captions of one clip are no negatives of each other; without `audio=` PANN
starts fresh.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"widths": (8, 8, 16)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,audio_model=pann14|pann10|pann6][,smoke]`."""
    options = config_lib.parse_argument(
        argument, path="", audio="", audio_model="pann14", smoke=False
    )
    config = config_lib.default()
    config.model = f"laion_{options.audio_model}_bert"
    config.init_from = (options.audio, "google-bert/bert-base-uncased")

    config.train.batch_size = 768
    config.train.total_epochs = 45.0
    config.train.seed = 3407
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-4
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 500
    config.optim.clip_norm = 0.0

    config.data.sources = (sources.section(options.path),)
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 500

    if options.smoke:
        config_lib.shrink(config, **SMALL)
    return config
