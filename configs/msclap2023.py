"""MS-CLAP 2023: HTSAT and GPT-2, 1024 dimensions (arXiv 2309.05767).

    python -m clap_jax.main --workdir=runs/msclap2023 \
        --config=configs/msclap2023.py:train.csv,audio=htsat_audioset.ckpt

Paper's recipe: 4.6 M pairs of some twenty corpora (WavCaps, AudioSet, FSD50K, Clotho,
AudioCaps, MACS, WavText5k, SoundDescs, NSynth, FMA, speech and emotion sets, ...),
drawn at random; random crops of 7 s; batch 1536, Adam, rate 1e-3, divided by ten when
the validation loss stays for 15 epochs, 40 epochs (best in the first ten), both towers
trained, learnable temperature. The audio tower starts from HTSAT-22, trained before on
22 tasks by captioning; GPT-2 from the hub.
Expected there: zero-shot ESC-50 93.9 %, US8K 82.3 %, FSD50K mAP 48.5 %, GTZAN 58.4 %;
text-to-audio R@1 AudioCaps 35.6 %, Clotho 15.7 %. The checkpoint was chosen on those
very tasks, some of whose sounds were in training.
Deviates: cosine to 0 for reduce-on-plateau, which this project does not have; HTSAT-22
was not released, so `audio=` takes an HTSAT of AudioSet (fresh without); the
temperature starts at 0.07 as in the released code (the paper says 0.007); one of a
clip's captions is drawn each time, and they are no negatives of each other; a text ends
at its end token, not one place to the left for every "!" in it. Not stated there, so
none here: weight decay, warm-up, the share of each corpus.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere. A tokenizer that is
# trained here ends a text with </s>, token 2.
SMALL = {
    "audio": {"width": 16, "depths": (1, 1), "heads": (2, 2)},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4, "end_id": 2},
}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,smoke]`; the smoke run uses synthetic sounds."""
    options = config_lib.parse_argument(argument, path="", audio="", smoke=False)
    config = config_lib.default()
    config.model = "msclap2023"
    config.init_from = (options.audio, "openai-community/gpt2")

    config.train.batch_size = 1536
    config.train.total_epochs = 40.0
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0

    config.data.sources = (sources.section(options.path),)
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 1000

    if options.smoke:
        config_lib.shrink(config, **SMALL)
    return config
