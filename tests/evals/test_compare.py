"""The page and the table that put runs side by side."""

import json
import subprocess
import sys

import pytest

from clap_jax import cli
from clap_jax.evals import Absent, compare, report
from tests.evals.pages import Page
from tests.evals.test_runs import evaluated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs that compare, one with other prompts, and one that lacks something."""
    folder = tmp_path_factory.mktemp("runs")
    for name, noise, templates in (
        ("base", 2.0, "{}"),
        ("larger", 0.8, "{}"),
        ("worded", 0.8, "a {}"),
    ):
        results = evaluated(noise, templates)
        context = {"model": f"{name} <i>", "step": 1000}
        report.write_results(folder / name, results, context)
    results["pairs"] = Absent(None, "no captions here").run(None)
    results["nowhere"] = Absent(None, "no data").run(None)
    report.write_results(folder / "partial", results, context)
    return folder


def compared(folder, capsys, *names, **options):
    arguments = [str(folder / name) for name in names]
    out = folder / "compare.html"
    arguments += [f"--{key}={value}" for key, value in options.items()]
    status = compare.main([*arguments, f"--out={out}"])
    said = capsys.readouterr()
    return status, said.out, said.err, Page(out.read_text(encoding="utf-8"))


def test_runs_that_compare(folder, capsys):
    status, said, _, page = compared(folder, capsys, "base", "larger")
    assert status == 0 and "compare.html: 2 evaluations of 2 runs" in said
    assert "Not comparable" not in said + page.text
    values = {
        name: json.loads((folder / name / "results.json").read_text())["evals"]
        for name in ("base", "larger")
    }
    runs_table, headlines, kinds, *_ = page.tables
    assert [row[0] for row in runs_table] == ["run", "base", "larger"]
    assert "base <i>" in runs_table[1]
    assert headlines[0] == ["evaluation", "metric", "base", "larger"]
    accuracy = next(row for row in kinds if row[0] == "accuracy")
    for cell, name in zip(accuracy[1:], values):
        number = values[name]["kinds"]["metrics"]["zeroshot_acc"]
        low, high = values[name]["kinds"]["intervals"]["zeroshot_acc"]
        assert cell.startswith(
            f"{100 * number:.1f} %{100 * low:.1f} – {100 * high:.1f}"
        )
    assert " to +" in accuracy[2] and " to " not in accuracy[1]
    assert "paired by clip" in page.text and "Unpaired" not in page.text
    assert "difference better" in page.values("class")
    assert "best" in page.values("class")
    assert "4 classes" in page.text


def test_other_prompts_are_flagged_loudly_and_nothing_is_best(folder, capsys):
    status, said, _, page = compared(folder, capsys, "base", "worded")
    assert status == 0
    sentence = "different templates (base: {}; worded: a {})"
    assert sentence in page.text and "alert" in page.values("role")
    assert "Not comparable: kinds: different templates" in " ".join(said.split())
    kinds = page.tables[2]
    accuracy = next(row for row in kinds if row[0] == "accuracy")
    assert "+" not in accuracy[2]
    # Retrieval is made alike all the same.
    r1 = next(row for row in page.tables[4] if row[0] == "text → audio R@1")
    assert " to +" in r1[2]


def test_what_one_run_lacks_is_said(folder, capsys):
    _, said, _, page = compared(folder, capsys, "base", "larger", "partial")
    assert "partial has no numbers: no captions here." in page.text
    r1 = next(row for row in page.tables[-1] if row[0] == "text → audio R@1")
    assert r1[3] == "–"
    assert "–" in said
    assert "Evaluated in no run: nowhere." in page.text


def test_names_can_be_given(folder, capsys):
    _, said, _, page = compared(folder, capsys, "base", "larger", names="a,b <c>")
    assert page.tables[1][0] == ["evaluation", "metric", "a", "b <c>"]
    assert "b <c>" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/base"], "found 1 run, expected two or more"),
        (["{}/base", "{}/none"], "/none does not exist"),
        (["{}/base", "{}/larger", "--names=x"], "--names is 'x', expected 2 different"),
        (["{}/base", "{}/larger", "--names=x,x"], "expected 2 different names"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(folder, capsys, arguments, message):
    out = folder / "none.html"
    filled = [argument.format(folder) for argument in arguments]
    assert compare.main([*filled, f"--out={out}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not out.exists()


def test_differences_as_text():
    def text(*arguments):
        return compare.difference_text(arguments[0], compare.Difference(*arguments[1:]))

    assert text("t2a_R@1", 0.025, (-0.01, 0.0612)) == "+2.5 (−1.0 to +6.1)"
    assert text("t2a_median_rank", -3.0, None) == "−3"


def test_both_commands(folder, capsys):
    out = folder / "by_cli.html"
    arguments = [str(folder / "base"), str(folder / "larger"), f"--out={out}"]
    assert cli.main(["compare", *arguments]) == 0
    by_cli = out.read_text()
    capsys.readouterr()
    command = [sys.executable, "-m", "clap_jax.evals.compare", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_text() == by_cli
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "--help"])
    assert end.value.code == 0 and "results.json" in capsys.readouterr().out
