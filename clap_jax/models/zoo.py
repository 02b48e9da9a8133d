"""The table of models. A family is a row here: front end, towers, heads, tokenizer."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clap_jax import config as config_lib
from clap_jax.audio.mel import FRONTENDS
from clap_jax.models import auxiliary, drop, dual, heads, layers, long
from clap_jax.models.spec import (
    AUDIO_TOWERS,
    TEXT_TOWERS,
    Spec,
    TowerSpec,
    features_width,
    from_dict,
    read_spec,
)
from clap_jax.models.temporal import Temporal
from clap_jax.models.tower import Sound, Tower, as_evaluated

__all__ = ["SPECS", "Spec", "TowerSpec", "build", "get_spec", "read_spec"]

BERT = {
    "positions": "bert",
    "position_table": 512,
    "pad_id": 0,
    "types": 2,
    "eps": 1e-12,
}
BERT_MEDIUM = BERT | {"width": 512, "depth": 8, "heads": 8, "mlp": 2048}

HTSAT_SIZES = {
    "tiny": {"width": 96, "depths": (2, 2, 6, 2)},
    "base": {"width": 128, "depths": (2, 2, 12, 2)},
    "large": {"width": 256, "depths": (2, 2, 12, 2)},
}
PANN_SIZES = {
    "14": {},
    "10": {"widths": (64, 128, 256, 512, 1024), "pool_last": True},
    "6": {"widths": (64, 128, 256, 512), "convs": 1, "kernel": 5, "pool_last": True},
}
WHISPER_SIZES = {
    name: {"width": width, "depth": depth, "heads": width // 64, "mlp": 4 * width}
    for name, width, depth in (
        ("tiny", 384, 4),
        ("base", 512, 6),
        ("small", 768, 12),
        ("medium", 1024, 24),
        ("large", 1280, 32),
    )
}

# LAION's audio towers: name of the row, kind, options.
_LAION_AUDIO = {
    **{f"htsat_{size}": ("htsat", options) for size, options in HTSAT_SIZES.items()},
    **{
        f"pann{size}": ("pann", options | {"spec_augment": "after_bn0"})
        for size, options in PANN_SIZES.items()
    },
}
# LAION's text towers: kind, options, tokenizer, size of its vocabulary.
_LAION_TEXT = {
    "roberta": ("bert", {}, "FacebookAI/roberta-base", 50265),
    "bert": ("bert", BERT, "google-bert/bert-base-uncased", 30522),
    "clip": ("clip_text", {}, "openai/clip-vit-base-patch32", 49408),
    "bart": ("bart", {}, "facebook/bart-base", 50265),
}


def _laion(audio: str, text: str, fused: bool) -> Spec:
    """A LAION-CLAP model (facts: their `model_configs/*.json`)."""
    audio_kind, audio_options = _LAION_AUDIO[audio]
    text_kind, text_options, tokenizer, vocab_size = _LAION_TEXT[text]
    if fused:
        audio_options = audio_options | {"fusion": "aff_2d"}
    return Spec(
        name=f"laion_{audio}_{'fusion_' if fused else ''}{text}",
        frontend=FRONTENDS["laion_fused" if fused else "laion_unfused"],
        audio=TowerSpec(audio_kind, audio_options),
        text=TowerSpec(text_kind, text_options),
        head="laion_mlp",
        embed_dim=512,
        text_length=77,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        logit_scale_init=1 / 0.07,
    )


MSCLAP_2022 = Spec(
    name="msclap2022",
    frontend=FRONTENDS["msclap2022"],
    audio=TowerSpec("pann", {"spec_augment": "none"}),
    text=TowerSpec("bert", BERT | {"pool": "first"}),
    head="msclap",
    embed_dim=1024,
    text_length=100,
    tokenizer="google-bert/bert-base-uncased",
    vocab_size=30522,
    logit_scale_init=1 / 0.07,
)
MSCLAP_2023 = Spec(
    name="msclap2023",
    frontend=FRONTENDS["msclap2023"],
    audio=TowerSpec("htsat", HTSAT_SIZES["tiny"] | {"long_clips": "msclap"}),
    text=TowerSpec("gpt2"),
    head="msclap",
    embed_dim=1024,
    text_length=77,
    tokenizer="openai-community/gpt2",
    tokenizer_style="msclap",
    vocab_size=50257,
    logit_scale_init=1 / 0.07,
)
BLAT = Spec(
    name="blat",
    frontend=FRONTENDS["blat"],
    audio=TowerSpec("pann", {"spec_augment": "none", "length_mask": "every_layer"}),
    text=TowerSpec("bert", BERT_MEDIUM | {"pool": "first"}),
    head="linear",
    embed_dim=1024,
    text_length=30,
    tokenizer="prajjwal1/bert-medium",
    vocab_size=30522,
    logit_scale_init=1 / 0.07,
)

# CoLLAP's text towers: kind, options, tokenizer, vocabulary, tokens.
_COLLAP_TEXT = {
    "roberta": ("bert", {"pool": "first"}, "FacebookAI/roberta-base", 50265, 512),
    "gpt2": ("gpt2", {}, "openai-community/gpt2", 50257, 1024),
}


# Its audio towers: the part of a row's name, front end, tower.
_COLLAP_AUDIO = {
    "": (FRONTENDS["beats"], TowerSpec("beats")),
    "joint_": (
        dataclasses.replace(FRONTENDS["beats"], beside=(FRONTENDS["whisper"],)),
        TowerSpec("joint", {"parts": {"beats": {}, "whisper": WHISPER_SIZES["large"]}}),
    ),
}


def _collap(audio: str, text: str) -> Spec:
    """Five minutes in segments of 10 s, 250 words in sentences. The paper (arXiv
    2410.02271) joins BEATs with Whisper and gives no formulas that could be read; this
    has BEATs alone or both, and `models.temporal`."""
    frontend, tower = _COLLAP_AUDIO[audio]
    kind, options, tokenizer, vocab_size, text_length = _COLLAP_TEXT[text]
    return Spec(
        name=f"collap_{audio}{text}",
        frontend=frontend,
        audio=tower,
        text=TowerSpec(kind, options),
        head="linear",
        embed_dim=512,
        text_length=text_length,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        logit_scale_init=1 / 0.07,
        temporal=Temporal(hop_seconds=10.0, heads=8, sentences=16),
    )


_SMALL_TEXT = {
    "width": 96,
    "depth": 2,
    "heads": 4,
    "mlp": 384,
    "position_table": 128,
    "norm": "post",
    "pool": "mean",
    "dropout": 0.0,
}


def _small(name: str, frontend: str, audio: TowerSpec, scale: float) -> Spec:
    """A model of about 0.7 M parameters that trains on a laptop."""
    return Spec(
        name=name,
        frontend=FRONTENDS[frontend],
        audio=audio,
        text=TowerSpec("bert", _SMALL_TEXT),
        head="linear",
        embed_dim=128,
        text_length=24,
        tokenizer="",
        vocab_size=1024,
        logit_scale_init=scale,
    )


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        *(
            _laion(audio, text, fused)
            for audio in _LAION_AUDIO
            for text in _LAION_TEXT
            for fused in (False, True)
        ),
        MSCLAP_2022,
        MSCLAP_2023,
        BLAT,
        *(_collap(audio, text) for audio in _COLLAP_AUDIO for text in _COLLAP_TEXT),
        _small("small_transformer", "small_16k", TowerSpec("conv_transformer"), 14.0),
        _small("small_conv", "small_22k", TowerSpec("convnet"), 10.0),
    )
}


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"audio.options.depth": 2} and {"audio": {"options": {"depth": 2}}} alike."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        value = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = _merged(tree, value)
    return tree


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def get_spec(name: str, overrides: Mapping[str, Any] | None = None) -> Spec:
    """A row of `SPECS` with some values replaced.

    `overrides` has dotted keys ("audio.options.depth"), nested tables, or both. A new
    `audio.kind` or `text.kind` starts from that kind's own defaults, and `frontend`
    may be the name of a row in `FRONTENDS`, as may each of `frontend.beside`.
    Errors: ValueError on an unknown name or key, with the closest known ones.
    """
    if name not in SPECS:
        raise ValueError(config_lib.unknown("model", name, SPECS))
    return from_dict(changed(SPECS[name], overrides or {}, ("audio", "text")))


def changed(
    spec: Any, overrides: Mapping[str, Any], towers: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of a spec of any kind as nested tables, some values replaced.

    towers: names of the fields that are a `TowerSpec`. See `get_spec`.
    """
    over = _nested(overrides)
    base = dataclasses.asdict(spec)
    for side in towers:
        if not isinstance(over.get(side), Mapping):
            continue
        if over[side].get("kind", base[side]["kind"]) != base[side]["kind"]:
            base[side] = {"kind": over[side]["kind"], "options": {}}
    front = over.get("frontend")
    if isinstance(front, str):
        over["frontend"] = _row(front)
    elif isinstance(front, Mapping) and isinstance(front.get("beside"), list | tuple):
        beside = [_row(one) if isinstance(one, str) else one for one in front["beside"]]
        over["frontend"] = {**front, "beside": beside}
    return _merged(base, over)


