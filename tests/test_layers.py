"""The layers of the package: who may import whom (see "How the code is laid out")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clap_jax"

# A module imports only from rows above its own, and from its own package.
ROWS = [
    {
        "chips",
        "config",
        "defaults",
        "sharding",
        "checkpoint",
        "metrics",
        "writer",
        "hub",
        "hosts",
        "engines",
        "remote",
    },
    {"audio", "text"},
    {"models", "losses", "pipeline"},
    {"evals", "convert"},
    {"train", "embed", "export"},
    {"loaded"},
    {"captions", "findings"},
    {"api"},
    {"commands"},
    {"caption_command", "classify_command", "search_command"},
    {"main", "cli", "dropin", "demo", "mteb"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}

# Libraries that only some modules may import.
RESERVED = {
    "flax": {"models"},
    "grain": {"pipeline"},
    "orbax": {"checkpoint"},
    "torch": {"convert"},
    "tensorflow": set(),
}
# These run in worker processes, which start fast and never touch a device.
WITHOUT_JAX = (
    "pipeline",
    "text",
    "audio/io",
    "audio/mel",
    "audio/crop",
    "audio/frontend",
)

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    place = str(path.relative_to(PACKAGE).with_suffix(""))
    own = place.split("/")[0]
    names = imported(path)
    libraries = {name.split(".")[0] for name in names}

    for library, allowed in RESERVED.items():
        assert library not in libraries or own in allowed, f"{place} imports {library}"
    if place.startswith(WITHOUT_JAX):
        assert not libraries & {"jax", "flax", "optax"}, f"{place} imports jax"
    if own == "__init__":
        return

    for name in names:
        parts = name.split(".")
        if parts[0] != "clap_jax" or len(parts) < 2 or parts[1] == own:
            continue
        assert parts[1] in ROW, f"{place} imports {name}, which is in no row"
        same_row_of_modules = ROW[own] == 0 == ROW[parts[1]]
        assert ROW[parts[1]] < ROW[own] or same_row_of_modules, (
            f"{place} (row {ROW[own]}) imports {name} (row {ROW[parts[1]]})"
        )


def test_only_main_defines_flags():
    users = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if "absl.flags" in imported(path)
        or "ml_collections.config_flags" in imported(path)
    ]
    assert users == ["main.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 450, f"{path} is two files"
