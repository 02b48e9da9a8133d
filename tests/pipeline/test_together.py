"""Neighbours that are read together: their order, and how many requests they take."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.pipeline import loader
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.order import POOL_BLOCKS, Blocks, Order, Shuffle
from tests.pipeline.clips import FRONTEND, TinySource, make_tokenizer


class Together(TinySource):
    """Counts requests: one for each clip that is asked for alone, or for each block."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.requests = []

    def __getitem__(self, index):
        self.requests.append([index])
        return super().__getitem__(index)

    def read(self, indices):
        self.requests.append(list(indices))
        damaged = io.AudioError("damaged record")
        return [
            damaged
            if isinstance(self.broken.get(i), str)
            else TinySource.__getitem__(self, i)
            for i in indices
        ]

    def __reduce__(self):
        return type(self), (self.count, self.name, self.broken)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def take(tokenizer):
    """The first batches of a training set."""
    opened = []

    def batches(sources, count, state=None, cache_gib=0.0, **options):
        options = {"batch_size": 8, "seed": 0, "threads": 2, "prefetch": 2} | options
        pairs = [(source, None) for source in sources]
        prepare = Prepare(FRONTEND, cache_gib=cache_gib)
        dataset = loader.train_dataset(pairs, prepare, tokenizer, **options)
        iterator = iter(dataset)
        opened.append(iterator)
        if state is not None:
            iterator.set_state(state)
        return iterator, list(itertools.islice(iterator, count))

    yield batches
    for iterator in opened:
        iterator.close()


def all_same(ones, twos):
    for one, two in zip(ones, twos, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


# --- the order ---


@pytest.mark.parametrize("lengths", [[64], [7], [100, 3, 41], [16, 16]])
@pytest.mark.parametrize("size", [2, 5, 16])
def test_every_clip_once_an_epoch(lengths, size):
    blocks, total = Blocks(lengths, size, (3, 0)), sum(lengths)
    epochs = [
        [blocks(number) for number in range(total * epoch, total * (epoch + 1))]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert total < 10 or epochs[0] != epochs[1] != epochs[2] != list(range(total))


def test_random_access_gives_the_same():
    blocks, total = Blocks([100, 41], 4, (3, 0)), 141
    wanted = [blocks(number) for number in range(5 * total)]
    other = Blocks([100, 41], 4, (3, 0))
    numbers = np.random.default_rng(0).permutation(5 * total)
    assert [other(int(number)) for number in numbers] == [wanted[n] for n in numbers]
    assert [Blocks([100, 41], 4, (4, 0))(n) for n in range(141)] != wanted[:141]


def test_pools_are_made_of_whole_blocks():
    size, total = 4, 4 * POOL_BLOCKS * 6
    blocks, pool = Blocks([total], size, (0, 0)), size * POOL_BLOCKS
    order = [blocks(number) for number in range(total)]
    pools = [order[start : start + pool] for start in range(0, total, pool)]
    for clips in pools:
        assert Counter(clip // size for clip in clips) == dict.fromkeys(
            {clip // size for clip in clips}, size
        )
        # Shuffled within: neighbours do not follow each other as they lie.
        steps = np.diff(clips)
        assert np.mean(steps == 1) < 0.3
    assert len({min(clips) for clips in pools}) == 6


def test_blocks_do_not_cross_sources():
    order = Order([10, 9], [None, None], ["a", "b"], ["", ""], 0, read_together=4)
    drawn = [order(number) for number in range(19)]
    assert sorted(drawn) == [(0, n) for n in range(10)] + [(1, n) for n in range(9)]


def test_one_by_one_is_as_it_was():
    arguments = ([30, 12], [None, None], ["a", "b"], ["x", "y"], 5)
    one, plain = Order(*arguments, read_together=1), Shuffle(42, (5, 0))
    places = [plain(number) for number in range(100)]
    assert [one(n) for n in range(100)] == [(int(p >= 30), p % 30) for p in places]
    assert one.fingerprint() == Order(*arguments).fingerprint()
    assert one.fingerprint()[-1] == "seed 5"
    more = Order(*arguments, read_together=16).fingerprint()
    assert more == [*one.fingerprint()[:-1], "16 neighbours read together", "seed 5"]
    with pytest.raises(ValueError, match="data.read_together is 0, expected 1 or more"):
        Order(*arguments, read_together=0)


# --- batches ---


def test_requests_fall_by_the_size_of_a_block(take):
    source, single = Together(256), Together(256)
    _, together = take([source], 96, read_together=8, threads=0)
    take([single], 96, threads=0)
    assert len(single.requests) == 768
    # Three epochs of 32 blocks, each read once, whole and in order.
    assert len(source.requests) == 96
    assert all(len(request) == 8 for request in source.requests)
    assert all(np.all(np.diff(request) == 1) for request in source.requests)
    groups = Counter(group for batch in together for group in batch["group"].tolist())
    assert len(groups) == 256 and set(groups.values()) == {3}


def test_same_bits_however_it_is_read(take):
    options = {"read_together": 4}
    plain = [TinySource(50)]  # cannot read several at once
    _, wanted = take(plain, 20, **options)
    for others in ({}, {"threads": 0}, {"threads": 5, "prefetch": 5}):
        all_same(wanted, take([Together(50)], 20, **options, **others)[1])
    all_same(wanted, take([Together(50)], 20, cache_gib=1e-4, **options)[1])
    for hosts in (2, 4):
        parts = [
            take(
                [Together(50)],
                20,
                batch_size=8 // hosts,
                shard=(host, hosts),
                **options,
            )[1]
            for host in range(hosts)
        ]
        joined = [
            {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
            for shares in zip(*parts, strict=True)
        ]
        all_same(wanted, joined)


def test_it_goes_on_where_it_stopped(take):
    options = {"read_together": 4}
    iterator, _ = take([Together(50)], 5, **options)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = list(itertools.islice(iterator, 6))
    all_same(wanted, take([Together(50)], 6, state, **options)[1])
    message = "on 4 neighbours read together, and the config gives 2 neighbours read"
    with pytest.raises(ValueError, match=re.escape(message)):
        take([Together(50)], 1, state, read_together=2)


def test_damaged_clips_of_a_block_are_replaced(take):
    source = Together(24, broken={3: "record", 9: np.zeros(0)})
    _, batches = take([source], 6, read_together=4)
    assert sum(batch["bad"].sum() for batch in batches) == 4
    known = {loader.group_number("tiny", f"clip{i}"): i for i in range(24)}
    clips = Counter(known[g] for batch in batches for g in batch["group"].tolist())
    assert clips[4] == 4 and clips[10] == 4 and not {3, 9} & set(clips)
