"""Generated captions: read from files, drawn as chosen, the same again after a stop."""

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.pipeline import generated, loader
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.generated import GeneratedSource
from clap_jax.pipeline.ops import Prepare, draw_caption, example_generator
from clap_jax.pipeline.sources import build_source
from clap_jax.pipeline.tables import ManifestError
from clap_jax.text.answers import Writer, template
from tests.pipeline.clips import FRONTEND, TinySource, make_tokenizer, write_table
from tests.pipeline.shards import pair, tar_bytes


def line(name, caption, kind="t5", **more):
    return {"id": name, "tags": [], "caption": caption, "origin": {"kind": kind}} | more


def write(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return str(path)


@pytest.fixture
def captions_file(tmp_path):
    """Of ten clips: 0 to 3 have a T5 caption, 2 to 5 two of a template; one is strange."""
    lines = [line(f"clip{n}", f"t5 of {n}") for n in range(4)]
    lines += [
        line(f"clip{n}", f"{word} of {n}", "template")
        for n in range(2, 6)
        for word in ("one", "two")
    ]
    return write(tmp_path / "made.jsonl", [*lines, line("elsewhere", "lost")])


def own(n):
    return [f"tiny {n}", f"tiny clip number {n}"]


def two(n):
    return [f"one of {n}", f"two of {n}"]


@pytest.mark.parametrize(
    "choice, expected",
    [
        ("none", {0: own(0), 2: own(2), 4: own(4), 9: own(9)}),
        (
            "all",
            {
                0: [*own(0), "t5 of 0"],
                2: [*own(2), "t5 of 2", *two(2)],
                4: [*own(4), *two(4)],
                9: own(9),
            },
        ),
        (
            "augment_only",
            {0: ["t5 of 0"], 2: ["t5 of 2", *two(2)], 4: two(4), 9: own(9)},
        ),
    ],
)
def test_choices_as_laion_has_them(captions_file, choice, expected):
    source = GeneratedSource(TinySource(10), captions_file, choice)
    for index, captions in expected.items():
        assert source.captions(index) == captions
        assert source[index]["captions"] == captions
        assert source.caption_weights(index) is None
    counts = draws(source, 2, 4000)
    share = 4000 / len(expected[2])
    assert set(counts) == set(expected[2])
    assert all(abs(count - share) < 120 for count in counts.values())


def draws(source, index, count, seed=3):
    return Counter(
        draw_caption(source, index, example_generator(seed, n)) for n in range(count)
    )


def test_probabilities_by_origin(captions_file):
    choice = {"original": 0.5, "t5": 0.3, "template": 0.2}
    source = GeneratedSource(TinySource(10), captions_file, choice)
    assert source.captions(2) == [*own(2), "t5 of 2", *two(2)]
    np.testing.assert_allclose(source.caption_weights(2), [0.25, 0.25, 0.3, 0.1, 0.1])
    # Where a clip lacks an origin, the others share what it would have had.
    np.testing.assert_allclose(
        source.caption_weights(0), [0.25 / 0.8, 0.25 / 0.8, 0.3 / 0.8]
    )
    assert source.caption_weights(9) == [0.5, 0.5]

    counts = draws(source, 2, 5000)
    expected = dict(zip(source.captions(2), (1250, 1250, 1500, 500, 500)))
    assert all(abs(counts[text] - n) < 90 for text, n in expected.items())
    # A function of the seed and the example's number, and of nothing else.
    assert draws(source, 2, 500) == draws(source, 2, 500) != draws(source, 2, 500, 4)
    first = {"tiny 2": 2, "t5 of 2": 2, "one of 2": 1, "two of 2": 3}
    assert draws(source, 2, 8) == first


def test_answers_are_drawn_as_captions_are(captions_file):
    """Example by example the same ones, and so as likely as the source says."""
    choice = {"original": 0.04, "t5": 0.95, "template": 0.01}
    source = GeneratedSource(TinySource(10), captions_file, choice)
    task = template("mine", ["a", "number"], "{caption}", "a test")
    writer = Writer(make_tokenizer(20))
    dataset = loader.train_dataset(
        [(source, None)],
        Prepare(FRONTEND),
        None,
        batch_size=10,
        seed=0,
        threads=0,
        targets=Answers([task], writer, 20),
    )
    batches, order = iter(dataset), dataset.batches.order
    seen = Counter()
    for step in range(6):
        batch = next(batches)
        for row in range(10):
            draw = 10 * step + row
            _, index = order(draw)
            rng = example_generator(0, draw)
            answer = writer.read(batch["ids"][row][batch["answer"][row]])
            assert answer == draw_caption(source, index, rng)
            if index < 4:  # which have a T5 caption
                seen["t5" if answer.startswith("t5") else "other"] += 1
    assert seen["t5"] >= 20 and seen["t5"] + seen["other"] == 24


def test_an_origin_without_probability_is_never_drawn(captions_file):
    source = GeneratedSource(TinySource(10), captions_file, {"t5": 1.0})
    assert source.captions(2) == ["t5 of 2"] and source.caption_weights(2) == [1.0]
    # Clips without one keep their own.
    assert source.captions(5) == own(5) and source.caption_weights(5) == [0.5, 0.5]


def test_own_captions_alone_are_drawn_as_without_a_file(captions_file):
    plain = TinySource(10)
    wrapped = GeneratedSource(plain, captions_file, "none")
    assert draws(plain, 1, 50) == draws(wrapped, 1, 50)


def test_what_was_found_is_said(captions_file, tmp_path):
    more = write(tmp_path / "more.jsonl", [line("clip9", "late", "endpoint")])
    source = GeneratedSource(TinySource(10), [captions_file, more])
    assert source.description() == (
        "tiny: 10 tones; generated captions 13 (t5 4, template 8, endpoint 1) for 7 "
        "clips, none for 3; 1 more in made.jsonl, more.jsonl are of no clip here; "
        "captions used: all"
    )


def test_the_digest_follows_captions_and_choice(captions_file, tmp_path):
    def digest(file, choice="all", clips=10):
        return GeneratedSource(TinySource(clips), file, choice).digest()

    lines = list(map(json.loads, Path(captions_file).read_text().splitlines()))
    # Of clips that are not here, nothing matters.
    same = write(tmp_path / "same.jsonl", [*lines, line("nowhere", "x")])
    changed = write(tmp_path / "changed.jsonl", [*lines[1:], line("clip0", "t5 of O")])
    renamed = write(
        tmp_path / "kind.jsonl", [line("clip0", "t5 of 0", "t6"), *lines[1:]]
    )
    assert digest(captions_file) == digest(same)
    digests = [
        TinySource(10).digest(),
        digest(captions_file),
        digest(changed),
        digest(renamed),
        digest(captions_file, clips=9),
        digest(captions_file, "none"),
        digest(captions_file, {"t5": 0.5, "original": 0.5}),
        digest(captions_file, {"t5": 0.4, "original": 0.6}),
    ]
    assert len(set(digests)) == len(digests)


def test_batches_go_on_with_the_same_captions(captions_file):
    choice = {"original": 0.5, "t5": 0.25, "template": 0.25}
    source = GeneratedSource(TinySource(10), captions_file, choice)
    texts = [text for n in range(10) for text in source.captions(n)]
    tokenizer = make_tokenizer()

    def batches(**options):
        return iter(
            loader.train_dataset(
                [(source, None)],
                Prepare(FRONTEND),
                tokenizer,
                batch_size=5,
                seed=0,
                **options,
            )
        )

    first = batches(threads=2)
    whole = list(itertools.islice(first, 8))
    again = batches(threads=0)
    list(itertools.islice(again, 3))
    state = json.loads(json.dumps(again.get_state()))
    later = batches(threads=3)
    later.set_state(state)
    for one, two in zip(whole[3:], itertools.islice(later, 5), strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key])
    rows = np.concatenate([batch["ids"] for batch in whole])
    known = {row.tobytes() for row in tokenizer(texts)[0]}
    assert {row.tobytes() for row in rows} <= known

    # With other captions it is another sequence.
    other = GeneratedSource(TinySource(10), captions_file, "all")
    changed = iter(
        loader.train_dataset(
            [(other, None)], Prepare(FRONTEND), tokenizer, batch_size=5, seed=0
        )
    )
    with pytest.raises(ValueError, match="trained on other data"):
        changed.set_state(state)
    for iterator in (first, again, later, changed):
        iterator.close()


