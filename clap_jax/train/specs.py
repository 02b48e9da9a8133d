"""Which model a config means: a row of a table, or that of a checkpoint."""

import dataclasses
import json
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import checkpoint, convert, sharding
from clap_jax import config as config_lib
from clap_jax.losses import contrastive
from clap_jax.models import captioner, zoo
from clap_jax.models import spec as spec_lib
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.models.spec import TowerSpec
from clap_jax.train import starts as starts_lib
from clap_jax.train import tasks

# Where the sigmoid loss's bias starts (arXiv 2303.15343): nearly all pairs are negative.
SIGMOID_BIAS = -10.0

# What a run of each task may take its model from (`model: init_from`).
_MODELS = {
    "contrastive": (zoo.Spec,),
    "classify": (zoo.Spec, ClassifierSpec, CaptionerSpec),
    "answer": (CaptionerSpec,),
    "caption": (CaptionerSpec,),
}


def begun(
    config: ConfigDict,
    workdir: Path,
    starts: list[starts_lib.Start],
    *,
    training: bool,
    texts: bool,
) -> tasks.Spec:
    """The model before words and labels are known: the workdir's, where that is what
    the config means or there is nothing to read; else `unread` or `examined`.

    training: not only evaluating. texts: whether texts are needed.
    """
    has_steps = checkpoint.has_steps(workdir)
    # A captioner's tags came from the clips that it learnt from.
    as_kept = config.model == starts_lib.MODEL or config.task.name == "caption"
    if has_steps and (as_kept if not training else config.model == starts_lib.MODEL):
        return convert.read_any_spec(workdir / "spec.json")
    if has_steps and not (training or texts):
        return convert.read_any_spec(workdir / "spec.json")
    if training or has_steps:
        return unread(config, starts)
    return examined(config, starts, texts)


def unread(config: ConfigDict, starts: list[starts_lib.Start]) -> tasks.Spec:
    """The model of the config, as far as can be told before any clip is read.

    That of a checkpoint, or a row of the zoo; a tokenizer that is to be trained is
    taken to have the `data.vocab_size` entries that it may have at most.
    """
    if config.model == starts_lib.MODEL:
        return starts_lib.spec_of(starts, _MODELS[config.task.name])
    table = captioner if config.task.name in tasks.WRITES else zoo
    spec = table.get_spec(config.model, config_lib.plain(config.model_overrides))
    if spec.tokenizer:
        return spec
    return dataclasses.replace(spec, vocab_size=config.data.vocab_size)


def examined(
    config: ConfigDict, starts: list[starts_lib.Start], texts: bool
) -> tasks.Spec:
    """The model to evaluate where the workdir has none: that of `init_from`, or what
    the config says, if that has the weights for it.

    texts: whether texts are needed, and so a whole model. Raises ConfigError.
    """
    if not texts and config.model != starts_lib.MODEL:
        return unread(config, starts)
    found = starts_lib.spec_of(starts, (zoo.Spec, ClassifierSpec, CaptionerSpec))
    return found if config.model == starts_lib.MODEL else unread(config, starts)


def for_loss(spec: tasks.Spec, loss: contrastive.Options) -> tasks.Spec:
    """`spec`, with a learned bias where the loss needs one and the model has none."""
    pair = isinstance(spec, zoo.Spec)
    if not pair or loss.name != "sigmoid" or spec.logit_bias_init is not None:
        return spec
    logging.info("sigmoid loss: a learned bias is added, at first %g", SIGMOID_BIAS)
    return dataclasses.replace(spec, logit_bias_init=SIGMOID_BIAS)


def for_captions(spec: tasks.Spec, weight: float) -> tasks.Spec:
    """`spec`, with a decoder of captions where their loss has a weight, and without one
    where it has none. Raises ConfigError for a negative weight."""
    if weight < 0:
        raise config_lib.ConfigError(f"task.caption_weight is {weight}, expected >= 0")
    if not isinstance(spec, zoo.Spec):
        return spec
    if not weight:
        return dataclasses.replace(spec, caption=None)
    if spec.caption is not None:
        return spec
    options = {"position_table": max(spec.text_length, 100)}
    return dataclasses.replace(spec, caption=TowerSpec("caption_decoder", options))


def check_kept(spec: tasks.Spec, workdir: Path) -> None:
    """Raise when the workdir's checkpoints are of another model."""
    path = workdir / "spec.json"
    if not path.exists() or not checkpoint.has_steps(workdir):
        return
    found = convert.read_any_spec(path)
    if found != spec:
        raise config_lib.ConfigError(
            f"{path} describes another model ({_difference(found, spec)}): use "
            "another --workdir, or the config that began this one"
        )


def _difference(found: tasks.Spec, wanted: tasks.Spec) -> str:
    """The first few keys in which two specs differ."""
    there, here = (
        sharding.flatten(json.loads(spec.to_json()), ".") for spec in (found, wanted)
    )
    differing = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} in the config"
        for key in there | here
        if there.get(key) != here.get(key)
    ]
    return "; ".join(differing[:3])


def frozen_towers(config: ConfigDict, spec: tasks.Spec) -> tuple[str, ...]:
    """Of a pair of towers, those whose every parameter has the rate multiplier 0, and
    such parts of a joint one; names as `zoo.build` takes them."""
    no_rate = any(not factor for _, factor in config.optim.lr_multipliers)
    if not (isinstance(spec, zoo.Spec) and no_rate):
        return ()
    rates = tasks.rates_of(config, tasks.build(spec))
    named = {"audio": rates["audio"], "text": rates["text"]}
    for part in spec_lib.parts(spec):
        named[f"audio/{part}"] = rates["audio"][part]
    return tuple(name for name, tree in named.items() if not any(jax.tree.leaves(tree)))
