"""Embeddings per second against transformers' ClapModel, on this machine's CPU.

    python tests/bench/bench_transformers.py [--rounds 15] [--batch 8]

The published size (HTSAT tiny, RoBERTa base) with equal random weights on both sides,
in one process and in turn, so that what else the machine does slows both alike. Clips
are decoded waves of 10 s; texts have 77 tokens. Medians over rounds; ratios are medians
of the ratio within a round.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clap_jax import sharding
from clap_jax.audio import frontend
from clap_jax.convert import hf_clap, rules
from clap_jax.models import zoo

TEXT_TOKENS = 77


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def transformers_model(batch: int) -> tuple[Any, Any, dict[str, Callable]]:
    """Their model, inputs, and their side of every stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

    torch.manual_seed(0)
    model = transformers.ClapModel(transformers.ClapConfig()).eval()
    extractor = transformers.ClapFeatureExtractor(
        truncation="rand_trunc", frequency_min=50
    )
    rng = np.random.default_rng(0)
    waves = rng.normal(0, 0.1, (batch, 480_000)).astype(np.float32)
    ids = rng.integers(5, 50_000, (batch, TEXT_TOKENS))
    ids[:, 0], ids[:, -1] = 0, 2
    tokens = torch.from_numpy(ids)
    mask = torch.ones_like(tokens)

    def features() -> Any:
        return extractor(list(waves), sampling_rate=48_000, return_tensors="pt")

    mels = features()["input_features"]

    def audio(mels: Any = mels) -> np.ndarray:
        with torch.inference_mode():
            return model.get_audio_features(mels).pooler_output.numpy()

    def text() -> np.ndarray:
        with torch.inference_mode():
            return model.get_text_features(tokens, mask).pooler_output.numpy()

    stages = {
        "front end": features,
        "audio tower": audio,
        "text tower": text,
        "waves to embeddings": lambda: audio(features()["input_features"]),
        "together": lambda: (audio(features()["input_features"]), text()),
    }
    return model, (waves, ids), stages


def our_stages(model: Any, waves: np.ndarray, ids: np.ndarray) -> dict[str, Callable]:
    """Our side of every stage, with the weights of their model."""
    weights = {key: x.numpy() for key, x in model.state_dict().items()}
    spec, _ = hf_clap.spec(weights, model.config.to_dict())
    dual = zoo.build(spec)
    shapes = jax.eval_shape(dual.init, jax.random.key(0))
    filled, _ = rules.apply(*hf_clap.table(spec), weights, sharding.flatten(shapes))
    variables = sharding.unflatten(filled)
    variables["state"].setdefault("text", {})
    variables = jax.device_put(variables)
    encode_audio = jax.jit(lambda *inputs: dual.encode_audio(*inputs)[0][0])
    encode_text = jax.jit(lambda *inputs: dual.encode_text(*inputs)[0][0])
    mels = frontend.log_mel(waves, spec.frontend)
    ids, mask = ids.astype(np.int32), np.ones(ids.shape, bool)

    def audio(mels: np.ndarray = mels) -> np.ndarray:
        return np.asarray(encode_audio(variables, mels))

    def text() -> np.ndarray:
        return np.asarray(encode_text(variables, ids, mask))

    def features() -> np.ndarray:
        return frontend.log_mel(waves, spec.frontend)

    return {
        "front end": features,
        "audio tower": audio,
        "text tower": text,
        "waves to embeddings": lambda: audio(features()),
        "together": lambda: (audio(features()), text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    model, (waves, ids), theirs = transformers_model(options.batch)
    ours = our_stages(model, waves, ids)
    for stage in ("waves to embeddings", "text tower"):  # and warm up
        error = np.abs(ours[stage]() - theirs[stage]()).max()
        print(f"{stage}: the two sides differ by {error:.1e} at most")
    print(f"batch {options.batch}, {options.rounds} rounds, {os.cpu_count()} cores")
    print(f"{'ms a clip or text':22}{'clap_jax':>10}{'transformers':>14}{'ratio':>8}")
    for stage in ours:
        pairs = []
        for _ in range(options.rounds + 1):
            pairs.append((seconds(ours[stage]), seconds(theirs[stage])))
        pairs = pairs[1:]
        a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        milliseconds = (x * 1000 / options.batch for x in (a, b))
        print(f"{stage:22}{{:10.2f}}{{:14.2f}}{ratio:8.2f}".format(*milliseconds))
    if hasattr(os, "getloadavg"):  # not on every system
        load = os.getloadavg()[0]
        print(f"load {load:.1f}; where it is more than this program's, measure again")


if __name__ == "__main__":
    main()
