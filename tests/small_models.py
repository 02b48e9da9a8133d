"""A tiny model of every family, with random weights and a tokenizer of its own."""

from pathlib import Path

import jax
import numpy as np
import transformers

import clap_jax
from clap_jax import sharding
from clap_jax.audio.mel import FRONTENDS
from clap_jax.captions import CaptionWriter
from clap_jax.models import captioner, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.spec import TowerSpec
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

TAGS = ("dog", "rain", "church bell")
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


def captioner_spec(
    kind: str, vocab_size: int, frontend: str = "small_16k"
) -> CaptionerSpec:
    """A captioner of a kind, "guided" (by `TAGS`) or "prefix"."""
    shared = {
        "name": f"small_{kind}",
        "captioner": kind,
        "frontend": FRONTENDS[frontend],
        "audio": TowerSpec("convnet", {"widths": (8, 16)}),
        "tokenizer": "",
        "vocab_size": vocab_size,
        "text_length": 12,
    }
    if frontend == "blat":
        options = _PANN | {"spec_augment": "none", "length_mask": "every_layer"}
        shared["audio"] = TowerSpec("pann", options)
    if kind == "prefix":
        mapper = {"width": 16, "length": 3, "clip_length": 2, "depth": 1, "heads": 2}
        decoder = {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "dropout": 0.0}
        decoder = TowerSpec("gpt2", decoder)
        return CaptionerSpec(
            head="linear", embed_dim=16, mapper=mapper, decoder=decoder, **shared
        )
    decoder = {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "guide": "event"}
    return CaptionerSpec(
        head="",
        embed_dim=16,
        mapper={"width": 8, "depth": 1},
        decoder=TowerSpec("caption_decoder", decoder),
        **shared,
    ).with_tags(TAGS)


def captioner_variables(model: CaptionerSpec, seed: int = 0) -> dict:
    """As `variables`, and large enough that no two captions are equally likely."""
    found = variables(model, seed)
    for name in ("mapper", "decoder"):
        part = found["params"][name]
        found["params"][name] = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, part)
    return found


def save_captioner(kind: str, folder: Path, frontend: str = "small_16k") -> None:
    """Write a captioner with random weights as a folder of ours."""
    words = tokenizer("plain", 12)
    model = captioner_spec(kind, words.vocab_size, frontend)
    CaptionWriter(model, captioner_variables(model), words).save(folder)


def variables(model: zoo.Spec | CaptionerSpec, seed: int = 0) -> dict:
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

    build = captioner.build if isinstance(model, CaptionerSpec) else zoo.build
    shapes = jax.eval_shape(build(model).init, jax.random.key(0))
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
