"""results.json, per_clip.npz and report.html."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from clap_jax.evals import Result, report
from tests.evals.pages import Page


def test_results_json(results, tmp_path):
    context = {"model": "small", "crop_seconds": np.float32(2.5), "folder": tmp_path}
    path = report.write_results(tmp_path / "new", results, context)
    content = json.loads(path.read_text())
    assert content["context"]["crop_seconds"] == 2.5
    assert content["context"]["folder"] == str(tmp_path)
    assert set(content["evals"]) == set(results)
    for name, result in results.items():
        entry = content["evals"][name]
        assert entry["metrics"] == result.metrics
        for metric, (low, high) in entry["intervals"].items():
            assert low <= result.metrics[metric] <= high
    protocol = content["evals"]["tags"]["protocol"]
    assert protocol["templates"] == ["This is a sound of {}."]
    assert protocol["clips"] == 11
    kinds = content["evals"]["kinds"]
    assert (
        kinds["prompts"]["This is a sound of {}."] == kinds["metrics"]["zeroshot_acc"]
    )
    assert len(kinds["prompts"]) == 6
    assert np.mean(list(kinds["classes"].values())) == kinds["metrics"]["zeroshot_acc"]
    assert "classes" not in content["evals"]["few"]
    assert content["evals"]["audio<caps>"]["protocol"]["reason"] == "no such [folder]"
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["per_clip.npz", "results.json"]


def test_what_each_clip_adds(results, tmp_path):
    report.write_results(tmp_path, results, {})
    with np.load(tmp_path / "per_clip.npz") as found:
        assert found["pairs [red]/a/clips"].tolist() == list(range(24))
        total, count = found["pairs [red]/a/t2a_R@5"].sum(axis=0)
        assert total / count == results["pairs [red]/a"].metrics["t2a_R@5"]
        assert not any(name.startswith("tags/") for name in found)


def test_results_that_cannot_be_written_leave_the_old_files(results, tmp_path):
    path = report.write_results(tmp_path, results, {})
    before = path.read_text(), (tmp_path / "per_clip.npz").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        report.write_results(tmp_path, {"x": Result({"acc": np.nan})}, {})
    with pytest.raises(TypeError, match="no JSON form for object"):
        report.write_results(tmp_path, {}, {"x": object()})
    assert (path.read_text(), (tmp_path / "per_clip.npz").read_bytes()) == before


def test_report_is_one_file_with_everything_inside(written, results):
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert written.name == "report.html"
    # Confusions are tables there.
    plots = list((written.parent / "plots").glob("*.png"))
    assert page.tags.count("svg") == len(plots) - 1 == 7
    for source in page.values("src") + page.values("href"):
        assert source.startswith(("data:", "#")), source
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    for words in ("A & B", "small <model>", "12,000", "pairs [red]/a", "text → audio"):
        assert words in page.text, words
    for heading in ("Confusion", "Classes", "Prompts", "Hardest captions", "Training"):
        assert heading in page.text, heading
    for words in ("Not evaluated", "audio<caps>", "no such [folder]", "python -m get"):
        assert words in page.text, words
    for low, high in results["kinds"].intervals.values():
        assert f"{100 * low:.1f} – {100 * high:.1f}" in page.text
    assert not list(written.parent.rglob("*.partial"))


def test_links_lead_somewhere_and_ids_are_unique(written):
    page = Page(written.read_text(encoding="utf-8"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {value[1:] for value in page.values("href") if value.startswith("#")}
    assert links <= set(ids) and "absent" in links


def test_tables_have_headers_and_drawings_have_names(written):
    page = Page(written.read_text(encoding="utf-8"))
    scopes = page.values("scope")
    assert scopes.count("row") == sum(
        bool(row[0]) for table in page.tables for row in table[1:]
    )
    assert len(page.values("aria-label")) >= page.tags.count("svg") + page.tags.count(
        "audio"
    )


def test_many_evaluations_stay_a_page_of_a_few_megabytes(results, sources, tmp_path):
    names = [f"pairs {i}" for i in range(18)]
    # Without arrays, whose drawings take their time.
    plain = dataclasses.replace(results["pairs [red]/a"], arrays={})
    many = dict.fromkeys(names, plain)
    heard = dict.fromkeys(names, sources["pairs [red]/a"])
    path = report.write_report(tmp_path, many, sources=heard)
    page = Page(path.read_text(encoding="utf-8"))
    assert 2_000_000 < path.stat().st_size < 3_000_000
    assert page.tags.count("audio") >= 4 * len(names)
    assert "too large" in page.text


def test_report_without_log_or_results(tmp_path):
    page = Page(report.write_report(tmp_path, {}).read_text())
    assert "svg" not in page.tags and "Evaluation report" in page.text


def test_heavy_libraries_are_imported_only_when_used():
    code = (
        "import sys; from clap_jax.evals import compare, report, plots, scores; "
        "print(sorted({'jax', 'matplotlib', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
