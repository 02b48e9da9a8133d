"""clapcap: a frozen CLAP and a frozen GPT-2, and a mapper between them that learns.

    python -m clap_jax.main --workdir=runs/clapcap \
        --config=configs/clapcap.py:clotho.csv,clap=CLAP_weights_2023.pth,test=test
    python -m clap_jax.main --workdir=runs/clapcap_lora \
        --config=configs/clapcap.py:clotho.csv,clap=CLAP_weights_2023.pth,lora=8
    clap-jax caption --model=runs/clapcap a.wav

The embedding of a clip becomes 40 vectors, which GPT-2 reads like words and goes on from
with a caption (Mokady et al. 2021, arXiv 2111.09734, for images). `clap` is MS-CLAP's
2023 checkpoint, or any model of ours with the same audio tower (its front end is taken
to be the same, and the log says where it is not). `test=VALUE` holds out the rows that
have it in their column split or fold. `lora=RANK` lets GPT-2 learn as well, by changes of
that rank to its queries and values; loading adds them to its weights.

Recipe: architecture, 44.1 kHz, clips of 7 s, 67 tokens, 5 beams of MS-CLAP's clapcap
(microsoft/CLAP); trained on AudioCaps and Clotho. How it was trained has not been
published: optimizer, rate and length here are ClipCap's (AdamW 2e-5, batch 40, 10
epochs, 5000 steps of warm-up, linear decay; cosine here).
Expected: unknown, nobody has run this at size.
Deviates: random crops of longer clips, each time another.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources, splits


def get_config(argument=None):
    """`:TABLE,clap=CHECKPOINT[,test=VALUE][,lora=RANK]`; `:smoke` needs neither."""
    options = config_lib.parse_argument(
        argument, path="", clap="", test="", lora=0, smoke=False
    )
    config = config_lib.default()
    config.task.name = "caption"
    config.model = "clapcap"
    config.init_from = (options.clap, "openai-community/gpt2")
    config.model_overrides = {"lora_rank": options.lora}
    config.optim.lr_multipliers = (("(mapper|lora)/.*", 1.0), (".*", 0.0))
    config.train.batch_size = 40
    config.train.total_epochs = 10.0
    config.optim.learning_rate = 2e-5
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.01
    config.optim.warmup_steps = 5000
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 1000
    if options.smoke:
        smoke(config)
        return config
    if not (options.path and options.clap):
        raise config_lib.ConfigError(
            "configs/clapcap.py needs a table with captions and a CLAP: "
            "--config=configs/clapcap.py:clotho.csv,clap=CLAP_weights_2023.pth"
        )
    source = sources.section(options.path)
    if options.test:
        train, test = splits.held_out(splits.inspect(options.path), options.test, "")
        held = {**source, "where": test}
        config.evals.captions = {"kind": "captions", "source": held}
        source["where"] = train
    config.data.sources = (source,)
    return config


def smoke(config):
    """One step of a tiny model, fresh, on scenes that the package makes itself."""
    config.model_overrides = {
        "audio": {"options": {"width": 16, "depths": (1, 1), "heads": (2, 2)}},
        "decoder": {"options": {"depth": 1, "width": 32, "mlp": 64, "heads": 4}},
        "mapper": {"width": 32, "depth": 1, "length": 4, "clip_length": 4},
        "embed_dim": 32,
        "tokenizer": "",
        "tokenizer_style": "plain",
        "text_length": 24,
        **config_lib.plain(config.model_overrides),
    }
    config.init_from = ""
    config.optim.lr_multipliers = ((".*", 1.0),)
    config.train.batch_size = 8
    config.train.total_epochs = 0.0
    config.train.total_steps = config.train.log_steps = 1
    config.optim.warmup_steps = 0
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 16},)
    config.data.text_buckets = ()
    config.data.workers, config.data.threads = 0, 2
    config.evals.captions = {
        "kind": "captions",
        "source": {"kind": "synthetic", "split": "test", "examples": 8},
        "decoding": {"method": "greedy", "length": 8},
        "batch_size": 8,
    }
