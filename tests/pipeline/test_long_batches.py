"""Batches of long clips: segments and sentences, of one length on all hosts."""

import dataclasses

import numpy as np
import pytest

from clap_jax.audio.mel import FRONTENDS
from clap_jax.pipeline import features, loader, once
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.segments import Segmenter
from clap_jax.text.sentences import Sentences
from tests.pipeline.clips import TinySource, make_tokenizer

FRONTEND = dataclasses.replace(
    FRONTENDS["small_16k"], rate_hz=1000, clip_seconds=1.0, fmax_hz=500.0
)
SEGMENTER = Segmenter(FRONTEND, hop_seconds=1.0, longest_seconds=6.0, shorter=(2, 4))


class Songs(TinySource):
    """Clips of 0.5 to 9 seconds; the sound and the captions of each are its own."""

    def seconds(self, index):
        return (0.5, 3.0, 1.5, 9.0)[index % 4]

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        wave = 0.1 * rng.normal(size=round(1000 * self.seconds(index)))
        return {**super().__getitem__(index), "audio": (wave.astype(np.float32), 1000)}

    def captions(self, index):
        return ["clip one. Then more. " * (index % 3 == 0) + f"Tiny clip {index}."]


@pytest.fixture(scope="module")
def sentences():
    return Sentences(make_tokenizer(24), 3)


def batches(sentences, count, cache_gib=0.0, **options):
    prepare = Prepare(FRONTEND, "device", cache_gib=cache_gib, segmenter=SEGMENTER)
    options = {"batch_size": 4, "seed": 1, "threads": 2, "prefetch": 2} | options
    dataset = loader.train_dataset([(Songs(16), None)], prepare, sentences, **options)
    fields = loader.batch_fields(prepare, sentences.length, sentences=sentences.most)
    iterator = iter(dataset)
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found, fields


def test_a_batch_is_as_long_as_its_longest_clip(sentences):
    found, fields = batches(sentences, 12, batch_size=2, text_tokens=(6, 12))
    for batch in found:
        count = (batch["seconds"][..., 1] > 0).sum(1).max()
        length = min(n for n in (2, 4, 6) if n >= count)
        assert batch.keys() == fields.keys()
        for name, (shape, dtype) in fields.items():
            assert batch[name].dtype == dtype
            if name in ("wave", "seconds", "heard"):
                shape = (length, *shape[1:])
            if name in ("ids", "mask"):
                shape = (batch["ids"].shape[1],)
            assert batch[name].shape == (2, *shape), name
        assert (batch["wave"][~batch["heard"]] == 0).all()
        for row in range(2):
            inside = np.zeros(batch["ids"].shape[1], int)
            for begin, end in batch["spans"][row]:
                inside[begin:end] += 1
            # Every token but the special ones at both ends is in one sentence.
            assert inside.max() == 1 and inside.sum() == batch["mask"][row].sum() - 2
    assert {batch["wave"].shape[1] for batch in found} == {2, 4, 6}
    assert len({batch["ids"].shape[1] for batch in found}) > 1


def test_hosts_caches_and_threads_change_nothing(sentences):
    # Hosts agree on the segments as on other lengths, see test_buckets.
    (whole, _), (again, _) = (
        batches(sentences, 4, text_tokens=(6, 12)),
        batches(sentences, 4, cache_gib=0.1, threads=0, text_tokens=(6, 12)),
    )
    hosts = [
        batches(sentences, 4, batch_size=2, shard=(host, 2), text_tokens=(6, 12))[0]
        for host in range(2)
    ]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            np.testing.assert_array_equal(again[step][name], values)
            own = [host[step][name] for host in hosts]
            if name in ("wave", "seconds", "heard"):
                own = [part[:, : values.shape[1]] for part in own]
                values = values[:, : max(part.shape[1] for part in own)]
                own = [
                    np.pad(
                        part,
                        [(0, 0), (0, values.shape[1] - part.shape[1])]
                        + [(0, 0)] * (part.ndim - 2),
                    )
                    for part in own
                ]
            np.testing.assert_array_equal(np.concatenate(own), values)


