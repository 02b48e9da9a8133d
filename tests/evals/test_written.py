"""Answers of a captioner, against writers whose words are known."""

import types

import numpy as np
import pytest

from clap_jax.evals import bootstrap, build_evaluator, compare, report, runs
from clap_jax.text import answers, tokenize
from tests.evals.fakes import FakeSource, normalised
from tests.evals.pages import Page
from tests.evals.some_results import SoundSource

TAGS = [["dog"], ["rain"], ["Door_bell"], ["dog"], ["rain"]]
CAPTIONS = [[f"a clip of {own[0]}", "a sound"] for own in TAGS]
TOKENIZER = tokenize.train(
    ["this is a sound of dog rain door bell", "generate audio caption a clip of rain"],
    300,
    24,
)


class FakeCaptioner:
    """Writes given texts; prefers, of labels, those that they begin with."""

    spec = types.SimpleNamespace(captioner="prefix")
    tokenizer = TOKENIZER

    def __init__(self, texts, bad=()):
        self.texts, self.bad, self.asked = texts, list(bad), []

    def audio(self, source):
        rows = np.eye(len(source), 8, dtype=np.float32)
        kept = np.ones(len(source), bool)
        kept[self.bad] = False
        return normalised(rows), kept

    def write(self, z, prompt, length):
        self.asked.append(TOKENIZER.text(prompt).strip())
        writer = answers.Writer(TOKENIZER)
        ids = np.full((len(z), length), 7, np.int32)  # goes on behind its ending
        for row, clip in enumerate(z.argmax(axis=1)):
            found = writer.answer(self.texts[clip], True)
            ids[row, : len(found)] = found
        return ids

    def answer_scores(self, z, ids, answer):
        names = [
            answers.Writer(TOKENIZER).read(row[own]) for row, own in zip(ids, answer)
        ]
        return np.array(
            [
                [float(self.texts[clip].lower().startswith(name)) for name in names]
                for clip in z.argmax(axis=1)
            ],
            np.float32,
        )


def source(tags=TAGS, captions=CAPTIONS):
    made = FakeSource(captions, tags)
    made.id = lambda index: f"clip{index}"
    return made


def measured(texts, task="sound_event", bad=(), **options):
    writer = FakeCaptioner(texts, bad)
    found = build_evaluator("answers", source(), {"task": task, **options}).run(writer)
    return found, writer


def test_shares_of_right_answers():
    """Case is no difference, a word too many is; its first label is still preferred."""
    written = ["Dog", "rain", "door bell", "dog barking", "dog"]
    found, writer = measured(written)
    assert found.metrics == {
        "exact": 3 / 5,
        "label_acc": 4 / 5,
        "label_top5": 1.0,
        "bad_clips": 0.0,
    }
    assert writer.asked == ["this is a sound of"]
    assert found.labels["classes"] == ["door bell", "dog", "rain"]
    assert found.arrays["confusion"].tolist() == [[1, 0, 0], [0, 2, 0], [0, 1, 1]]
    assert found.protocol["examples"][3] == {
        "id": "clip3",
        "expected": "dog",
        "written": "dog barking",
    }


def test_intervals_and_what_every_clip_adds():
    right = [True, True, True, False, False]
    preferred = [True, True, True, True, False]
    found, _ = measured(["Dog", "rain", "door bell", "dog barking", "dog"])
    assert (
        set(found.intervals)
        == set(found.per_clip)
        == set(found.metrics) - {"bad_clips"}
    )
    (weights,) = bootstrap.draws(5)
    for name, hits in (("exact", right), ("label_acc", preferred)):
        drawn = [np.repeat(hits, own.astype(int)).mean() for own in weights.T]
        expected = np.quantile(drawn, [0.025, 0.975])
        np.testing.assert_allclose(found.intervals[name], expected, atol=1e-9)
        assert found.per_clip[name].tolist() == [[hit, 1] for hit in hits]
    assert found.clips.tolist() == [0, 1, 2, 3, 4]
    none, _ = measured(["dog"] * 5, draws=0)
    assert none.intervals == {} and none.protocol["intervals"] == "none"


