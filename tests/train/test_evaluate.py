"""`--mode=eval` of checkpoints that are no run's own, and of what is absent."""

import dataclasses
import json

import numpy as np
import pytest

import clap_jax
from clap_jax import checkpoint
from clap_jax import config as config_lib
from clap_jax.evals import Result, kept
from clap_jax.evals.base import Miss, Written
from clap_jax.pipeline.feature_files import write_features
from clap_jax.pipeline.features import Features
from clap_jax.train import examine, experiment, loop
from clap_jax.train.evaluations import Evaluation
from tests.evals.pages import Page
from tests.train.test_loop import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    loop.train(small_config(train__total_steps=2), workdir)
    return workdir


def suite(**changes):
    """The evaluation alone: no training data, the model of a checkpoint."""
    config = small_config(**changes)
    config.model, config.model_overrides = "init_from", {}
    config.data.sources = ()
    return config


def test_a_checkpoint_is_evaluated_where_there_is_no_run(run, tmp_path):
    """The same numbers as its own run gives, from the run and from an export."""
    expected = json.loads((run / "results.json").read_text())["evals"]["kinds"]
    clap_jax.load(run).save(tmp_path / "export")
    for number, where in enumerate([run / "checkpoints" / "2", tmp_path / "export"]):
        workdir = tmp_path / str(number)
        examine.evaluate(suite(init_from=str(where)), workdir)
        found = json.loads((workdir / "results.json").read_text())
        assert found["context"]["init_from"] == [str(where)]
        assert "step" not in found["context"]
        assert found["evals"]["kinds"] == expected
        assert (workdir / "report.html").exists()
        assert not (workdir / "checkpoints").exists()


def test_a_run_is_evaluated_without_its_training_data(run):
    results = examine.evaluate(suite(), run)
    expected = examine.evaluate(small_config(train__total_steps=2), run)
    assert results["kinds"].metrics == expected["kinds"].metrics


def test_protocols_say_how_clips_and_texts_are_heard(run, tmp_path):
    config = suite(init_from=str(run))
    config.evals.kinds.crop_seed = 3
    said = examine.evaluate(config, tmp_path)["kinds"].protocol
    assert said["clip"].startswith(
        "2.56 s at 16000 Hz, a random window of longer (seed 3)"
    )
    assert "mel bands" in said["front_end"] and "hop" in said["front_end"]
    assert "tokens (trained on the captions, plain), cut at the end" in said["text"]
    assert (
        said["data"].startswith("synthetic: 24 procedural")
        and len(said["data_digest"]) > 7
    )


