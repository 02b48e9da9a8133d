"""One of two processes that share a mesh of 2 x 4 devices and check every loss.

python -m tests.losses.two_hosts ADDRESS PROCESS
"""

import itertools
import sys

import jax


def main(address: str, process: int) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(address, num_processes=2, process_id=process)

    from clap_jax import sharding
    from clap_jax.losses.contrastive import NAMES, Options
    from tests.losses import cases

    assert (jax.process_count(), len(jax.devices())) == (2, 8)
    mesh = sharding.make_mesh(4, 2)
    for name, impl in itertools.product(NAMES, ("global", "gather", "ring")):
        options = Options(name, impl, chunk=3, **cases.EVERYTHING)
        cases.check(Options(name, impl), mesh, cases.data(24))
        cases.check(options, mesh, cases.data(40, mixup=True))
        print(f"{name} {impl} is exact", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
