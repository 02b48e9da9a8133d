"""The table of agreement with the references that is printed at the end of a test run.

Several processes may run the tests (pytest-xdist): each sends its part to the first.
"""

import pytest

COLUMNS = ("tensors", "mel", "tower", "embedding", "logits", "loss", "gradients")
_TABLE: dict[str, dict[str, float]] = {}


def note(name: str, column: str, value: float) -> None:
    """Keep the largest value seen of a reference, under one of `COLUMNS`."""
    assert column in COLUMNS
    row = _TABLE.setdefault(name, {})
    row[column] = max(float(value), row.get(column, 0.0))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = _TABLE


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for name, row in getattr(node, "workeroutput", {}).get("parity", {}).items():
        for column, value in row.items():
            note(name, column, value)


def pytest_terminal_summary(terminalreporter):
    if not _TABLE:
        return
    terminalreporter.section("agreement with the references, largest relative error")
    width = max(map(len, _TABLE))
    terminalreporter.write_line(f"{'':{width}}" + "".join(f"{c:>11}" for c in COLUMNS))
    for name, row in sorted(_TABLE.items()):
        cells = (_cell(column, row.get(column)) for column in COLUMNS)
        terminalreporter.write_line(f"{name:{width}}" + "".join(cells))


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return f"{'-':>11}"
    return f"{value:>11.0f}" if column == "tensors" else f"{value:>11.1e}"