def _row(name: str) -> dict[str, Any]:
    if name not in FRONTENDS:
        raise ValueError(config_lib.unknown("front end", name, FRONTENDS))
    return dataclasses.asdict(FRONTENDS[name])


def build(
    spec: Spec,
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
    token_drop: float = 0.0,
    segment_chunk: int = 4,
    frozen: Collection[str] = (),
) -> dual.Dual:
    """The functions of a spec. Nothing is computed until they are called.

    dtype: what towers compute in, "float32" or "bfloat16"; parameters, norms, softmax,
    heads and scores are float32 always. remat: what the backward pass computes again,
    see `layers.rematerialised`. patch_drop, frequency_drop, token_drop: shares that
    towers leave out when they run with `train`, of patches along time and along
    frequency, and of tokens of text; see `drop` and each tower. segment_chunk: of a
    model with `temporal`, segments of each clip at a time. frozen: of "audio",
    "text" and, of a joint tower, "audio/<kind>", what runs as in evaluation under
    `train`, too. Parameters do not depend on any of them.
    Errors: ValueError on an unknown dtype or remat, shares that are not in [0, 1) or
    leave nothing, a tower that cannot drop, and tokens that would be missing from
    sentences.
    """
    patches = {"patch_drop": patch_drop, "frequency_drop": frequency_drop}
    compute = {"dtype": dtype, "remat": remat}
    audio = audio_tower(spec, **compute, **patches, frozen=frozen)
    drop.check("token_drop", token_drop)
    drop.tokens_kept(token_drop, spec.text_length)
    sound, ids, mask = examples(spec)
    text = TEXT_TOWERS[spec.text.kind].tower(
        spec.text.options,
        spec.vocab_size,
        **compute,
        token_drop=token_drop,
        full_length=spec.text_length,
    )
    text = as_evaluated(text) if "text" in frozen else text
    head = heads.tower(spec.head, spec.embed_dim)
    common = {
        "examples": (sound, (ids, mask)),
        "logit_scale_init": spec.logit_scale_init,
        "logit_bias_init": spec.logit_bias_init,
        "score": spec.score,
    }
    if spec.temporal is None:
        pair = dual.make(audio, text, head, head, **common)
        if spec.caption is None:
            return pair
        options, words = spec.caption.options, spec.vocab_size
        return auxiliary.add(pair, audio, sound, options, words, dtype=dtype)
    if token_drop and spec.temporal.sentences:
        raise ValueError(
            f"token_drop is {token_drop:g}, expected 0: {spec.name} compares sentences"
        )
    return long.make(
        audio,
        text,
        head,
        head,
        options=spec.temporal,
        embed_dim=spec.embed_dim,
        chunk=segment_chunk,
        **common,
    )


