"""Captions per second, a batch of clips at once against one by one, on this machine.

    python tests/bench/bench_decode.py [--model small_captioner] [--clips 32]
        [--length 20] [--beams 3] [--rounds 3]

Random weights, random sounds; both sides are compiled, with caches, and no token ends a
caption, so that both write equally many. Prints seconds and the ratio for greedy and
beam search: the median over rounds in which the two take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax.models import captioner, decode
from clap_jax.models.guided import Heard


def heard(spec: captioner.CaptionerSpec, clips: int) -> Any:
    """What a captioner of this kind has heard, random: the decoder alone is measured."""
    rng = np.random.default_rng(0)
    if spec.captioner == "prefix":
        z = rng.normal(size=(clips, spec.embed_dim)).astype(np.float32)
        return jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))
    memory = rng.normal(size=(clips, 31, spec.embed_dim)).astype(np.float32)
    tags = rng.random((clips, spec.decoder.options["tags"])) < 0.02
    return Heard(
        jnp.asarray(memory), jnp.full(clips, 31), jnp.asarray(tags, jnp.float32)
    )


def writing(model: captioner.Captioner) -> dict[str, Any]:
    """Random variables of what writes; the audio tower is not needed."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.05)

    return {
        kind: {
            name: jax.tree.map(fill, tree)
            for name, tree in trees.items()
            if name in ("mapper", "decoder")
        }
        for kind, trees in shapes.items()
    }


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(name: str, clips: int, options: decode.Options, rounds: int) -> None:
    spec = captioner.get_spec(name)
    model = captioner.build(spec)
    variables = writing(model)
    whole = heard(spec, clips)
    singles = [jax.tree.map(lambda x, i=i: x[i : i + 1], whole) for i in range(clips)]
    caption = jax.jit(model.caption, static_argnums=2)

    def together() -> Any:
        return caption(variables, whole, options).ids

    def alone() -> Any:
        return [
            jax.block_until_ready(caption(variables, one, options).ids)
            for one in singles
        ]

    same = np.mean(np.asarray(together()) == np.concatenate(alone()))
    pairs = [(seconds(together), seconds(alone)) for _ in range(rounds)]
    batch, single = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(one / all_at_once for all_at_once, one in pairs)
    print(
        f"{name}, {options.method} of {options.beams}, {clips} clips of "
        f"{options.length} tokens: together {batch:.3f} s, one by one {single:.3f} s, "
        f"{ratio:.1f} times; {same:.1%} of the tokens are the same"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small_captioner")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for options in (
        decode.Options("greedy", given.length),
        decode.Options("beam", given.length, beams=given.beams),
    ):
        measure(given.model, given.clips, options, given.rounds)


if __name__ == "__main__":
    main()
