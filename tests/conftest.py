"""Shared fixtures: virtual devices, shape checks, the parity oracles and real audio."""

import atexit
import fnmatch
import importlib.util
import json
import os
import tempfile
from pathlib import Path

# Equal programs are compiled once over all tests and the processes that they start.
CACHE = tempfile.TemporaryDirectory(prefix="clap_jax_tests_")
atexit.register(CACHE.cleanup)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax

# Eight virtual CPU devices, set before the first use of a backend, so that every
# multi-device number is checked in the ordinary test run.
jax.config.update("jax_num_cpu_devices", 8)
# One execution at a time: with fewer cores than devices, two steps in flight would wait
# for each other's threads in their collectives, for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)

from jaxtyping import install_import_hook

# Shapes and dtypes in signatures are checked here and nowhere else (no run-time cost
# for users).
install_import_hook(
    ["clap_jax.audio", "clap_jax.models", "clap_jax.losses"], "beartype.beartype"
)

import numpy as np
import pytest

from tests.parity_table import (  # noqa: F401 (hooks of pytest)
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

REPOSITORY = Path(__file__).resolve().parents[1]

# Tests of what programs do, not of their last digits. They wait for the compiler more
# than for anything else, and get theirs without LLVM's optimisations in half the time.
QUICKLY_COMPILED = (
    "data/*",
    "embed/*",
    "evals/*",
    "pipeline/*",
    "test_*.py",
    "train/test_answers.py",
    "train/test_evaluate.py",
    "train/test_experiment.py",
    "train/test_folds.py",
    "train/test_heads.py",
    "train/test_loop.py",
    "train/test_preemption.py",
    "train/test_starts.py",
    "train/test_throughput.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Compile as this file of tests is to be; no program of the other kind is left."""
    name = item.path.relative_to(REPOSITORY / "tests").as_posix()
    quickly = any(fnmatch.fnmatch(name, pattern) for pattern in QUICKLY_COMPILED)
    if quickly != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)
        # Of the processes that tests start.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))


def shared_folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: set {variable} to the folder of {name}"
        )
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real audio with labels (CLAP_JAX_TEST_DATA)."""
    return shared_folder("CLAP_JAX_TEST_DATA", "data")


class Oracle:
    """Inputs and outputs of a reference system on rule-made random weights."""

    def __init__(self, folder: Path, rules):
        self.name = folder.name
        self._path, self._rules = folder / "spec.json", rules
        self.spec = json.loads(self._path.read_text())
        self.io = np.load(folder / "io.npz")

    def weights(self) -> dict[str, np.ndarray]:
        """The reference's state dict, key -> float32 array."""
        return self._rules.state_dict(str(self._path))

    def inputs(self) -> dict[str, np.ndarray]:
        """Rule-made waveforms and mels by id."""
        return self._rules.inputs(str(self._path))

    def take(self, x, key: str) -> np.ndarray:
        """The strided part of `x` that the oracle stored under `key`."""
        tap = self.spec["taps"].get(key)
        return np.asarray(x) if tap is None else self._rules.take(x, tap)


@pytest.fixture(scope="session")
def oracle():
    """Open a parity oracle by name (CLAP_JAX_TEST_ORACLES)."""
    root = shared_folder("CLAP_JAX_TEST_ORACLES", "oracles")
    spec = importlib.util.spec_from_file_location("oracle_rules", root / "weights.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    return lambda name: Oracle(root / name, rules)
