"""LAION-CLAP with feature fusion: HTSAT-tiny and RoBERTa-base (arXiv 2211.06687, 3.2).

    python -m clap_jax.main --workdir=runs/laion_fusion \
        --config=configs/laion_htsat_roberta_fusion.py:train.csv,audio=htsat.ckpt

The recipe of laion_htsat_roberta.py (global batch 2304, Adam 1e-4, 3200 steps of
warm-up, cosine, 45 epochs, no weight decay, float32) with clips of any length in four
views that two-dimensional attentional feature fusion (aff_2d) joins; one embedding for
each. HTSAT starts from the AudioSet model, its fusion layers start fresh. `fusion=`
takes the other types of the paper's package: daf_1d, aff_1d, iaff_1d, daf_2d, iaff_2d,
channel_map.
Expected there, AudioCaps + Clotho + LAION-Audio-630K: ESC-50 zero-shot 88.0 %; Clotho
text-to-audio R@1 17.2 %. Not confirmed: AudioCaps R@1 36.2 %, US8K 75.8 %.
Deviates: captions of one clip are no negatives of each other; without `audio=` HTSAT
starts fresh. Log-mels are made by the host, since their global view needs whole clips.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"width": 16, "depths": (1, 1), "heads": (2, 2)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,size=tiny|base|large][,fusion=KIND][,smoke]`."""
    options = config_lib.parse_argument(
        argument, path="", audio="", size="tiny", fusion="aff_2d", smoke=False
    )
    config = config_lib.default()
    config.model = f"laion_htsat_{options.size}_fusion_roberta"
    config.model_overrides = {"audio": {"options": {"fusion": options.fusion}}}
    config.init_from = (options.audio, "FacebookAI/roberta-base")
    # No model of AudioSet has what joins the views.
    fresh = "fusion|patch_local|local_conv|local_norm"
    if options.fusion == "channel_map":  # the views are channels of the first layer
        fresh = "patch/kernel"
    config.init_pattern = rf"(?!.*/audio/({fresh})).*"

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
