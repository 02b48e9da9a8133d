"""A tiny model of every family, with random weights and a tokenizer of its own."""

from pathlib import Path

import jax
import numpy as np
import transformers

import clap_jax
from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.text import tokenize

_HTSAT = {"width": 16, "depths": (1, 1, 1, 1)}
_PANN = {"widths": (8, 8, 8, 8, 8, 16)}
# A head of 64, as all published text towers have: checkpoints do not tell.
_TEXT = {"width": 64, "depth": 1, "heads": 1, "mlp": 64}

# Row of the zoo -> options of its audio tower.
FAMILIES = {
    "small_conv": {"widths": (8, 8, 8, 16)},
    "laion_htsat_tiny_roberta": _HTSAT,
    "laion_htsat_tiny_fusion_roberta": _HTSAT,
    "laion_pann14_bert": _PANN,
    "msclap2022": _PANN,
    "msclap2023": _HTSAT,
    "blat": _PANN,
}

TEXTS = ("a dog barks", "rain falls on a roof", "a bell rings twice and again")


def spec(name: str, vocab_size: int) -> zoo.Spec:
    """The spec of a row with towers that take no time; its tokenizer is no hub id."""
    overrides = {
        "audio": {"options": FAMILIES[name]},
        "text": {"options": _TEXT},
        "vocab_size": vocab_size,
        "tokenizer": "",
    }
    if name == "msclap2023":
        overrides["text"] = {"options": _TEXT | {"end_id": vocab_size - 1}}
    return zoo.get_spec(name, overrides)


def tokenizer(style: str, length: int) -> tokenize.Tokenizer:
    """Learnt from `TEXTS`; with GPT-2's special tokens for style "msclap"."""
    learnt = tokenize.train(TEXTS, 300, length)
    if style == "plain":
        return learnt
    backend = learnt.tokenizer.backend_tokenizer
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", model_max_length=length
    )
    fast.add_special_tokens({"pad_token": "!"})
    return tokenize.Tokenizer(fast, length)


def variables(model: zoo.Spec, seed: int = 0) -> dict:
    """Random weights that keep activations in range; nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def make(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path.rpartition("/")[2]
        if name.startswith("logit_scale"):
            return np.array(np.log(model.logit_scale_init), np.float32)
        if path.endswith("bn0/mean"):
            return np.full(leaf.shape, -30, np.float32)
        if path.endswith("bn0/var"):
            return np.full(leaf.shape, 200, np.float32)
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        fan_in = int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1000
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(zoo.build(model).init, jax.random.key(0))
    return sharding.map_with_path(make, shapes)


def save(name: str, folder: Path) -> zoo.Spec:
    """Write a tiny model as a folder of ours."""
    row = zoo.SPECS[name]
    words = tokenizer(row.tokenizer_style, row.text_length)
    model = spec(name, words.vocab_size)
    clap_jax.Clap(model, variables(model), words).save(folder)
    return model


def sound(seconds: float, rate_hz: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """Noise and a tone."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s)
    wave = tone + rng.normal(0, 0.05, len(time_s))
    return wave.astype(np.float32), rate_hz
