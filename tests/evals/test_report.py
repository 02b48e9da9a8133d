"""Tables, results.json, plots and report.html."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from clap_jax.evals import Result, Retrieval, ZeroShot, plots, report
from tests.evals.fakes import FakeEncoder, FakeSource


def make_results():
    """One result of every kind, with names that try to break markup and paths."""
    # Dollar signs would start a formula, the last name has no glyphs in the font.
    words = ["a $5 coin", "x_y & <b>z</b>", "cost $3 or $4", "汽车"]
    captions = FakeSource([[f"{word} {i}"] for i in range(6) for word in words])
    meanings = [texts[0] for texts in captions._captions]
    single = FakeSource([[]] * 12, tags=[[words[i % 4]] for i in range(12)])
    several = FakeSource([[]] * 12, tags=[words[i % 3 : i % 3 + 2] for i in range(12)])
    return {
        "pairs [red]/a": Retrieval(captions).run(FakeEncoder(meanings, noise=1.5)),
        "few": Retrieval(FakeSource([["$a"], ["b"]])).run(FakeEncoder()),
        "kinds": ZeroShot(single).run(FakeEncoder()),
        "tags": ZeroShot(several).run(FakeEncoder(bad=[1])),
    }


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": s, "train/loss": 5 / s, "train/clips_per_s": 9.0} for s in range(1, 60)
    ]
    rows += [{"step": s, "eval/kinds/zeroshot_acc": s / 60} for s in (20, 40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


def printed(results):
    console = Console(file=io.StringIO(), width=120, color_system=None)
    report.print_table(results, console)
    return console.file.getvalue()


def test_table(results):
    text = printed(results)
    assert "pairs [red]/a" in text and "text → audio" in text
    row = next(line for line in text.splitlines() if "kinds" in line)
    assert f"{100 * results['kinds'].metrics['zeroshot_acc']:.1f} %" in row
    rows = [line for line in text.splitlines() if "→" in line]
    assert len(rows) == 4  # two evaluations, two directions
    for name in ("R@1", "mAP@10", "median rank", "accuracy", "mAP", "bad clips"):
        assert name in text, name
    assert printed({}) == ""


def test_table_shows_metrics_it_does_not_know():
    text = printed({"other": Result({"my_number": 0.12345})})
    assert "my_number" in text and "0.1235" in text


def test_results_json(results, tmp_path):
    context = {"model": "small", "crop_seconds": np.float32(2.5), "folder": tmp_path}
    path = report.write_results(tmp_path / "new", results, context)
    content = json.loads(path.read_text())
    assert content["context"]["crop_seconds"] == 2.5
    assert content["context"]["folder"] == str(tmp_path)
    assert set(content["evals"]) == set(results)
    for name, result in results.items():
        assert content["evals"][name]["metrics"] == result.metrics
    protocol = content["evals"]["tags"]["protocol"]
    assert protocol["templates"] == ["This is a sound of {}."]
    assert protocol["clips"] == 11
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_results_that_cannot_be_written_leave_the_old_file(results, tmp_path):
    path = report.write_results(tmp_path, results, {})
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        report.write_results(tmp_path, {"x": Result({"acc": np.nan})}, {})
    with pytest.raises(TypeError, match="no JSON form for object"):
        report.write_results(tmp_path, {}, {"x": object()})
    assert path.read_text() == before


class Page(HTMLParser):
    """Collects what is needed to judge a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text, self.tags = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file_with_everything_inside(results, log, tmp_path):
    context = {"model": "small <model>", "clips": 12000, "evals": {"a": [1, True]}}
    path = report.write_report(tmp_path, results, log, context, title="A & B")
    page = Page(path.read_text(encoding="utf-8"))
    assert path.name == "report.html"
    assert page.tags.count("img") == len(list((tmp_path / "plots").glob("*.png"))) == 8
    for source in page.sources:
        assert source.startswith("data:image/png;base64,iVBOR")
    assert not re.search(r"https?://|@import|<script", path.read_text())
    for text in ("A & B", "small <model>", "12,000", "pairs [red]/a", "text → audio"):
        assert text in page.text, text
    assert not list(tmp_path.rglob("*.partial"))


def test_report_without_log_or_results(tmp_path):
    page = Page(report.write_report(tmp_path, {}).read_text())
    assert "img" not in page.tags and "Evaluation report" in page.text


def test_heavy_libraries_are_imported_only_when_used():
    code = (
        "import sys; from clap_jax.evals import report, plots, scores; "
        "print(sorted({'jax', 'matplotlib', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
