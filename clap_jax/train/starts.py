"""Weights that training starts from: whole models or single towers, ours or others'."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from clap_jax import checkpoint, convert, hub, sharding
from clap_jax import config as config_lib
from clap_jax.convert.starts import TowerStart
from clap_jax.models import spec as spec_lib
from clap_jax.models import zoo
from clap_jax.models.captioner import CaptionerSpec

# `config.model`, where the model is that of the checkpoint.
MODEL = "init_from"

# Published RoBERTa and BERT models come without a pooler, or with one that no loss has
# trained; without, it starts fresh.
_MAY_BE_FRESH = "params/text/pooler"
_TOKENS = "params/{}/tokens/embedding"
# What a plain pair of towers lacks: the bias of the sigmoid loss, a decoder of captions
# beside the contrast, attention over time.
_NEW = {
    *("params/logit_bias", "params/caption", "state/caption"),
    *("params/temporal", "params/sentence_projection"),
}


class Start(NamedTuple):
    """One entry of `init_from`: its name there, and what lies there."""

    name: str
    model: convert.Converted

    @property
    def is_whole(self) -> bool:
        """Whether it is a pair of towers, and not one, a captioner or a classifier."""
        return isinstance(self.model.spec, zoo.Spec)


def names(config: ConfigDict) -> list[str]:
    """What `init_from` names. ConfigError where it is no path nor several of them."""
    found = config_lib.plain(config.init_from)
    found = (found,) if isinstance(found, str) else found
    if not isinstance(found, tuple) or not all(isinstance(x, str) for x in found):
        raise config_lib.ConfigError(
            f"init_from is {found!r}, expected a path or hub id, or several: ('a', 'b')"
        )
    return list(filter(None, found))


def load(config: ConfigDict) -> list[Start]:
    """What `init_from` names, without reading the tensors yet.

    Raises what `names`, `hub.find` and `convert.load` raise.
    """
    starts = []
    for name in names(config):
        starts.append(Start(name, convert.load(hub.find(name))))
        for note in starts[-1].model.notes:
            logging.info("init_from %s: %s", name, note)
    return starts


def for_decoder(starts: Sequence[Start]) -> list[Start]:
    """The starts as a captioner takes them: a GPT-2 alone becomes its decoder.

    (That of a whole model is a text tower, which has learnt to compare.)
    """
    found = []
    for start in starts:
        spec = start.model.spec
        if isinstance(spec, TowerStart) and spec.kind == "gpt2":
            params = {"decoder": start.model.variables["params"]["text"]}
            model = dataclasses.replace(
                start.model,
                spec=dataclasses.replace(spec, side="decoder"),
                variables={"params": params, "state": {}},
            )
            start = start._replace(model=model)
        found.append(start)
    return found


def words(spec: Any) -> str:
    """The part of a model that reads words: "text" or, of a captioner, "decoder"."""
    return "decoder" if isinstance(spec, CaptionerSpec) else "text"


def tokenizer_folder(starts: Sequence[Start], spec: Any) -> Path | None:
    """The tokenizer of the first start that has one, and words as `spec` has them."""
    folders = (
        start.model.tokenizer
        for start in starts
        if words(spec) in start.model.variables["params"]
    )
    return next((folder for folder in folders if folder is not None), None)


def check_tokenizer(starts: Sequence[Start], pattern: str, spec: Any) -> None:
    """Raise where token embeddings are filled in, and nothing says whose tokens."""
    table = _TOKENS.format(words(spec))
    for start in starts:
        has_tokens = table in sharding.flatten(start.model.variables)
        if has_tokens and re.fullmatch(pattern, table):
            raise config_lib.ConfigError(
                f"init_from {start.name} has token embeddings, but no tokenizer: put "
                "its files into a folder, and set model_overrides.tokenizer to it (or "
                "leave the text tower out with init_pattern)"
            )


def spec_of(starts: Sequence[Start], kinds: tuple[type, ...] = (zoo.Spec,)) -> Any:
    """The spec of the first start that is a whole model, or of another of `kinds`.

    Raises ConfigError where there is none.
    """
    for start in starts:
        if isinstance(start.model.spec, kinds):
            return start.model.spec
    wanted = "a captioner" if kinds == (CaptionerSpec,) else "both towers"
    raise config_lib.ConfigError(
        f"init_from names no whole model: name a checkpoint with {wanted}, or, to train, "
        "a row of the zoo as the model"
    )


def fill(
    variables: dict[str, Any], starts: Sequence[Start], spec: Any, pattern: str
) -> dict[str, Any]:
    """Replace the leaves that the starts have and `pattern` matches, in their order.

    A whole model must have every leaf that matches; one tower every leaf of its side,
    or of its part of a joint tower; and where one of the two is a classifier or a
    captioner, every leaf of the parts that both have.
    Raises CheckpointError that lists those that are missing or of another shape, and
    ValueError where a start has nothing that matches, or is no part of a joint tower.
    """
    inner = {
        f"{name}/audio/{kind}"
        for name in ("params", "state")
        for kind in spec_lib.parts(spec)
    }
    for start in starts:
        _warn(start, spec)
        source = _placed(start, spec)
        found = sharding.flatten(source)
        if start.is_whole and isinstance(spec, zoo.Spec):
            # Is asked for all: what it lacks is an error.
            own = _without_new(found, variables, pattern, start.name, inner)
        else:
            own = _within(found, variables, pattern, inner)
        variables = checkpoint.fill(
            variables,
            source,
            own,
            f"init_from {start.name} (init_pattern says which parameters it fills)",
        )
        start.model.release()
        filled = set(sharding.flatten(variables))
        unused = sorted(path for path in found if path not in filled)
        if unused:
            logging.info(
                "init_from %s: %d tensors that the model has no place for: %s",
                start.name,
                len(unused),
                ", ".join(unused[:5]),
            )
    return variables


def _placed(start: Start, spec: Any) -> dict[str, Any]:
    """The variables of a start; of a tower alone, where it is a part of a joint one."""
    there, parts = start.model.spec, spec_lib.parts(spec)
    is_tower = isinstance(there, TowerStart) and there.side == "audio"
    if not (is_tower and parts):
        return start.model.variables
    if there.kind not in parts:
        raise config_lib.ConfigError(
            f"init_from {start.name} is {there.name}, expected a part of the joint "
            f"tower: {', '.join(parts)}"
        )
    return {
        name: {"audio": {there.kind: tree["audio"]}} if "audio" in tree else {}
        for name, tree in start.model.variables.items()
    }


def _without_new(
    found: dict[str, Any],
    variables: dict[str, Any],
    pattern: str,
    name: str,
    inner: set[str],
) -> str:
    """`pattern` but for what plain pairs of towers lack, where the start lacks it.

    inner: the parts of a joint tower. A model of their features has none of them.
    """
    wanted = {_part(path, inner) for path in sharding.flatten(variables)}
    there = {_part(path, inner) for path in found}
    new = sorted((wanted - there).intersection(_NEW | inner))
    if not new:
        return pattern
    logging.info("init_from %s has no %s: fresh ones are kept", name, ", ".join(new))
    return rf"(?!(?:{'|'.join(map(re.escape, new))})(?:/|$))(?:{pattern})"


def _within(
    found: dict[str, Any], variables: dict[str, Any], pattern: str, inner: set[str]
) -> str:
    """`pattern` for those parts of the model, such as `params/text`, that are there."""
    there, wanted = (
        {_part(path, inner) for path in paths}
        for paths in (found, sharding.flatten(variables))
    )
    parts = there & wanted
    fresh = ""
    if not any(path.startswith(_MAY_BE_FRESH) for path in found):
        fresh = f"(?!{re.escape(_MAY_BE_FRESH)}/)"
    inside = "|".join(re.escape(part) for part in sorted(parts))
    return rf"{fresh}(?=(?:{inside})/)(?:{pattern})"


def _part(path: str, inner: set[str]) -> str:
    """The part of a model, such as `params/text`, or one of those within a part."""
    names = path.split("/")
    deep = "/".join(names[:3])
    return deep if deep in inner else "/".join(names[:2])


def _warn(start: Start, spec: Any) -> None:
    """Log where a start was another model than the one that it fills."""
    there = start.model.spec
    if start.is_whole and isinstance(spec, zoo.Spec):
        pairs = {
            name: (dataclasses.asdict(there)[name], dataclasses.asdict(spec)[name])
            for name in ("frontend", "audio", "text")
        }
        pairs |= {name: (getattr(there, name), getattr(spec, name)) for name in _WORDS}
    elif hasattr(there, "side"):
        own = getattr(spec, there.side, there)
        options = own.options if there.kind == own.kind else {}
        if there.side == "audio":
            options = spec_lib.parts(spec).get(there.kind, options)
        # Sizes that differ are errors later, and the rest no tower's file tells.
        told = {k: v for k, v in there.options.items() if k in _TOLD}
        pairs = {there.side: (told, options)}
    else:
        pairs = {
            name: (dataclasses.asdict(there)[name], dataclasses.asdict(spec)[name])
            for name in ("frontend", "audio")
        }
    differing = []
    for name, (their, own) in pairs.items():
        their, own = (sharding.flatten({name: value}, ".") for value in (their, own))
        differing += [
            f"{key} {_short(their[key])} there, {_short(own.get(key))} here"
            for key in their
            if their[key] != own.get(key) and not key.endswith(_HARMLESS)
        ]
    if differing:
        logging.warning(
            "init_from %s was made for another model: %s%s",
            start.name,
            "; ".join(differing),
            " (model='init_from' takes the model of the checkpoint)"
            if start.is_whole
            else "",
        )


# Whole models are compared in these too.
_WORDS = ("head", "text_length", "tokenizer_style")

# Options that a tower's own config tells, and no shape.
_TOLD = ("heads", "eps", "activation")

# Options that change training alone, or only add a head.
_HARMLESS = ("dropout", "drop_path", "spec_augment", "classes")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
