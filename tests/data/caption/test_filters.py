"""Which captions filters keep; that order and shards do not matter."""

import itertools
import json

import numpy as np
import pytest

from data.caption import criteria
from data.caption.clips import Clip
from data.caption.criteria import FILTERS
from data.caption.filters import Drop, Filters, Report, merged

OFF = {row.option: None for row in FILTERS}
DOG = Clip("dog.wav", ("Dog", "Vehicle horn, car horn, honking"))


def only(**thresholds):
    return Filters(OFF | thresholds)


def candidates(*texts, **more):
    return [
        {"caption": text} | {name: values[i] for name, values in more.items()}
        for i, text in enumerate(texts)
    ]


def left(filters, *texts, clip=DOG, **more):
    return [
        one["caption"] for one in filters.of_clip(clip, candidates(*texts, **more)).kept
    ]


# --- each filter at its edge ---


@pytest.mark.parametrize(
    ("thresholds", "kept", "dropped", "found"),
    [
        ({"min_words": 3}, "a dog barks", "a dog.", "2 words"),
        ({"min_words": 1}, "dog", "?!", "0 words"),
        ({"max_words": 3}, "a dog barks", "a dog barks twice", "4 words"),
        ({"max_run": 2}, "very very loud", "very very, very loud", "'very' 3 times"),
        ({"max_run": 1}, "a dog a dog", "a dog dog", "'dog' 2 times"),
        (
            {"max_phrase": 1},
            "a dog barks and a dog howls",
            "a dog barks and a dog barks",
            "'a dog barks' 2 times",
        ),
        ({"max_phrase": 2}, "go go go go", "go go go go go", "'go go go' 3 times"),
        (
            {"min_tag_share": 0.5},
            "dogs barking",
            "a cat meows",
            "0 of Dog, Vehicle horn, car horn, honking",
        ),
        (
            {"min_tag_share": 1},
            "a car honks at a dog",
            "a dog barks",
            "0.5 of Dog, Vehicle horn, car horn, honking",
        ),
    ],
)
def test_filters_of_one_caption(thresholds, kept, dropped, found):
    (option,) = thresholds
    row = next(row for row in FILTERS if row.option == option)
    sifted = only(**thresholds).of_clip(DOG, candidates(kept, dropped))
    assert [one["caption"] for one in sifted.kept] == [kept]
    assert sifted.dropped == (Drop("dog.wav", row.name, dropped, found),)


def test_clap_score():
    texts, scores = ("a dog", "a cat", "rain"), [0.3, 0.299, -0.5]
    found = only(min_clap_score=0.3).of_clip(DOG, candidates(*texts, clap_score=scores))
    assert [one["caption"] for one in found.kept] == ["a dog"]
    assert [drop.found for drop in found.dropped] == ["0.299", "-0.5"]
    half = candidates(*texts, clap_score=np.float32([0.5, 0.25, 0.75]))
    assert len(only(min_clap_score=0.5).of_clip(DOG, half).kept) == 2


def test_near_duplicates_leave_the_best():
    """The better one stays wherever it stands; what is like a dropped one may stay."""
    texts = ("a dog barks loudly", "loudly a dog barks", "a dog barks", "rain falls")
    filters = only(near_words=0.75)
    assert left(filters, *texts, clap_score=[0.1, 0.2, 0.3, 0.0]) == list(texts[2:])
    assert left(filters, *texts, clap_score=[0.3, 0.3, 0.2, 0.0]) == [
        "a dog barks loudly",
        "rain falls",
    ]
    filters = only(near_words=1)
    assert left(filters, *texts, clap_score=[0.1, 0.2, 0.3, 0.0]) == list(texts[1:])
    # a b c d, b c d e, c d e f: neighbours are alike, the first and the last are not.
    chain = ("a b c d", "b c d e", "c d e f")
    assert left(only(near_words=0.6), *chain, clap_score=[0.3, 0.2, 0.1]) == [
        chain[0],
        chain[2],
    ]


def test_near_duplicates_by_edits_see_order():
    texts, scores = ("a dog barks then rain", "a dog barks and rain"), [0.2, 0.1]
    swapped = ("dog chases cat", "cat chases dog")
    assert left(only(near_edits=0.8), *texts, clap_score=scores) == [texts[0]]
    assert left(only(near_edits=0.81), *texts, clap_score=scores) == list(texts)
    assert left(only(near_edits=0.8), *swapped, clap_score=scores) == list(swapped)
    assert left(only(near_words=0.8), *swapped, clap_score=scores) == [swapped[0]]


