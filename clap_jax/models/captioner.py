"""Captioners: an audio tower, what maps it, and a decoder that writes.

What they are stands in `captioner_spec`; here is what all kinds have in common.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib
from clap_jax.models import decode, guided, lora, prefix_captioner
from clap_jax.models.captioner_spec import (
    SPECS,
    Captioner,
    CaptionerSpec,
    get_spec,
)

__all__ = [
    "SPECS",
    "Captioner",
    "CaptionerSpec",
    "build",
    "decoding",
    "get_spec",
    "no_tags",
    "scheduled",
]

_BUILD = {"prefix": prefix_captioner.build, "guided": guided.build}
DRAWS = ("likeliest", "sample")

# As the references search: MS-CLAP's `generate_caption`, AudioCaption's `beam_search`.
_BEAMS = {
    "prefix": {"beams": 5, "rule": "stay"},
    "guided": {"beams": 3, "rule": "leave"},
}
# What the tokenizer and the caller decide.
_NOT_OPTIONS = ("method", "count", "end_id", "pad_id")


def build(
    spec: CaptionerSpec,
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Captioner:
    """The functions of a spec; they work under jit (`length` and `options` are static).

    Arguments and errors are those of `zoo.build`. The blocks of a guided captioner's
    decoder, which are few, are not recomputed with `remat`.
    """
    made = _BUILD[spec.captioner](
        spec,
        dtype=dtype,
        remat=remat,
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return lora.adapt(made, spec.lora_rank) if spec.lora_rank else made


def decoding(
    spec: CaptionerSpec,
    method: str = "beam",
    count: int = 1,
    *,
    end_id: int | None,
    pad_id: int,
    options: Mapping[str, Any] | None = None,
) -> decode.Options:
    """How a captioner writes `count` captions a clip.

    options: fields of `decode.Options` by name. Without them a beam search is that of
    the reference (or as wide as there are captions), and a caption has as many tokens
    as the spec says at most.
    Errors: ValueError on an unknown method or option, and on values that mean nothing.
    """
    given = dict(options or {})
    fields = [field.name for field in dataclasses.fields(decode.Options)]
    known = [name for name in fields if name not in _NOT_OPTIONS]
    problems = config_lib.unknown_keys(given, known, "decoding")
    if problems:
        raise ValueError("; ".join(problems))
    own: dict[str, Any] = {"length": spec.text_length}
    if method == "beam":
        own |= _BEAMS[spec.captioner]
        own["beams"] = max(own["beams"], count)
    return decode.Options(
        method=method, count=count, end_id=end_id, pad_id=pad_id, **(own | given)
    )


def no_tags(spec: CaptionerSpec, clips: int) -> Float[Array, "B C"] | None:
    """What a guided captioner is told of clips of which no tag is known; else None."""
    return jnp.zeros((clips, spec.decoder.options["tags"])) if spec.is_guided else None


def scheduled(
    token_logits: Callable[..., Float[Array, "B L C"]],
    ids: Int[Array, "B L"],
    own: Bool[Array, "B L"],
    share: float | Float[Array, ""] | Float[Array, "B 1"],
    key: jax.Array,
    draw: str = "likeliest",
) -> Int[Array, "B L"]:
    """Tokens to train on, some of them the model's own: scheduled sampling in two passes.

    token_logits: `(ids) -> logits`, as of `Captioner.token_logits` without `train`. own:
    tokens that the model may replace (those of the caption; prompt and padding not).
    share: the probability of every token to be replaced. draw: by what: the "likeliest"
    token after the true ones before it, or a "sample".
    Give the result to `token_logits` in the place of `ids`, and measure the loss with
    `ids`: what is to be said does not change, only what has been said.

    The first scheduled sampling (Bengio et al. 2015, arXiv 1506.03099), AudioCaption's
    too, writes token by token, each after what the model has really written. That is as
    many steps as tokens, one after another; here all positions are guessed at once, after
    the true tokens, without a gradient, and a second pass learns (Mihaylova & Martins
    2019, arXiv 1906.07651). It costs one forward pass more, whatever the length.
    Errors: ValueError on an unknown draw.
    """
    if draw not in DRAWS:
        raise ValueError(config_lib.unknown("draw", draw, DRAWS))
    keys = jax.random.split(key)
    logits = jax.lax.stop_gradient(token_logits(ids))
    if draw == "likeliest":
        guesses = jnp.argmax(logits, axis=-1)
    else:
        guesses = jax.random.categorical(keys[0], logits)
    replaced = own & jax.random.bernoulli(keys[1], share, ids.shape)
    return jnp.where(replaced, guesses.astype(ids.dtype), ids)
