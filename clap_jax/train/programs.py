"""The compiled steps of a run: one program for each length of its batches."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.evals import hear
from clap_jax.models import spec as spec_lib
from clap_jax.pipeline import buckets

Batch = dict[str, Any]

STEPS_AHEAD = 2
"""So many steps may wait for the devices, which are then never idle."""


class Lengths(NamedTuple):
    """How long a batch is, which its program is for.

    tokens: L of the texts, 0 where there are none. frames: N of the mels where clips
    are whole, else 0. segments: S of long clips, else 0.
    """

    tokens: int
    frames: int = 0
    segments: int = 0

    def __str__(self) -> str:
        texts = f"{self.tokens} tokens" if self.tokens else ""
        clips = f"{self.frames} frames" if self.frames else ""
        clips = f"{self.segments} segments" if self.segments else clips
        return " and ".join(filter(None, (texts, clips))) or "clips of one length"


def of_batch(batch: Batch) -> Lengths:
    """The lengths of a batch of arrays, or of their shapes."""
    frames = batch["mel"].shape[1] if "frames" in batch else 0
    tokens = batch["ids"].shape[1] if "ids" in batch else 0
    segments = batch["seconds"].shape[1] if "seconds" in batch else 0
    return Lengths(tokens, frames, segments)


class Choice(NamedTuple):
    """The lengths that batches may have: of texts, and of whole clips or long ones.

    Rising, the full length last; frames and segments are empty where all clips have one
    length.
    """

    tokens: tuple[int, ...]
    frames: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()

    @property
    def programs(self) -> int:
        """How many programs there may be: one for each pair of lengths."""
        clips = max(len(self.frames), len(self.segments), 1)
        return len(self.tokens) * clips


def choose(config: ConfigDict, spec: Any) -> Choice:
    """What `data.text_buckets` and `data.audio_buckets` come to for a model.

    Only the full length where padding counts for the model's towers.
    Raises ConfigError for lengths that cannot be.
    """
    tokens, seconds = check(config)
    texts = tokens if spec_lib.pads_texts_freely(spec) else ()
    front, frames, segments = spec.frontend, (), ()
    if cutter := hear.segmenter(spec, seconds):
        segments = cutter.counts
    elif front.whole_clip:
        shorter = [front.frames(round(length * front.rate_hz)) for length in seconds]
        clips = shorter if spec_lib.pads_clips_freely(spec) else ()
        frames = buckets.lengths(clips, front.clip_frames)
    full = getattr(spec, "text_length", 0)
    return Choice(buckets.lengths(texts, full), frames, segments)


def check(config: ConfigDict) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The buckets of a config, in tokens and in seconds.

    Raises ConfigError where they cannot be.
    """
    tokens = config_lib.plain(config.data.text_buckets)
    seconds = config_lib.plain(config.data.audio_buckets)
    for key, values, kind, expected in (
        ("text_buckets", tokens, int, "numbers of tokens, 1 or more"),
        ("audio_buckets", seconds, int | float, "seconds, more than 0"),
    ):
        is_known = isinstance(values, tuple) and all(
            isinstance(value, kind) and not isinstance(value, bool) and value > 0
            for value in values
        )
        if not is_known:
            raise config_lib.ConfigError(
                f"data.{key} is {values!r}, expected {expected}, or () for one length"
            )
    return tokens, seconds


class Programs:
    """A step as it is called, `(state, batch) -> state`, compiled once for each length.

    make: gives the program for batches of such shapes, and the model FLOPs of a clip in
    them. Before a batch of new lengths comes to be called, `prepare` it.
    """

    def __init__(self, make: Callable[[Batch], tuple[jax.stages.Compiled, float]]):
        self._make = make
        self._made: dict[Lengths, tuple[jax.stages.Compiled, float]] = {}

    def __call__(self, state: Any, batch: Batch) -> Any:
        return self._made[of_batch(batch)][0](state, batch)

    @property
    def count(self) -> int:
        """How many there are by now."""
        return len(self._made)

    def ready(self, batch: Batch) -> bool:
        """Whether there is a program for batches as long as this one."""
        return of_batch(batch) in self._made

    def prepare(self, batch: Batch) -> None:
        """Compile for batches of such shapes."""
        self._made[of_batch(batch)] = self._make(batch)

    def clip_flops(self, batch: Batch) -> float:
        """Model FLOPs that a step needs for a clip of such a batch."""
        return self._made[of_batch(batch)][1]


class Ahead:
    """Keeps the host from running away from the devices, for which it never waits by
    itself: batches would pile up, and a run that is told to end would first have to
    make all steps until the next line of the log."""

    def __init__(self):
        self._marks: deque[jax.Array] = deque()
        self._mark = jax.jit(jnp.copy)  # that no later step takes the memory of

    def wait(self, number: jax.Array) -> None:
        """number: an array of the state after the newest step. Returns once no more
        than `STEPS_AHEAD` steps are under way."""
        self._marks.append(self._mark(number))
        if len(self._marks) > STEPS_AHEAD:
            jax.block_until_ready(self._marks.popleft())
