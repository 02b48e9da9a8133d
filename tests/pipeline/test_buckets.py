"""Length buckets: the same batches with less padding, of one length on all hosts."""

import json

import numpy as np
import pytest
from absl import flags

from clap_jax.pipeline import buckets, loader
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.ops import Prepare
from clap_jax.text import answers as answers_lib
from clap_jax.text import tokenize
from tests.pipeline.clips import FRONTEND, TinySource, make_tokenizer, write_table
from tests.pipeline.test_loader import all_same, take
from tests.whole_mel_models import WHOLE, UnequalSource

FULL = 16
TOKENS = (4, 6, 9)


class Talker(TinySource):
    """Captions of 2 to 8 words; most are short."""

    def captions(self, index):
        words = 8 if index % 13 == 5 else 2 + 2 * (index % 3 == 1)
        return [" ".join(["clip"] * (words - 1) + [str(index)])]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(FULL)


@pytest.fixture
def make(tokenizer):
    """Make an iterator; all are closed at the end."""
    iterators = []

    def made(source, front=FRONTEND, batch_size=4, words=tokenizer, **options):
        options = {"seed": 0, "threads": 2, "prefetch": 2} | options
        dataset = loader.train_dataset(
            [(source, None)],
            Prepare(front),
            words,
            batch_size=batch_size,
            **options,
        )
        iterators.append(iter(dataset))
        return iterators[-1]

    yield made
    for iterator in iterators:
        iterator.close()


def text_lengths(batches):
    return [batch["ids"].shape[1] for batch in batches]


def assert_cut(batches, whole, tokens=TOKENS):
    """Batches of the shortest lengths that hold their texts, and nothing else new."""
    for batch, full in zip(batches, whole, strict=True):
        length = batch["ids"].shape[1]
        needed = full["mask"].sum(1).max()
        assert length == min(x for x in (*tokens, FULL) if x >= needed)
        cut = {name: full[name][:, :length] for name in ("ids", "mask")}
        all_same([batch], [full | cut])


def test_lengths_rise_to_the_full_one():
    assert buckets.lengths((32, 16, 16), 77) == (16, 32, 77)
    assert buckets.lengths((16, 32), 24) == (16, 24)
    assert buckets.lengths((), 24) == (24,)
    assert [buckets.shortest((16, 32, 77), n) for n in (1, 16, 17, 77)] == [
        *(16, 16, 32, 77)
    ]
    for wrong in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match=f"a length is {wrong}"):
            buckets.lengths((wrong,), 77)


def test_a_batch_is_as_long_as_its_longest_text(make):
    found = take(make(Talker(40), text_tokens=TOKENS), 12)
    assert_cut(found, take(make(Talker(40)), 12))
    assert len(set(text_lengths(found))) >= 3


def test_hosts_find_the_same_length_alone(make):
    """Each tokenises its own rows, and none hears of the others."""
    source = Talker(40)
    whole = take(make(source, text_tokens=TOKENS), 12)
    for hosts in (2, 4):
        parts = [
            take(
                make(
                    source,
                    batch_size=4 // hosts,
                    shard=(host, hosts),
                    text_tokens=TOKENS,
                ),
                12,
            )
            for host in range(hosts)
        ]
        for batch, *shares in zip(whole, *parts, strict=True):
            joined = {n: np.concatenate([s[n] for s in shares]) for n in batch}
            all_same([joined], [batch])


def test_a_replacement_does_not_change_the_length(make, tokenizer):
    """Clip 5 has the long caption, and comes in the place of 4, which is damaged."""
    source = Talker(8, broken={4: np.zeros(0)})
    options = {"batch_size": 2, "text_tokens": TOKENS}
    found, whole = (
        take(make(source, **options), 40),
        take(make(source, batch_size=2), 40),
    )
    cut = 0
    for batch, full in zip(found, whole, strict=True):
        np.testing.assert_array_equal(batch["bad"], full["bad"])
        length = batch["ids"].shape[1]
        for row in range(2):
            caption = full["ids"][row][full["mask"][row]]
            if len(caption) > length:
                cut += 1
                assert batch["bad"][row]
                # As a tokenizer of that length cuts it: with the end token.
                text = tokenizer.tokenizer.decode(caption, skip_special_tokens=True)
                (expected,), _ = tokenizer.shorter(length)([text])
                np.testing.assert_array_equal(batch["ids"][row], expected)
                assert batch["mask"][row].all() and batch["ids"][row, -1] == 2
            else:
                np.testing.assert_array_equal(
                    batch["ids"][row], full["ids"][row, :length]
                )
    assert cut > 3
    # Both hosts, of which one knows nothing of the damage.
    parts = [
        take(make(source, batch_size=1, shard=(host, 2), text_tokens=TOKENS), 40)
        for host in (0, 1)
    ]
    for batch, *shares in zip(found, *parts, strict=True):
        joined = {n: np.concatenate([s[n] for s in shares]) for n in batch}
        all_same([joined], [batch])


