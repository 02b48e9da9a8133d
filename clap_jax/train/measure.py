"""`python -m clap_jax.pipeline.loader --measure`: what the input pipeline can do here.

It stands here and not in `pipeline` because a config says its front end by its model.
"""

import argparse
import ast
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, logging
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.audio import mel
from clap_jax.pipeline import measure, order
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import Source, build_source, section
from clap_jax.text import tokenize
from clap_jax.train import experiment, specs, tasks
from clap_jax.train import starts as starts_lib

MAX_BATCH = 256
TOKENIZER_CAPTIONS = 20_000

EXPLANATION = """\
Times every stage of one clip in one thread (read, decode, resample, mel, tokenise,
batch), then whole batches with the threads and workers of the config, names the
bottleneck and says what to change. Nothing is trained, no device is used.

  --config=configs/laion_htsat_roberta.py:train.csv --config.data.threads=8
  sounds.csv --frontend=laion_fused          a table, a folder, *.tar, *.array_record
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m clap_jax.pipeline.loader --measure",
        description=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any key of the config can be overridden: --config.data.workers=2",
    )
    made.add_argument("path", nargs="?", help="data, where there is no --config")
    made.add_argument("--measure", action="store_true", help="what is done anyhow")
    made.add_argument("--config", help="experiment, as clap_jax.main takes it")
    made.add_argument(
        "--frontend",
        choices=sorted(mel.FRONTENDS),
        help="rate, clip length and mels (default: the config's, or laion_unfused)",
    )
    made.add_argument("--mel", choices=("auto", "host", "device"), help="data.mel")
    for name in ("threads", "workers", "prefetch", "read_together"):
        flag = f"--{name.replace('_', '-')}"
        made.add_argument(flag, type=int, help=f"data.{name}")
    made.add_argument(
        "--batch",
        type=int,
        help=f"clips in a batch (default: the config's, {MAX_BATCH} at most)",
    )
    made.add_argument(
        "--clips", type=int, default=200, help="timed one by one, at most"
    )
    made.add_argument("--seconds", type=float, default=10.0, help="for each of the two")
    made.add_argument("--json", action="store_true", help="print one line of JSON")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options, rest = parser().parse_known_args(arguments)
    try:
        config = _config(options, rest)
        report = run(config, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.to_json()) if options.json else report)
    return 0


def run(config: ConfigDict, options: argparse.Namespace) -> measure.Report:
    """Measure the sources of a config."""
    sources = [
        _source(experiment.of_clips(section, config)) for section in config.data.sources
    ]
    if not sources:
        raise config_lib.ConfigError(
            "data.sources is empty: there is nothing to measure"
        )
    sources = order.mix(sources, config.data.mixture_temperature)
    spec = _spec(config)
    frontend = mel.FRONTENDS[options.frontend] if options.frontend else spec.frontend
    where = config.data.mel
    if where == "auto" or frontend.whole_mel:
        where = "host" if frontend.whole_mel else "device"
    clips = sum(len(source) for source, _ in sources)
    batch = options.batch or min(config.train.batch_size, MAX_BATCH)
    data = config.data
    settings = measure.Options(
        batch_size=min(batch, clips),
        threads=data.threads,
        workers=data.workers,
        prefetch=data.prefetch,
        read_together=data.read_together,
        seed=config.train.seed,
        clips=options.clips,
        seconds=options.seconds,
    )
    if not options.json:
        for source, _ in sources:
            print(source.description())
    tokenizer = _tokenizer(spec, [source for source, _ in sources])
    return measure.measure(sources, Prepare(frontend, mel=where), tokenizer, settings)


def _config(options: argparse.Namespace, rest: Sequence[str]) -> ConfigDict:
    """The config, with what the command line says in place of its keys."""
    if bool(options.config) == bool(options.path):
        raise config_lib.ConfigError(
            "give a --config, or a path of data (one of the two)"
        )
    if options.config:
        config = _read_config(options.config)
    else:
        config = config_lib.default()
        config.data.sources = (section(options.path),)
    for name in ("threads", "workers", "prefetch", "read_together", "mel"):
        value = getattr(options, name)
        if value is not None:
            config.data[name] = value
    for argument in rest:
        key, separator, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not separator:
            raise config_lib.ConfigError(
                f"unexpected argument {argument!r} (see --help)"
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, AttributeError) as error:
            raise config_lib.ConfigError(f"{argument}: {error}") from None
    return config


def _read_config(place: str) -> ConfigDict:
    """configs/x.py or configs/x.py:argument."""
    path, _, argument = place.partition(":")
    if not os.path.isfile(path):
        raise config_lib.ConfigError(f"--config={place}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("measured_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def _source(section: Any) -> tuple[Source, float]:
    options = dict(config_lib.plain(section))
    kind = options.pop("kind", "")
    name, weight = options.pop("name", kind), options.pop("weight", 0.0)
    return build_source(kind, name, options), weight


def _spec(config: ConfigDict) -> tasks.Spec:
    from_start = config.model == starts_lib.MODEL
    starts = starts_lib.load(config) if from_start else []
    return specs.unread(config, starts)


def _tokenizer(spec: tasks.Spec, sources: list[Source]) -> tokenize.Tokenizer:
    """The model's tokenizer; where it cannot be had, or is learnt, one of that length."""
    if spec.tokenizer:
        try:
            return tokenize.load(spec.tokenizer, spec.text_length, spec.tokenizer_style)
        except ValueError as error:
            logging.warning("measured with another tokenizer: %s", error)
    captions = itertools.islice(
        (c for s in sources for i in range(len(s)) for c in s.captions(i)),
        TOKENIZER_CAPTIONS,
    )
    return tokenize.train(captions, 4096, spec.text_length)


if __name__ == "__main__":
    # Worker processes want absl's flags to be parsed: there are none here.
    app.run(lambda _: main(sys.argv[1:]), argv=sys.argv[:1])
