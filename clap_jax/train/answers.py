"""The task `answer` from a config: whose clips are asked what, and with which words."""

import re
from collections.abc import Iterator, Sequence

import jax
from absl import logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.models.captioner import Captioner, CaptionerSpec
from clap_jax.pipeline import answers
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.sources import Source
from clap_jax.text.answers import Template, Writer, task
from clap_jax.text.tokenize import Tokenizer
from clap_jax.train import optim
from clap_jax.train import starts as starts_lib


def checked(config: ConfigDict, sources: Sequence[Source]) -> list[Template]:
    """The template of each training source, by its `task`; logs the mixture.

    Without sources (evaluation, noise) there are none. Raises ConfigError for a source
    without a task, ValueError for an unknown one, and where a clip has not what its
    task asks for.
    """
    if not sources:
        return []
    found = _templates(config)
    for source, template in zip(sources, found, strict=True):
        answers.check("task.name=answer", source, template)
        logging.info(
            "%s: task %s, %s -> %s",
            source.name,
            template.name,
            " | ".join(map(repr, template.prompts)),
            template.answer,
        )
    return found


def _templates(config: ConfigDict) -> list[Template]:
    found = []
    for number, section in enumerate(config.data.sources):
        if "task" not in section:
            raise config_lib.ConfigError(
                f"data.sources[{number}].task is missing: with task.name=answer each "
                "source names a task of clap_jax/text/assets/tasks.json"
            )
        found.append(task(section["task"]))
    return found


def texts(sources: Sequence[Source], asked: Sequence[Template]) -> list[Iterator[str]]:
    """Prompts and answers of each source, for a tokenizer to learn from."""
    return [answers.texts(*pair) for pair in zip(sources, asked, strict=True)]


def rows(
    asked: Sequence[Template], tokenizer: Tokenizer | None, spec: CaptionerSpec
) -> Answers:
    """What makes the texts of a training batch; without a tokenizer only their shapes."""
    writer = None if tokenizer is None else Writer(tokenizer)
    return Answers(asked, writer, spec.text_length)


def check_frozen(
    config: ConfigDict, model: Captioner, starts: Sequence[starts_lib.Start]
) -> None:
    """Raise ConfigError where a language model would stay as chance has made it."""
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    rates = sharding.flatten(optim.rate_multipliers(config.optim, params))
    filled = {
        path
        for start in starts
        for path in sharding.flatten(start.model.variables)
        if re.fullmatch(config.init_pattern, path)
    }
    lost = [
        path
        for path, rate in rates.items()
        if path.startswith("decoder/") and not rate and f"params/{path}" not in filled
    ]
    if lost:
        raise config_lib.ConfigError(
            f"optim.lr_multipliers freeze {len(lost)} parameters of the decoder (the "
            f"first is {lost[0]}) that init_from does not fill: give it a GPT-2, such "
            "as openai-community/gpt2, or let the decoder learn"
        )