def audio_tower(
    spec: Any,
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
    frozen: Collection[str] = (),
) -> Tower:
    """The audio tower of any spec that has one; arguments and errors as for `build`."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(config_lib.unknown("dtype", dtype, ("float32", "bfloat16")))
    if remat not in layers.REMAT:
        raise ValueError(config_lib.unknown("remat", remat, layers.REMAT))
    patches = {"patch_drop": patch_drop, "frequency_drop": frequency_drop}
    for name, rate in patches.items():
        drop.check(name, rate)
    options, compute = spec.audio.options, {"dtype": dtype, "remat": remat} | patches
    if spec.audio.kind == "joint":
        compute["frozen"] = [
            part for part in options["parts"] if f"audio/{part}" in frozen
        ]
    tower = AUDIO_TOWERS[spec.audio.kind].tower(options, **compute)
    return as_evaluated(tower) if "audio" in frozen else tower


def examples(
    spec: Spec, text_length: int = 0, clip_frames: int = 0
) -> tuple[Sound, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one clip, and of the ids and the mask of one text.

    text_length, clip_frames: how long they are, 0 for what the spec says.
    """
    tokens = (1, text_length or spec.text_length)
    ids = jax.ShapeDtypeStruct(tokens, jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens, jnp.bool_)
    return example_sound(spec, clip_frames), ids, mask


def example_sound(spec: Any, clip_frames: int = 0) -> Sound:
    """Shapes and dtypes of what the audio tower of any spec hears of one clip.

    clip_frames: how long it is, 0 for a window.
    """
    width = features_width(spec)
    if width:
        return Sound(mel=jax.ShapeDtypeStruct((1, 1, width), jnp.float32))
    frontend = spec.frontend
    views = (frontend.views,) if frontend.views > 1 else ()
    mels = tuple(
        jax.ShapeDtypeStruct(
            (1, *views, clip_frames or one.clip_frames, one.mels), jnp.float32
        )
        for one in (frontend, *frontend.beside)
    )
    return Sound(
        mel=mels if frontend.beside else mels[0],
        longer=jax.ShapeDtypeStruct((1,), jnp.bool_) if views else None,
        frames=jax.ShapeDtypeStruct((1,), jnp.int32) if frontend.whole_clip else None,
    )
