"""Losses compiled ahead of time, from shapes alone: their memory, and their programs.

    python -m tests.losses.compiled BATCH WIDTH [EFFORT]

compiles both losses, as `choose` has them, for 256 chips (v5e:16x16) that nobody needs
to own, and prints {loss: [impl, temporary bytes a chip, program]} as JSON. EFFORT: how
much the compiler optimises, from -1 (a second; more memory than it could be) to 0 (as
in training: half a minute).
"""

import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp

from clap_jax import sharding
from clap_jax.losses import contrastive, sharded
from clap_jax.losses.contrastive import Labels, Options
from tests.losses import cases


class Measured(NamedTuple):
    impl: str
    temporary_bytes: int
    program: str


def program(
    options: Options, mesh, batch: int, width: int, effort: float
) -> jax.stages.Compiled:
    """Loss and gradients of float32 embeddings [batch, width]."""

    def loss(params, audio, text, group):
        labels = Labels(group, group)
        return cases.mean_loss(options, mesh)(params, audio, text, labels)

    def shape(dimensions, dtype=jnp.float32):
        rows = sharding.batch_sharding(mesh)
        where = rows if dimensions else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=where)

    params = {"scale": shape(()), "bias": shape(())}
    embeddings = shape((batch, width))
    gradients = jax.value_and_grad(loss, (0, 1, 2))
    lowered = jax.jit(gradients).lower(
        params, embeddings, embeddings, shape((batch,), jnp.int32)
    )
    return lowered.compile(
        compiler_options={"exec_time_optimization_effort": effort} if effort else None
    )


def measure(name, impl, chunk, mesh, batch, width, effort=0.0) -> Measured:
    options = Options(name, impl, chunk)
    options, _ = sharded.choose(options, batch, mesh.size, width)
    found = program(options, mesh, batch, width, effort)
    temporary_bytes = found.memory_analysis().temp_size_in_bytes
    return Measured(options.impl, temporary_bytes, found.as_text())


def main(batch: int, width: int, effort: float = 0.0) -> None:
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16")
    mesh = sharding.make_mesh(-1, 4, topology.devices)
    found = {
        name: measure(name, "auto", 0, mesh, batch, width, effort)
        for name in contrastive.NAMES
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *map(float, sys.argv[3:]))
