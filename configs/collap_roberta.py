"""CoLLAP with RoBERTa: five minutes of audio, 250 words of text (arXiv 2410.02271).

    python -m clap_jax.main --workdir=runs/collap \
        --config=configs/collap_roberta.py:songs.csv,audio=BEATs_iter3_plus_AS2M.pt,test=held_out.csv

Songs in 30 segments of 10 s through BEATs, captions in up to 16 sentences through
RoBERTa with 512 tokens; the score is that of the whole song and the whole text, and what
attention of sentences over segments adds (`clap_jax/models/temporal.py`, our own
formulas: the paper's could not be read). BEATs is frozen, as the encoders of the
captioner that wrote the paper's texts are; `audio_rate=0.1` trains it at a tenth of the
rate. With `whisper=openai/whisper-large-v2` that encoder hears the same segments, and
its 1,280 numbers stand beside the 768 of BEATs, as in the paper; `whisper_rate` is its
own rate (other sizes of either: `model_overrides.audio.options.parts`). A longer song
is cut at random to five minutes. Data: any table with songs and long captions, one
sentence for each section best.
Expected: no number of the paper is claimed. Deviates: without `whisper`, the paper's
second encoder is left out; Whisper hears windows of 10 s as they are, not filled up to
30 s; the optimizer, batch and length of training are chosen here.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources

# Small enough for a test on two cores, the same code everywhere.
SMALL = {
    "audio": {"depth": 1, "width": 32, "patch_width": 32, "mlp": 64, "heads": 4},
    "text": {"depth": 1, "width": 32, "mlp": 64, "heads": 4},
}
SMALL_WHISPER = {"depth": 1, "width": 16, "mlp": 32, "heads": 2}


def get_config(argument=None):
    """`:MANIFEST[,audio=FILE][,audio_rate=0][,whisper=FILE_OR_HUB_ID][,whisper_rate=0]
    [,test=MANIFEST][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        path="",
        audio="",
        audio_rate=0.0,
        whisper="",
        whisper_rate=0.0,
        test="",
        smoke=False,
    )
    config = config_lib.default()
    config.model = "collap_joint_roberta" if options.whisper else "collap_roberta"
    config.init_from = (options.audio, options.whisper, "FacebookAI/roberta-base")

    config.train.batch_size = 256
    config.train.total_epochs = 20.0
    config.remat = "blocks"
    config.optim.learning_rate = 1e-4
    config.optim.warmup_percent = 5.0
    rates = (("audio/.*", options.audio_rate),)
    if options.whisper:
        rates = (
            ("audio/beats/.*", options.audio_rate),
            ("audio/whisper/.*", options.whisper_rate),
        )
    config.optim.lr_multipliers = (*rates, (".*", 1.0))

    config.data.sources = (sources.section(options.path),)
    config.data.text_buckets = (128, 256)
    config.data.audio_buckets = (10.0, 30.0, 60.0, 120.0, 200.0)
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 500
    if options.test:
        test = sources.section(options.test)
        config.evals.songs = {"kind": "retrieval", "source": test, "every_steps": 1000}

    if options.smoke:
        audio = SMALL["audio"]
        if options.whisper:
            audio = {"parts": {"beats": audio, "whisper": SMALL_WHISPER}}
        config_lib.shrink(config, audio=audio, text=SMALL["text"])
        config.model_overrides = config_lib.plain(config.model_overrides) | {
            "frontend": {"clip_seconds": 1.0},
            "temporal": {"hop_seconds": 1.0, "longest_seconds": 5.0, "sentences": 4},
        }
        config.optim.lr_multipliers = ((".*", 1.0),)
        config.data.audio_buckets = ()  # one program
        config.evals.songs = {
            "kind": "retrieval",
            "source": {"kind": "synthetic", "split": "test", "examples": 24},
        }
    return config
