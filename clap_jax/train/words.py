"""Where the words of a run come from: a tokenizer that is found, or learnt."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from clap_jax import checkpoint, convert
from clap_jax import config as config_lib
from clap_jax.pipeline.sources import Source
from clap_jax.text import tokenize
from clap_jax.train import starts as starts_lib
from clap_jax.train import tasks

# A tokenizer is trained on at most so many texts of each source.
TOKENIZER_TEXTS = 1_000_000


def tokenizer(
    config: ConfigDict,
    spec: tasks.Spec,
    workdir: Path,
    texts: Sequence[Iterable[str]],
    starts: list[starts_lib.Start],
) -> tuple[tokenize.Tokenizer, str]:
    """The tokenizer, and the name of its style.

    That of the run's checkpoints; else of `init_from`, of the spec, or a new one that
    learns from `texts`, those of each source. Raises ConfigError where there are none.
    """
    kept = workdir / "tokenizer"
    start = starts_lib.tokenizer_folder(starts, spec)
    length, style = spec.text_length, spec.tokenizer_style
    if checkpoint.has_steps(workdir) and kept.is_dir():
        style = convert.read_any_spec(workdir / "spec.json").tokenizer_style
        return tokenize.load(str(kept), length, style), style
    found = spec.tokenizer if start is None else str(start)
    if found:
        return tokenize.load(found, length, style), style
    starts_lib.check_tokenizer(starts, config.init_pattern, spec)
    if not texts:
        raise config_lib.ConfigError(
            f"there is no tokenizer: neither {workdir} nor init_from has one"
        )
    some = [text for own in texts for text in itertools.islice(own, TOKENIZER_TEXTS)]
    learnt = tokenize.train(some, config.data.vocab_size, spec.text_length)
    logging.info("tokenizer: %d entries learnt", learnt.vocab_size)
    return learnt, "plain"


def captions(sources: Sequence[Source]) -> list[Iterator[str]]:
    """The captions of all clips of each source."""
    return [
        itertools.chain.from_iterable(map(source.captions, range(len(source))))
        for source in sources
    ]
