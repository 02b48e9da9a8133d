"""`--mode=eval` of checkpoints that are no run's own, and of what is absent."""

import json

import pytest

import clap_jax
from clap_jax import checkpoint
from clap_jax import config as config_lib
from clap_jax.train import experiment, loop
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
        loop.evaluate(suite(init_from=str(where)), workdir)
        found = json.loads((workdir / "results.json").read_text())
        assert found["context"]["init_from"] == [str(where)]
        assert "step" not in found["context"]
        assert found["evals"]["kinds"] == expected
        assert (workdir / "report.html").exists()
        assert not (workdir / "checkpoints").exists()


def test_a_run_is_evaluated_without_its_training_data(run):
    results = loop.evaluate(suite(), run)
    expected = loop.evaluate(small_config(train__total_steps=2), run)
    assert results["kinds"].metrics == expected["kinds"].metrics


def test_protocols_say_how_clips_and_texts_are_heard(run, tmp_path):
    config = suite(init_from=str(run))
    config.evals.kinds.crop_seed = 3
    said = loop.evaluate(config, tmp_path)["kinds"].protocol
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
        loop.evaluate(suite(), tmp_path)
    config = suite(init_from=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone does not exist"):
        loop.evaluate(config, tmp_path)


def test_absent_evaluations_are_listed(run, tmp_path, capsys):
    config = suite(init_from=str(run))
    config.evals.esc50 = {
        "kind": "absent",
        "reason": "esc50 is not in runs/data",
        "prepare": "python -m data.prepare esc50",
        "about": {"metric": "accuracy"},
    }
    results = loop.evaluate(config, tmp_path)
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
