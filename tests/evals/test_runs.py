"""Results read back: what is best, what differs, what cannot be read."""

import dataclasses

import numpy as np
import pytest

from clap_jax.evals import Absent, Result, Retrieval, ZeroShot, report, runs
from clap_jax.evals.runs import RunError
from tests.evals.fakes import FakeEncoder
from tests.evals.some_results import SoundSource

CLIPS = 40


def evaluated(noise, templates="{}", clips=CLIPS, **protocol):
    """Results of a model that errs by `noise`, with more in their protocols."""
    tags = [["abcd"[i % 4]] for i in range(clips)]
    captions = [[f"clip {i}", f"sound {i}"] for i in range(clips)]
    sources = {
        "kinds": SoundSource([[]] * clips, tags=tags),
        "pairs": SoundSource(captions),
    }
    found = {
        "kinds": ZeroShot(sources["kinds"], templates).run(
            FakeEncoder([own[0] for own in tags], noise=noise)
        ),
        "pairs": Retrieval(sources["pairs"]).run(
            FakeEncoder([own[0] for own in captions], noise=noise)
        ),
    }
    said = {
        "data_digest": "d1",
        "clip": "5 s, middle",
        "front_end": "64 mel",
    } | protocol
    return {
        name: dataclasses.replace(result, protocol=result.protocol | said)
        for name, result in found.items()
    }


@pytest.fixture
def written(tmp_path):
    """Writes a run and reads it back."""

    def write(name, noise, **options):
        results = evaluated(noise, **options)
        report.write_results(tmp_path / name, results, {"model": name})
        return runs.read(tmp_path / name)

    return write


def test_what_was_written_is_read(written):
    one = written("one", 1.0)
    results = evaluated(1.0)
    assert one.name == "one" and one.context["model"] == "one"
    for name, result in results.items():
        assert one.evals[name]["metrics"] == result.metrics
        low, high = one.evals[name]["intervals"][next(iter(result.metrics))]
        assert low <= high
    np.testing.assert_array_equal(one.per_clip["kinds/clips"], np.arange(CLIPS))
    assert runs.read(one.path).evals == one.evals  # the file itself


def test_differences_are_paired_by_clip(written):
    first, other = written("first", 2.0), written("other", 0.8)
    found = runs.difference(first, other, "kinds", "zeroshot_acc")
    hits = [run.per_clip["kinds/zeroshot_acc"][:, 0] for run in (first, other)]
    assert found.value == pytest.approx(np.mean(hits[1] - hits[0]))
    # The bootstrap of the differences, by its definition.
    rng = np.random.default_rng(1)
    drawn = (hits[1] - hits[0])[rng.integers(0, CLIPS, (20_000, CLIPS))].mean(axis=1)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(found.interval, expected, atol=0.03)
    assert found.is_clear
    back = runs.difference(other, first, "kinds", "zeroshot_acc")
    assert back.value == -found.value
    np.testing.assert_allclose(back.interval, [-found.interval[1], -found.interval[0]])


def test_a_run_against_itself_is_no_difference(written):
    one = written("one", 1.0)
    for metric in ("t2a_R@1", "a2t_mAP@10"):
        found = runs.difference(one, one, "pairs", metric)
        assert found == (0, (0, 0)) and not found.is_clear
    median = runs.difference(one, one, "pairs", "t2a_median_rank")
    assert median == (0, None)  # a median is no mean over clips
    assert runs.difference(one, one, "pairs", "unknown") is None


def test_without_per_clip_numbers_nothing_is_paired(written):
    first, other = written("first", 2.0), written("other", 0.8)
    other.path.with_name("per_clip.npz").unlink()
    other = runs.read(other.path)
    assert not runs.is_paired(first, other, "kinds")
    found = runs.difference(first, other, "kinds", "zeroshot_acc")
    assert found.interval is None and found.value > 0 and not found.is_clear


def test_protocols_that_differ_are_named(written):
    runs_ = [written("a", 1.0), written("b", 1.0), written("c", 1.0, templates="a {}")]
    (said,) = [
        text
        for text in runs.protocol_differences(runs_, "kinds")
        if text.startswith("different templates")
    ]
    assert said == "different templates (a, b: {}; c: a {})"
    assert runs.protocol_differences(runs_, "pairs") == []
    fewer = written("fewer", 1.0, clips=20)
    said = runs.protocol_differences([runs_[0], fewer], "pairs")
    assert "different clips (a: 40; fewer: 20)" in said
    assert not runs.is_paired(runs_[0], fewer, "pairs")


