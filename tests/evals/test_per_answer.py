"""Single answers agree with the metrics, and with a look at every pair."""

import numpy as np
import pytest

from clap_jax.evals import Retrieval, ZeroShot, per_answer
from tests.evals.fakes import FakeEncoder, FakeSource


def captioned(clips, captions_each):
    return FakeSource(
        [[f"clip {i} text {k}" for k in range(captions_each(i))] for i in range(clips)]
    )


@pytest.fixture(scope="module")
def retrieval():
    source = captioned(30, lambda clip: 1 + clip % 3)
    encoder = FakeEncoder([f"clip {i} text 0" for i in range(30)], noise=1.0, bad=[4])
    return source, encoder, Retrieval(source).run(encoder)


def test_what_clips_add_is_the_metric(retrieval):
    _, _, result = retrieval
    assert set(result.per_clip) == {
        f"{way}_{name}"
        for way in ("t2a", "a2t")
        for name in ("R@1", "R@5", "R@10", "mAP@10")
    }
    for metric, rows in result.per_clip.items():
        assert rows.shape == (29, 2)
        total, count = rows.sum(axis=0)
        assert total / count == pytest.approx(result.metrics[metric], abs=1e-12)
        assert result.metrics[metric] not in (0, 1)
    # Text to audio, a clip asks as often as it has captions.
    asked = result.per_clip["t2a_R@1"][:, 1]
    assert asked.tolist() == [1 + clip % 3 for clip in range(30) if clip != 4]
    assert result.clips.tolist() == [clip for clip in range(30) if clip != 4]


def test_the_worst_answers_are_those_of_a_full_search(retrieval):
    source, encoder, result = retrieval
    za, kept = encoder.audio(source)
    texts = [text for own in source._captions for text in own]
    clip_of = np.repeat(np.arange(30), [len(own) for own in source._captions])
    readable = kept[clip_of]
    texts = [text for text, keep in zip(texts, readable) if keep]
    zt = encoder.text(texts)
    clip_of, clips = clip_of[readable], np.flatnonzero(kept)
    cosine = zt.astype(float) @ za[clips].T.astype(float)
    own = cosine[np.arange(len(texts)), np.searchsorted(clips, clip_of)]
    ranks = (cosine >= own[:, None]).sum(axis=1)

    misses = [miss for miss in result.misses if miss.direction == "t2a"]
    assert len(misses) == per_answer.MISSES
    assert [miss.rank for miss in misses] == sorted(
        (miss.rank for miss in misses), reverse=True
    )
    assert misses[0].rank == ranks.max()
    assert len({miss.clip for miss in misses}) == len(misses)
    for miss in misses:
        query = texts.index(miss.truth)
        assert miss.rank == ranks[query] == ranks[clip_of == miss.clip].max() > 1
        assert miss.clip == clip_of[query]
        first = clips[cosine[query].argmax()]
        assert miss.found_clip == first and miss.found == source.captions(first)[0]
        assert miss.similarity == pytest.approx(own[query], abs=1e-6)
        assert miss.found_similarity == pytest.approx(cosine[query].max(), abs=1e-6)
    for miss in (miss for miss in result.misses if miss.direction == "a2t"):
        row = cosine[:, np.searchsorted(clips, miss.clip)]
        assert miss.found == texts[row.argmax()]
        assert miss.found_clip == clip_of[row.argmax()] != miss.clip
        assert miss.truth in source.captions(miss.clip)
        right = row[clip_of == miss.clip].max()
        assert miss.rank == 1 + (row[clip_of != miss.clip] >= right).sum() > 1


def test_a_perfect_model_has_no_wrong_answers():
    source = captioned(6, lambda clip: 1)
    result = Retrieval(source).run(FakeEncoder([f"clip {i} text 0" for i in range(6)]))
    assert result.misses == ()


def test_clips_of_one_group_are_no_mistake():
    source = FakeSource(
        [["same"], ["same"], ["other"]], groups=["g", "g", "h"], sounds=[0, 1, 2]
    )
    encoder = FakeEncoder(["same", "same", "other"])
    assert Retrieval(source, protocol="multi_positive").run(encoder).misses == ()
    missed = Retrieval(source).run(encoder).misses
    assert {(miss.clip, miss.rank) for miss in missed} == {(0, 2), (1, 2)}


