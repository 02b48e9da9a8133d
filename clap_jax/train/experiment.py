"""From a config to the parts of a run: sources, tokenizer, model, evaluators.

The same for training, evaluation and resuming.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import checkpoint, hosts, sharding
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.evals import WITHOUT_TEXTS, Result, hear
from clap_jax.evals.encode import ModelEncoder
from clap_jax.losses import contrastive
from clap_jax.pipeline import loader, order
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.labels import Targets
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import Source
from clap_jax.text import tokenize
from clap_jax.text.answers import Template
from clap_jax.text.sentences import Sentences
from clap_jax.train import (
    answers,
    captions,
    device_data,
    evaluations,
    heads,
    programs,
    specs,
    tasks,
    words,
)
from clap_jax.train import starts as starts_lib
from clap_jax.train import state as state_lib

# The data.source that reads nothing: no tokenizer, no evaluations either.
NOISE = "synthetic_device"

# Where `--mode=eval` keeps what probes ask for, in the workdir.
VECTORS = "vectors"


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
            segmenter=hear.segmenter(self.spec, programs.check(self.config)[1]),
        )

    @property
    def sentences(self) -> int:
        """How many sentences of a caption the model compares by themselves, or 0."""
        temporal = getattr(self.spec, "temporal", None)
        return temporal.sentences if temporal else 0

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global batch of full length."""
        return device_data.abstract_batch(
            self.prepare(),
            getattr(self.spec, "text_length", 0),
            self.config.train.batch_size,
            self.mesh,
            self.targets,
            self.sentences,
        )

    def lengths(self) -> programs.Choice:
        """What the batches may have for lengths."""
        full = programs.of_batch(self.abstract_batch())
        if self.config.data.source == NOISE:
            return programs.Choice((full.tokens,))
        return programs.choose(self.config, self.spec)

    def train_dataset(self) -> loader.TrainDataset | device_data.DeviceData:
        """This host's batches, endless; its iterators are checkpointable."""
        config = self.config
        if config.data.source == NOISE:
            vocab_size = getattr(self.spec, "vocab_size", 0)
            noise = device_data.noise(self.abstract_batch(), vocab_size)
            return device_data.DeviceData(noise)
        lengths, tokenizer = self.lengths(), self.tokenizer
        if self.sentences:
            tokenizer = Sentences(tokenizer, self.sentences)
        return loader.train_dataset(
            self.sources,
            self.prepare(),
            tokenizer,
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
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
    noise = config.data.source == NOISE
    if noise and config.evals:
        logging.info(
            "data.source=%s: evals are left out (%s)", NOISE, ", ".join(config.evals)
        )
    sources = _sources(config) if training and not noise else []
    has_steps, texts = checkpoint.has_steps(workdir), _needs_texts(config, training)
    starts = [] if has_steps else starts_lib.load(config)
    if config.task.name in tasks.WRITES:
        starts = starts_lib.for_decoder(starts)
    spec = specs.begun(config, workdir, starts, training=training, texts=texts)
    clips = [source for source, _ in sources]
    asked = answers.checked(config, clips) if config.task.name == "answer" else []
    if config.task.name == "caption":
        captions.checked(config, clips)
    tokenizer = None
    if texts and not noise:
        read = answers.texts(clips, asked) if asked else words.captions(clips)
        tokenizer, style = words.tokenizer(config, spec, workdir, read, starts)
        spec = _with_words(config, spec, tokenizer.vocab_size, style)
    spec, targets = _with_targets(config, spec, clips, asked, tokenizer, training)
    spec = specs.for_loss(spec, loss)
    spec = specs.for_captions(spec, config.task.caption_weight)
    _where_mels_are_made(config, spec)
    specs.check_kept(spec, workdir)
    dual, undropped = duals(config, spec)
    if isinstance(targets, Answers) and not (noise or has_steps):
        answers.check_frozen(config, dual, starts)
    encoder = _encoders(config, spec, undropped, tokenizer, mesh)
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


def _with_words(
    config: ConfigDict, spec: tasks.Spec, vocab_size: int, style: str
) -> tasks.Spec:
    """`spec`, with the vocabulary and the style of a tokenizer."""
    if config.model == starts_lib.MODEL:  # its table may have rows to spare
        vocab_size = max(vocab_size, spec.vocab_size)
    return dataclasses.replace(spec, vocab_size=vocab_size, tokenizer_style=style)


def _with_targets(
    config: ConfigDict,
    spec: tasks.Spec,
    clips: Sequence[Source],
    asked: Sequence[Template],
    tokenizer: tokenize.Tokenizer | None,
    training: bool,
) -> tuple[tasks.Spec, Targets | Answers | None]:
    """`spec`, with heads for the labels of clips where these are learnt, and what
    training batches have in the place of captions: labels, answers to `asked`, or None.
    """
    if training and config.task.name == "classify":
        return heads.labelled(config, spec, clips)
    if training and config.task.name == "answer":
        return spec, answers.rows(asked, tokenizer, spec)
    if training and config.task.name == "caption":
        spec, guides = captions.guided(config, spec, clips)
        return spec, captions.rows(config, spec, len(clips), tokenizer, guides)
    return spec, None


def _encoders(
    config: ConfigDict,
    spec: tasks.Spec,
    model: tasks.Model,
    tokenizer: tokenize.Tokenizer | None,
    mesh: Mesh,
) -> Callable[[int, int | None, str], ModelEncoder]:
    """Gives the encoder for a batch size, a seed of crops and an output.

    Evaluations with equal settings get the same one, and share what is compiled.
    """
    return functools.cache(
        lambda batch_size, crop_seed, output: ModelEncoder(
            spec,
            model,
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


def _needs_texts(config: ConfigDict, training: bool) -> bool:
    """Whether captions are learnt, or any evaluation embeds or writes texts."""
    if config.task.name == "classify":
        return False
    kinds = {section.get("kind") for section in _evals(config).values()}
    return training or not kinds or bool(kinds - set(WITHOUT_TEXTS))


def duals(
    config: ConfigDict, spec: tasks.Spec, remat: str | None = None
) -> tuple[tasks.Model, tasks.Model]:
    """The model as the config trains it: most of the run, and its last stage.

    The first leaves out `train.patch_drop` of the patches, `train.frequency_drop` of
    the bands and `train.token_drop` of the words; both are one where nothing is left
    out. A tower that is frozen whole runs as in evaluation (nothing is dropped, its batch
    norm's statistics stay). remat: the config's unless given. Raises ConfigError, and
    ValueError where a tower cannot leave out so much.
    """
    settings = config.train
    if not 0 <= settings.undropped_percent <= 100:
        raise config_lib.ConfigError(
            f"train.undropped_percent is {settings.undropped_percent}, expected 0 to 100"
        )
    names = ("patch_drop", "frequency_drop", "token_drop")
    drops = {name: settings[name] for name in names if settings[name]}
    compute = {"dtype": config.precision, "remat": remat or config.remat}
    if getattr(spec, "temporal", None):
        if config.segment_chunk < 1:
            raise config_lib.ConfigError(
                f"segment_chunk is {config.segment_chunk}, expected 1 or more"
            )
        compute["segment_chunk"] = config.segment_chunk
    if still := specs.frozen_towers(config, spec):
        compute["frozen"] = still
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
    if where == "host" and getattr(spec, "temporal", None):
        raise config_lib.ConfigError(
            f"data.mel is 'host', expected 'device' or 'auto': {spec.name} hears "
            "segments, which come as waves"
        )
    if where == "host" and spec.frontend.beside:
        raise config_lib.ConfigError(
            f"data.mel is 'host', expected 'device' or 'auto': {spec.name} hears several "
            "log-mels of each wave"
        )
    if where == "device" and whole:
        raise config_lib.ConfigError(
            f"data.mel is 'device', expected 'host' or 'auto': {spec.name} needs the "
            "mel of whole clips, and the device gets waves of one window"
        )
    if where == "auto":
        return "host" if whole else "device"
    return where


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
