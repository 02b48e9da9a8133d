"""Batches for training, endless.

Training data is one endless sequence of examples, a function of the seed alone. A global
batch is the next so many of them, and each host makes its share of it. What is in a batch
therefore does not depend on how many hosts, worker processes or threads there are, and
the position in the sequence is all that a checkpoint needs.

`python -m clap_jax.pipeline.loader --measure --config=...` says how fast all this is.
"""

import runpy
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import logging

from clap_jax.pipeline import buckets, leftovers
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.decoder import Decoder, check_shard, put
from clap_jax.pipeline.labels import Targets
from clap_jax.pipeline.ops import (
    Clip,
    Clips,
    Prepare,
    draw_caption,
    example_generator,
)
from clap_jax.pipeline.order import POOL_BLOCKS, Order
from clap_jax.pipeline.segments import Segmenter
from clap_jax.pipeline.sources import Source
from clap_jax.pipeline.together import Together
from clap_jax.text import sections
from clap_jax.text.sentences import Sentences
from clap_jax.text.tokenize import Tokenizer

# Batches that are put together at a time: the next one begins while the last clips of
# this one are still being decoded.
BATCHES_AT_A_TIME = 2

# No run comes to so many examples.
ENDLESS = 2**62


def train_dataset(
    sources: Sequence[tuple[Source, float | None]],
    prepare: Prepare,
    tokenizer: Tokenizer | Sentences | None,
    *,
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    rows: Sequence[int] | None = None,
    threads: int = 4,
    workers: int = 0,
    prefetch: int = 4,
    read_together: int = 1,
    targets: Targets | Answers | None = None,
    text_tokens: Sequence[int] = (),
    clip_frames: Sequence[int] = (),
    agree: Callable[[int], int] | None = None,
) -> "TrainDataset":
    """Endless, shuffled, checkpointable batches.

    sources: with their weights in the mixture. All None or 0: every clip is used once an
        epoch. Else all positive: each source is reshuffled whenever it is used up.
    batch_size: examples B of this host's batches; shard: (index, count) of the hosts.
    rows: those of the global batch that this host makes; None: one block, by its index.
    threads: clips decoded at a time in each process; 0 makes batches when asked for.
    workers: processes that make batches, 0 for threads in this one. Each has its own
        cache. Grain starts them only where absl has parsed its flags, as `clap_jax.main`
        does. prefetch: batches made ahead, by each worker.
    read_together: G > 1: blocks of G neighbours are shuffled, and the clips of every
        POOL_BLOCKS such blocks among each other; sources that can (tar shards,
        ArrayRecord) read a block by one request. Each host and each worker process
        reads the blocks that its own clips are in, so that requests fall by G where
        POOL_BLOCKS * G clips are few beside its part of a batch, or where it is alone.
    targets: when given, a batch has the labels of clips, or answers (see there), in
        place of `ids` and `mask` of captions, and needs no tokenizer.
    text_tokens, clip_frames: lengths of texts below the tokenizer's, and of whole clips
        below that of a training crop; a batch has the shortest that holds all of the
        global batch, of long clips the least of the segmenter's counts. See
        `buckets.Texts`, and `buckets.Fit` for agree.

    A batch is a dict: `mel` float16 [B, N, F] or `wave` int16 [B, T]; `ids` int32 [B, L]
    and `mask` bool [B, L] of a caption drawn from the clip's; `group` int32 [B], equal
    for positives of each other; `bad` bool [B], the clip was damaged and its place was
    taken by the next sound one (with that one's caption or answer, cut where
    `text_tokens` leave it too little room). For a front end with views, `mel` is
    [B, 4, N, F], and `longer` bool [B] says which clips are longer than the window; for
    one of whole clips, `frames` int32 [B] says how many frames of `mel` belong to the
    clip. In segments (see `segments.Segmenter`), `wave` is [B, S, T], with `seconds`
    float32 [B, S, 2], `heard` bool [B, S] and `start_seconds` float32 [B]; of a
    tokenizer that knows of sentences, `spans` int32 [B, M, 2].
    Raises ValueError: too few clips for a batch, weights or names that make no sense.
    """
    if min(batch_size, prefetch) < 1 or min(threads, workers) < 0:
        raise ValueError(
            f"batch_size {batch_size} and prefetch {prefetch} must be 1 or more, "
            f"threads {threads} and workers {workers} 0 or more"
        )
    check_shard(shard)
    if not prepare.random_crop:
        raise ValueError("training takes a Prepare with random_crop=True")
    names = [source.name for source, _ in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are named {name!r}: give each its own name")
    order = Order(
        [len(source) for source, _ in sources],
        [weight for _, weight in sources],
        names,
        [source.digest() for source, _ in sources],
        seed,
        read_together,
    )
    if len(sources) > 1:
        logging.info("mixture: %s", order.mixture())
    global_batch = batch_size * shard[1]
    if order.examples < global_batch:
        raise ValueError(
            f"{order.examples} clips in {', '.join(names)} do not fill one global batch "
            f"of {global_batch}: lower the batch size or add clips"
        )
    clips = [Clips(source, prepare) for source, _ in sources]
    if rows is None:
        rows = range(shard[0] * batch_size, (shard[0] + 1) * batch_size)
    if len(rows) != batch_size or not 0 <= min(rows) <= max(rows) < global_batch:
        raise ValueError(
            f"rows are {list(rows)}, expected {batch_size} numbers below {global_batch}"
        )
    texts = None
    if not isinstance(targets, Targets):
        tokens = tokenizer if targets is None else targets.writer
        texts = buckets.Texts(tokens, text_tokens, global_batch, rows)
    batches = TrainBatches(clips, order, texts, global_batch, rows, threads, targets)
    lengths = ()
    if prepare.segmenter is not None:
        lengths = prepare.segmenter.counts
    elif prepare.frontend.whole_clip:
        lengths = buckets.lengths(clip_frames, prepare.frontend.clip_frames)
    fit = buckets.Fit(lengths, agree) if len(lengths) > 1 else None
    return TrainDataset(batches, threads, workers, prefetch, fit)


class TrainBatches:
    """Makes the batch that starts at any place of the sequence of examples."""

    def __init__(
        self,
        clips: Sequence[Clips],
        order: Order,
        texts: buckets.Texts | None,
        global_batch: int,
        rows: Sequence[int],
        threads: int,
        targets: Targets | Answers | None = None,
    ):
        self.order, self.global_batch = order, global_batch
        self._clips, self._texts, self._targets = clips, texts, targets
        self._rows, self._batch_size = tuple(rows), len(rows)
        self._decoder = Decoder(threads)
        size, self._together = order.read_together, None
        if size > 1:
            at_a_time = BATCHES_AT_A_TIME * (len(rows) // size + 1)
            kept = 2 * (POOL_BLOCKS * len(clips) + at_a_time)
            self._together = Together(clips, size, kept)

    def __call__(self, first_draw: int) -> dict[str, np.ndarray]:
        """This host's part of the global batch that starts at `first_draw`."""
        draws = [int(first_draw) + row for row in self._rows]
        places = [self.order(draw) for draw in draws]
        found = self._fetch(places)

        prepare = self._clips[0].prepare
        batch = prepare.blank(self._batch_size)
        if self._texts is None:
            batch |= self._targets.blank(self._batch_size)
        group = np.empty(self._batch_size, np.int32)
        texts, told, beside = [], [], []
        for row, (draw, (which, _), clip) in enumerate(zip(draws, places, found)):
            source = self._clips[which].source
            rng = example_generator(self.order.seed, draw)
            if self._texts is None:
                self._targets.put(batch, row, which, source.tags(clip.index))
            else:
                texts.append(self._text(which, clip.index, rng))
                if self._targets is not None:
                    beside.append(self._targets.beside(source, clip.index, rng))
            example = prepare.example(clip.whole, rng)
            put(batch, row, example)
            if prepare.segmenter is not None and self._targets is None:
                told.append(_of_part(prepare.segmenter, clip.whole, example, texts[-1]))
            group[row] = group_number(source.name, source.group(clip.index))
        bad = np.array([clip.bad for clip in found])
        if self._texts is not None:
            text_of = partial(self._text_of, int(first_draw))
            told = told or texts
            reckoned = None if told == texts else texts
            batch |= self._texts(told, bad, text_of, reckoned)
            for name in beside[0] if beside else ():
                batch[name] = np.stack([row[name] for row in beside])
        return batch | {"group": group, "bad": bad}

    def _text(self, which: int, index: int, rng: np.random.Generator) -> Any:
        """A caption of a clip, or a prompt and the answer to it, drawn from `rng`."""
        source = self._clips[which].source
        if self._targets is None:
            return draw_caption(source, index, rng)
        return self._targets.draw(which, source, index, rng)

    def _text_of(self, first_draw: int, row: int) -> Any:
        """What a row of the global batch has for a text if its clip is sound."""
        draw = first_draw + row
        return self._text(*self.order(draw), example_generator(self.order.seed, draw))

    def _fetch(self, places: list[tuple[int, int]]) -> list[Clip]:
        """Clips in the order of `places`; those that take work, in threads."""
        found = [self._clips[which].cached(index) for which, index in places]
        missing = [row for row, clip in enumerate(found) if clip is None]
        reads = [None] * len(missing)
        if self._together is not None:
            wanted = [places[row] for row in missing]
            reads = self._together.start(wanted, self._decoder.start)
        results = [
            self._decoder.start(self._clips[places[row][0]].fetch, places[row][1], read)
            for row, read in zip(missing, reads, strict=True)
        ]
        for row, result in zip(missing, results, strict=True):
            found[row] = result()
        return found


def _of_part(
    segmenter: Segmenter, whole: np.ndarray, example: dict[str, Any], text: str
) -> str:
    """What is true of the part of a clip that is heard: a caption without the sections
    beyond it, times counted from where it begins. A caption of which nothing would be
    left stays as it is."""
    duration_seconds = segmenter.seconds(whole)
    start_seconds = float(example["start_seconds"])
    end_seconds = start_seconds + float(example["seconds"][-1, 1])
    if end_seconds - start_seconds > duration_seconds - 1e-3:
        return text
    end_seconds = min(end_seconds, duration_seconds)
    return sections.within(text, start_seconds, end_seconds, duration_seconds) or text


def batch_fields(
    prepare: Prepare,
    text_length: int,
    targets: Targets | Answers | None = None,
    sentences: int = 0,
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape (of one row) and dtype of everything in a training batch, by its name.

    sentences: M, of texts with spans; 0: they have none.
    """
    named = {
        "ids": ((text_length,), np.dtype(np.int32)),
        "mask": ((text_length,), np.dtype(bool)),
    }
    if sentences:
        named["spans"] = ((sentences, 2), np.dtype(np.int32))
    named = named if targets is None else targets.fields
    rest = {"group": ((), np.dtype(np.int32)), "bad": ((), np.dtype(bool))}
    return prepare.fields | named | rest


def group_number(source: str, group: str) -> int:
    """A group as 31 bits; groups of different sources are different groups."""
    return zlib.crc32(f"{source}/{group}".encode()) & 0x7FFFFFFF


class TrainDataset(grain.IterDataset):
    """The endless sequence of batches; every iterator over it starts at the beginning."""

    def __init__(
        self,
        batches: TrainBatches,
        threads: int,
        workers: int,
        prefetch: int,
        fit: buckets.Fit | None = None,
    ):
        super().__init__()
        self.batches, self.fit = batches, fit
        self._threads, self._workers, self._prefetch = threads, workers, prefetch

    def __iter__(self) -> "TrainIterator":
        return TrainIterator(self)

    def __str__(self) -> str:
        return f"TrainDataset({'; '.join(self.batches.order.fingerprint())})"

    def starting_at(self, draw: int) -> grain.DatasetIterator:
        """Grain's iterator over the batches from example `draw` on."""
        options = grain.ReadOptions(
            num_threads=BATCHES_AT_A_TIME if self._threads else 0,
            prefetch_buffer_size=self._prefetch if self._threads else 0,
        )
        dataset = grain.MapDataset.range(draw, ENDLESS, self.batches.global_batch)
        dataset = dataset.map(self.batches).to_iter_dataset(options)
        if self._workers:
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=self._prefetch
                )
            )
        return iter(dataset)


class TrainIterator(grain.DatasetIterator):
    """Batches in order, and the place in the sequence as a state of two entries.

    The state says nothing of threads, workers, hosts or batch size, so that a run can go
    on with others; it does say which sequence it is a place in.
    """

    def __init__(self, dataset: TrainDataset):
        super().__init__()
        self._dataset, self._next_draw = dataset, 0
        self._inner: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        self.start_prefetch()
        batch = next(self._inner)
        leftovers.remember(batch)
        self._next_draw += self._dataset.batches.global_batch
        return batch if self._dataset.fit is None else self._dataset.fit(batch)

    def __str__(self) -> str:
        return f"TrainIterator({self._dataset})"

    def start_prefetch(self) -> None:
        """Begin to make batches before the first is asked for."""
        if self._inner is None:
            leftovers.watch(self)
            self._inner = self._dataset.starting_at(self._next_draw)
            self._inner.start_prefetch()

    def get_state(self) -> dict[str, Any]:
        """The next example's place, and the sequence it is a place in (JSON values)."""
        order = self._dataset.batches.order
        return {"next_draw": self._next_draw, "sequence": order.fingerprint()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where `get_state` was called. ValueError for another sequence's state."""
        expected, found = self._dataset.batches.order.fingerprint(), state["sequence"]
        if found != expected:
            was = "; ".join(line for line in found if line not in expected)
            now = "; ".join(line for line in expected if line not in found)
            same = "the same sources in another order"
            raise ValueError(
                f"the checkpoint was trained on other data: on {was or same}, and the "
                f"config gives {now or same}. Give the same data.sources and train.seed "
                "with this workdir, or another --workdir (with init_from, to start from "
                "these weights)"
            )
        self._stop()
        self._next_draw = int(state["next_draw"])

    def close(self) -> None:
        """Stop threads and workers."""
        if not self._closed:
            self._stop()
            self._closed = True

    def _stop(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None


if __name__ == "__main__":
    # A config names its front end by its model, which this layer does not know.
    runpy.run_module("clap_jax.train.measure", run_name="__main__")