def test_misclassified_clips():
    tags = [["a"], ["b"], ["c"], ["a"]]
    source = FakeSource([[]] * 4, tags=tags)
    templates = "{}"
    result = ZeroShot(source, templates).run(FakeEncoder(["a", "c", "c", "a"]))
    (miss,) = result.misses
    assert (miss.clip, miss.truth, miss.found, miss.found_clip) == (1, "b", "c", None)
    assert miss.direction == "" and miss.rank > 1
    assert miss.found_similarity == pytest.approx(1, abs=1e-6)
    for metric in ("zeroshot_acc", "zeroshot_top5"):
        total, count = result.per_clip[metric].sum(axis=0)
        assert total / count == result.metrics[metric]
    assert result.metrics["zeroshot_acc"] == 0.75


def test_several_tags_and_none():
    source = FakeSource([[]] * 3, tags=[["a", "b"], ["b", "c"], []])
    evaluator = ZeroShot(source, "{}", untagged=True)
    result = evaluator.run(FakeEncoder(["a", "a", "b"]))
    (miss,) = result.misses
    assert (miss.clip, miss.truth, miss.found) == (1, "b, c", "a")
    assert result.per_clip == {}  # mAP is no mean over clips


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("a dog barks", "A  dog barks", 1),
        ("a dog", "the cat sleeps", 0),
        ("dog dog dog", "dog", 0.5),
        ("a dog barks loudly", "loudly barks", 2 / 3),
        ("", "dog", 0),
        ("", "", 1),
    ],
)
def test_words_in_common(one, other, share):
    for found in (
        per_answer.words_in_common(one, other),
        per_answer.words_in_common(other, one),
    ):
        assert found == pytest.approx(share)


def test_the_furthest_of_many_written_answers():
    """The twelve with the fewest words of any right answer; right ones never."""
    words = "a b c d e f g h i j k l m n o p q r s t".split()
    written = [" ".join(words[:k] + ["x"] * (20 - k)) for k in range(21)]
    expected = [{"z", " ".join(words)}] * 21
    misses = per_answer.written_misses(written, expected, np.arange(100, 121))
    assert [miss.clip for miss in misses] == list(range(100, 112))
    assert [miss.similarity for miss in misses] == [k / 20 for k in range(12)]
    assert misses[3].truth == " ".join(words) and misses[3].found == written[3]
    assert per_answer.written_misses([" A  b"], [{"a b"}], np.arange(1)) == ()
    (miss,) = per_answer.written_misses([""], [{"a b"}], np.arange(1))
    assert miss.found == "(nothing)" and miss.similarity == 0
    # The same words in another order are another answer.
    (miss,) = per_answer.written_misses(["b a"], [{"a b"}], np.arange(1))
    assert miss.similarity == 1


def test_prompts_one_by_one():
    source = FakeSource([[]] * 4, tags=[["a"], ["b"], ["a"], ["b"]])
    encoder = FakeEncoder(
        ["a", "b", "a", "b"],
        # One wording means what it says, the other one the opposite.
        meaning=lambda text: {"not a": "b", "not b": "a"}.get(text, text),
    )
    result = ZeroShot(source, "{}", compared_templates=["{}", "not {}"]).run(encoder)
    assert result.labels["prompts"] == ["{}", "not {}"]
    assert result.arrays["prompt_scores"].tolist() == [1, 0]
    both = ZeroShot(source, ["{}", "{} "], compared_templates=()).run(encoder)
    assert both.labels["prompts"] == ["as evaluated: 2 sentences a class", "{}", "{} "]
    assert both.arrays["prompt_scores"][0] == both.metrics["zeroshot_acc"]


def test_a_caption_that_a_group_repeats_is_asked_once():
    captions = [["same", "alone"], ["same"], ["other"]]
    source = FakeSource(captions, groups=["g", "g", "h"], sounds=[0, 1, 2])
    encoder = FakeEncoder(["other", "other", "same"])
    result = Retrieval(source, protocol="multi_positive").run(encoder)
    asked = result.per_clip["t2a_R@1"][:, 1]
    assert asked.tolist() == [2, 0, 1]
    for metric, rows in result.per_clip.items():
        total, count = rows.sum(axis=0)
        assert total / count == pytest.approx(result.metrics[metric])
    found = {(m.direction, m.truth, m.found, m.found_clip) for m in result.misses}
    assert ("t2a", "same", "other", 2) in found
    assert ("t2a", "other", "same", 0) in found
