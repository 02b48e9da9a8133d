"""The evaluations of a config: which clips, heard by whom, measured how."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.evals import (
    OF_PARTS,
    WITHOUT_SOURCE,
    Encoder,
    Result,
    build_evaluator,
)
from clap_jax.evals.absent import Absent
from clap_jax.evals.base import Remembering
from clap_jax.evals.encode import ModelEncoder
from clap_jax.pipeline.sources import Source, build_source

# What keeps one evaluation from being done, and no other: traps, clips, files.
REFUSALS = (ValueError, OSError)
REFUSED = "could not be done: "


# `config.model` where everything is measured of features that lie on disk.
NO_MODEL = "none"


class NoModel:
    """In the place of an encoder, where there is none."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"model is '{NO_MODEL}', and an evaluation asks it for {name!r}: only "
            "boundaries, and probes on segments, of sources of kind features need none"
        )

    def protocol(self) -> dict[str, Any]:
        """Nothing: the source says what its features are."""
        return {}


class Evaluation(NamedTuple):
    """One entry of the config's `evals`."""

    evaluator: Any
    encoder: ModelEncoder | NoModel  # compiled once, takes new variables each time
    every_steps: int  # 0: only at the end
    about: Mapping[str, Any] = {}  # what the config says of the task
    section: str = ""  # all that the config says of it, as JSON

    def run(self, encoder: Encoder, list_refused: bool = False) -> Result:
        """Evaluate; the result also says which clips were heard, and how.

        list_refused: where it cannot be done, the result is the reason.
        """
        try:
            result = self.evaluator.run(encoder)
        except REFUSALS as error:
            if not list_refused:
                raise
            logging.warning("not evaluated: %s", error)
            result = _refusal(error).run(encoder)
        said = dict(result.protocol)
        parts = self.parts()
        for key, of in (("data", "description"), ("data_digest", "digest")):
            found = {name: getattr(source, of)() for name, source in parts.items()}
            said |= {key: found.get("", found)} if found else {}
        said |= self.encoder.protocol() if parts else {}
        if self.about:
            said["task"] = dict(self.about)
        return dataclasses.replace(result, protocol=said)

    def parts(self) -> dict[str, Source]:
        """The sources that are heard, by name ("" where there is one)."""
        parts = getattr(self.evaluator, "parts", {"": self.evaluator.source})
        return {name: source for name, source in parts.items() if source is not None}

    def sounds(self) -> list[Source]:
        """The sources whose clips can be played: not those of features."""
        sources = self.parts().values()
        return [s for s in sources if not getattr(s, "features_width", 0)]

    def digest(self) -> str:
        """All that a result depends on besides the model, as text."""
        clips = {name: source.digest() for name, source in self.parts().items()}
        return json.dumps([self.section, clips])


def build(
    sections: Mapping[str, Any],
    encoder: Callable,
    cache_folder: Path | None,
    list_refused: bool = False,
) -> dict[str, Evaluation]:
    """All entries of `evals`; equal sources are one.

    encoder: `(batch_size, crop_seed, output)` makes one. cache_folder: where probes
    keep what the model made of their clips, if anywhere. list_refused: an entry whose
    clips or traps keep it from being done is listed as absent.
    Raises ConfigError for what is missing, and what sources and evaluators raise.
    """
    sources: dict[str, Source] = {}
    found = {}
    for name, section in sections.items():
        try:
            made = _evaluation(f"evals.{name}", section, encoder, cache_folder, sources)
        except config_lib.ConfigError:
            raise
        except REFUSALS as error:
            if not list_refused:
                raise
            logging.warning("evals.%s: not evaluated: %s", name, error)
            about = section.get("about", {})
            made = Evaluation(_refusal(error), encoder(64, None, "vector"), 0, about)
        text = json.dumps(config_lib.plain(section), sort_keys=True, default=str)
        found[name] = made._replace(section=text)
    return found


def hearing(wanted: Mapping[str, Evaluation], variables: Any) -> dict[int, Remembering]:
    """The encoders of evaluations with variables, by their ids; each hears a source
    once."""
    encoders = {id(found.encoder): found.encoder for found in wanted.values()}
    return {
        key: Remembering(encoder.using(variables)) for key, encoder in encoders.items()
    }


def run(wanted: Mapping[str, Evaluation], variables: Any) -> dict[str, Result]:
    """All results."""
    heard = hearing(wanted, variables)
    return {name: found.run(heard[id(found.encoder)]) for name, found in wanted.items()}


def lists_refused(config: ConfigDict, training: bool = False) -> bool:
    """Whether an evaluation that cannot be done is listed, and no error.

    One process alone goes on with the others: several would have to fail alike.
    """
    return not training and len(config.evals) > 1 and jax.process_count() == 1


def _refusal(error: Exception) -> Absent:
    return Absent(reason=f"{REFUSED}{error}")


def refused(result: Result) -> bool:
    """Whether a result is the reason why there is none."""
    return str(result.protocol.get("reason", "")).startswith(REFUSED)


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
    where: str,
    section: Any,
    encoder: Callable,
    cache_folder: Path | None,
    sources: dict[str, Source],
) -> Evaluation:
    """sources: those that there are already, by their sections."""

    def known(section: Any, where: str) -> Source:
        key = json.dumps(section, sort_keys=True, default=str)
        if key not in sources:
            sources[key], _ = source_of(section, where, weighted=False)
        return sources[key]

    options = dict(config_lib.plain(section))
    kind = options.pop("kind", None)
    if kind is None:
        raise config_lib.ConfigError(f"{where}.kind is missing")
    clips = None
    if kind not in WITHOUT_SOURCE:
        if "source" not in options:
            raise config_lib.ConfigError(f"{where}.source is missing")
        clips = options.pop("source")
    every_steps, about = options.pop("every_steps", 0), options.pop("about", {})
    hearing = (options.pop("batch_size", 64), options.pop("crop_seed", None))
    source, output = None, "vector"
    if kind in OF_PARTS:
        # Each part is the source with some of its options changed.
        parts = options.pop("parts", {})
        found = [
            known({"name": name} | clips | changes, f"{where}.parts.{name}")
            for name, changes in parts.items()
        ] or [known(clips, f"{where}.source")]
        source = dict(zip(parts or [found[0].name], found, strict=True))
    elif clips is not None:
        source = known(clips, f"{where}.source")
    if kind == "probe":
        outputs = {"embedding": "embedding", "segments": "vector"}
        output = outputs.get(options.get("features"), "projection")
        options = {"cache_folder": str(cache_folder or "")} | options
    made = encoder(*hearing, output)
    if kind == "classifier":
        options["spec"] = made.spec
    return Evaluation(build_evaluator(kind, source, options), made, every_steps, about)
