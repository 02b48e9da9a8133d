"""The evaluations of a config: which clips, heard by whom, measured how."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import logging

from clap_jax import config as config_lib
from clap_jax.evals import WITHOUT_SOURCE, Encoder, Result, build_evaluator
from clap_jax.evals.base import Remembering
from clap_jax.evals.encode import ModelEncoder
from clap_jax.pipeline.sources import Source, build_source


class Evaluation(NamedTuple):
    """One entry of the config's `evals`."""

    evaluator: Any
    encoder: ModelEncoder  # compiled once, takes new variables each time
    every_steps: int  # 0: only at the end
    about: Mapping[str, Any] = {}  # what the config says of the task

    def run(self, encoder: Encoder) -> Result:
        """Evaluate; the result also says which clips were heard, and how."""
        result = self.evaluator.run(encoder)
        said = dict(result.protocol)
        source = self.evaluator.source
        if source is not None:
            said["data"] = source.description()
            said |= {"data_digest": source.digest()} | self.encoder.protocol()
        if self.about:
            said["task"] = dict(self.about)
        return dataclasses.replace(result, protocol=said)


def build(sections: Mapping[str, Any], encoder: Callable) -> dict[str, Evaluation]:
    """All entries of `evals`; equal sources are one.

    encoder: `(batch_size, crop_seed)` makes one. Raises ConfigError for what is missing,
    and what sources and evaluators raise.
    """
    sources: dict[str, Source] = {}
    return {
        name: _evaluation(f"evals.{name}", section, encoder, sources)
        for name, section in sections.items()
    }


def run(wanted: Mapping[str, Evaluation], variables: Any) -> dict[str, Result]:
    """All results; each source is heard once by each encoder."""
    encoders = {id(found.encoder): found.encoder for found in wanted.values()}
    hearing = {
        key: Remembering(encoder.using(variables)) for key, encoder in encoders.items()
    }
    return {
        name: found.run(hearing[id(found.encoder)]) for name, found in wanted.items()
    }


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


def _evaluation(
    where: str, section: Any, encoder: Callable, sources: dict[str, Source]
) -> Evaluation:
    """sources: those that there are already, by their sections."""
    options = dict(config_lib.plain(section))
    kind = options.pop("kind", None)
    if kind is None:
        raise config_lib.ConfigError(f"{where}.kind is missing")
    source = None
    if kind not in WITHOUT_SOURCE:
        if "source" not in options:
            raise config_lib.ConfigError(f"{where}.source is missing")
        own = options.pop("source")
        key = json.dumps(own, sort_keys=True, default=str)
        if key not in sources:
            sources[key], _ = source_of(own, f"{where}.source", weighted=False)
        source = sources[key]
    every_steps, about = options.pop("every_steps", 0), options.pop("about", {})
    made = encoder(options.pop("batch_size", 64), options.pop("crop_seed", None))
    return Evaluation(build_evaluator(kind, source, options), made, every_steps, about)
