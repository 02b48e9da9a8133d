"""Cross-validation: a run for each fold, done once; means and their deviation."""

import json

import numpy as np
import pytest
import soundfile

from clap_jax import config as config_lib
from clap_jax.evals import Result, runs
from clap_jax.evals.runs import Run
from clap_jax.train import folds, loop
from tests.pipeline.clips import RATE_HZ, wave
from tests.test_configs import CONFIGS, get_config

PATH = CONFIGS[0].with_name("finetune.py")
NAMES = ["1", "2", "10"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve tones, high or low, in three folds; and another division by splits."""
    folder = tmp_path_factory.mktemp("tones")
    rows = ["path,label,fold,split"]
    for number in range(12):
        pitch = 40 * (number % 2) + number
        soundfile.write(folder / f"{number}.wav", wave(pitch), RATE_HZ)
        label, fold = ("low", "high")[number % 2], NAMES[number // 4]
        rows.append(f"{number}.wav,{label},{fold},{('train', 'test')[number // 6]}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder / "tones.csv"


def small(table, argument="folds"):
    """Two steps of a tiny model on each fold."""
    config = get_config(PATH, f"{table},{argument}")
    config.model_overrides = {"audio": {"options": {"widths": (8, 8)}}}
    config.train.batch_size, config.train.log_steps = 8, 1
    config.train.total_epochs, config.train.total_steps = 0.0, 2
    config.checkpoint.every_steps = 1
    config.data.threads = 2
    return config


def test_every_fold_is_tested_once_and_never_learnt(table):
    config = small(table)
    found = folds.read(config)
    assert [fold.name for fold in found] == NAMES
    for fold in found:
        own = folds.of_fold(config, fold)
        assert not own.folds and len(config.folds) == 3
        (source,), test = own.data.sources, own.evals.classes.source
        rest = [name for name in NAMES if name != fold.name]
        assert tuple(source["where"]["fold"]) == tuple(rest)
        assert tuple(test["where"]["fold"]) == (fold.name,)
        assert own.task.heads.labels.labels == ("high", "low")
    # Without folds.train it is the run of the last fold.
    assert config.evals.classes.source.where.fold == ["10"]


def test_folds_are_run_once_and_averaged(table, tmp_path, monkeypatch, capsys):
    """Stopped in the second fold, it goes on there; a third time nothing is run."""
    config, train = small(table), loop.train
    begun = []

    def stopped(own, folder):
        begun.append(folder.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train(own, folder)

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        folds.train(config, tmp_path)
    assert not (tmp_path / "results.json").exists()
    results = folds.train(config, tmp_path)
    assert begun == ["fold_1", "fold_2", "fold_2", "fold_10"]
    again = folds.train(small(table), tmp_path)
    assert len(begun) == 4
    assert {n: r.metrics for n, r in again.items()} == {
        n: r.metrics for n, r in results.items()
    }

    each = [runs.read(tmp_path / f"fold_{name}") for name in NAMES]
    accuracies = [run.evals["classes"]["metrics"]["head_acc"] for run in each]
    written = json.loads((tmp_path / "results.json").read_text())
    means = written["evals"]["classes"]["metrics"]
    assert means["head_acc"] == pytest.approx(np.mean(accuracies))
    assert means["head_acc_deviation"] == pytest.approx(np.std(accuracies))
    assert written["evals"]["classes"]["protocol"]["clips"] == 12
    for name, accuracy in zip(NAMES, accuracies, strict=True):
        own = written["evals"][f"classes, fold {name}"]
        assert own["metrics"]["head_acc"] == accuracy
    page = (tmp_path / "report.html").read_text()
    shown = capsys.readouterr().out
    for text in ("classes, fold 10", "deviation of accuracy"):
        assert text in page and text in " ".join(shown.split())
    # Other settings are another run: what is there does not pass for it.
    other = small(table)
    other.train.total_steps = 3
    folds.train(other, tmp_path)
    assert begun[4:] == ["fold_1", "fold_2", "fold_10"]


def test_means_are_of_folds_and_bad_clips_are_added():
    def run(metrics, clips):
        protocol = {"kind": "classifier", "source": "s", "clips": clips}
        entry = {"metrics": metrics, "intervals": {}, "protocol": protocol}
        return Run("", PATH, {}, {}, {"classes": entry}, {})

    found = folds.summary(
        {
            "a": run({"head_mAP": 0.25, "head_AUC": 0.5, "bad_clips": 1.0}, 10),
            "b": run({"head_mAP": 0.75, "bad_clips": 2.0}, 30),
        }
    )
    assert list(found) == ["classes", "classes, fold a", "classes, fold b"]
    assert isinstance(found["classes"], Result)
    assert found["classes"].metrics == {
        "head_mAP": 0.5,
        "head_AUC": 0.5,
        "head_mAP_deviation": 0.25,
        "bad_clips": 3.0,
    }
    assert found["classes"].protocol == {
        "kind": "classifier",
        "source": "s",
        "clips": 40,
        "means_over_folds": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("folds,test=1", "leave out test and validation"),
        (
            "folds,column=split",
            "split of .* has splits .*test, train.*, expected folds",
        ),
        ("folds,column=folds", "did you mean 'fold'"),
    ],
)
def test_what_are_no_folds(table, argument, sentence):
    with pytest.raises(config_lib.ConfigError, match=sentence):
        get_config(PATH, f"{table},{argument}")


def test_a_table_without_folds(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\n0.wav,a\n")
    with pytest.raises(config_lib.ConfigError, match="has no folds: expected a column"):
        get_config(PATH, f"{tmp_path / 't.csv'},folds")


def test_folds_have_their_own_folders(table, tmp_path, monkeypatch):
    config = small(table)
    first, second, *_ = config.folds
    config.folds = ({**first, "name": "a b"}, {**second, "name": "a/b"})
    with pytest.raises(config_lib.ConfigError, match="folds a b, a/b have one folder"):
        folds.train(config, tmp_path)
    config.folds = ({"name": "a", "train": {}},)
    with pytest.raises(config_lib.ConfigError, match=r"folds\[0\].test is missing"):
        folds.train(config, tmp_path)
    monkeypatch.setattr(folds.checkpoint, "has_steps", lambda workdir: True)
    with pytest.raises(config_lib.ConfigError, match="the checkpoints of one run"):
        folds.train(small(table), tmp_path)
