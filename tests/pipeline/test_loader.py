"""Batches: what is in them, in which order, and going on where one stopped."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from absl import flags

from clap_jax.audio import frontend
from clap_jax.pipeline import loader, once
from clap_jax.pipeline import order as order_lib
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.order import Order
from tests.pipeline.clips import FRONTEND, TinySource, make_tokenizer, write_table


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def train(tokenizer):
    """Make a data set; its iterators are closed at the end."""
    iterators = []

    def make(sources, batch_size=8, cache_gib=0.0, mel="host", iterate=True, **options):
        if not isinstance(sources, list):
            sources = [(sources, None)]
        options = {"seed": 0, "threads": 2, "prefetch": 2} | options
        prepare = Prepare(FRONTEND, mel=mel, cache_gib=cache_gib)
        dataset = loader.train_dataset(
            sources, prepare, tokenizer, batch_size=batch_size, **options
        )
        if not iterate:
            return dataset
        iterators.append(iter(dataset))
        return iterators[-1]

    yield make
    for iterator in iterators:
        iterator.close()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].dtype == two[key].dtype
        np.testing.assert_array_equal(one[key], two[key])


def all_same(ones, twos):
    for one, two in zip(ones, twos, strict=True):
        same(one, two)


def numbers(batches, source=None):
    """Which clips of a TinySource the batches hold, by their groups."""
    source = source or TinySource(100)
    known = {loader.group_number(source.name, f"clip{i}"): i for i in range(100)}
    return [known[group] for batch in batches for group in batch["group"].tolist()]


# --- what is in a batch ---


def test_shapes_and_dtypes(train):
    (batch,) = take(train(TinySource(20)), 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "mel": ((8, 26, 16), "float16"),
        "ids": ((8, 16), "int32"),
        "mask": ((8, 16), "bool"),
        "group": ((8,), "int32"),
        "bad": ((8,), "bool"),
    }
    (batch,) = take(train(TinySource(20), mel="device"), 1)
    assert batch["wave"].shape == (8, 2000) and batch["wave"].dtype == np.int16


def test_captions_and_audio_belong_together(train, tokenizer):
    source = TinySource(20, broken={3: np.zeros(0), 4: np.zeros(0), 11: np.zeros(1)})
    batches = take(train(source, mel="device"), 10)
    bad = 0
    for batch in batches:
        for row, clip in enumerate(numbers([batch])):
            assert clip not in source.broken
            text = tokenizer.tokenizer.decode(batch["ids"][row][batch["mask"][row]])
            text = text.removeprefix("<s>").removesuffix("</s>").strip()
            assert text in source.captions(clip)
            # The pitch of the tone tells the clip.
            power = np.abs(np.fft.rfft(batch["wave"][row])) ** 2
            pitch_hz = np.fft.rfftfreq(2000, 1 / 8000)[power.argmax()]
            assert round((pitch_hz - 200) / 37) == clip
            bad += batch["bad"][row]
    # Each of the 20 clips came four times, three of them were replaced.
    assert bad == 12
    assert Counter(numbers(batches))[5] == 12 and Counter(numbers(batches))[12] == 8


def test_all_captions_and_many_crops_are_used(train):
    batches = take(train(TinySource(8)), 20)
    texts = {row.tobytes() for batch in batches for row in batch["ids"]}
    assert len(texts) == 16
    mels = {row.tobytes() for batch in batches for row in batch["mel"]}
    assert len(mels) > 80


# --- the order ---


def test_every_clip_once_an_epoch_in_a_new_order(train):
    epochs = [numbers(take(iterator, 3)) for iterator in [train(TinySource(24))] * 3]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(24))
    assert numbers(take(train(TinySource(24), seed=1), 3)) != epochs[0]


def test_epochs_run_on_across_batches(train):
    clips = numbers(take(train(TinySource(10)), 5))
    assert all(count == 4 for count in Counter(clips).values())


def test_sources_without_weights_are_shuffled_together(train):
    sources = [(TinySource(6, "a"), None), (TinySource(18, "b"), 0.0)]
    groups = [g for batch in take(train(sources), 3) for g in batch["group"].tolist()]
    assert len(set(groups)) == 24


def test_weights_are_met():
    order = Order([5, 1000, 7], [3, 1, 0.5], ["a", "b", "c"], ["", "", ""], 0)
    draws = [order(n) for n in range(9 * 400)]
    counts = Counter(which for which, _ in draws)
    shares = np.array([counts[which] / len(draws) for which in range(3)])
    np.testing.assert_allclose(shares, np.array([3, 1, 0.5]) / 4.5, atol=2e-3)
    # Any stretch is mixed, and every clip of a source comes before one comes again.
    for start in range(0, 3000, 100):
        assert len({which for which, _ in draws[start : start + 12]}) == 3
    first = [index for which, index in draws if which == 0]
    assert all(sorted(first[n : n + 5]) == list(range(5)) for n in range(0, 500, 5))
    assert len({tuple(first[n : n + 5]) for n in range(0, 500, 5)}) > 30


def test_tiny_weights_are_not_lost():
    order = Order([5, 5], [1, 1e-9], ["a", "b"], ["", ""], 0)
    assert {order(n)[0] for n in range(20_000)} == {0, 1}


SIZES = {"small": 16, "middle": 100, "large": 1600}


def mixed(temperature, weights=(None, None, None)):
    """Weights that a temperature makes, by name."""
    sources = [TinySource(count, name) for name, count in SIZES.items()]
    pairs = order_lib.mix(list(zip(sources, weights, strict=True)), temperature)
    assert [source for source, _ in pairs] == sources
    return {source.name: weight for source, weight in pairs}


@pytest.mark.parametrize(
    "temperature, weights, expected",
    [
        (1, (None, 0, None), [16, 100, 1600]),
        (2, (None, None, None), [4, 10, 40]),
        (2, (5, None, 0.5), [20, 10, 20]),
        (0.5, (None, None, None), [16**2, 100**2, 1600**2]),
        (1e9, (1, 1, 2), [1, 1, 2]),
    ],
)
def test_temperature_makes_shares_of_sizes(temperature, weights, expected):
    found = list(mixed(temperature, weights).values())
    np.testing.assert_allclose(found, np.array(expected) / sum(expected), rtol=1e-6)


def test_no_temperature_leaves_weights_alone():
    assert list(mixed(0, (None, 0.0, 3.0)).values()) == [None, 0.0, 3.0]
    # However low, the smallest source keeps a share.
    assert all(0 < weight <= 1 for weight in mixed(0.01).values())
    with pytest.raises(ValueError, match="weight of source 'small' is -1, expected 0"):
        mixed(1, (-1, None, None))


def test_mixture_comes_out_as_it_is_said(train, caplog):
    sources = [(TinySource(16, "a"), None), (TinySource(64, "b"), None)]
    with caplog.at_level("INFO", logger="absl"):
        dataset = train(order_lib.mix(sources, 2), iterate=False)
    said = (
        "mixture: a 33.33% (16 clips, each 1.67 times in an epoch), "
        "b 66.67% (64 clips, each 0.833 times in an epoch)"
    )
    assert said in caplog.text
    order = dataset.batches.order
    which = [order(n)[0] for n in range(3000)]
    assert which.count(0) == 1000
    again = train(order_lib.mix(sources, 2), iterate=False).batches.order
    assert again.fingerprint() == order.fingerprint()
    assert [again(n) for n in range(500)] == [order(n) for n in range(500)]
    # Another temperature is another sequence, which a run does not go on with.
    other = train(order_lib.mix(sources, 3), iterate=False).batches.order
    assert other.fingerprint() != order.fingerprint()


def test_mixture_of_sources_shuffled_together_is_by_size():
    order = Order([10, 30], [None, None], ["a", "b"], ["", ""], 0)
    assert order.mixture() == (
        "a 25.00% (10 clips, each 1 times in an epoch), "
        "b 75.00% (30 clips, each 1 times in an epoch)"
    )


def test_hosts_share_one_global_batch(train):
    source = TinySource(30)
    whole = take(train(source, batch_size=12), 5)
    for hosts in (2, 3):
        parts = [
            take(train(source, batch_size=12 // hosts, shard=(host, hosts)), 5)
            for host in range(hosts)
        ]
        for batch, *shares in zip(whole, *parts, strict=True):
            joined = {
                key: np.concatenate([share[key] for share in shares]) for key in batch
            }
            same(batch, joined)


def test_a_host_may_make_any_rows(train):
    """Those that live on its devices."""
    source = TinySource(30)
    whole = take(train(source, batch_size=8), 3)
    rows = [0, 1, 4, 5]
    part = take(train(source, batch_size=4, shard=(1, 2), rows=rows), 3)
    for batch, share in zip(whole, part, strict=True):
        same({key: value[rows] for key, value in batch.items()}, share)
    for wrong in ([0, 1, 4], [0, 1, 4, 8]):
        with pytest.raises(ValueError, match="expected 4 numbers below 8"):
            train(source, batch_size=4, shard=(0, 2), rows=wrong)


# --- speed changes nothing ---


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": 1, "prefetch": 1},
        {"threads": 5, "prefetch": 7},
        {"cache_gib": 0.001},
        {"cache_gib": 1e-5},
    ],
)
def test_same_bits_however_it_is_run(train, options):
    source = TinySource(20, broken={3: np.zeros(0)})
    all_same(take(train(source), 6), take(train(source, **options), 6))


def test_same_bits_with_worker_processes(train, tmp_path):
    flags.FLAGS.mark_as_parsed()
    source = ManifestSource(write_table(tmp_path, 20))
    wanted = take(train(source), 6)
    iterator = train(source, workers=2)
    all_same(wanted[:3], take(iterator, 3))
    state = iterator.get_state()
    iterator.close()
    # Go on with another number of workers: none.
    iterator = train(source)
    iterator.set_state(state)
    all_same(wanted[3:], take(iterator, 3))


def test_cached_clips_are_not_read_again(train):
    source = TinySource(16)
    # One batch at a time: two would both read a clip that both need.
    take(train(source, cache_gib=0.001, threads=0), 10)
    assert source.reads == 16


# --- going on ---


def test_state_gives_exactly_the_next_batch(train):
    source = TinySource(20)
    iterator = train(source)
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = take(iterator, 4)

    fresh = train(source, threads=1, prefetch=5)
    fresh.set_state(state)
    assert fresh.get_state() == state
    all_same(wanted, take(fresh, 4))
    fresh.set_state(state)
    all_same(wanted, take(fresh, 4))
    # With half the batch, the same examples come in twice as many batches.
    half = train(source, batch_size=4)
    half.set_state(state)
    assert numbers(take(half, 8)) == numbers(wanted)


def test_state_of_other_data_is_refused(train):
    state = json.loads(json.dumps(train(TinySource(20)).get_state()))
    longer = (
        "on source 'tiny': 20 clips, data 00000014, and the config gives source 'tiny': "
        "21 clips, data 00000015. Give the same data.sources and train.seed with this "
        "workdir, or another --workdir (with init_from"
    )
    cases = [
        (train(TinySource(21)), longer),
        (train(TinySource(20), seed=1), "on seed 0, and the config gives seed 1"),
        (
            train([(TinySource(20), 2.0)]),
            "the config gives source 'tiny': 20 clips, data 00000014, weight 2.",
        ),
    ]
    for other, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            other.set_state(state)


def test_only_the_source_that_differs_is_named(train):
    a, b, c = TinySource(20, "a"), TinySource(30, "b"), TinySource(30, "c")
    state = train([(a, None), (b, None)]).get_state()
    with pytest.raises(ValueError, match="data: on source 'b'.* gives source 'c'"):
        train([(a, None), (c, None)]).set_state(state)
    with pytest.raises(ValueError, match="the same sources in another order"):
        train([(b, None), (a, None)]).set_state(state)


def test_another_fold_of_as_many_clips_is_other_data(train, shared_data):
    table = shared_data / "esc10" / "metadata.csv"
    three, four = (
        ManifestSource(table, where={"fold": ["1", "2", fold]}) for fold in "34"
    )
    assert len(three) == len(four)
    with pytest.raises(ValueError, match="source 'manifest': 240 clips, data"):
        train(three).set_state(train(four).get_state())


KILLED = """
import json, os, signal, sys
from tests.pipeline.test_loader import *
dataset = loader.train_dataset(
    [(ManifestSource(sys.argv[1]), None)], Prepare(FRONTEND), make_tokenizer(),
    batch_size=8, seed=0, threads=2,
)
iterator = iter(dataset)
for step in range(3):
    next(iterator)
