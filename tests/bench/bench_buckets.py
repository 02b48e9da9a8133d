"""Texts per second in length buckets against texts of one length, on this machine.

    python tests/bench/bench_buckets.py [--model laion_htsat_tiny_roberta] [--layers 12]
        [--texts 64] [--rounds 5] [--captions FILE] [--train]

Text towers of published size with random weights; captions as AudioCaps has them (about 9
words, 12 tokens), from a list of sounds, or a file with one a line. First the encoder of
evaluation and the API, `ModelEncoder.text`; with --train, the gradient of a batch of
texts as well, of the length that the loader would give to it. Both sides run in turn in
one process, so that what else the machine does slows both alike; the ratio is the median
of those within a round. Nothing is counted that happens once (compiling).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clap_jax import sharding
from clap_jax.evals.encode import ModelEncoder
from clap_jax.models import zoo
from clap_jax.models.dual import Dual
from clap_jax.pipeline import buckets
from clap_jax.text import tokenize

SOUNDS = (
    "a dog barks",
    "a man speaks",
    "rain falls on a metal roof",
    "a car passes by on a wet road",
    "birds chirp in the distance",
    "a crowd applauds and cheers",
    "water drips into a sink",
    "an engine idles and then revs up",
    "a baby cries loudly",
    "wind blows into a microphone",
)
JOINTS = ("{}", "{} while {}", "{} as {}", "{} followed by {}", "{}, then {}")


def captions(count: int) -> list[str]:
    """Captions of one sound or two, the same ones every time."""
    rng = np.random.default_rng(0)
    return [
        JOINTS[rng.integers(len(JOINTS))].format(*rng.choice(SOUNDS, 2, replace=False))
        for _ in range(count)
    ]


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def random_variables(dual: Dual) -> dict[str, Any]:
    """Weights without compiling an initialiser."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        noise = 0.02 * rng.standard_normal(leaf.shape, np.float32)
        return noise if leaf.ndim > 1 else np.ones(leaf.shape, np.float32)

    return jax.tree.map(draw, jax.eval_shape(dual.init, jax.random.key(0)))


def encoders(
    spec: zoo.Spec, tokenizer: tokenize.Tokenizer, variables: Any, texts: Sequence[str]
) -> dict[str, Callable]:
    """Encoding of all texts, by how it is done."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = {
        name: ModelEncoder(
            spec, zoo.build(spec), tokenizer, mesh=mesh, text_tokens=tokens
        ).using(variables)
        for name, tokens in (("one length", ()), ("buckets", buckets.TEXT_TOKENS))
    }
    vectors = [encoder.text(texts) for encoder in made.values()]
    error = np.abs(vectors[0] - vectors[1]).max()
    print(f"encoding: the two sides differ by {error:.1e} at most")
    return {name: lambda e=encoder: e.text(texts) for name, encoder in made.items()}


def gradients(
    spec: zoo.Spec, tokenizer: tokenize.Tokenizer, variables: Any, texts: Sequence[str]
) -> dict[str, Callable]:
    """The text tower's forward and backward pass over one batch of all texts."""
    dual = zoo.build(spec)
    ids, mask = tokenizer(texts)
    known = buckets.lengths(buckets.TEXT_TOKENS, tokenizer.length)
    length = buckets.shortest(known, int(mask.sum(1).max()))
    print(f"training: a batch of {len(texts)} has texts of {length} tokens")

    @jax.jit
    def gradient(params: Any, ids: jax.Array, mask: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            (zt, _), _ = dual.encode_text(
                variables | {"params": params},
                ids,
                mask,
                train=True,
                key=jax.random.key(0),
            )
            return (zt @ zt.T).sum()

        return jax.grad(loss)(params)

    def run(length: int) -> Callable:
        rows = jax.device_put((ids[:, :length], mask[:, :length]))
        return lambda: gradient(variables["params"], *rows)

    return {"one length": run(tokenizer.length), "buckets": run(length)}


def compare(what: str, sides: dict[str, Callable], texts: int, rounds: int) -> None:
    """Both sides in turn; the first round, which compiles, does not count."""
    first, second = sides.values()
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]
    rates = [texts / statistics.median(side) for side in zip(*pairs, strict=True)]
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{what:10}{rates[0]:12.1f}{rates[1]:12.1f}{statistics.median(ratios):8.2f}"
        f"   ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="laion_htsat_tiny_roberta")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--captions", type=Path, help="one caption a line")
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    texts = captions(options.texts)
    if options.captions:
        lines = options.captions.read_text().splitlines()
        texts = [line for line in lines if line.strip()][: options.texts]
    small_audio = {"audio.options": {"width": 24, "depths": (1, 1, 1, 1)}}
    spec = zoo.get_spec(
        options.model, {"text.options.depth": options.layers} | small_audio
    )
    tokenizer = tokenize.train(texts, 4096, spec.text_length)
    counts = tokenizer(texts)[1].sum(1)
    print(
        f"{options.model}, {options.layers} layers, {len(texts)} texts of "
        f"{counts.mean():.1f} tokens on average, {counts.max()} at most; one length is "
        f"{spec.text_length}; {options.rounds} rounds, {os.cpu_count()} cores"
    )
    variables = jax.device_put(random_variables(zoo.build(spec)))
    benches = {"encoding": encoders}
    if options.train:
        benches["training"] = gradients
    for what, make in benches.items():
        sides = make(spec, tokenizer, variables, texts)
        print(f"{'texts/s':10}{'one length':>12}{'buckets':>12}{'ratio':>8}")
        compare(what, sides, len(texts), options.rounds)
    if hasattr(os, "getloadavg"):  # not on every system
        load = os.getloadavg()[0]
        print(f"load {load:.1f}; where it is more than this program's, measure again")


if __name__ == "__main__":
    main()