class Counting(tokenize.Tokenizer):
    """Of this test alone: threads of a loader that was closed may still count."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.tokenizer, tokenizer.length)
        self.counted = []

    def count(self, text):
        self.counted.append(text)
        return self.length


def test_counting_ends_where_the_full_length_is_sure(make, tokenizer):
    """And a host that is alone counts nothing twice."""
    words = Counting(tokenizer)
    options = {"words": words, "threads": 0}
    take(make(Talker(40), text_tokens=TOKENS, **options), 5)
    assert words.counted == []
    options |= {"batch_size": 2, "shard": (0, 2)}
    take(make(Talker(40), text_tokens=TOKENS, **options), 5)
    assert 0 < len(words.counted) <= 5
    words.counted.clear()
    take(make(Talker(40), **options), 5)
    assert words.counted == []


def test_the_same_after_a_stop(make):
    source, options = Talker(40), {"text_tokens": TOKENS}
    iterator = make(source, **options)
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = take(iterator, 6)
    again = make(source, **options | {"threads": 1})
    again.set_state(state)
    all_same(wanted, take(again, 6))


# --- prompts with answers ---


@pytest.fixture(scope="module")
def answers(tokenizer):
    """Two prompts, and captions as answers."""
    template = answers_lib.template("mine", ["a", "number"], "{caption}", "a test")
    return Answers([template], answers_lib.Writer(tokenizer), FULL)


def test_answers_are_as_long_as_the_longest(make, answers):
    """On one host and on two, which hear nothing of each other."""
    source, options = Talker(40), {"targets": answers}
    whole = take(make(source, **options), 12)
    assert set(text_lengths(whole)) == {FULL}
    found = take(make(source, text_tokens=TOKENS, **options), 12)
    assert len(set(text_lengths(found))) >= 2
    shares = [
        take(
            make(
                source,
                batch_size=2,
                shard=(host, 2),
                text_tokens=TOKENS,
                **options,
            ),
            12,
        )
        for host in (0, 1)
    ]
    for batch, full, *parts in zip(found, whole, *shares, strict=True):
        length = batch["ids"].shape[1]
        needed = full["mask"].sum(1).max()
        assert length == min(x for x in (*TOKENS, FULL) if x >= needed)
        cut = {name: full[name][:, :length] for name in ("ids", "mask", "answer")}
        all_same([batch], [full | cut])
        joined = {n: np.concatenate([part[n] for part in parts]) for n in batch}
        all_same([joined], [batch])
        assert (batch["answer"].sum(1) > 1).all()


def test_the_answer_of_a_replacement_is_cut(make, answers):
    """Clip 5 has the long one, and comes in the place of 4, which is damaged."""
    source = Talker(8, broken={4: np.zeros(0)})
    options = {"batch_size": 2, "targets": answers}
    whole = take(make(source, **options), 40)
    found = take(make(source, text_tokens=TOKENS, **options), 40)
    cut = 0
    for batch, full in zip(found, whole, strict=True):
        length = batch["ids"].shape[1]
        for row in range(2):
            if full["mask"][row].sum() > length:
                cut += 1
                assert batch["bad"][row] and batch["mask"][row].all()
                assert batch["answer"][row, -1]
                end = answers.writer.ending[0]
                assert end in full["ids"][row] and end not in batch["ids"][row]
    assert cut > 3


# --- whole clips ---


class ShortSource(UnequalSource):
    """Neighbours are of a kind: a few clips of 0.3 s, then some of all lengths."""

    def wave(self, index):
        return super().wave(0 if index % 16 < 12 else index)


CLIPS = WHOLE.frontend
FRAMES = (33, 49)


def test_whole_clips_are_as_long_as_the_longest(make):
    source, options = ShortSource(32), {"front": CLIPS, "batch_size": 2}
    whole = take(make(source, **options), 20)
    found = take(make(source, clip_frames=FRAMES, **options), 20)
    lengths = []
    for batch, full in zip(found, whole, strict=True):
        length = batch["mel"].shape[1]
        needed = full["frames"].max()
        assert length == min(x for x in (*FRAMES, CLIPS.clip_frames) if x >= needed)
        all_same([batch], [full | {"mel": full["mel"][:, :length]}])
        lengths.append(length)
    assert {33, CLIPS.clip_frames} <= set(lengths)


def test_hosts_agree_on_the_length_of_clips(make):
    """Once for each batch that is handed out, on the largest number of frames."""
    asked = []

    def agree(frames):
        asked.append(frames)
        return CLIPS.clip_frames

    options = {"front": CLIPS, "batch_size": 2, "clip_frames": FRAMES}
    found = take(make(ShortSource(32), agree=agree, **options), 6)
    assert {batch["mel"].shape[1] for batch in found} == {CLIPS.clip_frames}
    assert asked == [int(batch["frames"].max()) for batch in found]


def test_windows_have_one_length(make):
    agree = pytest.fail
    (batch,) = take(make(TinySource(20), clip_frames=(5,), agree=agree), 1)
    assert batch["mel"].shape[1] == FRONTEND.clip_frames


def test_worker_processes_do_the_same(make, tmp_path):
    flags.FLAGS.mark_as_parsed()
    source = ManifestSource(write_table(tmp_path, 12))
    options = {"front": CLIPS, "text_tokens": (5,), "clip_frames": (45,)}
    wanted = take(make(source, **options), 4)
    assert {batch["mel"].shape[1] for batch in wanted} == {45}
    all_same(wanted, take(make(source, workers=1, **options), 4))
