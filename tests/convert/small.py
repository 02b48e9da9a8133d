"""Small models of every family, as state dicts and files in the original layouts."""

import functools
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from clap_jax import sharding
from clap_jax.convert import files, layouts, rules, trees
from clap_jax.models import captioner, zoo

HTSAT = {"width": 8, "depths": (2, 1), "heads": (2, 4), "classes": 5}
PANN = {"widths": (8, 8, 8, 8, 8, 16), "classes": 5}
# Widths of 64 have the one head that recognition takes for granted.
BERT = {"width": 64, "depth": 1, "heads": 1, "mlp": 32, "dropout": 0.1}
CLIP = {"width": 64, "depth": 1, "heads": 1, "mlp": 32}
GPT2 = {"width": 64, "depth": 1, "heads": 1, "mlp": 32, "position_table": 100}


def _zoo(row: str, audio: dict[str, Any], text: dict[str, Any], **more: Any):
    over = {"audio.options": audio, "text.options": text, "vocab_size": 50, **more}
    return zoo.get_spec(row, {"embed_dim": 6, **over})


def _fused(kind: str):
    return functools.partial(
        _zoo, "laion_htsat_tiny_fusion_roberta", HTSAT | {"fusion": kind}, BERT
    )


# Layout and a function that makes the spec.
FAMILIES = {
    "laion": ("laion", lambda: _zoo("laion_htsat_tiny_roberta", HTSAT, BERT)),
    "laion_fused": ("laion", _fused("aff_2d")),
    "laion_iaff_1d": ("laion", _fused("iaff_1d")),
    "laion_daf_2d": ("laion", _fused("daf_2d")),
    "laion_channel_map": ("laion", _fused("channel_map")),
    "laion_pann_bert": ("laion", lambda: _zoo("laion_pann14_bert", PANN, BERT)),
    "laion_clip": ("laion", lambda: _zoo("laion_htsat_tiny_clip", HTSAT, CLIP)),
    "laion_bart": (
        "laion",
        lambda: _zoo("laion_htsat_tiny_bart", HTSAT, BERT | {"pool": "mean_all"}),
    ),
    "msclap2022": ("msclap", lambda: _zoo("msclap2022", PANN, BERT)),
    "msclap2023": (
        "msclap",
        lambda: _zoo("msclap2023", HTSAT, GPT2 | {"pool": "msclap", "end_id": 49}),
    ),
    "blat": ("blat", lambda: _zoo("blat", PANN | {"classes": 0}, BERT)),
}
CAPTIONER = "clapcap"


def spec(name: str) -> Any:
    """The spec of a small model."""
    if name != CAPTIONER:
        return FAMILIES[name][1]()
    base = captioner.SPECS["clapcap"]
    return captioner.CaptionerSpec(
        name="clapcap",
        frontend=base.frontend,
        audio=zoo.TowerSpec("htsat", HTSAT | {"long_clips": "msclap"}),
        head="msclap",
        embed_dim=6,
        mapper={"width": 64, "depth": 1, "length": 3, "clip_length": 2, "heads": 8},
        decoder=zoo.TowerSpec("gpt2", GPT2 | {"end_id": 49}),
        tokenizer="",
        vocab_size=50,
        tokenizer_style="msclap",
    )


def layout(name: str) -> str:
    return "clapcap" if name == CAPTIONER else FAMILIES[name][0]


def variables(spec: Any) -> dict[str, Any]:
    """Weights that are all different, so that no two can be swapped unseen."""
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: Any) -> np.ndarray:
        values = rng.normal(size=shape.shape).astype(np.float32)
        name = path.rpartition("/")[2]
        if path.endswith("bn0/mean"):  # the levels of sounds
            return 5 * values - 30
        if name == "var":
            return np.exp(0.2 * values) * (200 if "bn0" in path else 1)
        if "/conv_block" in path and name == "kernel":
            # Deep convolutions with ReLU forget their input, unless centred.
            values -= values.mean(axis=(0, 1, 2), keepdims=True)
            return values * np.float32(2.2 / np.sqrt(values[..., 0].size))
        if name == "kernel":  # [..., in, out]
            return values / np.float32(np.sqrt(values[..., 0].size))
        if name in ("scale", "logit_scale_a"):
            return 1 + np.float32(0.1) * values
        return np.float32(0.1) * values

    return sharding.map_with_path(leaf, trees.shapes(spec))


@functools.cache
def state_dict(name: str) -> dict[str, np.ndarray]:
    """A model in its original layout, with random values where buffers are zeros."""
    module, rng = layouts.LAYOUTS[layout(name)], np.random.default_rng(1)
    model = spec(name)
    table, extras = module.table(model)
    state = rules.invert(table, sharding.flatten(variables(model)))
    for key, array in module.buffers(model).items():
        is_zero = array.dtype.kind == "f" and array.size and not array.any()
        noise = rng.normal(size=array.shape).astype(array.dtype)
        state[key] = noise if is_zero else array
    for entry in extras:
        if entry.same_as:
            state |= {key: state[entry.same_as] for key in entry.names}
    return state


def cast(state: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Floats in another dtype; names of one tensor stay names of one tensor."""
    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    made = {id(x): x.astype(kind) for x in state.values() if x.dtype.kind == "f"}
    return {key: made.get(id(x), x) for key, x in state.items()}


def save(
    path: Path,
    state: dict[str, np.ndarray],
    *,
    prefix: str = "",
    wrapper: str = "state_dict",
    legacy: bool = False,
    **beside: Any,
) -> Path:
    """A PyTorch file; numpy arrays in `beside` stay what they are."""
    import torch

    made = {id(x): files.to_torch(x) for x in state.values()}
    found = {prefix + key: made[id(x)] for key, x in state.items()}
    whole = {**beside, wrapper: found} if wrapper else found
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    return path


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Same keys in the same order, same dtypes, same bits."""
    assert list(got) == list(want)
    for key, array in want.items():
        assert got[key].dtype == array.dtype, key
        assert got[key].shape == array.shape, key
        assert got[key].tobytes() == array.tobytes(), key


def equal_trees(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)
