"""Retrieval with encoders whose answers are known."""

import numpy as np
import pytest

from clap_jax.evals import EVALUATORS, Result, Retrieval, build_evaluator, scores
from tests.evals.fakes import FakeEncoder, FakeSource, normalised

NAMES = {
    f"{direction}_{metric}"
    for direction in ("t2a", "a2t")
    for metric in ("R@1", "R@5", "R@10", "mAP@10", "median_rank")
} | {"bad_clips"}


def clips_with_captions(count, captions=3):
    meanings = [f"sound {i}" for i in range(count)]
    texts = [[f"{m} #{k}" for k in range(captions)] for m in meanings]
    return FakeSource(texts), meanings


def meaning(text):
    return text.split(" #")[0]


def test_perfect_encoder():
    source, meanings = clips_with_captions(70)
    result = Retrieval(source).run(FakeEncoder(meanings, meaning))
    assert set(result.metrics) == NAMES
    for name, value in result.metrics.items():
        assert value == (0 if name == "bad_clips" else 1), name
    assert result.arrays["similarity"].shape == (64, 64)
    np.testing.assert_allclose(np.diag(result.arrays["similarity"]), 1, atol=1e-6)
    assert len(result.labels["captions"]) == 64
    assert result.labels["captions"][-1] == "sound 69 #0"
    assert result.arrays["recall_t2a"].tolist() == [1] * 50
    assert result.protocol["clips"] == 70 and result.protocol["captions"] == 210


def test_random_encoder_is_near_chance():
    source, _ = clips_with_captions(400, captions=1)
    metrics = Retrieval(source).run(FakeEncoder()).metrics
    for direction in ("t2a", "a2t"):
        # Chance is 10 / 400 with a spread of 0.8 %, and the middle rank is 200.
        assert metrics[f"{direction}_R@10"] < 0.06
        assert 150 < metrics[f"{direction}_median_rank"] < 250


def test_same_run_twice_gives_the_same_numbers():
    source, meanings = clips_with_captions(40)
    runs = [
        Retrieval(source).run(FakeEncoder(meanings, meaning, noise=2.0))
        for _ in range(2)
    ]
    assert runs[0].metrics == runs[1].metrics
    assert 0 < runs[0].metrics["t2a_R@1"] < 1
    for name, array in runs[0].arrays.items():
        np.testing.assert_array_equal(array, runs[1].arrays[name])


def test_captions_in_unequal_numbers_belong_to_their_clip():
    texts = [["a #0"], ["b #0", "b #1", "b #2", "b #3"], ["c #0", "c #1"]]
    encoder = FakeEncoder(["a", "b", "c"], meaning)
    result = Retrieval(FakeSource(texts)).run(encoder)
    assert result.metrics["t2a_R@1"] == result.metrics["a2t_mAP@10"] == 1
    first = Retrieval(FakeSource(texts), "one_to_one")
    assert first.texts == ["a #0", "b #0", "c #0"]
    assert first.run(encoder).protocol["captions"] == 3


def test_a_text_that_repeats_is_encoded_once_and_ties():
    texts = [["rain"], ["rain"], ["wind"]]
    encoder = FakeEncoder(["rain", "rain", "wind"])
    source = FakeSource(texts, sounds=[1, 2, 3])  # that the model cannot tell apart
    metrics = Retrieval(source).run(encoder).metrics
    assert encoder.seen_texts == ["rain", "wind"]
    # Each "rain" finds the other clip first, for a tie counts against the model.
    assert metrics["t2a_R@1"] == pytest.approx(1 / 3)
    assert metrics["a2t_R@1"] == pytest.approx(1 / 3)


def test_clips_of_one_group_are_right_for_each_other_when_asked():
    texts, groups = [["rain"], ["rain"], ["wind"]], ["r", "r", "w"]
    source = FakeSource(texts, groups=groups)
    encoder = FakeEncoder(["rain", "rain", "wind"])
    result = Retrieval(source, "multi_positive").run(encoder)
    assert result.metrics["t2a_R@1"] == result.metrics["a2t_R@1"] == 1
    assert result.metrics["t2a_mAP@10"] == result.metrics["a2t_mAP@10"] == 1
    assert result.protocol["multi_positive"] is True


def test_a_text_that_a_group_repeats_is_one():
    """Label captions: two texts for six clips; the nearest text is right or wrong."""
    texts = [["rain"], ["rain"], ["rain"], ["wind"], ["wind"], ["wind", "a gale"]]
    groups = ["r"] * 3 + ["w"] * 3
    source = FakeSource(texts, groups=groups, sounds=range(6))
    meanings = ["rain", "rain", "wind", "wind", "wind", "wind"]
    result = Retrieval(source, "multi_positive").run(FakeEncoder(meanings))
    assert result.protocol["captions"] == 3
    # The third clip of rain sounds like wind: its text comes after "wind".
    assert result.metrics["a2t_R@1"] == pytest.approx(5 / 6)
    assert result.metrics["a2t_R@5"] == 1
    # "rain" finds its clips, and "wind" that clip of rain, which ties with its own.
    assert 1 / 3 <= result.metrics["t2a_R@1"] <= 2 / 3
    assert len(result.labels["captions"]) == 6
    low, high = result.intervals["a2t_R@1"]
    assert low < 5 / 6 <= high
    again = Retrieval(source).run(FakeEncoder(meanings))
    assert again.protocol["captions"] == 7


