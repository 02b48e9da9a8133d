"""How captions are written, as data, and what all methods of decoding share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib

METHODS = ("greedy", "beam", "sample")
RULES = ("leave", "stay")


@dataclasses.dataclass(frozen=True)
class Options:
    """How captions are written; hashable, so that it can be static under jit.

    method: "greedy", the likeliest token each time; "beam"; or "sample".
    length: tokens of a caption at most, its end token included.
    end_id: the token that ends a caption, and is part of it; None: nothing ends it.
    pad_id: stands behind the end.
    count: captions a clip; of a beam search the best ones, best first.
    min_length: so many tokens come before the end token.
    no_repeat_ngram: no run of so many tokens comes twice in a caption; 0: any may.
    temperature: logits are divided by it before anything else.
    alpha: the score of a caption is the sum of the log-probabilities of its tokens, end
        included, over its number of tokens to the power alpha.
    beams: unfinished captions of a clip that a beam search holds.
    rule: what becomes of a finished caption in a beam search. "leave" (AudioCaption,
        with alpha 1): it leaves its place to another, and the search stops when as many
        as there are beams have finished. "stay" (clapcap, with alpha 1): it stays in its
        place for as long as its score is among the best, all places are ranked by score
        at every step, and the search stops when all have finished.
    top_k, top_p: sampling is from the top_k likeliest tokens (0: all) and, of these,
        from the fewest that have the share top_p of their probability together.
    Errors: ValueError on values that mean nothing, and on those of another method.
    """

    method: str = "greedy"
    length: int = 30
    end_id: int | None = None
    pad_id: int = 0
    count: int = 1
    min_length: int = 0
    no_repeat_ngram: int = 0
    temperature: float = 1.0
    alpha: float = 1.0
    beams: int = 1
    rule: str = "leave"
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for role, name, known in (
            ("method of decoding", self.method, METHODS),
            ("rule of a beam search", self.rule, RULES),
        ):
            if name not in known:
                raise ValueError(config_lib.unknown(role, name, known))
        least = {"length": 1, "count": 1, "beams": 1, "min_length": 0, "top_k": 0}
        for name, low in (least | {"no_repeat_ngram": 0, "pad_id": 0}).items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
        if self.end_id is not None and (
            type(self.end_id) is not int or self.end_id < 0
        ):
            raise ValueError(f"end_id must be a token or None, got {self.end_id!r}")
        for name, right, wanted in (
            ("temperature", self.temperature > 0, "> 0"),
            ("alpha", self.alpha >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_length", self.min_length < self.length, "below length"),
        ):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {wanted}")
        self._check_method()

    def _check_method(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for method, names in (("beam", ("beams", "rule")), ("sample", _SAMPLING)):
            for name in names if method != self.method else ():
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, which is for the method "
                        f"{method!r}, not for {self.method!r}"
                    )
        most = {"greedy": 1, "beam": self.beams}.get(self.method)
        if most is not None and self.count > most:
            raise ValueError(
                f"count is {self.count}, expected at most {most} with the method "
                f"{self.method!r} and beams={self.beams}"
            )


_SAMPLING = ("top_k", "top_p")


def described(options: Options) -> str:
    """Options in words, of those that may vary what differs from the defaults."""
    defaults = Options(options.method, options.length)
    named = [
        f"{name} {getattr(options, name)}"
        for name in ("beams", "rule", "count", "min_length", "no_repeat_ngram")
        + ("temperature", "alpha", *_SAMPLING)
        if getattr(options, name) != getattr(defaults, name)
    ]
    return ", ".join([options.method, f"at most {options.length} tokens", *named])


class Captions(NamedTuple):
    """n captions of each of B clips, at most L tokens long.

    ids: int32 [B, n, L], `pad_id` behind the end token. lengths: int32 [B, n], tokens up
    to the end token, this included. scores: float32 [B, n], see `Options.alpha`. Where
    there are fewer than n captions, the length of a missing one is 0 and its score -inf;
    a sampled or greedy one that no token may follow ends there, with the score -inf.
    """

    ids: Int[Array, "B n L"]
    lengths: Int[Array, "B n"]
    scores: Float[Array, "B n"]


def spread_rows(cache: Any, count: int) -> Any:
    """Each row of every array in `cache` `count` times, copies side by side."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), cache)


def take_rows(cache: Any, rows: Int[Array, " R"]) -> Any:
    """Rows of every array in `cache`."""
    return jax.tree.map(lambda x: x[rows], cache)


class Steps(NamedTuple):
    """How a model goes on with R captions, from a cache of what it has read.

    step: `(cache, ids int32 [R]) -> (logits [R, C], cache)`: reads one token of each
        caption and tells what may follow.
    spread: `(cache, n) -> cache`, as `spread_rows`: n captions of each clip.
    take: `(cache, rows int32 [R]) -> cache`, as `take_rows`: captions change their
        places. It is asked for rows of the same clip only, so that what all captions of
        a clip share may stay where it is.
    """

    step: Callable[..., tuple[jax.Array, Any]]
    spread: Callable[..., Any] = spread_rows
    take: Callable[..., Any] = take_rows


def log_probs(
    logits: Float[Array, "R C"], ids: Int[Array, "R L"], step: Any, options: Options
) -> Float[Array, "R C"]:
    """Log-probabilities of token number `step`; -inf for those that may not stand there.

    The others keep theirs: a ban makes a caption no likelier.
    """
    logits = logits.astype(jnp.float32) / options.temperature
    found = jax.nn.log_softmax(logits, axis=-1)
    if options.end_id is not None and options.min_length:
        column = jnp.arange(found.shape[1]) == options.end_id
        found = jnp.where(column & (step < options.min_length), -jnp.inf, found)
    if options.no_repeat_ngram:
        repeats = _repeats(ids, step, options.no_repeat_ngram, found.shape[1])
        found = jnp.where(repeats, -jnp.inf, found)
    return found


def _repeats(
    ids: Int[Array, "R L"], step: Any, size: int, classes: int
) -> Bool[Array, "R C"]:
    """Tokens that, at `step`, would end a run of `size` that is there already."""
    starts = jnp.arange(max(ids.shape[1] - size + 1, 0))
    runs = ids[:, starts[:, None] + jnp.arange(size)]
    last = jax.lax.dynamic_slice_in_dim(
        ids, step - (size - 1), min(size - 1, ids.shape[1]), axis=1
    )
    if last.shape[1] < size - 1:
        return jnp.zeros((len(ids), classes), bool)
    same = (runs[..., :-1] == last[:, None]).all(-1) & (starts + size <= step)
    rows = jnp.arange(len(ids))[:, None]
    return jnp.zeros((len(ids), classes), bool).at[rows, runs[..., -1]].max(same)