def test_likenesses_against_their_definitions():
    """All pairs of short texts, the distance by its recursive definition."""

    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        change = distance(a[1:], b[1:]) + (a[0] != b[0])
        return min(change, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    texts = [list(t) for n in range(4) for t in itertools.product("xyz", repeat=n)]
    for a, b in itertools.product(texts, texts):
        longest = max(len(a), len(b))
        wanted = 1 - distance(a, b) / longest if longest else 1
        assert criteria.edit_similarity(a, b) == pytest.approx(wanted)
        either = set(a) | set(b)
        wanted = sum(w in a and w in b for w in either) / len(either) if either else 1
        assert criteria.jaccard(a, b) == wanted


def test_ranks():
    found = criteria.ranked(
        [
            {"caption": "d"},
            {"caption": "b", "clap_score": 0.5, "log_likelihood": -2.0},
            {"caption": "a", "clap_score": 0.5, "log_likelihood": -2.0},
            {"caption": "c", "clap_score": 0.5, "log_likelihood": -1.0},
            {"caption": "e", "clap_score": 0.9},
            {"caption": "f", "clap_score": None, "log_likelihood": -9.0},
        ]
    )
    assert found == [4, 3, 2, 1, 5, 0]


def test_the_best_of_a_clip_in_their_order():
    filters = only(top=2)
    sifted = filters.of_clip(DOG, candidates("a", "b", "c", clap_score=[0.2, 0.1, 0.3]))
    found = filters.finish(DOG, sifted, {})
    assert [one["caption"] for one in found.kept] == ["a", "c"]
    assert found.dropped == (Drop("dog.wav", "surplus", "b", "number 3 of 3"),)


def test_candidates_keep_what_else_is_known_of_them():
    one = {"caption": "a dog barks", "clap_score": 0.4, "seed": 3, "ids": [1, 2]}
    assert Filters().of_clip(DOG, [one]).kept == (one,)


def test_filters_go_one_by_one():
    """A caption that an earlier filter drops makes no other a near-duplicate."""
    texts = ("dog dog dog barks", "dog barks")
    more = {"clap_score": [0.9, 0.1]}
    assert left(only(near_words=0.9), *texts, **more) == [texts[0]]
    assert left(only(near_words=0.9, max_run=2), *texts, **more) == [texts[1]]
    options = [row.option for row in FILTERS]
    assert options.index("max_run") < options.index("near_words")
    assert options[-2:] == ["max_clips", "top"]


# --- many clips ---


def many(seed=0, clips=60):
    """Clips with captions of few words, so that all filters find something."""
    rng = np.random.default_rng(seed)
    nouns, verbs = ["dog", "car", "rain", "bell"], ["barks", "honks", "falls", "rings"]
    made = []
    for i in range(clips):
        own = []
        for _ in range(6):
            words = rng.choice(["the", "a", *nouns, *verbs], rng.integers(1, 9))
            usual = "a dog barks loudly" + " now" * (rng.random() < 0.3)
            text = " ".join(words) if rng.random() < 0.6 else usual
            score, likely = rng.normal(0.3, 0.2), -rng.random()
            own.append({"caption": text, "clap_score": score, "log_likelihood": likely})
        made.append((Clip(f"clip{i}", (str(rng.choice(nouns)),)), own))
    return made


ALL = Filters(
    {
        **{"min_words": 2, "max_words": 7, "max_run": 2, "min_clap_score": 0.1},
        **{"min_tag_share": 0.5, "near_words": 0.9, "near_edits": 0.6},
        **{"max_clips": 4, "top": 2},
    }
)


def texts_of(sifted):
    return [one["caption"] for one in sifted.kept]


def test_every_candidate_is_kept_or_dropped_once():
    clips = many()
    found, report = ALL.apply(clips)
    for (clip, own), sifted in zip(clips, found):
        everything = texts_of(sifted)
        everything += [drop.caption for drop in sifted.dropped]
        assert sorted(everything) == sorted(one["caption"] for one in own)
        assert len(sifted.kept) <= 2
    assert report.candidates == 360 == report.kept + report.dropped.total()
    assert report.clips == 60 and report.emptied == sum(not s.kept for s in found)
    dropping = {row.name for row in FILTERS} - {"repetition"}
    assert set(report.dropped) >= dropping


@pytest.mark.parametrize("seed", range(3))
def test_order_and_shards_change_nothing(seed):
    """Clips in any order, candidates in any order, counted in any parts, the parts
    through JSON: the same captions, the same report."""
    clips = many()
    whole, report = ALL.apply(clips)
    wanted = {clip.id: sorted(texts_of(s)) for (clip, _), s in zip(clips, whole)}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clips))
    mixed = [(clips[i][0], [clips[i][1][j] for j in rng.permutation(6)]) for i in order]
    shards = [mixed[i :: 2 + seed] for i in range(2 + seed)]
    first = [[(clip, ALL.of_clip(clip, own)) for clip, own in part] for part in shards]
    counts = [json.loads(json.dumps(ALL.frequencies(part))) for part in first]
    common = merged(counts[::-1], 4)
    found, total = {}, Report()
    for part in first:
        own = Report()
        for clip, sifted in part:
            sifted = ALL.finish(clip, sifted, common)
            found[clip.id] = sorted(texts_of(sifted))
            own.add(sifted)
        total.merge(own)
    assert found == wanted
    assert total.as_json(ALL) == report.as_json(ALL)


