"""From a config to the parts of a run: sources, tokenizer, model, evaluators.

The same for training, evaluation and resuming.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import checkpoint, convert, hosts, sharding
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.evals import WITHOUT_TEXTS, Result
from clap_jax.evals.encode import ModelEncoder
from clap_jax.losses import contrastive
from clap_jax.models import captioner, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.pipeline import loader, order
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.labels import Targets
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import Source
from clap_jax.text import tokenize
from clap_jax.train import (
    answers,
    device_data,
    evaluations,
    heads,
    programs,
    tasks,
    words,
)
from clap_jax.train import starts as starts_lib
from clap_jax.train import state as state_lib

# The data.source that reads nothing: no tokenizer, no evaluations either.
NOISE = "synthetic_device"

# Where the sigmoid loss's bias starts (arXiv 2303.15343): nearly all pairs are negative.
SIGMOID_BIAS = -10.0

# Where `--mode=eval` keeps what probes ask for, in the workdir.
VECTORS = "vectors"

# What a run of each task may take its model from (`model: init_from`).
_MODELS = {
    "contrastive": (zoo.Spec,),
    "classify": (zoo.Spec, ClassifierSpec, CaptionerSpec),
    "answer": (CaptionerSpec,),
}


class Experiment(NamedTuple):
    """The parts of a run; holds no weights but those that it starts from, unread."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    spec: tasks.Spec
    dual: tasks.Model
    undropped: tasks.Model  # of the last stage and of evaluation; `dual` if none drops
    tokenizer: tokenize.Tokenizer | None  # none where there is nothing to read
    sources: list[tuple[Source, float]]
    evaluations: dict[str, evaluations.Evaluation]
    augment: Augment
    starts: list[starts_lib.Start]
    targets: Targets | Answers | None = None  # in place of captions

    def prepare(self) -> Prepare:
        """What makes training clips."""
        return Prepare(
            self.spec.frontend,
            mel=_where_mels_are_made(self.config, self.spec),
            random_crop=True,
            cache_gib=self.config.data.cache_gib,
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global batch of full length."""
        return device_data.abstract_batch(
            self.prepare(),
            getattr(self.spec, "text_length", 0),
            self.config.train.batch_size,
            self.mesh,
            self.targets,
        )

    def lengths(self) -> programs.Choice:
        """What the batches may have for lengths."""
        full = programs.of_batch(self.abstract_batch())
        if self.config.data.source == NOISE:
            return programs.Choice((full.tokens,), (full.frames,))
        return programs.choose(self.config, self.spec)

    def train_dataset(self) -> loader.TrainDataset | device_data.DeviceData:
        """This host's batches, endless; its iterators are checkpointable."""
        config = self.config
        if config.data.source == NOISE:
            vocab_size = getattr(self.spec, "vocab_size", 0)
            noise = device_data.noise(self.abstract_batch(), vocab_size)
            return device_data.DeviceData(noise)
        lengths = self.lengths()
        return loader.train_dataset(
            self.sources,
            self.prepare(),
            self.tokenizer,
            batch_size=config.train.batch_size // jax.process_count(),
            seed=config.train.seed,
            shard=(jax.process_index(), jax.process_count()),
            rows=sharding.host_rows(config.train.batch_size, self.mesh),
            threads=config.data.threads,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            read_together=config.data.read_together,
            targets=self.targets,
            text_tokens=lengths.tokens,
            clip_frames=lengths.frames,
            agree=hosts.largest if jax.process_count() > 1 else None,
        )

    def examples(self) -> int:
        return sum(len(source) for source, _ in self.sources)

    def init_variables(self) -> dict[str, Any]:
        """Fresh variables, then the weights that `init_from` gives (by regex).

        Every leaf is made where it lives on the mesh, with the same bits on any. A run
        that goes on from a checkpoint gets all of its weights from there.
        """
        shapes = state_lib.abstract_variables(self.dual, self.config, self.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        init = jax.jit(self.dual.init, out_shardings=shardings)
        variables = starts_lib.fill(
            init(jax.random.key(self.config.train.seed)),
            self.starts,
            self.spec,
            self.config.init_pattern,
        )
        return sharding.put(variables, shardings)

    def undropped_from(self, total_steps: int) -> int:
        """The first step that leaves out no patch and no word."""
        if self.dual is self.undropped:
            return 0
        percent = self.config.train.undropped_percent
        return total_steps - math.ceil(total_steps * percent / 100)

    def keep(self) -> None:
        """Write into the workdir what the model needs besides weights, and the config.

        Called once everything is known to work, and before the first checkpoint, so
        that `clap_jax.load` can use any checkpoint that there is.
        """
        if jax.process_index() == 0:
            if self.tokenizer is not None:
                self.tokenizer.save(self.workdir / "tokenizer")
            config_lib.write_text(self.workdir / "spec.json", self.spec.to_json())
            text = config_lib.to_json(self.config)
            config_lib.write_text(self.workdir / "config.json", text)

    def due(self, step: int, last: bool) -> list[str]:
        """The evaluations that are to run at `step`."""
        return [
            name
            for name, evaluation in self.evaluations.items()
            if last or every(evaluation.every_steps, step)
        ]

    def evaluate(self, variables: Any, names: list[str]) -> dict[str, Result]:
        """Run the named evaluations."""
        wanted = {name: self.evaluations[name] for name in names}
        return evaluations.run(wanted, variables)


def every(steps: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) does at `step`."""
    return steps > 0 and step % steps == 0


def build(config: ConfigDict, workdir: Path, *, training: bool = True) -> Experiment:
    """Check the whole config and make every part; nothing heavy runs on a device yet.

    training: without it `data.sources` are not looked at, and the model is one that is
    there: the workdir's, or that of `init_from`.
    """
    loss = check(config)
    classify, answer = (config.task.name == name for name in ("classify", "answer"))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
    noise = config.data.source == NOISE
    if noise and config.evals:
        logging.info(
            "data.source=%s: evals are left out (%s)", NOISE, ", ".join(config.evals)
        )
    sources = _sources(config) if training and not noise else []
    starts = [] if checkpoint.has_steps(workdir) else starts_lib.load(config)
    if answer:
        starts = starts_lib.for_decoder(starts)
    has_steps, texts = checkpoint.has_steps(workdir), _needs_texts(config, training)
    if has_steps and (config.model == starts_lib.MODEL or not (training or texts)):
        spec = convert.read_any_spec(workdir / "spec.json")
    elif training or has_steps:
        spec = unread_spec(config, starts)
    else:
        spec = _found_spec(config, starts, texts)
    clips, tokenizer, targets, asked = [source for source, _ in sources], None, None, []
    if answer and clips:
        asked = answers.templates(config)
        answers.check(clips, asked)
    if classify and training:
        spec, targets = heads.labelled(config, spec, clips)
    elif texts and not noise:
        read = answers.texts(clips, asked) if asked else words.captions(clips)
        tokenizer, style = words.tokenizer(config, spec, workdir, read, starts)
        vocab_size = tokenizer.vocab_size
        if config.model == starts_lib.MODEL:  # its table may have rows to spare
            vocab_size = max(vocab_size, spec.vocab_size)
        spec = dataclasses.replace(spec, vocab_size=vocab_size, tokenizer_style=style)
    if answer and training:
        targets = answers.rows(asked, tokenizer, spec)
    spec = for_loss(spec, loss)
    _where_mels_are_made(config, spec)
    _check_spec(spec, workdir)
    dual, undropped = duals(config, spec)
    if answer and training and not (noise or has_steps):
        answers.check_frozen(config, dual, starts)
    # Evaluations with equal settings share what is compiled.
    encoder = functools.cache(
        lambda batch_size, crop_seed, output: ModelEncoder(
            spec,
            undropped,
            tokenizer,
            mesh=mesh,
            batch_size=batch_size,
            threads=config.data.threads,
            crop_seed=crop_seed,
            output=output,
            precision=config.precision,
            text_tokens=config_lib.plain(config.data.text_buckets),
        )
    )
    # While a model changes, nobody asks for the same vectors twice.
    vectors = None if training else workdir / VECTORS
    list_refused = evaluations.lists_refused(config, training)
    return Experiment(
        config=config,
        workdir=workdir,
        mesh=mesh,
        spec=spec,
        dual=dual,
        undropped=undropped,
        tokenizer=tokenizer,
        sources=sources,
        evaluations=evaluations.build(_evals(config), encoder, vectors, list_refused),
        augment=config_lib.build(Augment, config.augment, "augment"),
        starts=starts,
        targets=targets,
    )


def check(config: ConfigDict) -> contrastive.Options:
    """Raise where a config cannot be run, by itself: whatever files and devices say.

    The same for training and for planning. Returns the loss's options.
    Raises ConfigError and ValueError.
    """
    config_lib.check_numbers(config)
    if config.data.mel not in ("auto", "host", "device"):
        raise config_lib.ConfigError(
            f"data.mel is auto, host or device, not {config.data.mel!r}"
        )
    if config.data.source not in ("files", NOISE):
        raise config_lib.ConfigError(
            f"data.source is files or {NOISE}, not {config.data.source!r}"
        )
    if config.model == starts_lib.MODEL and config.model_overrides:
        raise config_lib.ConfigError(
            "model_overrides change a row of the zoo, but model is 'init_from'"
        )
    if config.task.name not in tasks.TASKS:
        raise config_lib.ConfigError(
            config_lib.unknown("task.name", config.task.name, tasks.TASKS)
        )
    if config.task.name != "classify" and config.task.heads:
        raise config_lib.ConfigError(
            f"task.heads are for task.name=classify, not {config.task.name}"
        )
    programs.check(config)
    sharding.check_pattern(config.init_pattern, "init_pattern")
    _check_best_metric(config)
    return contrastive.Options(**config_lib.plain(config.loss))


def unread_spec(config: ConfigDict, starts: list[starts_lib.Start]) -> tasks.Spec:
    """The model of the config, as far as can be told before any clip is read.

    That of a checkpoint, or a row of the zoo; a tokenizer that is to be trained is
    taken to have the `data.vocab_size` entries that it may have at most.
    """
    if config.model == starts_lib.MODEL:
        return starts_lib.spec_of(starts, _MODELS[config.task.name])
    table = captioner if config.task.name == "answer" else zoo
    spec = table.get_spec(config.model, config_lib.plain(config.model_overrides))
    if spec.tokenizer:
        return spec
    return dataclasses.replace(spec, vocab_size=config.data.vocab_size)


def _found_spec(
    config: ConfigDict, starts: list[starts_lib.Start], texts: bool
) -> tasks.Spec:
    """The model to evaluate where the workdir has none: that of `init_from`, or what
    the config says, if that has the weights for it.

    texts: whether texts are needed, and so a whole model. Raises ConfigError.
    """
    if not texts and config.model != starts_lib.MODEL:
        return unread_spec(config, starts)
    found = starts_lib.spec_of(starts, (zoo.Spec, ClassifierSpec, CaptionerSpec))
    return found if config.model == starts_lib.MODEL else unread_spec(config, starts)


def _needs_texts(config: ConfigDict, training: bool) -> bool:
    """Whether captions are learnt, or any evaluation embeds or writes texts."""
    if config.task.name == "classify":
        return False
    kinds = {section.get("kind") for section in _evals(config).values()}
    return training or not kinds or bool(kinds - set(WITHOUT_TEXTS))


def for_loss(spec: tasks.Spec, loss: contrastive.Options) -> tasks.Spec:
    """`spec`, with a learned bias where the loss needs one and the model has none."""
    pair = isinstance(spec, zoo.Spec)
    if not pair or loss.name != "sigmoid" or spec.logit_bias_init is not None:
        return spec
    logging.info("sigmoid loss: a learned bias is added, at first %g", SIGMOID_BIAS)
    return dataclasses.replace(spec, logit_bias_init=SIGMOID_BIAS)


def duals(
    config: ConfigDict, spec: tasks.Spec, remat: str | None = None
) -> tuple[tasks.Model, tasks.Model]:
    """The model as the config trains it: most of the run, and its last stage.

    The first leaves out `train.patch_drop` of the patches, `train.frequency_drop` of
    the bands and `train.token_drop` of the words; both are one where nothing is left
    out. remat: the config's unless given. Raises ConfigError, and ValueError where a
    tower cannot leave out so much.
    """
    settings = config.train
    if not 0 <= settings.undropped_percent <= 100:
        raise config_lib.ConfigError(
            f"train.undropped_percent is {settings.undropped_percent}, expected 0 to 100"
        )
    names = ("patch_drop", "frequency_drop", "token_drop")
    drops = {name: settings[name] for name in names if settings[name]}
    compute = {"dtype": config.precision, "remat": remat or config.remat}
    undropped = tasks.build(spec, **compute)
    return (tasks.build(spec, **compute, **drops) if drops else undropped), undropped


def _sources(config: ConfigDict) -> list[tuple[Source, float]]:
    """Every training source and its weight in the mixture."""
    sources = [
        evaluations.source_of(
            of_clips(section, config), f"data.sources[{number}]", weighted=True
        )
        for number, section in enumerate(config.data.sources)
    ]
    if not sources:
        raise config_lib.ConfigError(
            "data.sources is empty: name at least one source to train on (a config that "
            "only evaluates runs with --mode=eval)"
        )
    return order.mix(sources, config.data.mixture_temperature)


def of_clips(section: Any, config: ConfigDict) -> dict[str, Any]:
    """What an entry of `data.sources` says of clips, without what is asked of them."""
    kept = dict(config_lib.plain(section))
    if config.task.name == "answer":
        kept.pop("task", None)
    return kept


def _where_mels_are_made(config: ConfigDict, spec: tasks.Spec) -> str:
    """`data.mel`, "host" or "device". Raises when the model cannot have it so."""
    where, whole = config.data.mel, spec.frontend.whole_mel
    if where == "device" and whole:
        raise config_lib.ConfigError(
            f"data.mel is 'device', expected 'host' or 'auto': {spec.name} needs the "
            "mel of whole clips, and the device gets waves of one window"
        )
    if where == "auto":
        return "host" if whole else "device"
    return where


def _check_spec(spec: tasks.Spec, workdir: Path) -> None:
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


def _evals(config: ConfigDict) -> Mapping[str, Any]:
    """The evaluations that will run: none where there is nothing to read."""
    return {} if config.data.source == NOISE else config.evals


def _check_best_metric(config: ConfigDict) -> None:
    """Raise when nothing will ever report `checkpoint.best_metric`."""
    name, evals = config.checkpoint.best_metric, _evals(config)
    if name and not name.startswith(tuple(f"eval/{one}/" for one in evals)):
        none = f"(none, with data.source={NOISE})" if config.evals else "(none)"
        raise config_lib.ConfigError(
            f"checkpoint.best_metric is {name!r}, expected eval/<name>/<metric> with a "
            f"name from evals: {', '.join(evals) or none}"
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
