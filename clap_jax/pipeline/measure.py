"""How fast the pipeline is, stage by stage, and what holds it up.

The command is `python -m clap_jax.pipeline.loader --measure` (`clap_jax.train.measure`).
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from clap_jax.audio import io
from clap_jax.pipeline import loader
from clap_jax.pipeline.decoder import put
from clap_jax.pipeline.ops import Clips, Prepare, draw_caption, example_generator
from clap_jax.pipeline.order import POOL_BLOCKS, Order
from clap_jax.pipeline.sources import Source
from clap_jax.pipeline.together import Together
from clap_jax.text.tokenize import Tokenizer

STAGES = ("read", "decode", "resample", "mel", "tokenise", "batch")

WAITING_SHARE = 0.5
"""Reading is the bottleneck where waiting for it takes this share of a clip's time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the loader is run; the fields are those of the config's `data`, and the batch.

    cores: processors that there are; clips: timed stage by stage, at most; seconds: for
    each of the two measurements, about.
    """

    batch_size: int = 64
    threads: int = 4
    workers: int = 0
    prefetch: int = 4
    read_together: int = 1
    seed: int = 0
    clips: int = 200
    seconds: float = 10.0
    cores: int = dataclasses.field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    )


class Stage(NamedTuple):
    """One stage in one thread."""

    milliseconds: float  # of a clip, by the clock
    busy_milliseconds: float  # of these, what the processor did
    share: float  # of a clip's time in all stages

    @property
    def clips_per_s(self) -> float:
        return 1000 / max(self.milliseconds, 1e-6)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured. `stages` by name, in the order of STAGES."""

    stages: dict[str, Stage]
    clips: int
    bad_clips: int
    clips_per_s: float  # end to end, as the options say
    cache_gib: float  # memory that all clips of the sources would take decoded
    options: Options
    mels: str  # "host" or "device"
    bottleneck: str
    advice: str

    @property
    def one_thread_clips_per_s(self) -> float:
        """All stages one after another."""
        return 1000 / sum(stage.milliseconds for stage in self.stages.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values under names with units."""
        stages = {
            name: stage._asdict() | {"clips_per_s": stage.clips_per_s}
            for name, stage in self.stages.items()
        }
        whole = {"one_thread_clips_per_s": self.one_thread_clips_per_s}
        return dataclasses.asdict(self) | whole | {"stages": stages}

    def __str__(self) -> str:
        options = self.options
        lines = [f"{'stage':10}{'ms a clip':>11}{'busy':>8}{'clips/s':>10}{'share':>8}"]
        lines += [
            f"{name:10}{stage.milliseconds:11.3f}{stage.busy_milliseconds:8.3f}"
            f"{stage.clips_per_s:10.0f}{stage.share:8.0%}"
            for name, stage in self.stages.items()
        ]
        made = "mels on the host" if self.mels == "host" else "16-bit waves, for mels"
        made += "" if self.mels == "host" else " on the device"
        bad = f", {self.bad_clips} bad clips left out" if self.bad_clips else ""
        together = options.read_together
        lines.append(
            f"one thread: {self.one_thread_clips_per_s:.0f} clips/s over "
            f"{self.clips} clips ({made}{bad})"
        )
        lines.append(
            f"end to end: {self.clips_per_s:.0f} clips/s with data.workers="
            f"{options.workers}, data.threads={options.threads}, data.prefetch="
            f"{options.prefetch}"
            + (f", data.read_together={together}" if together > 1 else "")
            + f", batches of {options.batch_size}, {options.cores} cores"
        )
        lines.append(f"bottleneck: {self.bottleneck}: {self.advice}")
        return "\n".join(lines)


def measure(
    sources: Sequence[tuple[Source, float | None]],
    prepare: Prepare,
    tokenizer: Tokenizer,
    options: Options,
) -> Report:
    """Time every stage in one thread, then the loader as `options` say.

    sources and weights, prepare, tokenizer: as `loader.train_dataset` takes them;
    `prepare` should have no cache: what is measured is a clip's first visit.
    Raises ValueError when not one clip can be read.
    """
    timed = _time_stages(sources, prepare, tokenizer, options)
    total = sum(stage.milliseconds for stage in timed.stages.values())
    stages = {
        name: stage._replace(share=stage.milliseconds / total)
        for name, stage in timed.stages.items()
    }
    rate = _end_to_end(sources, prepare, tokenizer, options)
    clips = sum(len(source) for source, _ in sources)
    cache_gib = timed.whole_bytes * clips / 2**30
    name, advice = _advice(stages, rate, prepare, options, cache_gib)
    return Report(
        stages=stages,
        clips=timed.clips,
        bad_clips=timed.bad_clips,
        clips_per_s=rate,
        cache_gib=cache_gib,
        options=options,
        mels="device" if prepare.mel == "device" else "host",
        bottleneck=name,
        advice=advice,
    )


class _Timed(NamedTuple):
    stages: dict[str, Stage]
    clips: int
    bad_clips: int
    whole_bytes: float  # of a decoded clip, mean


class _Clock:
    """Adds up the time that each stage takes."""

    def __init__(self):
        self.spent = {name: np.zeros(2) for name in STAGES}

    def __call__(self, stage: str, function: Callable, *arguments: Any) -> Any:
        start = time.perf_counter(), time.thread_time()
        result = function(*arguments)
        now = time.perf_counter(), time.thread_time()
        self.spent[stage] += np.subtract(now, start)
        return result


def _time_stages(
    sources: Sequence[tuple[Source, float | None]],
    prepare: Prepare,
    tokenizer: Tokenizer,
    options: Options,
) -> _Timed:
    """The stages of a few clips as training comes to them, and what it makes of them."""
    order = Order(
        [len(source) for source, _ in sources],
        [weight for _, weight in sources],
        [source.name for source, _ in sources],
        [""] * len(sources),
        options.seed,
        options.read_together,
    )
    batch, size = prepare.blank(options.batch_size), options.batch_size
    tokens = {
        "ids": np.zeros((size, tokenizer.length), np.int32),
        "mask": np.zeros((size, tokenizer.length), bool),
    }
    clock, clips, bad, whole_bytes, began = _Clock(), 0, 0, 0, 0.0
    reader = _Reader(sources, prepare, options.read_together)
    for draw in range(min(options.clips, order.examples) + 1):
        which, index = order(draw)
        try:
            audio = clock("read", reader, which, index)
            wave, rate_hz = clock("decode", io.read, audio)
        except io.AudioError:
            bad += 1
            continue
        wave = clock("resample", io.resample, wave, rate_hz, prepare.frontend.rate_hz)
        rng = example_generator(options.seed, draw)
        whole, example = clock("mel", _prepared, prepare, wave, rng)
        ids, mask = clock("tokenise", _tokens, sources[which][0], index, tokenizer, rng)
        row = example | {"ids": ids, "mask": mask}
        clock("batch", put, batch | tokens, clips % size, row)
        if not began:
            # The first clip pays for what is made once: it is not counted.
            clock, began = _Clock(), time.perf_counter()
            continue
        clips += 1
        whole_bytes += whole.nbytes
        if time.perf_counter() - began > options.seconds:
            break
    if not clips:
        raise ValueError(f"none of the {bad} clips drawn first can be read")
    stages = {
        name: Stage(*(spent * 1000 / clips), share=0.0)
        for name, spent in clock.spent.items()
    }
    return _Timed(stages, clips, bad, whole_bytes / clips)


class _Reader:
    """The encoded audio of a clip: from a file, or with its neighbours from a shard."""

    def __init__(
        self,
        sources: Sequence[tuple[Source, float | None]],
        prepare: Prepare,
        together: int,
    ):
        self._clips = [Clips(source, prepare) for source, _ in sources]
        self._blocks = None
        if together > 1:
            kept = 2 * POOL_BLOCKS * len(sources)
            self._blocks = Together(self._clips, together, kept)

    def __call__(self, which: int, index: int) -> Any:
        take = None
        if self._blocks is not None:
            (take,) = self._blocks.start([(which, index)], partial)
        example = take() if take is not None else None
        if example is None:
            example = self._clips[which].source[index]
        if isinstance(example, io.AudioError):
            raise example
        audio = example["audio"]
        if not isinstance(audio, str):
            return audio
        try:
            with open(audio, "rb") as file:
                return file.read()
        except OSError as error:
            raise io.AudioError(f"{audio}: {error.strerror or error}") from None


def _prepared(
    prepare: Prepare, wave: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    whole = prepare.whole(wave)
    return whole, prepare.example(whole, rng)


def _tokens(
    source: Source, index: int, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = tokenizer([draw_caption(source, index, rng)])
    return ids[0], mask[0]


def _end_to_end(
    sources: Sequence[tuple[Source, float | None]],
    prepare: Prepare,
    tokenizer: Tokenizer,
    options: Options,
) -> float:
    """Clips per second of whole batches, once the first has come."""
    dataset = loader.train_dataset(
        sources,
        prepare,
        tokenizer,
        batch_size=options.batch_size,
        seed=options.seed,
        threads=options.threads,
        workers=options.workers,
        prefetch=options.prefetch,
        read_together=options.read_together,
    )
    iterator = iter(dataset)
    try:
        # What was made ahead while the first was waited for is not counted either.
        for _ in range(1 + max(options.workers, 1) * options.prefetch):
            next(iterator)
        start, batches = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < options.seconds or not batches:
            next(iterator)
            batches += 1
    finally:
        iterator.close()
    return batches * options.batch_size / elapsed


def _advice(
    stages: dict[str, Stage],
    rate: float,
    prepare: Prepare,
    options: Options,
    cache_gib: float,
) -> tuple[str, str]:
    """The stage that holds up the rest, and what to change."""
    total = sum(stage.milliseconds for stage in stages.values())
    read = stages["read"]
    waiting = (read.milliseconds - read.busy_milliseconds) / total
    at_a_time = max(options.threads, 1) * max(options.workers, 1)
    name = max(stages, key=lambda name: stages[name].busy_milliseconds)
    if waiting > WAITING_SHARE:
        return "read", (
            f"{waiting:.0%} of a clip's time is waiting for it: raise data.threads "
            f"(now {options.threads}), set data.read_together (now "
            f"{options.read_together}) for tar shards and ArrayRecord files, or bring "
            "the data closer"
        )
    said = f"{stages[name].share:.0%} of a clip's {total:.2f} ms"
    busy = sum(stage.busy_milliseconds for stage in stages.values())
    possible = options.cores * 1000 / busy
    if at_a_time < options.cores:
        return name, (
            f"{said}, but only {at_a_time} of {options.cores} cores are used: raise "
            f"data.threads to {options.cores}"
        )
    if options.workers == 0 and rate < possible / 3:
        return name, (
            f"{said}, but threads hold up each other ({possible:.0f} clips/s would be "
            f"possible): set data.workers to {max(options.cores // 4, 1)} or more"
        )
    keep = f"keep decoded clips in memory (data.cache_gib={cache_gib:.2g} holds all)"
    cores = "or give it more cores"
    rate_hz = prepare.frontend.rate_hz
    changes = {
        "read": "pack the clips into ArrayRecord files (pipeline.array_record.pack), "
        "or " + keep,
        "decode": f"{keep}, store clips as FLAC or WAV, {cores}",
        "resample": f"store clips at {rate_hz} Hz, {keep}, {cores}",
        "mel": f"{keep}, {cores}",
        "tokenise": f"shorten the captions, {cores}",
        "batch": f"raise data.workers (now {options.workers}), {cores}",
    }
    if prepare.mel == "host" and not prepare.frontend.whole_mel:
        changes["mel"] = "let the device make mels (data.mel='device'), or " + keep
    return name, f"{said}: {changes[name]}"
