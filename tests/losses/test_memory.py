"""What compiled losses take, without running any: memory, and what travels."""

import json
import os
import re
import subprocess
import sys

import jax
import pytest

from clap_jax import sharding
from clap_jax.losses import contrastive
from tests.losses import compiled
from tests.train.slices import needs_libtpu

# An eighth is asked for; the rest is room for other compilers.
BATCH, WIDTH = 32_768, 512


@pytest.mark.parametrize("name", contrastive.NAMES)
def test_a_ring_takes_an_eighth(name):
    """Per device, of eight: against the definition as the compiler splits it."""
    mesh = sharding.make_mesh(4, 2, jax.devices())
    found = {
        impl: compiled.measure(name, impl, chunk, mesh, BATCH, WIDTH)
        for impl, chunk in (("global", 0), ("ring", 0), ("gather", 512))
    }
    assert found["ring"].temporary_bytes <= found["global"].temporary_bytes / 8
    assert found["gather"].temporary_bytes <= found["global"].temporary_bytes / 8
    # No device ever sees all texts.
    assert f"f32[{BATCH}," not in found["ring"].program
    assert f"f32[{BATCH},{WIDTH}]" in found["gather"].program
    assert "collective-permute" in found["ring"].program


@pytest.mark.parametrize("name", contrastive.NAMES)
def test_rows_by_chunks_take_less(name):
    mesh = sharding.make_mesh(4, 2, jax.devices())
    whole, cut = (
        compiled.measure(name, "ring", chunk, mesh, BATCH, WIDTH).temporary_bytes
        for chunk in (0, 64)
    )
    # A block of 4096 x 4096 scores, against one of 64 rows.
    assert whole > 2 * 4 * 4096**2 > 2 * cut


@needs_libtpu
def test_a_quarter_million_on_256_chips(request):
    """Ahead of time for v5e:16x16: 262,144 clips, temporaries below 1 GB a chip."""
    batch = 262_144
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-256",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Compiling needs no chip, so that several processes may do it at a time.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    run = subprocess.run(
        # Hardly optimised, which takes a twentieth of the time and more memory.
        [sys.executable, "-m", "tests.losses.compiled", str(batch), str(WIDTH), "-1"],
        env=environment,
        cwd=request.config.rootpath,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert sorted(found) == sorted(contrastive.NAMES)
    for name, (impl, temporary_bytes, program) in found.items():
        assert impl == "ring"
        assert temporary_bytes < 1e9, name
        assert "collective-permute" in program, name
        # Neither all texts, nor more scores than one block, are anywhere.
        floats = re.findall(r"f32\[(\d+),(\d+)\]", program)
        largest = max(int(rows) * int(columns) for rows, columns in floats)
        assert largest == (batch // 256) ** 2, name
