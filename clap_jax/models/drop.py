"""Patches and tokens that a tower leaves out in training, for speed.

Audio: whole stretches of time, or whole bands of frequency, leave the map of patches
(structured patchout, Koutini et al. 2021, arXiv 2110.05069). Text: random tokens leave
(Li et al. 2022, arXiv 2212.00794). Every example draws for itself; how many stay is
fixed, so that shapes are. Nothing is dropped outside training.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped


def check(name: str, rate: float) -> None:
    """ValueError, naming the key of the config, unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"train.{name} is {rate}, expected a share from 0 to below 1")


def refuse(tower: str, reason: str, **rates: float) -> None:
    """ValueError for a tower that cannot drop, when one of the `rates` asks for it."""
    for name, rate in rates.items():
        if rate:
            raise ValueError(
                f"train.{name} is {rate}, but the audio tower {tower} cannot leave out "
                f"patches: {reason}; set it to 0"
            )


def groups_kept(name: str, rate: float, groups: int) -> int:
    """How many of `groups` stay: the rate rounds to whole groups, but drops at least one.

    Errors: ValueError when none would stay.
    """
    if not rate:
        return groups
    kept = groups - max(1, math.floor(groups * rate + 0.5))
    if kept < 1:
        raise ValueError(
            f"train.{name} is {rate}, which leaves none of {groups} groups of patches; "
            f"expected at most {(groups - 1) / groups:g}"
        )
    return kept


def tokens_kept(rate: float, length: int, full_length: int = 0) -> int:
    """How many of `length` tokens stay: ceil(full_length * (1 - rate)), or all.

    full_length: that of texts which are padded as far as the model takes them, 0 where
    these are: of such a text as many tokens stay however little it is padded.
    Errors: ValueError when the first and the last one would not both stay.
    """
    full_length = full_length or length
    # Rounded first, so that 10 * (1 - 0.7) is 3 and not a little more.
    kept = math.ceil(round(full_length * (1 - rate), 6))
    if rate and kept < 2:
        raise ValueError(
            f"train.token_drop is {rate}, which leaves {kept} of {full_length} tokens; "
            "the first and the last one have to stay"
        )
    return min(kept, length)


def subset(
    key: PRNGKeyArray, batch: int, total: int, kept: int
) -> Int[Array, "B kept"]:
    """For each example a random choice of `kept` of `total` numbers, in rising order."""
    order = jnp.argsort(jax.random.uniform(key, (batch, total)), axis=1)
    return jnp.sort(order[:, :kept], axis=1).astype(jnp.int32)


def take_groups(
    x: Float[Array, "B H W C"], index: Int[Array, "B kept"], axis: int, groups: int
) -> Float[Array, "B h w C"]:
    """Of a map cut into `groups` along `axis` (1 rows, 2 columns), those in `index`."""
    size = x.shape[axis] // groups
    cut = x.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])

    def take(one: Array, rows: Array) -> Array:
        places = (slice(None),) * (axis - 1) + (rows,)
        # No two are equal, which spares the backward pass the adding.
        return one.at[places].get(
            mode="clip", unique_indices=True, indices_are_sorted=True
        )

    taken = jax.vmap(take)(cut, index)
    shape = list(x.shape)
    shape[axis] = index.shape[1] * size
    return taken.reshape(shape)


def token_index(
    key: PRNGKeyArray,
    seen: Bool[Array, "B L"],
    last: Int[Array, " B"],
    kept: int,
) -> Int[Array, "B kept"]:
    """Which tokens stay, in rising order: the first, `last`, and others at random.

    seen: tokens that count. Those that do not, padding, only stay where an example has
    fewer than `kept` that do.
    """
    place = jnp.arange(seen.shape[1])
    rank = jax.random.uniform(key, seen.shape)
    # Padding comes after everything else, and the nearest first.
    rank = jnp.where(seen, rank, 2.0 + place)
    always = (place == 0) | (place == last[:, None])
    order = jnp.argsort(jnp.where(always, -1.0, rank), axis=1)
    return jnp.sort(order[:, :kept], axis=1).astype(jnp.int32)


def take_tokens(
    index: Int[Array, "B kept"], *arrays: Shaped[Array, "#B L"]
) -> list[Shaped[Array, "B kept"]]:
    """Of each array what `index` names; an array of one row serves all examples."""
    shape = (index.shape[0], arrays[0].shape[1])
    return [
        jnp.take_along_axis(jnp.broadcast_to(array, shape), index, axis=1)
        for array in arrays
    ]


def place_of(token: Int[Array, " B"], index: Int[Array, "B kept"]) -> Int[Array, " B"]:
    """Where a token that stayed stands among those that did."""
    return jnp.argmax(index == token[:, None], axis=1).astype(jnp.int32)


def last_true(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """The last true place of each row; the very last one where there is none."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1).astype(jnp.int32)
