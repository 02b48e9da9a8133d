"""Experiment configs: how they are made, checked and read, and durations.

An experiment is a Python file with `get_config(arg)` that starts from `default()` and
changes what it needs (every key stands in `clap_jax.defaults`); `--config.a.b=value` overrides on the command line. The
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

from ml_collections import ConfigDict

from clap_jax.defaults import default as default
from clap_jax.defaults import lock as lock


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and what to do."""


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
    "train.swa_percent": (lambda x: 0 <= x <= 100, "0 (off) to 100"),
    "task.dropout": (lambda x: 0 <= x < 1, "0 to less than 1"),
    "task.tag_drop": (lambda x: 0 <= x <= 1, "0 to 1"),
    "task.untagged": (lambda x: 0 <= x <= 1, "0 to 1"),
    "task.scheduled_sampling": (lambda x: 0 <= x <= 1, "0 to 1"),
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
