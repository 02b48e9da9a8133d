"""Training from the device's memory, and a trace of some of its steps."""

import json

import jax
import numpy as np
import pytest
from absl import logging

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.pipeline.ops import Prepare
from clap_jax.train import device_data, experiment, loop, plan, topology
from clap_jax.train.profile import Window

SHALLOW = {"options": {"depth": 1}}


def noise_config(**changes):
    config = config_lib.default()
    config.model = "small_transformer"
    config.model_overrides = {"audio": SHALLOW, "text": SHALLOW}
    config.train.batch_size = 8
    config.train.total_steps = 6
    config.train.log_steps = 2
    config.data.source = "synthetic_device"
    config.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in changes.items()}
    )
    return config


@pytest.mark.parametrize(
    "model", ["small_transformer", "laion_htsat_tiny_fusion_roberta", "blat"]
)
def test_noise_has_the_shapes_that_the_loader_makes(model):
    spec = zoo.get_spec(model)
    mel = "host" if spec.frontend.whole_mel else "device"
    prepare, mesh = Prepare(spec.frontend, mel=mel), sharding.make_mesh()
    abstract = device_data.abstract_batch(prepare, spec.text_length, 8, mesh)
    batch = device_data.noise(abstract, spec.vocab_size)
    for name, values in prepare.blank(8).items():
        assert batch[name].shape == values.shape
        assert batch[name].dtype == values.dtype
        assert np.asarray(batch[name]).any()
    assert batch["ids"].shape == batch["mask"].shape == (8, spec.text_length)
    assert batch["ids"].max() < spec.vocab_size
    assert len(set(np.asarray(batch["group"]))) == 8
    assert not batch["bad"].any()
    for leaf in jax.tree.leaves(batch):
        assert leaf.sharding.is_equivalent_to(sharding.batch_sharding(mesh), leaf.ndim)


def log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("noise")
    config = noise_config(
        profile__first_step=2, profile__steps=2, checkpoint__every_steps=4
    )
    loop.train(config, workdir)
    return workdir


def test_a_run_without_input_trains(run):
    lines = log(run)
    assert [line["step"] for line in lines] == [2, 4, 6]
    # One batch over and over is learnt by heart.
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    for line in lines:
        assert line["train/clips_per_s"] > 0
        assert line["train/pairs_per_s"] == pytest.approx(8 * line["train/clips_per_s"])
        assert 0 < line["train/mfu"] < 1
        assert line["train/device_memory_gib"] > 0
        assert line["train/data_wait_fraction"] < 0.5


def test_a_run_without_input_goes_on(run):
    config = noise_config(train__total_steps=8)
    loop.train(config, run)
    assert [line["step"] for line in log(run)] == [2, 4, 6, 8]


def test_the_trace_is_there(run):
    traces = list((run / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000


def test_epochs_of_nothing_are_refused(tmp_path):
    config = noise_config(train__total_steps=0, train__total_epochs=2.0)
    with pytest.raises(config_lib.ConfigError, match=r"set train\.total_steps"):
        loop.train(config, tmp_path)


def test_another_word_is_refused(tmp_path):
    config = noise_config(data__source="noise")
    with pytest.raises(config_lib.ConfigError, match="files or synthetic_device"):
        experiment.build(config, tmp_path)


def test_the_state_of_other_data_is_refused():
    data = device_data.DeviceData({})
    data.set_state(data.get_state())
    with pytest.raises(ValueError, match="other data"):
        data.set_state({"next_draw": 8, "sequence": []})


def test_noise_has_no_evaluations(tmp_path, monkeypatch):
    evals = {"kinds": {"kind": "zeroshot", "source": {"kind": "manifest"}}}
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *a: said.append(text % a))
    config = noise_config()
    config.evals = evals
    assert experiment.build(config, tmp_path).evaluations == {}
    assert "data.source=synthetic_device: evals are left out (kinds)" in said
    config.checkpoint.best_metric = "eval/kinds/zeroshot_acc"
    with pytest.raises(
        config_lib.ConfigError, match=r"best_metric .*\(none, with data"
    ):
        experiment.build(config, tmp_path)


def test_noise_has_the_vocabulary_of_the_plan(tmp_path):
    config = noise_config(data__vocab_size=77)
    spec = experiment.build(config, tmp_path).spec
    assert spec.vocab_size == 77
    assert spec == plan.experiment(config, topology.find("cpu:8")).spec


@pytest.fixture
def traces(monkeypatch):
    """What is asked of jax's profiler."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", found.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("end"))
    return found


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: found.append(text % a))
    return found


def walked(tmp_path, steps):
    window = Window(noise_config(profile__steps=2).profile, tmp_path, steps[0])
    for step in steps:
        if window.due(step):
            window.at(step)
    window.close()


def test_a_window_that_was_never_reached_is_a_warning(tmp_path, traces, warnings):
    walked(tmp_path, range(100, 109))
    assert traces == []
    (warning,) = warnings
    assert "no trace: the run ended before step 110" in warning
    assert "profile.first_step=10, counted from step 100" in warning
    warnings.clear()
    walked(tmp_path, range(100, 112))
    assert traces == [tmp_path / "profile", "end"]
    assert warnings == []


def test_every_process_has_a_folder_for_its_trace(tmp_path, traces, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    walked(tmp_path, range(20))
    assert traces == [tmp_path / "profile" / "process-3", "end"]
