"""Every clip once and in order, for evaluation: in padded batches, or as it is."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from clap_jax.audio import io
from clap_jax.pipeline.decoder import Decoder, check_shard, put
from clap_jax.pipeline.ops import Clips, Prepare, example_generator
from clap_jax.pipeline.sources import Source


def batches(
    source: Source,
    prepare: Prepare,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 4,
    crop_seed: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every clip once and in order, in full batches, as many on each host.

    batch_size: rows B of this host's batches; shard: (index, count) of the hosts.
    crop_seed: goes with a Prepare of random crops, for those who evaluate as some
        references do; a clip's crops depend on this number and the clip's index.
    Yields `mel` float16 [B, N, F] or `wave` int16 [B, T], `longer` as in training;
    `index` int32 [B], the clip's, -1 in rows that only fill up; `valid` bool [B], False
    in those and for clips that cannot be read (zeros, both). A batch is decoded while
    the one before it is in use.
    """
    if prepare.frontend.whole_clip:
        raise ValueError("whole clips have no common length: use clips_of")
    parts = clips_of(source, prepare, batch_size, shard, threads, crop_seed)
    return (_batch(prepare, *part) for part in parts)


def clips_of(
    source: Source,
    prepare: Prepare,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 4,
    crop_seed: int | None = None,
) -> Iterator[tuple[np.ndarray, list[dict[str, Any] | None]]]:
    """Every clip once and in order, as `Prepare.example` gives it, in equal lists.

    Arguments and `index` are those of `batches`; the clips that come with it are
    None in rows that only fill up and for clips that cannot be read.
    """
    if prepare.random_crop != (crop_seed is not None):
        raise ValueError(
            "evaluation takes a Prepare with random_crop=False, or else a crop_seed"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    check_shard(shard)
    load = partial(_load, Clips(source, prepare), crop_seed)
    return _in_lists(len(source), load, batch_size, shard, threads)


def _in_lists(
    size: int, load: Callable, batch_size: int, shard: tuple[int, int], threads: int
) -> Iterator[tuple[np.ndarray, list[dict[str, Any] | None]]]:
    decoder, pending = Decoder(threads), deque()
    count = -(-size // (batch_size * shard[1]))
    for batch in range(count + 1):
        if batch < count:
            start = (batch * shard[1] + shard[0]) * batch_size
            index = np.arange(start, start + batch_size, dtype=np.int32)
            index[index >= size] = -1
            pending.append((index, [decoder.start(load, int(i)) for i in index]))
        if batch > 0:
            index, results = pending.popleft()
            yield index, [result() for result in results]


def _load(clips: Clips, crop_seed: int | None, index: int) -> dict[str, Any] | None:
    if index < 0:
        return None
    try:
        whole = clips.load(index)
    except io.AudioError:
        return None
    rng = None if crop_seed is None else example_generator(crop_seed, index)
    return clips.prepare.example(whole, rng)


def _batch(
    prepare: Prepare, index: np.ndarray, clips: list[dict[str, Any] | None]
) -> dict[str, np.ndarray]:
    batch, valid = prepare.blank(len(index)), np.zeros(len(index), bool)
    for row, clip in enumerate(clips):
        if clip is not None:
            put(batch, row, clip)
            valid[row] = True
    return batch | {"valid": valid, "index": index}
