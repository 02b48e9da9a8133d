"""Memory and time of every contrastive loss, value and gradients, on virtual devices.

    python tests/bench/bench_losses.py [--batch 4096] [--width 512] [--devices 8]

Temporary memory is the compiled program's, per device. Times are medians of steps that
are taken in turn, so that what else the machine does slows all alike; virtual devices
share one processor, so they tell what is computed, not what a network would cost.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax import sharding
from clap_jax.losses import contrastive, sharded
from clap_jax.losses.contrastive import Labels, Options


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--batch", type=int, default=4096, help="clips over all devices"
    )
    parser.add_argument("--width", type=int, default=512, help="numbers an embedding")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices")
    parser.add_argument(
        "--chunk", type=int, default=0, help="rows at a time; 0: by size"
    )
    parser.add_argument("--steps", type=int, default=3, help="0: memory alone, no run")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--hard-negatives", type=float, default=0.0)
    return parser.parse_args()


def score(params, audio, text):
    cosine = jnp.einsum("ae,te->at", audio, text, precision="highest")
    return jnp.exp(params["scale"]) * cosine + params["bias"]


def compile_loss(options: Options, mesh, batch: int, width: int) -> jax.stages.Compiled:
    def loss(params, audio, text, group):
        total, count = sharded.pair_loss(
            score, params, audio, text, Labels(group, group), options, mesh
        )
        return total / count

    rows, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=every)
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    group = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    params = {"scale": number, "bias": number}
    program = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2)),
        out_shardings=(every, (every, rows, rows)),
    )
    return program.lower(params, embeddings, embeddings, group).compile()


def inputs(mesh, batch: int, width: int) -> tuple:
    rng = np.random.default_rng(0)
    embeddings = []
    for _ in range(2):
        x = rng.normal(size=(batch, width)).astype(np.float32)
        embeddings.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    rows, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    params = {"scale": np.float32(np.log(10)), "bias": np.float32(-10)}
    batch_arrays = (*embeddings, np.arange(batch, dtype=np.int32))
    return jax.device_put(params, every), *jax.device_put(batch_arrays, rows)


def main() -> None:
    given = arguments()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", given.devices)
    # Two steps in flight on few cores would wait for each other's threads.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mesh = sharding.make_mesh()
    programs, taken = {}, {}
    for name, impl in itertools.product(
        contrastive.NAMES, ("global", "gather", "ring")
    ):
        asked = Options(
            name, impl, given.chunk, given.label_smoothing, given.hard_negatives
        )
        options, _ = sharded.choose(asked, given.batch, mesh.size, given.width)
        program = compile_loss(options, mesh, given.batch, given.width)
        programs[name, impl, options.chunk], taken[name, impl] = program, []

    example = inputs(mesh, given.batch, given.width) if given.steps else ()
    turns = given.steps + 1 if given.steps else 0
    for _, (key, program) in itertools.product(range(turns), programs.items()):
        start = time.perf_counter()
        jax.block_until_ready(program(*example))
        taken[key[:2]].append(time.perf_counter() - start)

    print(f"B={given.batch} E={given.width}, {mesh.size} devices; per device:")
    print(f"{'loss':8} {'impl':7} {'chunk':>6} {'temporary MiB':>14} {'step ms':>9}")
    for (name, impl, chunk), program in programs.items():
        mebibytes = program.memory_analysis().temp_size_in_bytes / 2**20
        # The first step warms up.
        times = taken[name, impl][1:]
        step = f"{1000 * statistics.median(times):9.1f}" if times else f"{'-':>9}"
        print(f"{name:8} {impl:7} {chunk:6} {mebibytes:14.1f} {step}")
    print(sharded.choose(Options(), given.batch, mesh.size, given.width)[1])


if __name__ == "__main__":
    main()
