"""A model of the published size: how long it takes, and how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clap_jax.convert import files
from tests.convert import small

REPOSITORY = Path(__file__).resolve().parents[2]

# In a process of its own, so that its peak is of the conversion and imports alone.
CONVERT = """
import json, pathlib, re, sys, time
began = time.perf_counter()
from clap_jax.convert import __main__ as command
status = command.main(sys.argv[1:])
# Not ru_maxrss, which starts with the peak of the process that started this one.
text = pathlib.Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", text)[1]) * 1024
print(json.dumps([status, time.perf_counter() - began, peak]))
"""


def run(*words):
    """Exit status, seconds, bytes at the peak, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return *json.loads(last), printed


@pytest.fixture(scope="module")
def laion(oracle, tmp_path_factory):
    """A LAION-CLAP file of the published size, 635 MB, and its tensors."""
    reference = oracle("laion_tiny_unfused")
    state = reference.weights()
    for entry in reference.spec["tensors"]:
        if entry["rule"] == "ignored":
            state[entry["key"]] = np.zeros(entry["shape"], entry["dtype"])
    state = {entry["key"]: state[entry["key"]] for entry in reference.spec["tensors"]}
    path = tmp_path_factory.mktemp("laion") / "laion.pt"
    return small.save(path, state, prefix="module.", epoch=1, name="x"), state


def test_there_and_back_in_time_and_memory(laion, tmp_path):
    """Under a minute and three times the file's size, both ways, imports included."""
    path, state = laion
    size = path.stat().st_size
    assert size > 6e8
    status, seconds, peak, printed = run(path, tmp_path / "ours")
    assert status == 0
    assert printed[-1].startswith("laion_htsat_tiny_roberta as clap_jax")
    assert sum(line.startswith("note: embeddings of 8 made") for line in printed) == 2
    assert peak < 3 * size
    assert seconds < 60

    status, seconds, peak, _ = run(
        tmp_path / "ours", tmp_path / "back.pt", "--to=laion", "--no-check"
    )
    assert status == 0
    assert peak < 3 * size
    assert seconds < 60
    back = files.read(tmp_path / "back.pt").tensors
    small.same(back, {f"module.{key}": x for key, x in state.items()})

    status, seconds, peak, _ = run(
        tmp_path / "ours", tmp_path / "hf", "--to=hf", "--no-check"
    )
    assert status == 0
    assert peak < 3 * size
    assert seconds < 60
    assert len(files.read(tmp_path / "hf").tensors) == 447  # transformers 5.23's count