def test_a_clips_filters_do_not_see_its_neighbours():
    clips = many()
    filters = Filters({"top": 2, "min_clap_score": 0.1})
    whole, _ = filters.apply(clips)
    for one, sifted in list(zip(clips, whole))[:10]:
        (alone,), _ = filters.apply([one])
        assert alone == sifted


def test_frequent_captions_stay_with_so_many_clips():
    """By words: case and stops do not count. Twice in a clip is one clip."""
    texts = ["A dog barks.", "a dog barks", "a DOG barks!"]
    clips = [(Clip(f"c{i}", ("Dog",)), candidates(texts[i % 3])) for i in range(10)]
    clips.append((Clip("other", ("Rain",)), candidates("rain falls", "Rain falls!")))
    found, report = only(max_clips=4).apply(clips)
    assert [len(sifted.kept) for sifted in found[:10]].count(1) == 4
    assert len(found[10].kept) == 2
    assert report.dropped == {"over-frequent": 6}
    assert {d.found for sifted in found for d in sifted.dropped} == {"of 10 clips"}
    found, _ = only(max_clips=10).apply(clips)
    assert all(sifted.kept for sifted in found)
    # More clips allowed, and the others stay as they are.
    kept = {
        most: {
            clip.id
            for (clip, _), s in zip(clips, only(max_clips=most).apply(clips)[0])
            if s.kept
        }
        for most in (2, 4, 6)
    }
    assert kept[2] < kept[4] < kept[6]


def test_report():
    filters = Filters(OFF | {"min_words": 3, "top": 1, "min_tag_share": None})
    clips = [
        (Clip(f"c{i}", ("Dog",)), candidates("dog", f"a dog barks {i}", "a dog howls"))
        for i in range(9)
    ]
    clips.append((Clip("empty", ("Dog",)), candidates("dog")))
    _, report = filters.apply(clips)
    said = list(report.lines(filters))
    assert said[0] == "kept 9 of 28 captions of 10 clips"
    assert said[1] == "clips without any caption: 1"
    assert said[2].startswith("too short (fewer than 3 words): 10, as 'dog' of ")
    assert said[3].startswith(
        "surplus (not among the 1 best of the clip): 9, as 'a dog"
    )
    assert len(said) == 4
    found = report.as_json(filters)
    assert json.loads(json.dumps(found)) == found
    assert [row["option"] for row in found["filters"]] == list(OFF)
    short = found["filters"][0]
    assert short["dropped"] == 10 and len(short["examples"]) == 5
    assert short["examples"][0]["found"] == "1 words"


def test_origin_says_what_the_result_depends_on():
    said = Filters({"top": 3}).origin()
    assert said["top"] == 3 and said["min_words"] == 3 and "tag_words" not in said
    assert len(Filters({"min_tag_share": 0.5}).origin()["tag_words"]) == 8


def test_nothing_to_filter():
    found, report = Filters().apply([(DOG, [])])
    assert found[0] == ((), ()) and report.emptied == 1


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        ({"min_word": 3}, "unknown option of the filters 'min_word'.*min_words"),
        ({"min_words": 2.5}, "min_words is 2.5, expected a whole number from 1$"),
        ({"top": 0}, "top is 0, expected a whole number from 1$"),
        ({"top": True}, "top is True, expected"),
        ({"near_words": 1.5}, "near_words is 1.5, expected a number from 0 to 1"),
        (
            {"min_clap_score": "0.3"},
            "min_clap_score is '0.3', expected a number from -1",
        ),
        ({"min_clap_score": float("nan")}, "min_clap_score is nan"),
    ],
)
def test_wrong_thresholds(thresholds, sentence):
    with pytest.raises(ValueError, match=sentence):
        Filters(thresholds)


@pytest.mark.parametrize(
    ("candidate", "sentence"),
    [
        ({"text": "a"}, "clip 'dog.wav': a candidate has the keys text, and no text"),
        ({"caption": None}, "and no text as its caption"),
        ({"caption": "a dog barks"}, "'a dog barks' has no clap_score"),
        ({"caption": "a", "clap_score": float("nan")}, "clap_score of 'a' is nan"),
        (
            {"caption": "a", "clap_score": 0.5, "log_likelihood": "-1"},
            "log_likelihood of 'a' is '-1'",
        ),
    ],
)
def test_wrong_candidates(candidate, sentence):
    with pytest.raises(ValueError, match=sentence):
        only(min_clap_score=0.1).of_clip(DOG, [candidate])


def test_the_second_pass_needs_the_first():
    filters = only(max_clips=1)
    sifted = filters.of_clip(DOG, candidates("a dog"))
    with pytest.raises(ValueError, match="'a dog' was not counted in the first pass"):
        filters.finish(DOG, sifted, {})
