"""Experiment configs: every key with its default and its meaning, and durations.

An experiment is a Python file with `get_config(arg)` that starts from `default()` and
changes what it needs; `--config.a.b=value` overrides on the command line. The
structure is locked: a key that does not exist is an error that names the nearest one.
The free-form sections (`model_overrides`, each entry of `task.heads`, of `data.sources`
and of `evals`, `augment`) are checked by what they configure.
"""

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and what to do."""


def default() -> ConfigDict:
    """The whole config with every key documented beside its default."""
    config = ConfigDict()

    # --- what is trained -------------------------------------------------------
    # A row of `clap_jax.models.zoo.SPECS`, or "init_from": the very model of the
    # checkpoint that `init_from` names, its front end and every option included.
    config.model = "small_transformer"
    # Changes to that row, e.g. {"audio": {"options": {"dropout": 0.1}}}.
    config.model_overrides = ConfigDict()
    # What training starts from; "" = fresh weights. A path, a hub id (owner/name,
    # owner/name/file.pt), or several of them, filled in one after another, e.g.
    # ("htsat_audioset.ckpt", "FacebookAI/roberta-base"). Each is a workdir, a step, a
    # saved model, a checkpoint of another system, or one tower alone (ours with
    # tower.json, or as published), which fills its own side. The first that brings a
    # tokenizer gives it to the run.
    config.init_from = FieldReference("", field_type=object)
    # Regex over parameter paths: which weights `init_from` fills (the rest is fresh).
    # What matches and is not there, or has another shape, is an error.
    config.init_pattern = ".*"
    # Compute dtype of the towers: float32 | bfloat16. Parameters, norms, losses and
    # mels are always float32; gradients of bfloat16 products are summed over devices in
    # bfloat16.
    config.precision = "float32"
    # Activations recomputed in the backward pass: none | dots (all but the results of
    # weight matrices) | blocks (all but the inputs of blocks). Less memory, more work.
    config.remat = "none"

    # --- where -----------------------------------------------------------------
    config.mesh = ConfigDict()
    # Devices along the batch axis; -1 takes all that `fsdp` leaves.
    config.mesh.data = -1
    # Devices that also shard parameters, their averages and optimizer state.
    config.mesh.fsdp = 1
    # [regex, axis] over parameter paths, first match wins: which axis is split over
    # `fsdp` (0, 1, ...; -1 is the last), "none" (replicated) or "auto" (the longest
    # that divides; small ones stay whole). What no rule matches is "auto".
    config.mesh.rules = ()
    # Seconds after which a silent host counts as dead, and all others end.
    config.mesh.heartbeat_seconds = 20

    # --- how long --------------------------------------------------------------
    config.train = ConfigDict()
    # Global batch: clip-caption pairs a step over all hosts and devices.
    config.train.batch_size = 64
    # Parts in which a batch is encoded, one after another. The loss is still that of
    # the whole batch, exactly (gradient caching): memory falls, towers run once more.
    # Batch norm and mixup see one part at a time; running statistics become the mean
    # of what the parts would make of them.
    config.train.accumulate = 1
    # Share of patches (in time), of bands and of words that towers leave out in
    # training, for speed ...
    config.train.patch_drop = 0.0
    config.train.frequency_drop = 0.0
    config.train.token_drop = 0.0
    # ... but in the last so many percent of the steps, which see everything.
    config.train.undropped_percent = 10.0
    # Exactly one of the two is positive.
    config.train.total_steps = 0
    config.train.total_epochs = 0.0
    # The one seed: initial weights, data order, crops, captions, dropout.
    config.train.seed = 0
    # A line of metrics.jsonl every so many steps.
    config.train.log_steps = 50
    # Decay of the exponential moving average of the parameters; 0 = off. When on,
    # evaluation, export and `clap_jax.load` use the average.
    config.train.ema_decay = 0.0

    # --- task ------------------------------------------------------------------
    config.task = ConfigDict()
    # contrastive: clips and captions find each other | classify: heads on the audio
    # tower learn the labels of clips; there is no text tower | answer: a language model
    # writes what the `task` of each source asks (clap_jax/text/assets/tasks.json);
    # `model` is a row of `clap_jax.models.captioner.SPECS`.
    config.task.name = "contrastive"
    # Heads of `classify`: name -> {"sources": names of the data.sources whose labels it
    # learns, "loss": ce (one label each) | bce (any number) | auto (as the clips have
    # them), "labels": its classes in order (default: those that occur, sorted),
    # "weight": of its clips in the loss}. Without any, one head learns from all.
    config.task.heads = ConfigDict()
    # What heads hear: projection (not normalised, as LAION) | normalised | embedding
    # (of the tower, without projection).
    config.task.features = "projection"
    # Widths of the layers of a head before its last: () linear | (1024,) LAION's MLP ...
    config.task.hidden = ()
    # ... and the dropout behind each of them.
    config.task.dropout = 0.1

    # --- loss ------------------------------------------------------------------
    config.loss = ConfigDict()
    # softmax: symmetric cross entropy over the global batch; sigmoid: every pair by
    # itself, with a learned bias (arXiv 2303.15343).
    config.loss.name = "softmax"
    # How devices share the work, exactly alike: global (the compiler's way) | gather
    # (all texts to all devices) | ring (texts go round) | auto (by batch and devices).
    config.loss.impl = "auto"
    # Rows of scores that a device has in memory at a time; 0: by their size.
    config.loss.chunk = 0
    # Share of the target that is spread over all texts, or clips; in the task `classify`,
    # where it is the only one of these keys, over a head's classes; in `answer`, likewise,
    # over all tokens.
    config.loss.label_smoothing = 0.0
    # Negatives count in proportion to exp(this * score); 0: all alike.
    config.loss.hard_negatives = 0.0
    # True: pairs of one group (captions of one clip, clips of one label) are positives
    # of each other instead of negatives.
    config.loss.multi_positive = True

    # --- optimizer -------------------------------------------------------------
    config.optim = ConfigDict()
    # adamw | adam | lion | adafactor | muon
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.98
    config.optim.epsilon = 1e-8
    config.optim.weight_decay = 0.05
    # Adam's and Lion's first moment: float32 | bfloat16 (half the memory).
    config.optim.momentum_dtype = "float32"
    # Warm-up: a number of steps, or a percentage of the run (one of the two).
    config.optim.warmup_steps = 0
    config.optim.warmup_percent = 0.0
    # cosine (to 0) | constant, after the warm-up.
    config.optim.schedule = "cosine"
    # Largest global gradient norm; 0 = no clipping.
    config.optim.clip_norm = 1.0
    # [regex, factor] over parameter paths, first match wins, every parameter must
    # match: learning-rate multipliers (0 freezes; the towers of a classifier, and tower
    # or decoder of a captioner, frozen whole, run as in evaluation) ...
    config.optim.lr_multipliers = ((".*", 1.0),)
    # ... and weight-decay multipliers (biases, norms and scales are spared).
    config.optim.decay_multipliers = (
        (r".*(bias|scale|sinusoids|logit_scale\w*)|temporal/(log_\w+|mix)", 0.0),
        (".*", 1.0),
    )
    # Layer-wise decay of the rate, from each tower's top down: every block has so much
    # of the rate of the one above it, beside its multiplier. 1 = off.
    config.optim.layer_decay = 1.0

    # --- data ------------------------------------------------------------------
    config.data = ConfigDict()
    # files: what `sources` names | synthetic_device: noise that stays in the device's
    # memory, to see how fast training is without any input.
    config.data.source = "files"
    # Named sources: {"kind": manifest | array_record | tfds | laion_tar | hdf5 |
    # synthetic, "name": ..., "weight": share of the mixture (0: in proportion to size),
    # "task": with task.name=answer, options of the kind}.
    # Any of them may have "generated": a file of captions that `python -m data.caption`
    # made, or several, and "captions": which are used: none (only the clip's own) | all
    # | augment_only (generated ones where there are any), or probabilities by origin,
    # {"original": 0.5, "t5": 0.5}. "exclude": a file of ids to leave out (data.overlap).
    config.data.sources = ()
    # How sizes make shares: in proportion to weight * size^(1/this), where a source
    # without a weight has weight 1. 1: each as often as it has clips; large: all alike.
    # 0: weights alone are the shares, or, where there are none, all clips are shuffled
    # together. The log says what comes of it.
    config.data.mixture_temperature = 0.0
    # Where log-mels are computed: host (workers) | device (the bus carries int16 waves) |
    # auto: device, but host for models that need the mel of the whole clip (fusion, BLAT).
    config.data.mel = "auto"
    # RAM for decoded clips, per process; 0 = off. For corpora that fit, decoding is
    # then paid once.
    config.data.cache_gib = 0.0
    # Worker processes (0: threads of this process) and threads in each of them.
    config.data.workers = 0
    config.data.threads = 4
    # Batches made ahead.
    config.data.prefetch = 4
    # Neighbouring clips that are read together, and shuffled as one block; above 1 for
    # large shards on slow or remote disks.
    config.data.read_together = 1
    # Clips that cannot be read are replaced, counted (train/bad_clips) and logged; the
    # run stops when they exceed this share of the clips seen, or of 1000 while fewer.
    config.data.max_bad_fraction = 0.01
    # Lengths that batches may have besides the full one, each a program of its own,
    # compiled when first needed; () for one length. Of texts, in tokens, special ones
    # included: a batch has the shortest that holds its captions, or prompts and answers
    # (evaluation: each text for itself). The loss is that of the full length. Only what
    # is drawn for each place differs with the length: dropout, and where stripes of
    # silence fall. A text that comes with a damaged clip's replacement is cut to fit.
    config.data.text_buckets = (16, 32)
    # Of whole clips (BLAT), in seconds; clips of one window have one length anyhow.
    config.data.audio_buckets = (2.5, 5.0)
    # Vocabulary of the tokenizer that is trained on the captions when the model names
    # no published one. The model's own vocabulary is cut to what was learnt.
    config.data.vocab_size = 4096

    # Audio augmentation on the device; fields of `clap_jax.audio.augment.Augment`.
    config.augment = ConfigDict()

    # --- evaluation ------------------------------------------------------------
    # name -> {"kind": retrieval | zeroshot | classifier (its own heads) | probe (heads
    # fitted on frozen vectors; "parts": name -> changes to the source) | answers (that a
    # captioner writes) | captions (that it writes, against people's) | absent (listed with
    # its reason, not done), "source": {...}, "every_steps": 0 (only at the end),
    # "batch_size": ..., "crop_seed": random crops of longer clips, as some references
    # take them, in place of the middle; "about": what the results shall say of the task;
    # options of the kind}
    config.evals = ConfigDict()

    # Cross-validation: for each fold {"name": ..., "train": rows of `data.sources`, as
    # their `where`, "test": rows of `evals`}, with a run in workdir/fold_<name>.
    config.folds = ()

    # --- checkpoints and logs --------------------------------------------------
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500
    # The newest so many are kept ...
    config.checkpoint.keep = 2
    # ... and the one that is best by this metric ("" = none), e.g.
    # "eval/scenes/t2a_R@1"; evaluated metrics only, higher is better.
    config.checkpoint.best_metric = ""
    config.writer = ConfigDict()
    # Beside metrics.jsonl, which is always written.
    config.writer.tensorboard = False
    config.writer.wandb_project = ""
    # A trace of so many steps (0: none) for TensorBoard's profiler, in workdir/profile
    # (of several processes each has a folder there).
    config.profile = ConfigDict()
    # Steps before it, counted from where this run (re)started, not from step 0.
    config.profile.first_step = 10
    config.profile.steps = 0
    return lock(config)


def shrink(config: ConfigDict, audio: Mapping, text: Mapping) -> None:
    """Make a recipe a smoke run: fresh, one step, synthetic sounds, fit for a test.

    audio, text: options that make the towers small.
    """
    overrides = plain(config.model_overrides)
    for side, options in (("audio", audio), ("text", text)):
        kept = overrides.get(side, {}).get("options", {})
        overrides[side] = {"options": kept | dict(options)}
    config.model_overrides = overrides | {"tokenizer": ""}
    config.init_from = ""
    config.train.batch_size = 8
    config.train.total_epochs = 0.0
    config.train.total_steps = config.train.log_steps = 1
    config.optim.warmup_steps = 0
    config.data.text_buckets = ()  # one program
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 16},)
    config.data.workers = 0
    config.data.threads = 2


def lock(config: ConfigDict) -> ConfigDict:
    """Lock the structure; free-form sections stay open (their owners check them)."""
    config.lock()
    for section in (config.model_overrides, config.augment, config.evals):
        section.unlock()
    config.task.heads.unlock()
    return config


def build(cls: type, options: Mapping[str, Any], where: str) -> Any:
    """Make dataclass `cls` from a config section.

    Raises ConfigError naming `where`, every unknown key with its nearest neighbour,
    and every missing key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems = unknown_keys(options, fields, where)
    problems += [
        f"{where}.{name} is missing"
        for name, field in fields.items()
        if name not in options
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if problems:
        raise ConfigError("; ".join(problems))
    return cls(**plain(options))


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """A sentence for a name that does not exist, with the nearest ones that do."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {what} {name!r} ({hint}known: {', '.join(known)})"


def unknown_keys(options: Mapping, known: Iterable[str], where: str) -> list[str]:
    """A sentence for every key of `options` that is not in `known`."""
    return [
        unknown(f"key of {where}", key, known) for key in options if key not in known
    ]


def plain(value: Any) -> Any:
    """ConfigDicts and sequences as plain dicts and tuples (hashable, JSON-able)."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def to_json(config: ConfigDict) -> str:
    """The config as it stands, for the workdir."""
    return json.dumps(plain(config), indent=2)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def total_steps(config: ConfigDict, examples: int) -> int:
    """Length of the run in steps, from `train.total_steps` or `train.total_epochs`."""
    steps, epochs = config.train.total_steps, config.train.total_epochs
    if (steps > 0) == (epochs > 0):
        raise ConfigError(
            "set exactly one of train.total_steps and train.total_epochs, found "
            f"{steps} and {epochs}"
        )
    if steps > 0:
        return steps
    if not examples:
        raise ConfigError(
            f"train.total_epochs={epochs} of no examples (data.source="
            f"{config.data.source}): set train.total_steps"
        )
    return math.ceil(epochs * examples / config.train.batch_size)


# What numbers may be, where nothing else would say so before a run has been wasted.
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "mesh.heartbeat_seconds": (lambda x: x >= 1, "1 or more"),
    "train.total_steps": (lambda x: x >= 0, "0 or more"),
    "train.total_epochs": (lambda x: x >= 0, "0 or more"),
    "train.log_steps": (lambda x: x >= 0, "0 (never) or more"),
    "train.ema_decay": (lambda x: 0 <= x < 1, "0 (off) to less than 1"),
    "optim.learning_rate": (lambda x: x >= 0, "0 or more"),
    "optim.beta1": (lambda x: 0 <= x < 1, "0 to less than 1"),
    "optim.beta2": (lambda x: 0 <= x < 1, "0 to less than 1"),
    "optim.epsilon": (lambda x: x >= 0, "0 or more"),
    "optim.weight_decay": (lambda x: x >= 0, "0 or more"),
    "optim.layer_decay": (lambda x: 0 < x <= 1, "above 0, at most 1 (off)"),
    "task.dropout": (lambda x: 0 <= x < 1, "0 to less than 1"),
    "optim.warmup_steps": (lambda x: x >= 0, "0 or more"),
    "optim.warmup_percent": (lambda x: 0 <= x <= 100, "0 to 100"),
    "optim.clip_norm": (lambda x: x >= 0, "0 (no clipping) or more"),
    "data.mixture_temperature": (
        lambda x: x == 0 or x >= 0.01,
        "0 (off), or 0.01 or more",
    ),
    "data.vocab_size": (lambda x: x >= 1, "1 or more"),
    "checkpoint.every_steps": (lambda x: x >= 0, "0 (only at the end) or more"),
    "checkpoint.keep": (lambda x: x >= 1, "1 or more"),
    "profile.first_step": (lambda x: x >= 0, "0 or more"),
    "profile.steps": (lambda x: x >= 0, "0 (no trace) or more"),
}


