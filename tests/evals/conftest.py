"""Results of every kind, their clips and the log of a training, for the pages."""

import json

import pytest

from clap_jax.evals import report
from tests.evals import some_results


@pytest.fixture(scope="session")
def results():
    return some_results.results()


@pytest.fixture
def sources():
    return some_results.sources()


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    rows = [
        {"step": s, "train/loss": 5 / s, "train/clips_per_s": 9.0} for s in range(1, 60)
    ]
    rows += [{"step": s, "eval/kinds/zeroshot_acc": s / 60} for s in (20, 40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def written(results, log, tmp_path_factory):
    """The path of a report."""
    context = {"model": "small <model>", "clips": 12000, "evals": {"a": [1, True]}}
    return report.write_report(
        tmp_path_factory.mktemp("report"),
        results,
        log,
        context,
        "A & B",
        some_results.sources(),
    )