def test_the_rest_of_a_source_is_reached(captions_file):
    inner = TinySource(10)
    source = GeneratedSource(inner, captions_file, "augment_only")
    assert not hasattr(source, "read")  # as the source itself
    assert source.count == 10 and len(source) == 10
    assert source.id(3) == source.group(3) == "clip3" and source.tags(3) == ["odd"]
    broken = io.AudioError("broken")
    inner.read = lambda indices: [broken, *(inner[i] for i in indices[1:])]
    found = source.read([0, 2, 9])
    assert found[0] is broken and found[2]["captions"] == own(9)
    assert found[1]["captions"] == ["t5 of 2", "one of 2", "two of 2"]


def test_copies_for_workers_are_alike(captions_file):
    source = GeneratedSource(
        TinySource(10), captions_file, {"t5": 0.5, "original": 0.5}
    )
    copy = pickle.loads(pickle.dumps(source))
    assert copy.digest() == source.digest()
    for index in range(10):
        assert copy.captions(index) == source.captions(index)
        assert copy.caption_weights(index) == source.caption_weights(index)


def test_any_kind_of_source_takes_them(tmp_path):
    table = write_table(tmp_path, 4)
    file = write(tmp_path / "made.jsonl", [line("1.flac", "eine Katze schnurrt")])
    options = {"path": str(table), "generated": file}
    source = build_source("manifest", "sounds", options)
    assert source.name == "sounds"
    assert (
        source.captions(1)[-1] == "eine Katze schnurrt" and len(source.captions(0)) == 2
    )
    source = build_source("manifest", "sounds", {**options, "captions": "augment_only"})
    assert source.captions(1) == ["eine Katze schnurrt"]
    source = build_source("manifest", "sounds", {"path": str(table)})
    assert not isinstance(source, GeneratedSource)
    with pytest.raises(ValueError, match="did you mean 'generated'"):
        build_source("manifest", "sounds", {"path": str(table), "generate": file})