def test_every_metric_has_an_interval_around_it():
    source, meanings = clips_with_captions(60)
    encoder = FakeEncoder(meanings, meaning, noise=2.0, bad=[7])
    for protocol in ("all_captions", "one_to_one", "multi_positive"):
        result = Retrieval(source, protocol).run(encoder)
        assert set(result.intervals) == set(result.metrics) - {"bad_clips"}
        for name, (low, high) in result.intervals.items():
            assert low <= result.metrics[name] <= high, name
        again = Retrieval(source, protocol).run(encoder)
        assert again.intervals == result.intervals
    assert Retrieval(source, draws=0).run(encoder).intervals == {}


def test_multi_positive_has_map_at_16_too():
    source, meanings = clips_with_captions(20)
    metrics = Retrieval(source, "multi_positive").run(FakeEncoder(meanings)).metrics
    assert set(metrics) == NAMES | {"t2a_mAP@16", "a2t_mAP@16"}


def test_one_caption_a_clip_the_first_or_drawn():
    source, meanings = clips_with_captions(30)
    first = Retrieval(source, "one_to_one")
    assert first.texts == [f"{own} #0" for own in meanings]
    drawn = [Retrieval(source, "one_to_one", caption_seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].texts == drawn[1].texts != drawn[2].texts
    assert {text.split("#")[1] for text in drawn[0].texts} == {"0", "1", "2"}
    encoder = FakeEncoder(meanings, meaning)
    assert first.run(encoder).protocol["caption"] == "the first"
    assert drawn[2].run(encoder).protocol["caption"] == "drawn, seed 2"


def test_bad_clips_leave_with_their_captions_and_are_counted():
    source, meanings = clips_with_captions(12)
    encoder = FakeEncoder(meanings, meaning, noise=1.5, bad=[0, 5, 11])
    result = Retrieval(source).run(encoder)
    assert result.metrics["bad_clips"] == 3
    assert result.protocol["clips"] == 9 and result.protocol["captions"] == 27
    kept = [i for i in range(12) if i not in (0, 5, 11)]
    assert result.labels["captions"] == [f"sound {i} #0" for i in kept]
    za, _ = encoder.audio(source)
    zt = encoder.text([t for i in kept for t in source.captions(i)])
    expected = scores.ranks(zt, za[kept], np.repeat(np.arange(9), 3), np.arange(9))
    for name, value in scores.retrieval_metrics(expected, "t2a").items():
        assert result.metrics[name] == value
    np.testing.assert_allclose(result.arrays["similarity"], zt[::3] @ za[kept].T)


def test_one_clip():
    result = Retrieval(FakeSource([["a"]])).run(FakeEncoder(["a"]))
    assert result.metrics["t2a_median_rank"] == 1
    assert result.arrays["similarity"].shape == (1, 1)


class Broken(FakeEncoder):
    def __init__(self, audio, kept, text=None):
        self._audio, self._kept, self._text = audio, kept, text

    def audio(self, source):
        return self._audio, self._kept

    def text(self, texts):
        return self._text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": "nan"}, "1 of 3 embeddings of audio.* not finite.* index 2"),
        ({"text": "nan"}, "embeddings of texts are not finite"),
        ({"audio": "long"}, "audio of source 'fake' must have length 1, found 2"),
        ({"kept": "none"}, "none of its 3 clips could be read"),
        ({"audio": "short"}, "has 3 clips, but the encoder returned"),
        ({"text": "short"}, "for 3 texts"),
    ],
)
def test_broken_embeddings_are_errors_in_a_sentence(change, message):
    source = FakeSource([["a"], ["b"], ["c"]])
    good = normalised(np.random.default_rng(0).normal(size=(3, 8)))
    not_finite = good.copy()
    not_finite[2, 3] = np.nan
    values = {
        "nan": not_finite,
        "long": 2 * good,
        "short": good[:2],
        "none": np.zeros(3, bool),
    }
    parts = {"audio": good, "kept": np.ones(3, bool), "text": good}
    parts |= {name: values[value] for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        Retrieval(source).run(Broken(**parts))


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([["a"], []], {}, "clip 1 of source 'fake' has no caption"),
        ([["a", " "]], {}, "clip 0 of source 'fake' has an empty caption"),
        ([], {}, "has no clips"),
        ([["a"]], {"protocol": "laion"}, "protocol 'laion' .did you mean 'laion5'"),
        ([["a"]], {"caption_seed": 1}, "draws one caption, but all_captions takes all"),
    ],
)
def test_bad_sources_fail_before_any_encoding(captions, options, message):
    with pytest.raises(ValueError, match=message):
        Retrieval(FakeSource(captions), **options)


def test_build_evaluator():
    source = FakeSource([["a"], ["b"]], tags=[["x"], ["y"]])
    built = build_evaluator("retrieval", source, {"protocol": "one_to_one"})
    assert isinstance(built, Retrieval) and built.protocol == "one_to_one"
    assert {"absent", "retrieval", "zeroshot"} <= set(EVALUATORS)
    for kind in ("retrieval", "zeroshot"):
        result = build_evaluator(kind, source).run(FakeEncoder(["a", "b"]))
        assert isinstance(result, Result)
    with pytest.raises(ValueError, match="'retrieve' .did you mean 'retrieval'"):
        build_evaluator("retrieve", source)
    with pytest.raises(ValueError, match="retrieval 'protocols' .* 'protocol'"):
        build_evaluator("retrieval", source, {"protocols": "laion5"})
    with pytest.raises(ValueError, match="unknown key of evaluator retrieval 'source'"):
        build_evaluator("retrieval", source, {"source": "x"})