with open(sys.argv[2], "w") as file:
    json.dump(iterator.get_state(), file)
next(iterator)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_going_on_after_a_kill(train, tmp_path, request):
    table, state = write_table(tmp_path, 20), tmp_path / "state.json"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(table), str(state)],
        cwd=request.config.rootpath,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -9
    source = ManifestSource(table)
    iterator = train(source)
    iterator.set_state(json.loads(state.read_text()))
    all_same(take(train(source), 6)[3:], take(iterator, 3))


def test_a_closed_iterator_says_so(train):
    iterator = train(TinySource(20))
    next(iterator)
    iterator.close()
    with pytest.raises(ValueError, match="closed iterator"):
        next(iterator)


# --- settings that make no sense ---


def test_too_few_clips(train):
    with pytest.raises(
        ValueError, match="7 clips in tiny do not fill one global batch"
    ):
        train(TinySource(7))
    with pytest.raises(ValueError, match="do not fill one global batch of 16"):
        train(TinySource(15), shard=(0, 2))


def test_weights_and_names(train):
    pair = (TinySource(20, "a"), TinySource(20, "b"))
    for weights in ((1, None), (1, -1), (0, 2), (1, float("nan"))):
        sources = list(zip(pair, weights, strict=True))
        with pytest.raises(ValueError, match="the weight of source '[ab]' is"):
            train(sources)
    with pytest.raises(ValueError, match="two sources are named 'a'"):
        train([(TinySource(20, "a"), None)] * 2)
    with pytest.raises(ValueError, match="source 'none' has no clips"):
        train([(TinySource(20), None), (TinySource(0, "none"), None)])
    with pytest.raises(ValueError, match="there are no sources"):
        train([])