# --- captions that LAION's shards bring ---


@pytest.fixture
def shards(tmp_path):
    more = {"text_augment_all": ["number 0", "a", "b"], "text_augment_t5": "t"}
    members = pair(0, **more) | pair(1, text_augment_t5=None) | pair(2)
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    return {"path": str(tmp_path / "x.tar"), "cache_folder": str(tmp_path / "cache")}


def test_augmented_captions_of_shards(shards, tmp_path):
    choice = {"original": 0.5, "t5": 0.3, "augment": 0.2}
    source = build_source("laion_tar", "x", {**shards, "captions": choice})
    assert source.captions(0) == ["number 0", "sound 0", "t", "a", "b"]
    np.testing.assert_allclose(source.caption_weights(0), [0.25, 0.25, 0.3, 0.1, 0.1])
    assert source.captions(1) == ["number 1", "sound 1"]
    assert "; 1 of them bring generated captions; captions used: {" in (
        source.description()
    )
    assert source.read([0])[0]["captions"] == source.captions(0)
    # And with a file besides.
    file = write(tmp_path / "made.jsonl", [line("x/001", "made")])
    source = build_source(
        "laion_tar", "x", {**shards, "captions": "augment_only", "generated": file}
    )
    assert [source.captions(n) for n in range(3)] == [
        ["t", "a", "b"],
        ["made"],
        ["number 2", "sound 2"],
    ]


def test_one_choice_at_a_time(shards):
    options = {**shards, "captions": "all", "text_augment": "all"}
    with pytest.raises(ValueError, match="both choose captions, give one of them"):
        build_source("laion_tar", "x", options)


# --- what cannot be used ---


def test_there_must_be_generated_captions(tmp_path):
    message = "captions is 'all', but there are no generated captions: set generated"
    with pytest.raises(ValueError, match=message):
        GeneratedSource(TinySource(10), (), "all")
    (tmp_path / "x.tar").write_bytes(tar_bytes(pair(0)))
    options = {"path": str(tmp_path), "cache_folder": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="there are no generated captions"):
        build_source("laion_tar", "x", {**options, "captions": "all"})
    # To want none needs none.
    source = build_source("laion_tar", "x", {**options, "captions": "none"})
    assert source.captions(0) == ["number 0", "sound 0"]


