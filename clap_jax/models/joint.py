"""Several audio towers side by side, which hear the same windows of sound.

As CoLLAP joins BEATs (768) and Whisper (1,280) to 2,048 (arXiv 2410.02271).
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clap_jax import config as config_lib
from clap_jax.models import (
    beats,
    conv_transformer,
    convnet,
    features,
    htsat,
    pann,
    whisper,
)
from clap_jax.models.tower import Sound, Tower, as_evaluated, as_sound, complete, rows

PARTS = {
    "htsat": htsat,
    "pann": pann,
    "conv_transformer": conv_transformer,
    "convnet": convnet,
    "whisper": whisper,
    "beats": beats,
}
"""Towers that hear a log-mel, by kind."""

DEFAULTS: dict[str, Any] = {"parts": {}}


def complete_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of every part filled up, parts in the order of their kinds.

    Raises ValueError for less than two parts and for parts that cannot be.
    """
    parts = options["parts"]
    if len(parts) < 2:
        found = ", ".join(parts) or "none"
        raise ValueError(
            f"parts of a joint tower: found {found}, expected two or more kinds, each "
            "with its options"
        )
    completed = {}
    for kind, own in sorted(parts.items()):
        if kind not in PARTS:
            raise ValueError(config_lib.unknown("part of a joint tower", kind, PARTS))
        if not isinstance(own, Mapping):
            raise ValueError(f"part {kind} must be a table of options, got {own!r}")
        completed[kind] = complete(kind, own, PARTS[kind].DEFAULTS)
    return {**options, "parts": completed}


def tower(
    options: Mapping[str, Any], frozen: Collection[str] = (), **compute: Any
) -> Tower:
    """One tower of several kinds, `options["parts"]`: {kind: options}.

    Input `Sound.mel`: a tuple of log-mels, one for each part in the order of their
    kinds, as a front end with others `beside` gives them. Each part has its parameters
    under its kind, such as audio/beats, and gives what it gives alone. Their embeddings
    stand side by side and go through one LayerNorm, "norm", over all of them: the tower
    "features" over what `clap-jax embed --segments` writes of the same towers, given in
    that order, so that weights learnt there serve here. Embedding float32 [B, D], D the
    sum of theirs; aux: "parts", {kind: [B, D of the part]}, and "fine_grained" [B, 1, D].
    frozen: parts that run as in evaluation under `train`, too. compute: dtype, remat
    and drops, which go to every part.
    Errors: ValueError on another number of mels, and those of the parts.
    """
    parts = {
        kind: PARTS[kind].tower(own, **compute)
        for kind, own in complete_parts(options)["parts"].items()
    }
    parts |= {kind: as_evaluated(parts[kind]) for kind in frozen}

    def init(key: jax.Array, example: Any) -> dict[str, Any]:
        params, state, found = {}, {}, []
        for number, (kind, heard) in enumerate(_each(parts, example).items()):
            made = parts[kind].init(jax.random.fold_in(key, number), heard)
            (embedding, _), _ = jax.eval_shape(parts[kind].apply, made, heard)
            found.append(embedding)
            params[kind] = made["params"]
            if made["state"]:
                state[kind] = made["state"]
        joined = jnp.zeros((1, 1, sum(x.shape[-1] for x in found)))
        norm = _norm(joined).init(key, Sound(joined))
        return {"params": params | norm["params"], "state": state}

    def apply(
        variables: Mapping[str, Any],
        x: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, dict[str, Any]], Any]:
        params, state, found = variables["params"], dict(variables["state"]), {}
        for number, (kind, heard) in enumerate(_each(parts, x).items()):
            (embedding, _), new_state = parts[kind].apply(
                {"params": params[kind], "state": state.get(kind, {})},
                heard,
                train=train,
                key=None if key is None else jax.random.fold_in(key, number),
            )
            found[kind] = embedding.astype(jnp.float32)
            if kind in state:
                state[kind] = new_state
        joined = jnp.concatenate(list(found.values()), -1)[:, None]
        own = {"params": {"norm": params["norm"]}, "state": {}}
        (embedding, aux), _ = _norm(joined).apply(own, Sound(joined))
        return (embedding, {**aux, "parts": found}), state

    return Tower(init, apply)


def _norm(joined: Any) -> Tower:
    return features.tower({"width": joined.shape[-1]})


def _each(parts: Mapping[str, Tower], x: Any) -> dict[str, Sound]:
    """What each of the parts hears."""
    mels = as_sound(x).mel
    if not isinstance(mels, tuple) or len(mels) != len(parts):
        found = len(mels) if isinstance(mels, tuple) else 1
        raise ValueError(
            f"{found} log-mel(s) of {rows(mels)} clips; a joint tower of "
            f"{', '.join(parts)} takes {len(parts)}, one for each"
        )
    return {kind: Sound(mel) for kind, mel in zip(parts, mels)}