def check_numbers(config: ConfigDict) -> None:
    """Raise one ConfigError for all numbers that cannot be, with what they may be."""
    problems = []
    for key, (test, expected) in _NUMBERS.items():
        section, name = key.split(".")
        value = config[section][name]
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number or not test(value):
            problems.append(f"{key} is {value}, expected {expected}")
    if problems:
        raise ConfigError("; ".join(problems))


def warmup_steps(config: ConfigDict, total: int) -> int:
    """Warm-up in steps, from `optim.warmup_steps` or `optim.warmup_percent`."""
    steps, percent = config.optim.warmup_steps, config.optim.warmup_percent
    if steps > 0 and percent > 0:
        raise ConfigError("set only one of optim.warmup_steps, optim.warmup_percent")
    return steps if steps > 0 else round(total * percent / 100)


def parse_argument(argument: str | None, **defaults: Any) -> ConfigDict:
    """Parse the text after `configs/x.py:`: comma-separated `key=value` and switches.

    `defaults` names the keys that exist; each value is cast to its default's type, and
    a bare word turns a boolean on (`:smoke`). The first text that is neither becomes the
    value of the one key that ends in `path`, if there is one
    (`configs/manifest.py:a/b.csv`). Raises ConfigError naming what cannot be used.
    """
    parsed = dict(defaults)
    path_key = next((key for key in defaults if key.endswith("path")), None)
    has_path = False
    for word in filter(None, (argument or "").split(",")):
        key, separator, value = word.partition("=")
        if separator and key in defaults:
            parsed[key] = _cast(key, value, type(defaults[key]))
            has_path |= key == path_key
            continue
        if not separator and isinstance(defaults.get(key), bool):
            parsed[key] = True
            continue
        # A path may hold "=", but a misspelt key is no path.
        typo = separator and difflib.get_close_matches(key, defaults)
        if path_key and not has_path and (not typo or "/" in key):
            parsed[path_key], has_path = word, True
            continue
        problem = unknown("key of config argument", key, defaults)
        taken = f"; {path_key} is {parsed[path_key]!r} already" if has_path else ""
        raise ConfigError(problem + taken)
    return ConfigDict(parsed)


def _cast(key: str, text: str, kind: type) -> Any:
    """The value of one key of a config argument."""
    expected = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
    try:
        if kind is not bool:
            return kind(text)
        expected = "true, false, yes, no, 1 or 0"
        known = {"true": True, "yes": True, "1": True}
        known |= {"false": False, "no": False, "0": False}
        return known[text.lower()]
    except (ValueError, KeyError):
        raise ConfigError(
            f"config argument {key}={text}: {text!r} is not {expected}"
        ) from None
