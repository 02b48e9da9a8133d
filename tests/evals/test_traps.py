"""Known traps are refused, each with a reason, and can be accepted."""

import numpy as np
import pytest

from clap_jax.evals import Retrieval, traps
from tests.evals.fakes import FakeEncoder, FakeSource


def five(count):
    return [[f"sound {clip} #{k}" for k in range(5)] for clip in range(count)]


def meaning(text):
    return text.split(" #")[0]


def rows_of_captions(clips, captions=5):
    """AudioCaps read row by row: every clip again for each of its captions."""
    texts = [[f"sound {i} #{k}"] for i in range(clips) for k in range(captions)]
    sounds = [i for i in range(clips) for _ in range(captions)]
    return texts, sounds, [f"sound {i}" for i in sounds]


def test_laion5_equals_a_walk_down_the_lists():
    """LAION's numbers, both ways, over a model that is often wrong."""
    source = FakeSource(five(40))
    encoder = FakeEncoder([f"sound {i}" for i in range(40)], meaning, noise=2.0)
    metrics = Retrieval(source, "laion5").run(encoder).metrics
    za, _ = encoder.audio(source)
    zt = encoder.text([text for clip in range(40) for text in source.captions(clip)])
    table = zt.astype(float) @ za.T.astype(float)
    places = np.array(
        [list(np.argsort(-row)).index(i // 5) for i, row in enumerate(table)]
    )
    precision = np.where(places < 10, 1 / (places + 1), 0)
    assert metrics["t2a_R@1"] == np.mean(places < 1)
    assert metrics["t2a_mAP@10"] == pytest.approx(precision.mean(), abs=1e-12)
    firsts, precisions = [], []
    for clip, row in enumerate(table.T):
        own = np.sort(np.flatnonzero(np.argsort(-row) // 5 == clip))
        firsts.append(own[0])
        inside = own[own < 10]
        precisions.append(np.sum(np.arange(1, len(inside) + 1) / (inside + 1)) / 5)
    assert metrics["a2t_R@5"] == np.mean(np.array(firsts) < 5)
    assert metrics["a2t_mAP@10"] == pytest.approx(np.mean(precisions), abs=1e-12)
    assert 0.1 < metrics["a2t_mAP@10"] < 0.9


def test_repeated_audio_is_refused():
    texts, sounds, meanings = rows_of_captions(20)
    encoder = FakeEncoder(meanings, meaning)
    source = FakeSource(texts, sounds=sounds)
    with pytest.raises(
        ValueError,
        match="retrieval of source 'fake': 80 of its 100 clips repeat another's sound "
        r".clips \d+ and \d+ are the same.*accept=.'repeated_audio'",
    ):
        Retrieval(source, "one_to_one").run(encoder)
    accepted = Retrieval(source, "one_to_one", accept=["repeated_audio"]).run(encoder)
    assert accepted.metrics["t2a_R@1"] == 0  # four wrong clips score the same
    assert "80 of its 100" in accepted.protocol["accepted"]["repeated_audio"]
    # Clips of one group are right for each other, so nothing is wrong.
    groups = [str(sound) for sound in sounds]
    source = FakeSource(texts, sounds=sounds, groups=groups)
    result = Retrieval(source, "multi_positive").run(encoder)
    assert result.metrics["t2a_R@1"] == 1 and "accepted" not in result.protocol


def test_repeated_files_are_found_whatever_is_heard_of_them():
    """As with a random window of each row of AudioCaps' table."""

    class Files(FakeSource):
        def audio_files(self):
            return [f"{sound}.wav" for sound in sounds]

    texts, sounds, meanings = rows_of_captions(20)
    encoder = FakeEncoder(meanings, meaning, noise=0.5)
    assert Retrieval(FakeSource(texts, sounds=sounds)).run(encoder).metrics
    with pytest.raises(ValueError, match="80 of its 100 clips repeat another's sound"):
        Retrieval(Files(texts, sounds=sounds)).run(encoder)
    # The last digits of a vector do not hide it either.
    nearly = FakeEncoder(meanings, meaning, noise=1e-6)
    with pytest.raises(ValueError, match="of its 100 clips repeat another's sound"):
        Retrieval(FakeSource(texts, sounds=sounds)).run(nearly)


def test_a_model_that_has_collapsed_is_no_fault_of_the_data():
    texts = [[f"sound {i}"] for i in range(20)]
    source = FakeSource(texts, sounds=range(20))
    result = Retrieval(source).run(FakeEncoder(["same"] * 20))
    assert result.metrics["t2a_R@1"] == 0
    source = FakeSource(texts, sounds=[0] * 2 + list(range(18)))  # one pair of silence
    encoder = FakeEncoder([f"sound {i}" for i in [0, 0, *range(2, 20)]])
    assert Retrieval(source).run(encoder).metrics["t2a_R@1"] == 0.9


def test_clips_that_cannot_be_read_are_not_the_same():
    class Broken(FakeSource):
        def __getitem__(self, index):
            return {"audio": b"no sound"}

    texts, _, meanings = rows_of_captions(8)
    result = Retrieval(Broken(texts)).run(FakeEncoder(meanings, meaning))
    assert result.metrics["t2a_R@1"] == 0


def test_one_caption_a_clip_is_not_laion5():
    texts, _, _ = rows_of_captions(20)
    with pytest.raises(ValueError, match="100 of its 100 .* merge_rows=True"):
        Retrieval(FakeSource(texts), "laion5")
    some = five(40)
    some[3] = some[3][:4]
    assert (
        Retrieval(FakeSource(some), "laion5")
        .run(FakeEncoder())
        .protocol["captions_per_clip"]
        == "4 to 5"
    )
    for clip in range(10):
        some[clip] = some[clip][:4]
    with pytest.raises(ValueError, match="10 of its 40 clips .* clip 0 with 4"):
        Retrieval(FakeSource(some), "laion5")
    accepted = Retrieval(FakeSource(some), "laion5", accept=["captions"])
    assert (
        "10 of its 40" in accepted.run(FakeEncoder()).protocol["accepted"]["captions"]
    )


def marked(split, monkeypatch, count=30):
    """A set of clips with known captions of a split of Clotho."""
    texts = five(count)
    marks = [traps.mark(own[0]) for own in texts[:16]]
    monkeypatch.setattr(traps, "CLOTHO", {"evaluation": "", "validation": ""})
    traps.CLOTHO[split] = " ".join(marks)
    return FakeSource(texts)


def test_the_other_split_of_clotho_is_refused(monkeypatch):
    source = marked("validation", monkeypatch)
    with pytest.raises(
        ValueError, match="16 known captions are of Clotho's validation"
    ):
        Retrieval(source, "laion5")
    official = {"clotho_split": "validation"}
    Retrieval(source, "laion5", official=official)
    accepted = Retrieval(source, "laion5", accept="clotho_split").run(FakeEncoder())
    assert "LAION's shards" in accepted.protocol["accepted"]["clotho_split"]
    source = marked("evaluation", monkeypatch)
    with pytest.raises(
        ValueError, match="16 known captions are of Clotho's evaluation"
    ):
        Retrieval(source, "laion5", official=official)


def test_evaluation_is_what_is_meant(monkeypatch):
    source = marked("evaluation", monkeypatch)
    assert "accepted" not in Retrieval(source, "laion5").run(FakeEncoder()).protocol


def test_both_splits_in_one(monkeypatch):
    source = marked("evaluation", monkeypatch)
    marks = traps.CLOTHO["evaluation"].split()
    traps.CLOTHO["evaluation"] = " ".join(marks[:8])
    traps.CLOTHO["validation"] = " ".join(marks[8:])
    with pytest.raises(ValueError, match="8 known .* validation split, 8 of its eval"):
        Retrieval(source)


def test_marks_are_of_clotho():
    """Two captions of its evaluation split and two of validation, as it prints them."""
    marks = {split: own.split() for split, own in traps.CLOTHO.items()}
    assert [len(set(own)) for own in marks.values()] == [16, 16]
    assert not set(marks["evaluation"]) & set(marks["validation"])
    machine = "A machine whines and squeals while rhythmically punching or stamping."
    assert traps.mark(machine) == marks["evaluation"][0]
    pans = "The person is rummaging through the pans while looking for something"
    assert traps.mark(pans.upper()) == marks["validation"][0]


def test_more_clips_than_there_are():
    source = FakeSource(five(20))
    with pytest.raises(ValueError, match="it has 20 clips, the official split has 10"):
        Retrieval(source, official={"clips": 10})
    result = Retrieval(source, official={"clips": 25}).run(FakeEncoder())
    assert result.protocol["official"] == {"clips": 25}
    with pytest.raises(ValueError, match="unknown trap in accept 'clip'"):
        Retrieval(source, accept=["clip"])