def test_other_settings(train, tokenizer):
    for options in ({"batch_size": 0}, {"threads": -1}, {"prefetch": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            train(TinySource(20), **options)
    with pytest.raises(ValueError, match="shard is"):
        train(TinySource(20), shard=(2, 2))
    with pytest.raises(ValueError, match="seed is -1"):
        train(TinySource(20), seed=-1)
    with pytest.raises(ValueError, match="random_crop=True"):
        loader.train_dataset(
            [(TinySource(20), None)],
            Prepare(FRONTEND, random_crop=False),
            tokenizer,
            batch_size=2,
            seed=0,
        )


def test_all_clips_bad_stops_the_training(train):
    broken = {index: np.zeros(0) for index in range(20)}
    with pytest.raises(ValueError, match="are all damaged"):
        next(train(TinySource(20, broken=broken)))


# --- evaluation ---


@pytest.mark.parametrize("threads", [0, 3])
def test_eval_batches_are_full_and_in_order(threads):
    source = TinySource(10, broken={6: np.zeros(0)})
    prepare = Prepare(FRONTEND, random_crop=False)
    batches = list(once.batches(source, prepare, 4, threads=threads))
    assert [batch["index"].tolist() for batch in batches] == [
        *([0, 1, 2, 3], [4, 5, 6, 7]),
        [8, 9, -1, -1],
    ]
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.flatnonzero(~valid).tolist() == [6, 10, 11]
    assert all(batch["mel"].shape == (4, 26, 16) for batch in batches)
    assert batches[0]["index"].dtype == np.int32
    wanted = prepare(source[5]["audio"])
    np.testing.assert_array_equal(batches[1]["mel"][1], wanted)
    assert not batches[1]["mel"][2].any() and not batches[2]["mel"][2].any()


def test_every_host_has_as_many_eval_batches():
    source, prepare = TinySource(9), Prepare(FRONTEND, random_crop=False)
    hosts = [
        list(once.batches(source, prepare, 2, shard=(host, 4))) for host in range(4)
    ]
    assert {len(batches) for batches in hosts} == {2}
    indices = [batch["index"][batch["valid"]] for host in hosts for batch in host]
    assert sorted(np.concatenate(indices).tolist()) == list(range(9))
    assert list(once.batches(TinySource(0), prepare, 2)) == []


def test_eval_of_int16_waves_gives_the_mels():
    source = TinySource(3)
    host = Prepare(FRONTEND, random_crop=False)
    device = Prepare(FRONTEND, mel="device", random_crop=False)
    (mels,), (waves,) = (
        list(once.batches(source, prepare, 3)) for prepare in (host, device)
    )
    found = frontend.log_mel(frontend.from_int16(waves["wave"]), FRONTEND)
    # 16 bits leave a floor of noise, far below the tone.
    loud = mels["mel"] > -40
    np.testing.assert_allclose(found[loud], mels["mel"][loud], atol=0.1)


def test_eval_settings():
    prepare = Prepare(FRONTEND, random_crop=False)
    with pytest.raises(ValueError, match="random_crop=False"):
        once.batches(TinySource(3), Prepare(FRONTEND), 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        once.batches(TinySource(3), prepare, 0)
