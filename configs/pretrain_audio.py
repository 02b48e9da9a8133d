"""Multi-task audio pretraining by text: HTSAT and a frozen GPT-2, as Pengi and HTSAT-22.

    python -m clap_jax.main --workdir=runs/pretrain \
        --config=configs/pretrain_audio.py:sound_event=audioset.csv+fsd50k.csv,caption=clotho.csv,test=test
    python -m clap_jax.main --workdir=runs/clap --config=configs/msclap2023.py:train.csv \
        --config.init_from='("runs/pretrain", "openai-community/gpt2")'

Every task becomes text: the audio tower and a mapper make a prefix, a prompt ("this is a
sound of") follows it, and the language model writes the answer ("dog, rain"). The first
command trains; its audio tower and projection start the second, contrastive run. Keys of
the argument are tasks of clap_jax/text/assets/tasks.json, with their tables or shards,
several joined by "+". `test=VALUE` holds out the rows that have it in their column split
or fold, and measures the answers to them; with `mixture=balanced` every task is drawn as
often, else every clip. `separator=comma` (or semicolon, bar, space, tab, or a text)
is what lies between the labels of a cell.

Recipe (Pengi, arXiv 2305.11834, and its released configuration): 3.4 M pairs in 8
templates, see `MIXTURE`; 44.1 kHz, 7 s; HTSAT trained, GPT-2 frozen; embedding of 1024,
of length one; mapper of 4 layers, 40 + 40 positions; Adam, batch 384, 60 epochs, 20
V100. HTSAT-22 of MS-CLAP 2023 (arXiv 2309.05767) is trained "similarly" on 22 tasks that
are not listed; its encoder with GPT-2 takes the mean zero-shot score of 16 tasks from
0.435 to 0.480. Expected from the audio tower here: unknown, nobody has run this at size.
Not stated there, so ours: rate 1e-4 with 2000 steps of warm-up and cosine to 0, no
weight decay, the shares of tasks, most prompts. Deviates: the prompt is read by GPT-2's
own token table, where Pengi has a CLIP text encoder and a second mapper; `audio=` starts
from an HTSAT of AudioSet (fresh without).

`size=small` learns everything from scratch in minutes, language model included: 0.6 M
parameters, no download. A language model that is fresh cannot be frozen, which is said.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources, splits
from clap_jax.pipeline.manifest import inspect_manifest
from clap_jax.text import answers

# What Pengi was trained on, task by task; each is a key of the argument.
MIXTURE = {
    "sound_event": ("AudioSet", "FSD50K"),
    "scene": ("CochlScene",),
    "emotion": ("MSP-Podcast", "MELD"),
    "sentiment": ("CMU-MOSI", "CMU-MOSEI"),
    "instrument": ("NSynth",),
    "genre": ("FMA",),
    "caption": ("AudioCaps", "Clotho v2"),
    "question": ("ClothoAQA",),
    "metadata": (
        *("WavText5K", "SoundDescs", "MACS"),
        *("WavCaps", "Freesound", "FindSound"),
    ),
}

SMALL_AUDIO = {"width": 16, "depths": (1, 1), "heads": (2, 2)}
SMALL_DECODER = {"depth": 1, "width": 32, "mlp": 64, "heads": 4}


def get_config(argument=None):
    """`:TASK=TABLE[+TABLE][,TASK=...][,test=VALUE][,separator=TEXT]
    [,mixture=balanced][,size=small][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        **dict.fromkeys(answers.tasks(), ""),
        test="",
        separator="",
        mixture="clips",
        audio="",
        size="full",
        steps=1500,
        smoke=False,
    )
    for key, known in (("size", ("full", "small")), ("mixture", ("clips", "balanced"))):
        if options[key] not in known:
            raise config_lib.ConfigError(
                config_lib.unknown(f"value of {key}", options[key], known)
            )
    config = config_lib.default()
    config.task.name = "answer"
    (small if options.size == "small" else full)(config, options)
    read(config, options)
    if options.smoke:
        smoke(config)
    elif not config.data.sources:
        raise config_lib.ConfigError(
            "configs/pretrain_audio.py needs a task and a table, such as "
            "--config=configs/pretrain_audio.py:sound_event=sounds.csv"
        )
    return config


def full(config, options):
    """HTSAT and GPT-2 at the size that was published."""
    config.model = "pengi"
    config.init_from = (options.audio, "openai-community/gpt2")
    config.train.batch_size = 384
    config.train.total_epochs = 60.0
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-4
    config.optim.beta1, config.optim.beta2 = 0.9, 0.999
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0
    config.optim.warmup_steps = 2000
    config.optim.lr_multipliers = (("decoder/.*", 0.0), (".*", 1.0))
    config.data.workers = 6
    config.data.threads = 16
    config.checkpoint.every_steps = 1000


def small(config, options):
    """A small model whose every part learns, from a few hundred clips."""
    config.model = "small_answers"
    config.train.batch_size = 32
    config.train.total_steps = options.steps
    config.train.ema_decay = 0.99
    config.optim.warmup_percent = 5.0
    config.data.mel = "host"
    config.data.text_buckets = ()  # for so few steps one program is quicker
    config.data.cache_gib = 2.0
    config.augment = {
        "gain_db": 10.0,
        "time_shift": 0.5,
        "time_stripes": 2,
        "time_stripe_frames": 32,
        "mel_stripes": 2,
        "mel_stripe_bins": 8,
    }


def read(config, options):
    """Sources of every task, and an evaluation of each table that has rows held out."""
    tables = {
        name: list(filter(None, options[name].split("+"))) for name in answers.tasks()
    }
    tables = {name: paths for name, paths in tables.items() if paths}
    found = []
    for name, paths in tables.items():
        for number, path in enumerate(paths):
            source = sources.section(path) | {"name": f"{name}{number or ''}"}
            if options.separator and source["kind"] == "manifest":
                source["separator"] = splits.separator(options.separator)
            train, held_out = source, {}
            if options.test:
                train, held_out = divided(source, options.test)
            # What each clip asks by itself is not measured.
            if held_out and "{" not in "".join(answers.task(name).prompts):
                evaluation = {"kind": "answers", "task": name, "source": held_out}
                config.evals[source["name"]] = evaluation
            if options.mixture == "balanced":
                train = train | {"weight": 1.0 / len(tables) / len(paths)}
            found.append(train | {"task": name})
    config.data.sources = tuple(found)


def divided(source, test):
    """A table's rows to train on, and those that have `test` as their split or fold."""
    values = {}
    if source["kind"] == "manifest":
        values = inspect_manifest(source["path"])["values"]
    for column, names in values.items():
        rest = [name for name in names if name != test]
        if len(rest) < len(names) and rest:
            kept, held = {column: rest}, {column: [test]}
            return source | {"where": kept}, source | {"where": held}
    raise config_lib.ConfigError(
        f"configs/pretrain_audio.py: no column split or fold of {source['path']} has "
        f"{test!r} and another value: leave out test to train on every row"
    )


def smoke(config):
    """Fresh, one step, synthetic sounds, fit for a test; the decoder learns."""
    if config.model == "pengi":
        config.model_overrides = {
            "audio": {"options": SMALL_AUDIO},
            "decoder": {"options": SMALL_DECODER},
            "mapper": {"width": 32, "depth": 1, "length": 4, "clip_length": 4},
            "embed_dim": 32,
            "tokenizer": "",
            "tokenizer_style": "plain",
            "text_length": 32,
        }
    config.init_from = ""
    config.optim.lr_multipliers = ((".*", 1.0),)
    config.train.batch_size = 8
    config.train.total_epochs = 0.0
    config.train.total_steps = 1
    config.train.log_steps = 1
    config.optim.warmup_steps = 0
    sounds = {"kind": "synthetic", "split": "train", "examples": 16}
    config.data.sources = (
        sounds | {"name": "events", "task": "sound_event", "weight": 1.0},
        sounds | {"name": "captions", "task": "caption", "weight": 2.0},
    )
    config.data.workers, config.data.threads = 0, 2
    config.evals = {
        "events": {
            "kind": "answers",
            "task": "sound_event",
            "source": {"kind": "synthetic", "split": "kinds", "examples": 8},
            "batch_size": 8,
        }
    }