def test_other_data_under_the_same_protocol_is_found(written):
    first, other = written("first", 1.0), written("other", 1.0, data_digest="d2")
    (said,) = runs.protocol_differences([first, other], "kinds")
    assert said == "different data digest (first: d1; other: d2)"
    assert not runs.is_paired(first, other, "kinds")


def test_the_same_data_elsewhere_is_the_same(written):
    one = written("one", 1.0, data="esc50 in /a/esc50")
    other = written("other", 1.0, data="esc50 in /b/esc50")
    assert runs.protocol_differences([one, other], "kinds") == []


def test_another_crop_counts_where_the_front_end_is_the_same(written):
    one, two = written("one", 1.0), written("two", 1.0)
    cropped = written("cropped", 1.0, clip="5 s, random")
    assert runs.protocol_differences([one, two], "kinds") == []
    (said,) = runs.protocol_differences([one, two, cropped], "kinds")
    assert said == "different clip (one, two: 5 s, middle; cropped: 5 s, random)"
    assert runs.heard_differences([one, two, cropped], "kinds") == []


def test_what_another_front_end_hears_is_a_caution(written):
    one = written("one", 1.0)
    other = written("other", 1.0, clip="7 s, middle", front_end="128 mel")
    assert runs.protocol_differences([one, other], "kinds") == []
    assert runs.heard_differences([one, other], "kinds") == [
        "different clip (one: 5 s, middle; other: 7 s, middle)",
        "different front end (one: 64 mel; other: 128 mel)",
    ]


def test_absent_evaluations(tmp_path):
    absent = {"caps": Absent(None, "no data").run(None)}
    report.write_results(tmp_path, absent, {})
    found = runs.read(tmp_path)
    assert found.evals == {} and found.absent == {"caps": "no data"}


def test_the_best(tmp_path):
    found = []
    values = {"a": (0.5, 3.0), "b": (0.50001, 2.0), "c": (0.4, 9.0)}
    for name, (share, rank) in values.items():
        result = Result({"t2a_R@1": share, "t2a_median_rank": rank, "bad_clips": rank})
        report.write_results(tmp_path / name, {"x": result}, {})
        found.append(runs.read(tmp_path / name))
    assert runs.best(found, "x", "t2a_R@1") == {"a", "b"}  # look equal
    assert runs.best(found, "x", "t2a_median_rank") == {"b"}
    assert runs.best(found, "x", "bad_clips") == set()
    assert runs.best(found[:1], "x", "t2a_R@1") == set()
    assert runs.best(found[:2], "x", "t2a_R@1") == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"evals": ', "line 1, column 11: no JSON"),
        ("[1]", "the file is list, expected a JSON object"),
        ("{}", "evals is nothing, expected a JSON object"),
        ('{"evals": {"x": 3}}', "evals.x is int, expected a JSON object"),
        ('{"evals": {"x": {}}}', "evals.x.metrics is nothing"),
        (
            '{"evals": {"x": {"metrics": {"acc": "high"}}}}',
            "evals.x.metrics.acc is 'high', expected a number",
        ),
        (
            '{"evals": {"x": {"metrics": {"acc": NaN}}}}',
            "evals.x.metrics.acc is nan, expected a number",
        ),
        (
            '{"evals": {"x": {"metrics": {}, "intervals": {"acc": [1]}}}}',
            r"evals.x.intervals.acc is \[1\], expected two numbers",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match=f"results.json.*{message}"):
        runs.read(tmp_path)


def test_other_files_that_cannot_be_used(written, tmp_path):
    with pytest.raises(RunError, match="/nothing does not exist.*--mode=eval"):
        runs.read(tmp_path / "nothing")
    one, other = written("one", 1.0), written("other", 2.0)
    arrays = one.path.with_name("per_clip.npz")
    arrays.write_bytes(other.path.with_name("per_clip.npz").read_bytes())
    with pytest.raises(RunError, match="is not of the results.json beside it"):
        runs.read(one.path)
    arrays.write_bytes(b"PK broken")
    with pytest.raises(RunError, match="per_clip.npz: no arrays of numpy"):
        runs.read(one.path)
    (tmp_path / "latin.json").write_bytes(b'{"\xe4": 1}')
    with pytest.raises(RunError, match="no text in UTF-8"):
        runs.read(tmp_path / "latin.json")


def test_runs_get_different_names(written, tmp_path):
    one = written("one", 1.0)
    again = tmp_path / "deeper" / "one"
    again.mkdir(parents=True)
    (again / "results.json").write_text(one.path.read_text())
    names = [run.name for run in runs.read_all([tmp_path / "one", again])]
    assert names == [str(tmp_path / "one"), str(again)]
    with pytest.raises(RunError, match="is named twice"):
        runs.read_all([again, again])
