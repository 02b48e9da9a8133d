"""Twins: sections that change places, in the sound and in the caption."""

import contextlib
import itertools
import json
import pickle

import numpy as np
import pytest
import soundfile

from clap_jax.audio import io
from clap_jax.pipeline import loader, twins
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.pieces import PiecesSource
from clap_jax.pipeline.sources import build_source
from clap_jax.text import sections
from tests.pipeline.clips import FRONTEND, make_tokenizer

RATE_HZ = 16_000
TIMED = "A drum. From 0:01 to 0:03 it is loud. From 0:03 to 0:04 it is slow. It ends."
TURNED = "A drum. From 0:01 to 0:02 it is slow. From 0:02 to 0:04 it is loud. It ends."


@pytest.mark.parametrize("style", ["order", "timing", "percent"])
def test_a_twin_is_a_true_pair(style):
    options = {"style": style, "seconds": (50, 60), "examples": 6}
    plain = build_source("pieces", "mine", options)
    source = build_source("pieces", "mine", options | {"twins": True})
    for index in range(6):
        wave, caption = plain.wave(index), plain.captions(index)[0]
        clip, twin = source[2 * index], source[2 * index + 1]
        assert clip["id"] == plain.id(index) and clip["captions"][0] == caption
        np.testing.assert_array_equal(clip["audio"][0], wave)
        assert clip["group"] == plain.group(index) != twin["group"]
        new, words = twin["audio"][0], twin["captions"][0]
        assert new.shape == wave.shape and new.dtype == np.float32
        assert words != caption and len(words.split()) == len(caption.split())
        known = plain.sections(index)
        turned = twins.turned([caption], known, plain.id(index))
        # Every section sounds as before, where the twin's caption says: it is where the
        # original's says, to a second or a hundredth.
        assert sorted(turned.order) == list(range(len(known))) != turned.order
        percent = style == "percent"
        spans = np.array(turned.spans) * (len(wave) / RATE_HZ / 100 if percent else 1)
        np.testing.assert_allclose(spans, [part[:2] for part in known], atol=0.6)
        moved = sections.moved(spans.tolist(), turned.order)
        for (begin, end), which in zip(moved, turned.order, strict=True):
            part = new[round(begin * RATE_HZ) : round(end * RATE_HZ)][200:-200]
            old = wave[slice(*np.rint(spans[which] * RATE_HZ).astype(int))][200:-200]
            count = min(len(part), len(old))  # a sample more or less is rounding
            assert abs(len(part) - len(old)) <= 1
            assert any(_same(part, old, count, offset) for offset in (0, 1, -1))
        ends = [" ".join(known[w][2].rstrip(".").split()[-6:]) for w in turned.order]
        places = [words.find(end) for end in ends]
        assert min(places) >= 0 and places == sorted(places)
        if style == "timing":
            said = sections.timed(words, len(wave) / RATE_HZ)
            np.testing.assert_allclose([part[:2] for part in said], moved, atol=0.5)


def _same(one, other, count, offset):
    """Whether two waves are the same but for a shift of so many samples."""
    one, other = one[max(offset, 0) :], other[max(-offset, 0) :]
    return np.array_equal(one[: count - 1], other[: count - 1])


@pytest.fixture
def table(tmp_path):
    """A table of clips of 5 s, each second of which is on a level of its own."""

    def made(*captions):
        steps = np.repeat(np.arange(1, 6) / 10, 1000).astype(np.float32)
        rows = []
        for number, texts in enumerate(captions):
            soundfile.write(tmp_path / f"{number}.wav", steps, 1000, "FLOAT")
            rows.append({"path": f"{number}.wav", "captions": texts})
        path = tmp_path / "songs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(path), "twins": True}

    return made


def levels(wave):
    """The level in the middle of each second, in tenths."""
    return np.rint(10 * wave[500::1000]).astype(int).tolist()


def test_files_with_times_in_their_captions(table):
    other = TIMED.replace("A drum", "Drums")
    source = build_source(
        "manifest", "songs", table([TIMED, "All in all a drum.", other])
    )
    assert len(source) == 2 and source.id(1) == "0.wav, twin"
    assert source.captions(0) == [TIMED, "All in all a drum.", other]
    assert source.captions(1) == [TURNED, TURNED.replace("A drum", "Drums")]
    wave, rate_hz = source[1]["audio"]
    assert rate_hz == 1000 and levels(wave) == [1, 4, 2, 3, 5]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["audio"][0], wave)
    assert copy.digest() == source.digest()
    assert source.description().endswith("each with its sections in another order too")
    plain = build_source("manifest", "songs", {"path": table([TIMED])["path"]})
    assert plain.digest() != source.digest()


def test_percent_is_of_the_sound(table):
    text = "From 0% to 40% it is loud. From 40% to 60% it is slow. It ends."
    source = build_source("manifest", "songs", table([text]))
    expected = "From 0% to 20% it is slow. From 20% to 60% it is loud. It ends."
    assert source.captions(1) == [expected]
    assert levels(source[1]["audio"][0]) == [3, 1, 2, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        "A drum.",
        "From 0:01 to 0:03 it is loud.",
        "From 0:00 to 0:03 it is loud. From 0:01 to 0:05 it is slow.",
        "The first 20% is loud. From 40% to 60% it is slow.",
        "[0:00] It is loud. [0:03] It is slow.",
        "From 0:01 to 0:02 it is loud. From 60% to 80% it is slow.",
    ],
)
def test_a_clip_without_a_twin_is_a_positive_of_itself(table, text):
    source = build_source("manifest", "songs", table([text]))
    clip, again = source[0], source[1]
    assert clip["id"] != again.pop("id") and clip.items() >= again.items()
    assert source.group(0) == source.group(1)
    assert source.captions(0) == source.captions(1) == [text]


