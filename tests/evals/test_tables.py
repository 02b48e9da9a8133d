"""Metrics as tables, on a terminal and on a page."""

import io

import pytest
from rich.console import Console

from clap_jax.evals import Absent, Result, tables


def printed(results):
    console = Console(file=io.StringIO(), width=120, color_system=None)
    tables.print_table(results, console)
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


def test_answers_have_a_heading_and_shares():
    metrics = {"exact": 0.5, "label_acc": 0.75, "bad_clips": 0.0}
    text = printed({"events": Result(metrics, protocol={"kind": "answers"})})
    assert "Written answers" in text and "label_acc" not in text
    assert "50.0 %" in text and "75.0 %" in text


def test_intervals_are_printed_where_they_fit_and_absent_ones_with_a_reason():
    members = {
        "a [b]": Result({"zeroshot_acc": 0.5}, intervals={"zeroshot_acc": (0.25, 1)}),
        "caps": Absent(None, "no [data]", "get").run(None),
    }
    text = printed(members)
    assert "50.0 %" in text and "25.0 – 100.0" in text
    console = Console(file=io.StringIO(), width=24, color_system=None)
    tables.print_table(members, console)
    text = console.file.getvalue()
    assert "50.0 %" in text and "25.0" not in text and tables.ABSENT in text
    row = next(line for line in text.splitlines() if "caps" in line)
    assert "no" in row and "get" in row


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("t2a_R@1", 0.1234, "12.3 %"),
        ("zeroshot_F1_macro", 1, "100.0 %"),
        ("exact", 0.5, "50.0 %"),
        ("t2a_median_rank", 1234.0, "1,234"),
        ("exact", 0.12345, "12.3 %"),
        ("bad_clips", 0.0, "0"),
        ("seconds", 0.000123456, "0.0001235"),
    ],
)
def test_numbers(metric, value, text):
    assert tables.format_value(metric, value) == text


def test_names_of_metrics():
    assert tables.metric_name("t2a_median_rank") == "text → audio median rank"
    assert tables.metric_name("zeroshot_acc") == "accuracy"
    assert tables.metric_name("probe_acc_deviation") == "deviation of accuracy"
    assert tables.metric_name("zeroshot_mAP") == "mAP"
    assert tables.metric_name("label_acc") == "accuracy"
    assert tables.metric_name("exact") == "exact answers"
    assert tables.headline(["bad_clips", "a2t_R@5", "t2a_R@1"]) == "a2t_R@5"
    assert tables.headline(["bad_clips"]) == "bad_clips" and tables.headline([]) == ""


def test_bars():
    assert "width: 50.0%" in tables.share_cell(0.5)
    for nothing in (None, float("nan")):
        assert tables.share_cell(nothing) == '<td data-value="-1">–</td>'
