"""The evaluations of a config: which clips, heard by whom, measured how."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from clap_jax import config as config_lib
from clap_jax.evals import build_evaluator
from clap_jax.evals.encode import ModelEncoder
from clap_jax.pipeline.sources import Source, build_source


class Evaluation(NamedTuple):
    """One entry of the config's `evals`."""

    evaluator: Any
    encoder: ModelEncoder  # compiled once, takes new variables each time
    every_steps: int  # 0: only at the end


def source_of(section: Any, where: str, weighted: bool) -> tuple[Source, float]:
    """A source and its weight from a config section."""
    options = dict(config_lib.plain(section))
    if "kind" not in options:
        raise config_lib.ConfigError(f"{where}.kind is missing")
    kind = options.pop("kind")
    name = options.pop("name", kind)
    weight = options.pop("weight", 0.0) if weighted else 0.0
    source = build_source(kind, name, options)
    logging.info("%s: %s", where, source.description())
    return source, weight


def build(
    name: str, section: Any, encoder: Callable, cache_folder: Path | None
) -> Evaluation:
    """One entry of `evals`.

    encoder: `(batch_size, crop_seed, output)` makes one. cache_folder: where probes
    keep what the model made of their clips, if anywhere.
    Raises ConfigError for what is missing, and what sources and evaluators raise.
    """
    where = f"evals.{name}"
    options = dict(config_lib.plain(section))
    missing = [key for key in ("kind", "source") if key not in options]
    if missing:
        raise config_lib.ConfigError(f"{where}.{missing[0]} is missing")
    source, kind = options.pop("source"), options.pop("kind")
    every_steps = options.pop("every_steps", 0)
    batch_size = options.pop("batch_size", 64)
    crop_seed = options.pop("crop_seed", None)
    if kind == "probe":
        of_tower = options.get("features") == "embedding"
        made = encoder(batch_size, crop_seed, "embedding" if of_tower else "projection")
        source = _parts(source, options.pop("parts", {}), where)
        options = {"cache_folder": str(cache_folder or "")} | options
    else:
        made = encoder(batch_size, crop_seed, "vector")
        source, _ = source_of(source, f"{where}.source", weighted=False)
    if kind == "classifier":
        options["spec"] = made.spec
    return Evaluation(build_evaluator(kind, source, options), made, every_steps)


def _parts(section: Any, parts: Mapping[str, Any], where: str) -> dict[str, Source]:
    """The parts of a probe's data, each the source with some of its options changed."""
    if not parts:
        source, _ = source_of(section, f"{where}.source", weighted=False)
        return {source.name: source}
    found = {}
    for name, changes in parts.items():
        options = {"name": name} | section | changes
        found[name], _ = source_of(options, f"{where}.parts.{name}", weighted=False)
    return found
