"""How fast a run is, and how much of the hardware that uses: the figures of a log line.

Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B):

    mfu = clips/s * model FLOPs a clip / (devices * peak FLOP/s of one)
    model FLOPs a clip = 3 * (FLOPs of encoding one clip and one text + 2 * B * E)

of long clips, with S segments and M sentences each,

    model FLOPs a clip = 3 * (S * a segment's + a text's + 2 * B * E * (1 + 2 * S * M))

The FLOPs of encoding are those that XLA's cost analysis counts in the traced forward
pass, before any optimisation; 2 * B * E are a clip's scores against B texts, and a
backward pass counts as two forward passes. What is computed twice to save memory
(remat, accumulate, blocks of scores) is not counted twice.
"""

import math
import resource
import sys
import time

import jax
import jax.numpy as jnp
from absl import logging

from clap_jax import chips
from clap_jax.models import captioner, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.train.tasks import Model, Spec

# A square matrix of so many rows tells what a processor without a data sheet can do.
MEASURED_ROWS = 1024


def model_flops(
    dual: Model,
    spec: Spec,
    batch_size: int,
    text_length: int = 0,
    clip_frames: int = 0,
    clip_segments: int = 0,
) -> float:
    """FLOPs that a training step of B = batch_size needs for one clip with its text.

    dual: with remat "none", since XLA counts the body of a loop once. text_length,
    clip_frames: of the batch, as `zoo.examples` takes them. clip_segments: S of it, 0
    for those of the longest clip. For a classifier those of
    one clip, for a captioner of one clip and the L tokens of a prompt with its answer,
    all parameters trained. (Of frozen ones no gradient is made: a third of their share
    is then not needed.)
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(dual.init, key)
    if isinstance(spec, ClassifierSpec):

        def hear(variables, sound, key):
            return dual.encode_audio(variables, sound, train=True, key=key)[0][0]

        sound = zoo.example_sound(spec, clip_frames)
        lowered = jax.jit(hear).lower(variables, sound, key)
        return 3 * lowered.cost_analysis()["flops"]

    if isinstance(spec, CaptionerSpec):

        def write(variables, key, sound, ids):
            keys = jax.random.split(key)
            (z, _), _ = dual.encode_audio(
                variables,
                sound,
                tags=captioner.no_tags(spec, 1),
                train=True,
                key=keys[0],
            )
            return dual.token_logits(variables, z, ids, train=True, key=keys[1])

        ids = jax.ShapeDtypeStruct((1, text_length or spec.text_length), jnp.int32)
        sound = zoo.example_sound(spec, clip_frames)
        lowered = jax.jit(write).lower(variables, key, sound, ids)
        return 3 * lowered.cost_analysis()["flops"]

    def hear(variables, key, sound):
        return dual.encode_audio(variables, sound, train=True, key=key)[0][0]

    def read(variables, key, ids, mask):
        return dual.encode_text(variables, ids, mask, train=True, key=key)[0][0]

    def flops(function, *inputs):
        lowered = jax.jit(function).lower(variables, key, *inputs)
        return lowered.cost_analysis()["flops"]

    sound, *text = zoo.examples(spec, text_length, clip_frames)
    segments, scores = 1, 1
    if spec.temporal:
        longest = spec.temporal.segments(spec.frontend.clip_seconds)
        segments = clip_segments or longest
        scores += 2 * segments * max(spec.temporal.sentences, 1)
    encoding = segments * flops(hear, sound) + flops(read, *text)
    return 3 * (encoding + 2.0 * batch_size * spec.embed_dim * scores)


def peak_flops(devices: list[jax.Device]) -> float:
    """FLOP/s of all `devices` together at best, in bfloat16 where they have it.

    From the table of chips; of a CPU what a float32 product of matrices reaches
    (virtual devices share one processor). NaN, with a warning, for any other device.
    """
    kind = devices[0].device_kind
    chip = chips.find(kind)
    if chip is not None:
        return chip.bf16_flops * len(devices)
    if devices[0].platform == "cpu":
        return _measured_flops() * jax.process_count()
    logging.warning(
        "clap_jax/chips.py has no row for %r: train/mfu is null without its rates",
        kind,
    )
    return math.nan


def _measured_flops() -> float:
    matrix = jnp.ones((MEASURED_ROWS, MEASURED_ROWS), jnp.float32)
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * MEASURED_ROWS**3 / min(seconds)


def memory_gib() -> float:
    """The most memory that a local device has had in use since the start, in GiB.

    On a CPU, whose devices have no memory of their own, that of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(found["peak_bytes_in_use"] for found in stats) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Meter:
    """Where the time goes between two lines of the log.

    batch_size: clips B of a step over all hosts. step: the one that the run starts at.
    peak: FLOP/s of all devices. pairs: whether clips are compared with texts.
    """

    def __init__(self, batch_size: int, step: int, peak: float, pairs: bool = True):
        self._batch_size, self._step = batch_size, step
        self._peak, self._pairs, self._clip_flops = peak, pairs, 0.0
        self._began, self._paused, self._waited = time.perf_counter(), 0.0, 0.0

    def paused(self) -> "_Clock":
        """Evaluations and saves are priced out of the throughput."""
        return _Clock(self, "_paused")

    def waiting(self) -> "_Clock":
        """Time in which the loop waits for data."""
        return _Clock(self, "_waited")

    def count(self, clip_flops: float) -> None:
        """A step that needs so many model FLOPs for each of its clips."""
        self._clip_flops += clip_flops

    def lap(self, step: int) -> dict[str, float]:
        """The figures since the last call.

        Clips a second; pairs a second, of clip and text that the loss compares (B * B
        a step); milliseconds a step; the share of time spent waiting for data; model
        FLOPs utilisation; memory.
        """
        now = time.perf_counter()
        seconds = max(now - self._began - self._paused, 1e-9)
        steps = step - self._step
        clips_per_s = steps * self._batch_size / seconds
        scalars = {
            "train/clips_per_s": clips_per_s,
            "train/step_ms": seconds / steps * 1e3,
            "train/data_wait_fraction": self._waited / seconds,
            "train/mfu": self._clip_flops * self._batch_size / seconds / self._peak,
            "train/device_memory_gib": memory_gib(),
        }
        if self._pairs:
            scalars["train/pairs_per_s"] = clips_per_s * self._batch_size
        self._began, self._paused, self._waited = now, 0.0, 0.0
        self._step, self._clip_flops = step, 0.0
        return scalars


class _Clock:
    def __init__(self, meter: Meter, name: str):
        self._meter, self._name = meter, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        seconds = time.perf_counter() - self._began
        setattr(self._meter, self._name, getattr(self._meter, self._name) + seconds)