def test_sections_beyond_the_end_are_a_damaged_clip(table):
    late = TIMED.replace("0:04", "0:09")
    source = build_source("manifest", "songs", table([late], [TIMED]))
    with pytest.raises(
        io.AudioError, match="0.wav, twin: a section ends at 9 s.* 5.0 s"
    ):
        source[1]
    assert isinstance(source[0]["audio"], str)
    assert levels(source[3]["audio"][0]) == [1, 4, 2, 3, 5]


def test_captions_of_a_twin_are_as_likely_as_those_they_come_from(table, tmp_path):
    made = tmp_path / "made.jsonl"
    lines = [("loud", "a"), ("fast", "b")]
    made.write_text(
        "".join(
            json.dumps(
                {
                    "id": "0.wav",
                    "caption": TIMED.replace("loud", word),
                    "origin": {"kind": kind},
                }
            )
            + "\n"
            for word, kind in lines
        )
    )
    options = table(["All in all a drum."]) | {
        "generated": str(made),
        "captions": {"original": 0.5, "a": 0.125, "b": 0.375},
    }
    source = build_source("manifest", "songs", options)
    assert source.caption_weights(0) == [0.5, 0.125, 0.375]
    assert source.captions(1) == [TURNED, TURNED.replace("loud", "fast")]
    assert source.caption_weights(1) == [0.25, 0.75]


def test_tars_are_read_together(tmp_path):
    """What a shard gives for several clips at once are twins as well."""

    class Together(PiecesSource):
        def read(self, indices):
            return [self[i] if i != 2 else io.AudioError("gone") for i in indices]

    source = twins.TwinsSource(Together(seconds=(50, 60), examples=3))
    clip, twin, broken = source.read([2, 3, 5])
    assert clip["id"] == source.id(2) and twin["id"] == source.id(3)
    np.testing.assert_array_equal(twin["audio"][0], source[3]["audio"][0])
    assert isinstance(broken, io.AudioError)


def test_sections_of_the_source(table, tmp_path):
    """Are moved where a caption has a sentence for each; its own times come first."""
    annotated = tmp_path / "sections.csv"
    rows = ["0.wav,1,3,It is loud.", "0.wav,3,4,It is slow."]
    annotated.write_text("\n".join(["id,begin,end,label", *rows]))
    captions = [
        "A drum. It is loud. It is slow. It ends.",
        "It is loud, a drum.",
        TIMED,
    ]
    options = table(captions) | {"annotations": {"table": str(annotated)}}
    source = build_source("manifest", "songs", options)
    assert source.captions(1) == ["A drum. It is slow. It is loud. It ends.", TURNED]
    assert levels(source[1]["audio"][0]) == [1, 4, 2, 3, 5]
    annotated.write_text("id,begin,end\n0.wav,1,3\n0.wav,3,4")  # without labels
    source = build_source("manifest", "songs", options)
    assert source.captions(1) == [TURNED]


def test_no_twins_of_what_is_heard_in_part(table):
    options = table([TIMED])
    for longest, same in ((3.9, True), (4.0, False)):
        source = build_source("manifest", "songs", options | {"twins": longest})
        assert (source.captions(1) == source.captions(0)) == same
    with pytest.raises(ValueError, match="twins is 'yes', expected true or seconds"):
        build_source("manifest", "songs", options | {"twins": "yes"})


def test_twins_of_one_group_are_no_positives(table):
    options = table([TIMED], [TIMED], [TIMED])
    source = build_source("manifest", "songs", options)
    assert len({source.group(2 * i + 1) for i in range(3)}) == 3
    for name in ("sections", "audio_path"):
        assert not hasattr(source, name)


def test_both_come_in_one_batch(table):
    """Where its edge divides no pool."""
    source = build_source("manifest", "songs", table(*([TIMED] for _ in range(32))))
    dataset = loader.train_dataset(
        [(source, None)],
        Prepare(FRONTEND),
        make_tokenizer(200),
        batch_size=16,
        seed=0,
        threads=0,
        read_together=2,
    )
    clips = [{source.group(2 * i), source.group(2 * i + 1)} for i in range(32)]
    numbers = [{loader.group_number("songs", name) for name in pair} for pair in clips]
    seen = []
    with contextlib.closing(iter(dataset)) as iterator:
        for batch in itertools.islice(iterator, 4):
            assert not batch["bad"].any()
            # An original and its twin are no positives, and differ in their words.
            found = set(batch["group"].tolist())
            assert len(found) == 16
            assert len({tuple(row) for row in batch["ids"].tolist()}) == 2
            pairs = [i for i, pair in enumerate(numbers) if pair <= found]
            assert len(pairs) == 8
            seen += pairs
    assert sorted(seen) == list(range(32))


def test_features_have_no_sound():
    class Features(PiecesSource):
        features_width = 96

    source = Features()
    source.name = "mine"
    with pytest.raises(ValueError, match="'mine': twins: its clips are features"):
        twins.TwinsSource(source)


def test_all_orders_but_the_own_come():
    wave = np.repeat(np.arange(1, 4), 3).astype(np.float32)
    spans = [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    rng = np.random.default_rng(0)
    orders = {tuple(twins.another(rng, 3)) for _ in range(60)}
    assert len(orders) == 5 and (0, 1, 2) not in orders
    for order in orders:
        new = twins.rearranged(wave, 1, spans, order)
        assert new[1::3].tolist() == [which + 1 for which in order]