def test_longer_clips_are_cut_at_random_and_in_evaluation_in_the_middle(sentences):
    found, _ = batches(sentences, 16)
    starts = np.concatenate([batch["start_seconds"] for batch in found])
    assert (starts > 0).any() and len(np.unique(starts)) > 4 and starts.max() <= 3
    prepare = Prepare(FRONTEND, "exact", random_crop=False, segmenter=SEGMENTER)
    source = Songs(4)
    ((index, clips),) = once.clips_of(source, prepare, 4)
    assert index.tolist() == [0, 1, 2, 3]
    assert [len(clip["seconds"]) for clip in clips] == [1, 3, 2, 6]
    wave = source[3]["audio"][0]
    np.testing.assert_array_equal(clips[3]["wave"].reshape(-1), wave[1500:7500])
    assert clips[3]["start_seconds"] == 1.5


def test_mels_of_segments_are_not_made_by_the_host():
    with pytest.raises(ValueError, match="mel is 'host', expected 'device'"):
        Prepare(FRONTEND, "host", segmenter=SEGMENTER)


class Embedded(Songs):
    """The same clips as features of their segments of a second."""

    def __getitem__(self, index):
        count = max(round(self.seconds(index)), 1)
        begin = np.arange(count, dtype=np.float32)
        rng = np.random.default_rng(index)
        clip = features.Features(
            rng.normal(size=(count, 5)).astype(np.float32),
            np.stack([begin, begin + 1], axis=1),
            np.arange(count) != 1,
        )
        return {**super().__getitem__(index), "audio": clip}


def test_features_in_place_of_waves(sentences):
    segmenter = dataclasses.replace(SEGMENTER, features_width=5)
    prepare = Prepare(FRONTEND, "device", cache_gib=0.1, segmenter=segmenter)
    options = {"batch_size": 2, "seed": 1, "threads": 2, "prefetch": 2}
    dataset = loader.train_dataset(
        [(Embedded(16), None)], prepare, sentences, **options
    )
    fields = loader.batch_fields(prepare, sentences.length, sentences=3)
    iterator = iter(dataset)
    found = [next(iterator) for _ in range(12)]
    iterator.close()
    assert {batch["features"].shape for batch in found} == {
        (2, count, 5) for count in (2, 4, 6)
    }
    starts = np.concatenate([batch["start_seconds"] for batch in found])
    assert starts.max() in (1, 2, 3)
    for batch in found:
        assert batch.keys() == fields.keys()
        there = batch["seconds"][..., 1] > 0
        assert (batch["seconds"][:, 0, 0] == 0).all()
        assert (batch["heard"] <= there).all() and (
            batch["features"][~there] == 0
        ).all()
    with pytest.raises(ValueError, match="found sound, expected features of segments"):
        prepare(Songs(1)[0]["audio"])
    with pytest.raises(ValueError, match="found features of segments, expected sound"):
        Prepare(FRONTEND, "device")(Embedded(1)[0]["audio"])


class Timed(Songs):
    """Captions that say when; all clips are of nine seconds."""

    def seconds(self, index):
        return 9.0

    def captions(self, index):
        return ["A clip. 0:00 to 0:02: one. 0:02 to 0:09: more."]


def test_captions_go_with_the_part_that_is_heard():
    tokenizer = make_tokenizer(64)
    prepare = Prepare(FRONTEND, "device", segmenter=SEGMENTER)
    dataset = loader.train_dataset(
        [(Timed(16), None)], prepare, Sentences(tokenizer, 4), batch_size=8, seed=0
    )
    iterator = iter(dataset)
    batch = next(iterator)
    iterator.close()
    texts = [
        tokenizer.text(ids[mask]) for ids, mask in zip(batch["ids"], batch["mask"])
    ]
    starts = batch["start_seconds"]
    assert (starts < 1).any() and (starts > 2).any()
    for text, start in zip(texts, starts):
        assert "A clip." in text and "to 0:06: more." in text
        if not 1 <= start <= 2:  # between, little is left of what lasted two seconds
            assert ("one." in text) == (start < 1)
