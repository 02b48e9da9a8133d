"""A tower is a pair of pure functions; linen modules stay behind `from_linen`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from clap_jax import config as config_lib

# Every random decision of a forward pass draws from one of these streams. The order
# is part of what makes a seed reproducible: append, do not reorder.
STREAMS = ("dropout", "droppath", "augment")

# Fields of a linen module that are not choices of architecture.
_NOT_OPTIONS = (
    *("parent", "name", "dtype", "remat", "vocab_size"),
    *("patch_drop", "frequency_drop", "token_drop", "full_length"),
)


class Sound(NamedTuple):
    """What an audio tower hears.

    mel: log-mel in dB, float32 [B, N, F], or [B, V, N, F] for a front end with views
        (global, front, middle, back). Of front ends beside each other a tuple of mels.
    longer: bool [B], true where a clip is longer than the model's window, so that its
        views differ. None: no clip is.
    frames: int32 [B], how many frames of each mel belong to the clip; what follows is
        padding. None: all.
    """

    mel: Any
    longer: Any = None
    frames: Any = None


def rows(sound: Any) -> int:
    """B of a `Sound`, or of a bare mel."""
    return jax.tree.leaves(sound)[0].shape[0]


def as_sound(x: Any) -> Sound:
    """`x` itself if it is a `Sound`, else a bare mel as one."""
    return x if isinstance(x, Sound) else Sound(x)


class Tower(NamedTuple):
    """An encoder as two pure functions.

    init: `init(key, example) -> variables`, `{"params": tree, "state": tree}`, where
        state is what training updates without a gradient (running statistics).
    apply: `apply(variables, x, *, train, key) -> ((embedding, aux), new_state)`.
        `aux` is a dict of named intermediates. `key` is needed when `train` is true
        and ignored otherwise; without `train` the state comes back unchanged.
    """

    init: Callable[..., dict[str, Any]]
    apply: Callable[..., tuple[tuple[Any, dict[str, Any]], Any]]


def from_linen(module: nn.Module) -> Tower:
    """Wrap a linen module with signature `module(x, train) -> (embedding, aux)`.

    The collection `batch_stats` becomes `state`; the streams in `STREAMS` are folded
    out of the one key that `apply` gets.
    """

    # Traced as a whole: the forward pass that finds the shapes is then never run.
    @jax.jit
    def init(key: jax.Array, example: Any) -> dict[str, Any]:
        collections = module.init({"params": key}, example, False)
        return {
            "params": collections.get("params", {}),
            "state": collections.get("batch_stats", {}),
        }

    def apply(
        variables: Mapping[str, Any],
        x: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[tuple[Any, dict[str, Any]], Any]:
        state = variables["state"]
        collections = {"params": variables["params"], "batch_stats": state}
        if not train:
            return module.apply(collections, x, False), state
        if key is None:
            raise ValueError(
                "a tower in training needs a key; got train=True, key=None"
            )
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(STREAMS)}
        out, updates = module.apply(
            collections, x, True, rngs=rngs, mutable=["batch_stats"]
        )
        return out, updates.get("batch_stats", state)

    return Tower(init, apply)


def as_evaluated(tower: Tower) -> Tower:
    """A tower that runs as in evaluation, whatever `train` says: nothing is dropped,
    and its state stays."""

    def apply(
        variables: Mapping[str, Any],
        x: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[tuple[Any, dict[str, Any]], Any]:
        del train, key
        return tower.apply(variables, x, train=False)

    return tower._replace(apply=apply)


def defaults(module: type[nn.Module]) -> dict[str, Any]:
    """The options of a linen module and their defaults, without what belongs to a run."""
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in _NOT_OPTIONS
    }


def complete(
    kind: str, given: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """`known` updated by `given`, checked for names and types.

    Lists become tuples (JSON has no tuples), integers are accepted for floats.
    Errors: ValueError that lists every unknown name and every wrong type.
    """
    errors, options = [], dict(known)
    for name, value in given.items():
        if name not in known:
            errors.append(config_lib.unknown(f"option of {kind}", name, known))
            continue
        value = tuple(value) if isinstance(value, list) else value
        wanted = type(known[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            errors.append(
                f"option {name} of {kind} must be {wanted.__name__}, got {value!r}"
            )
        options[name] = value
    if errors:
        raise ValueError("; ".join(errors))
    return options
