"""Figures of a run, as files and inside the page."""

import numpy as np
import pytest
from matplotlib.image import imread

from clap_jax.evals import Result, plots


def test_plots_are_pictures_with_something_on_them(results, log, tmp_path):
    written = plots.plot_all(tmp_path / "plots", results, log)
    names = [plot.path.name for plot in written]
    assert names == [
        "train_loss.png",
        "train_evals.png",
        "pairs_red_a_recall.png",
        "pairs_red_a_similarity.png",
        "few_recall.png",
        "few_similarity.png",
        "kinds_confusion.png",
        "tags_average.png",
    ]
    assert sorted(names) == sorted(p.name for p in (tmp_path / "plots").iterdir())
    for plot in written:
        picture = imread(plot.path)
        assert min(picture.shape[:2]) > 300, plot.path
        assert 0.02 < picture[..., :3].std() < 0.5, plot.path


def test_plots_of_equal_data_are_equal_files(results, log, tmp_path):
    some = {"kinds": results["kinds"]}
    first = plots.plot_all(tmp_path / "a", some, log)
    second = plots.plot_all(tmp_path / "b", some, log)
    for one, other in zip(first, second, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_more_classes_than_fit_are_cut_to_the_hardest(tmp_path):
    classes = [f"class {i}" for i in range(70)]
    confusion = np.diag(np.arange(1, 71))
    confusion[:, 0] += 5
    single = Result({}, {"confusion": confusion}, {"classes": classes})
    precision = np.linspace(0.1, 0.9, 70)
    several = Result({}, {"average_precision": precision}, {"classes": classes})
    for figure in (
        plots.confusion_figure("many", single),
        plots.average_precision_figure("many", several),
    ):
        axes = figure.axes[0]
        assert len(axes.get_yticks()) == 50
        assert "50 hardest of 70" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.get_yticklabels()] == classes[:50]


def test_history_takes_the_last_of_repeated_steps_and_skips_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 9.0}\n\n'
        '{"step": 2, "train/loss": 2.0, "note": "x"}\n'
        '{"step": 3, "train/loss": null}\n{"step": 4, "train/lo'
    )
    history = plots.read_history(path)
    assert list(history) == ["train/loss"]
    steps, values = history["train/loss"]
    assert steps.tolist() == [1, 2] and values.tolist() == [3, 2]
    assert plots.read_history(tmp_path / "none.jsonl") == plots.read_history(None) == {}


def test_broken_line_in_the_log_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(
        ValueError, match="metrics.jsonl, line 2: expected .* 'not json'"
    ):
        plots.read_history(path)


def test_running_mean():
    values = np.array([1.0, 2.0, np.nan, 6.0, 10.0])
    assert plots.running_mean(values, 1).tolist() == [1.5, 1.5, 4.0, 8.0, 8.0]


@pytest.mark.parametrize("values", [[2.0], [2.0, np.nan], [np.nan] * 30, [-1.0] * 30])
def test_loss_of_any_length_can_be_drawn(values, tmp_path):
    losses = {"train/loss": (np.arange(len(values)), np.array(values))}
    plots._save(plots.loss_figure(losses), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