def test_what_cannot_be_evaluated_is_a_sentence(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no model"):
        examine.evaluate(suite(), tmp_path)
    config = suite(init_from=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone does not exist"):
        examine.evaluate(config, tmp_path)


def test_absent_evaluations_are_listed(run, tmp_path, capsys):
    config = suite(init_from=str(run))
    config.evals.esc50 = {
        "kind": "absent",
        "reason": "esc50 is not in runs/data",
        "prepare": "python -m data.prepare esc50",
        "about": {"metric": "accuracy"},
    }
    results = examine.evaluate(config, tmp_path)
    assert results["esc50"].metrics == {}
    found = json.loads((tmp_path / "results.json").read_text())["evals"]["esc50"]
    assert found["protocol"] == {
        "kind": "absent",
        "reason": "esc50 is not in runs/data",
        "prepare": "python -m data.prepare esc50",
        "task": {"metric": "accuracy"},
    }
    page = (tmp_path / "report.html").read_text()
    assert "Not evaluated" in page and "esc50 is not in runs/data" in page
    assert "python -m data.prepare esc50" in capsys.readouterr().out


def test_sections_that_lack_something(tmp_path):
    for section, message in (
        ({"source": {}}, "evals.x.kind is missing"),
        ({"kind": "zeroshot"}, "evals.x.source is missing"),
        ({"kind": "absent"}, "absent: reason is missing"),
    ):
        config = small_config()
        config.evals.x = section
        with pytest.raises(ValueError, match=message):
            experiment.build(config, tmp_path)
    assert issubclass(config_lib.ConfigError, ValueError)


def exam(run, tmp_path):
    """Three evaluations: the second has clips that are not there."""
    config = suite(init_from=str(run))
    kinds = config_lib.plain(config.evals.kinds)
    gone = {"kind": "manifest", "path": str(tmp_path / "gone.csv")}
    config.evals = {
        "first": kinds,
        "gone": kinds | {"source": gone},
        "last": kinds | {"templates": "a {}", "compared_templates": ()},
    }
    return config


def test_one_that_cannot_be_done_is_listed_and_the_others_are_done(run, tmp_path):
    with pytest.raises(examine.Refused, match="1 of 3 .* could not be done: gone; "):
        examine.evaluate(exam(run, tmp_path), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["evals"]
    assert list(found) == ["first", "gone", "last"]
    assert "zeroshot_acc" in found["first"]["metrics"]
    assert "zeroshot_acc" in found["last"]["metrics"]
    assert found["gone"]["metrics"] == {}
    reason = found["gone"]["protocol"]["reason"]
    assert reason.startswith("could not be done: ") and "gone.csv" in reason
    assert "gone.csv" in (tmp_path / "report.html").read_text()


def test_one_whose_trap_closes_is_listed(run, tmp_path):
    """Found when it is run, not when it is built."""
    config = exam(run, tmp_path)
    config.evals.gone = config_lib.plain(config.evals.first)
    config.evals.gone.official = {"classes": 3}
    with pytest.raises(examine.Refused):
        examine.evaluate(config, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["evals"]["gone"]
    assert "the task has 3" in found["protocol"]["reason"]


def test_the_only_evaluation_is_an_error(run, tmp_path):
    config = exam(run, tmp_path)
    del config.evals.first, config.evals.last
    with pytest.raises(ValueError, match="gone.csv: No such file"):
        examine.evaluate(config, tmp_path)


def test_what_was_finished_is_not_done_again(run, tmp_path, monkeypatch):
    """Killed in the second evaluation; then the same, and then another model."""
    config = exam(run, tmp_path)
    del config.evals.gone
    once = examine.evaluate(config, tmp_path / "once")
    original, calls = Evaluation.run, []

    def counted(evaluation, *arguments):
        calls.append(evaluation.section)
        if len(calls) == 2 and not finishing:
            raise KeyboardInterrupt
        return original(evaluation, *arguments)

    monkeypatch.setattr(Evaluation, "run", counted)
    workdir, finishing = tmp_path / "killed", False
    with pytest.raises(KeyboardInterrupt):
        examine.evaluate(config, workdir)
    assert len(calls) == 2 and not (workdir / "results.json").exists()
    (path,) = (workdir / examine.FINISHED).glob("*.npz")
    content = path.read_bytes()
    finishing = True
    again = examine.evaluate(config, workdir)
    assert len(calls) == 3 and not (workdir / examine.FINISHED).exists()
    for name in ("first", "last"):
        assert again[name].metrics == once[name].metrics
    for name in ("results.json", "report.html"):
        texts = [(folder / name).read_text() for folder in (workdir, tmp_path / "once")]
        assert texts[0] == texts[1]
    # A file of another model is not taken.
    path.parent.mkdir()
    path.write_bytes(content)
    other = tmp_path / "other"
    loop.train(small_config(train__total_steps=1), other)
    config.init_from = str(other)
    calls.clear()
    examine.evaluate(config, workdir)
    assert len(calls) == 2


def test_a_result_comes_back_from_its_file(tmp_path):
    arrays = {"confusion": np.eye(3), "recall_t2a": np.arange(4.0)}
    result = Result(
        {"zeroshot_acc": np.float64(0.5), "bad_clips": 0},
        arrays,
        {"classes": ["a", "b", "c"]},
        {"kind": "zeroshot", "templates": ["a {}"]},
        {"zeroshot_acc": (0.25, 0.75)},
        (Miss("", 1, "a", "b", None, 2, 0.5, 0.75),),
        {"zeroshot_acc": np.ones((2, 2))},
        np.array([0, 2]),
        written=(Written(2, "a dog", ("a dog barks",), {"CIDEr_D": 0.5}),),
    )
    kept.write(tmp_path / "a.npz", result)
    back = kept.read(tmp_path / "a.npz")
    for field in dataclasses.fields(Result):
        ours, theirs = getattr(back, field.name), getattr(result, field.name)
        if field.name in ("arrays", "per_clip"):
            assert ours.keys() == theirs.keys()
            for key, array in theirs.items():
                np.testing.assert_array_equal(ours[key], array)
        elif field.name == "clips":
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, field.name
    (tmp_path / "a.npz").write_bytes(b"half")
    assert kept.read(tmp_path / "a.npz") is None
    assert kept.read(tmp_path / "none.npz") is None


def test_features_need_no_model(tmp_path, capsys):
    """Boundaries and labels of features on disk; what needs a model is refused."""
    examples = (
        {
            "id": f"{i}.wav",
            "audio": Features(
                np.repeat(np.eye(3, dtype=np.float32)[[0, 1, 2]], 4, axis=0) + i % 2,
                np.stack([np.arange(12.0), np.arange(1.0, 13)], 1),
                np.ones(12, bool),
            ),
            "captions": ["From 0:00 to 0:04 a drum. From 0:04 to 0:12 a flute."],
            "tags": [("odd", "even")[i % 2]],
            "group": str(i),
        }
        for i in range(12)
    )
    write_features(tmp_path / "features" / "all.array_record", examples, "float32")
    source = {"kind": "features", "path": str(tmp_path / "features")}
    own = {"source": source, "folds": 2, "options": {"strengths": (0.1,)}}
    config = small_config()
    config.model, config.model_overrides, config.data.sources = "none", {}, ()
    config.evals = {
        "sections": own | {"kind": "boundaries"},
        "labels": own | {"kind": "probe", "features": "segments"},
    }
    workdir = tmp_path / "run"
    results = examine.evaluate(config, workdir)
    # The change at 0:08 is another one, and no boundary.
    assert results["sections"].metrics["boundary_AP"] == 1
    assert results["sections"].metrics["boundary_hit_F@0.5"] == 1
    assert results["labels"].metrics["probe_acc"] == 1
    said = json.loads((workdir / "results.json").read_text())
    assert said["context"]["model"] == "none"
    assert "clip" not in said["evals"]["sections"]["protocol"]
    data = said["evals"]["labels"]["protocol"]["data"]
    assert data["features"].startswith("features: 12 clips as features of 3 numbers")
    assert "Boundaries of sections" in capsys.readouterr().out
    page = Page((workdir / "report.html").read_text())
    assert "cannot be read" not in page.text
    config.evals.kinds = {"kind": "zeroshot", "source": source}
    with pytest.raises(examine.Refused, match="1 of 3 .* could not be done: kinds"):
        examine.evaluate(config, workdir)
    reason = json.loads((workdir / "results.json").read_text())["evals"]["kinds"]
    assert "model is 'none'" in reason["protocol"]["reason"]