@pytest.mark.parametrize(
    "choice, message",
    [
        ("everything", "expected one of none, all, augment_only, only, or prob"),
        ({"t5": 0.5, "orignal": 0.5}, "did you mean 'original'"),
        ({"t5": 0.5, "endpoint": 0.5}, "known: original, t5, template"),
        ({"t5": 0.5, "original": 0.3}, "expected probabilities that sum to 1"),
        ({"t5": 1.5, "original": -0.5}, "expected probabilities that sum to 1"),
        ({}, "expected probabilities that sum to 1"),
    ],
)
def test_choices_that_make_no_sense(captions_file, choice, message):
    with pytest.raises(ValueError, match=message):
        GeneratedSource(TinySource(10), captions_file, choice)


def test_only_clips_that_have_some(tmp_path):
    lines = [
        line("synthetic-0-5", "a bell", "t5"),
        line("synthetic-0-2", "a dog", "t5"),
    ]
    file = write(tmp_path / "made.jsonl", lines)
    options = {"examples": 10, "generated": file, "captions": "only"}
    source = build_source("synthetic", "synthetic", options)
    assert [source.id(i) for i in range(len(source))] == [
        "synthetic-0-2",
        "synthetic-0-5",
    ]
    assert [source.captions(i) for i in range(2)] == [["a dog"], ["a bell"]]
    assert source[1]["captions"] == ["a bell"] and source.caption_weights(1) is None
    assert source.description().endswith("only the 2 that have generated ones")


def test_broken_lines_are_all_named(tmp_path):
    good = json.dumps(line("clip1", "fine"))
    path = tmp_path / "made.jsonl"
    lines = [
        good,
        '{"id": "clip2", "capt',
        "[1]",
        json.dumps(line("clip2", " ")),
        json.dumps(line(7, "x")),
        json.dumps({"id": "clip3", "caption": "x"}),
        "",
        json.dumps(line("clip4", "x", "original")),
        json.dumps(line("clip5", "\ud800")),
        json.dumps({**line("clip6", "x"), "captions": ["a bell", ""]}),
        json.dumps({**line("clip6", "x"), "captions": []}),
    ]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ManifestError) as caught:
        GeneratedSource(TinySource(10), str(path))
    message = str(caught.value)
    assert "made.jsonl: 9 problems" in message
    for expected in (
        "line 2: is not JSON",
        "line 3: holds a list, expected an object",
        "line 4: caption is ' ', expected text",
        "line 5: id is 7, expected text",
        "line 6: origin.kind is None, expected text",
        "line 8: origin.kind is 'original', which means the clip's own captions",
        "line 9: caption holds half a character",
        "line 10: captions is '', expected text",
        "line 11: captions is [], expected a list of texts",
    ):
        assert expected in message


def test_files_of_other_clips(tmp_path):
    file = write(tmp_path / "made.jsonl", [line("dog.wav", "x")])
    message = "none of its ids is a clip of source 'tiny': they are like 'dog.wav', the"
    with pytest.raises(ManifestError, match=message):
        GeneratedSource(TinySource(10), file)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ManifestError, match="empty.jsonl: there are no lines"):
        GeneratedSource(TinySource(10), str(tmp_path / "empty.jsonl"))
    with pytest.raises(FileNotFoundError):
        list(generated.read(str(tmp_path / "none.jsonl")))


def test_lines_of_several_captions(tmp_path):
    """As a captioner's manifest has them."""
    several = {"id": "clip3", "captions": ["a bell", "one bell"]}
    lines = [{**several, "origin": {"kind": "captioner"}}, line("clip3", "ding")]
    file = write(tmp_path / "made.jsonl", lines)
    source = GeneratedSource(TinySource(10), file, "augment_only")
    assert source.captions(3) == ["a bell", "one bell", "ding"]
    assert "generated captions 3 (captioner 2, " in source.description()