def test_worst_answers():
    """Those that were written, and those that were preferred."""
    found, _ = measured(["Dog", "cat", "door bell", "dog barking", "no"], bad=[0])
    written, preferred = (
        [miss for miss in found.misses if miss.direction == direction]
        for direction in ("written", "")
    )
    shown = [(m.clip, m.truth, m.found, m.similarity) for m in written]
    assert shown == [
        (1, "rain", "cat", 0),
        (4, "rain", "no", 0),
        (3, "dog", "dog barking", 2 / 3),
    ]
    assert all(m.rank is None and m.found_similarity is None for m in written)
    # No label begins what was written there: all tie, against the model.
    assert [(m.clip, m.truth, m.rank) for m in preferred] == [
        (1, "rain", 3),
        (4, "rain", 3),
    ]
    assert all(m.score == "log-likelihood" for m in preferred)
    captions, _ = measured(
        ["a sound", "A clip of rain", "clip of", "x", "noise"], "caption"
    )
    shown = [(m.clip, m.truth, m.similarity) for m in captions.misses]
    assert shown == [
        (3, "a sound", 0),
        (4, "a sound", 0),
        (2, "a clip of door_bell", pytest.approx(2 / 3)),
    ]


def test_runs_are_paired_and_the_page_plays_the_worst(tmp_path):
    heard = SoundSource(CAPTIONS, tags=TAGS)
    results = {
        name: build_evaluator("answers", heard, {"task": "sound_event"}).run(
            FakeCaptioner(texts)
        )
        for name, texts in (
            ("one", ["dog", "rain", "rain", "cat <b>", "x"]),
            ("two", ["dog", "rain", "door bell", "dog", "x"]),
        )
    }
    for name, result in results.items():
        report.write_results(tmp_path / name, {"asked": result}, {})
    first, other = (runs.read(tmp_path / name) for name in results)
    assert results["one"].protocol["examples"] != results["two"].protocol["examples"]
    assert runs.protocol_differences([first, other], "asked") == []
    found = runs.difference(first, other, "asked", "exact")
    (weights,) = bootstrap.draws(5)
    expected = np.quantile((weights[2] + weights[3]) / 5, [0.025, 0.975])
    assert found.value == pytest.approx(0.4)
    np.testing.assert_allclose(found.interval, expected, atol=1e-6)
    text = compare.write(tmp_path / "both.html", [first, other]).read_text()
    assert "paired by clip" in text and "cat &lt;b&gt;" not in text
    path = report.write_report(
        tmp_path, {"asked": results["one"]}, sources={"asked": heard}
    )
    page = Page(path.read_text(encoding="utf-8"))
    for heading in ("Answers furthest from what was expected", "Hardest clips"):
        assert heading in page.text
    for words in ("cat <b>", "words in common: 0 %", "log-likelihood", "Confusion"):
        assert words in page.text, words
    low, high = results["one"].intervals["exact"]
    assert f"{100 * low:.1f} – {100 * high:.1f}" in page.text
    assert page.tags.count("audio") == len(results["one"].misses) == 6


def test_clips_that_cannot_be_read_are_left_out():
    found, _ = measured(["dog", "x", "x", "dog", "x"], bad=[1, 2, 4])
    assert found.metrics["exact"] == 1 and found.metrics["bad_clips"] == 3
    assert found.protocol["clips"] == 2


def test_any_of_the_captions_is_right():
    written = ["a sound", "A clip of rain", "a clip of dog", "x", "x"]
    found, writer = measured(written, task="caption")
    assert found.metrics == {"exact": 2 / 5, "bad_clips": 0.0}
    assert writer.asked == ["generate audio caption"]
    assert not found.arrays


def test_more_labels_than_occur():
    found, _ = measured(["dog"] * 5, labels=["rain", "dog", "Door_bell", "siren"])
    assert found.arrays["confusion"].shape == (4, 4)


@pytest.mark.parametrize(
    ("options", "tags", "sentence"),
    [
        ({"task": "sounds"}, TAGS, "unknown task of a source 'sounds'"),
        ({}, TAGS, "unknown task of a source ''"),
        ({"task": "question"}, TAGS, "expected a task with a fixed prompt"),
        (
            {"task": "scene"},
            [["a"], [], ["a"], ["a"], ["a"]],
            r"clip 1 \(clip1\).*no tag",
        ),
        ({"task": "scene", "labels": ["dog"]}, TAGS, "unknown label 'rain'"),
    ],
)
def test_errors(options, tags, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_evaluator("answers", source(tags), options)


def test_a_model_that_does_not_write():
    made = build_evaluator("answers", source(), {"task": "scene"})
    with pytest.raises(ValueError, match="the model writes no text"):
        made.run(types.SimpleNamespace())
    with pytest.raises(ValueError, match="has no clips"):
        build_evaluator("answers", source([], []), {"task": "scene"})
