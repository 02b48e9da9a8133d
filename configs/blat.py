"""BLAT: Cnn14 with length-masked pooling and BERT-medium, 1024 dimensions.

    python -m clap_jax.main --workdir=runs/blat \
        --config=configs/blat.py:train.csv,audio=Cnn14_audioset.pth

The recipe is that of the authors' training code for this model (their entry to DCASE
2022, task 6): symmetric cross entropy over the embeddings of all GPUs, Adam, rate 1e-4,
linear warm-up and cosine to 0 by step, batch 4 x 128, no weight decay, no clipping,
random crops of 10 s at 32 kHz, shorter clips padded and masked, each of a clip's
captions a pair of its own. Cnn14 starts from AudioSet at 32 kHz (`audio=`), BERT-medium
from the hub. Data: captions that a tag-guided captioner wrote for AudioSet, then
AudioCaps, Clotho and MACS.
Expected: no number of the paper (ACM MM 2023, pages 2756-2764) could be confirmed.
Deviates: one of a clip's captions is drawn each time, and captions of one clip are no
negatives of each other; the logit scale stays below 100, there it is free. Not confirmed, and chosen
here: 20 epochs, 2 % of warm-up, and that the final run has this rate and batch.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"widths": (8, 8, 16)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,smoke]`; the smoke run uses synthetic sounds."""
    options = config_lib.parse_argument(argument, path="", audio="", smoke=False)
    config = config_lib.default()
    config.model = "blat"
    config.init_from = (options.audio, "prajjwal1/bert-medium")

    config.train.batch_size = 512
    config.train.total_epochs = 20.0
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-4
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.warmup_percent = 2.0
    config.optim.clip_norm = 0.0

    config.data.sources = (sources.section(options.path),)
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 500

    if options.smoke:
        config_lib.shrink(config, **SMALL)
    return config
