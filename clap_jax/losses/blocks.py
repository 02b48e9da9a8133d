"""Contrastive losses block by block: what a block of scores adds to each row and column.

A loss here is three steps, none of which needs more than one block [A, T] at a time:
`statistics` of a block per row and per column, which `merge` with those of other blocks;
`finish`, which turns a row's (or column's) statistics into its loss and its `Anchor`s;
and `slopes`, the derivative by every score of a block, from the anchors alone.
`losses.contrastive` has the definitions; names and signs are the same.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clap_jax.losses import contrastive
from clap_jax.losses.contrastive import Labels, Number, Options

# Instead of -inf, of which differences would be NaN: the logarithm of nothing.
NOTHING = -1e30


class Rows(NamedTuple):
    """What is known of the clips of a block's rows.

    own, other: the target of a pair with a text of group `clip`, and of `partner`.
    inverse: 1 / (sum of the row's targets), 0 for a row that takes no part.
    """

    clip: Int[Array, " A"]
    partner: Int[Array, " A"] | None
    own: Float[Array, " A"]
    other: Float[Array, " A"] | None
    inverse: Float[Array, " A"]


class Columns(NamedTuple):
    """What is known of the texts of a block's columns; inverse: as for rows."""

    text: Int[Array, " T"]
    inverse: Float[Array, " T"]


class Stream(NamedTuple):
    """Something to be summed over a line: factor * exp(power * scores).

    scores are NOTHING where a pair takes no part.
    """

    scores: Float[Array, "A T"]
    power: Number
    factor: Float[Array, "A T"] | None = None


class Statistics(NamedTuple):
    """Running sums over lines (rows, or columns) of N scores, one array [N] each.

    Stream k is masses[k] * exp(powers[k] * tops[k]): its largest score stands apart, so
    that nothing overflows (arXiv 1805.02867). sums: plain sums.
    """

    tops: tuple[Float[Array, " N"], ...]
    masses: tuple[Float[Array, " N"], ...]
    sums: tuple[Float[Array, " N"], ...]


class Anchor(NamedTuple):
    """exp(power * (score - top) + offset) is a pair's share of its line.

    Two numbers and not their sum, since scores are large beside what is wanted.
    """

    top: Float[Array, " N"]
    offset: Float[Array, " N"]


def targets(rows: Rows, columns: Columns) -> Float[Array, "A T"]:
    """The block's targets, before any normalisation by row or column."""
    text = columns.text[None, :]
    found = jnp.where(rows.clip[:, None] == text, rows.own[:, None], 0.0)
    if rows.partner is None or rows.other is None:
        return found
    return found + jnp.where(rows.partner[:, None] == text, rows.other[:, None], 0.0)


def merge(
    powers: tuple[Number, ...], left: Statistics, right: Statistics
) -> Statistics:
    """Statistics of the same lines over two parts of their scores, as of both."""
    tops = tuple(map(jnp.maximum, left.tops, right.tops))
    masses = tuple(
        sum(
            part.masses[k] * jnp.exp(power * (part.tops[k] - tops[k]))
            for part in (left, right)
        )
        for k, power in enumerate(powers)
    )
    return Statistics(tops, masses, tuple(map(jnp.add, left.sums, right.sums)))


def _reduce(
    streams: list[Stream], sums: list[Float[Array, "A T"]], axis: int
) -> Statistics:
    tops = [stream.scores.max(axis) for stream in streams]
    masses = []
    for stream, top in zip(streams, tops, strict=True):
        mass = jnp.exp(stream.power * (stream.scores - jnp.expand_dims(top, axis)))
        mass = mass if stream.factor is None else mass * stream.factor
        masses.append(mass.sum(axis))
    return Statistics(tuple(tops), tuple(masses), tuple(x.sum(axis) for x in sums))


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Cross entropy over rows and over columns; clips, texts: how many of all."""

    options: Options
    clips: int
    texts: int

    @property
    def powers(self) -> tuple[Number, ...]:
        beta = self.options.hard_negatives
        return (1.0, beta, 1.0 + beta) if beta else (1.0,)

    def empty(self, lines: int, dtype: Any, axis: int) -> Statistics:
        """Statistics of no scores at all."""
        sums = (
            1 + (self.options.label_smoothing > 0) + (self.options.hard_negatives > 0)
        )
        return _empty(len(self.powers), sums, lines, dtype)

    def statistics(
        self, scores: Float[Array, "A T"], target: Float[Array, "A T"], axis: int
    ) -> Statistics:
        """Of every row (axis 1, over which is summed) or column (axis 0)."""
        streams, sums = [Stream(scores, 1.0)], [target * scores]
        if self.options.label_smoothing:
            sums.append(scores)
        if beta := self.options.hard_negatives:
            negative = target <= 0
            negatives = jnp.where(negative, scores, NOTHING)
            streams = [
                Stream(jnp.where(negative, NOTHING, scores), 1.0),
                Stream(negatives, beta),
                Stream(negatives, 1.0 + beta),
            ]
            sums.append(negative.astype(scores.dtype))
        return _reduce(streams, sums, axis)

    def finish(
        self, found: Statistics, inverse: Float[Array, " N"], axis: int
    ) -> tuple[Float[Array, " N"], tuple[Anchor, ...]]:
        """Loss of every line (half, since there are two directions), and its anchors."""
        smoothing = self.options.label_smoothing
        pull = (1 - smoothing) * inverse * found.sums[0]
        if smoothing:
            pull += found.sums[1] * (smoothing / (self.texts if axis else self.clips))
        if not self.options.hard_negatives:
            top, rest = found.tops[0], jnp.log(found.masses[0])
            anchors = (Anchor(top, -rest),)
        else:
            positive, negative, _ = found.tops
            alone, flat, sharp = found.masses
            amount = found.sums[-1]
            top = jnp.maximum(positive, negative)
            rest = jnp.log(
                jnp.exp(positive - top) * alone
                + jnp.exp(negative - top) * amount * sharp / flat
            )
            weight = _log(amount / flat)
            anchors = (
                Anchor(top, -rest),
                Anchor(negative, (negative - top) + weight - rest),
            )
        # In this order, the large numbers cancel before anything is rounded.
        loss = (top - pull) + rest
        return jnp.where(inverse > 0, loss / 2, 0.0), anchors

    def slopes(
        self,
        scores: Float[Array, "A T"],
        target: Float[Array, "A T"],
        inverses: tuple[Float[Array, " A"], Float[Array, " T"]],
        anchors: tuple[tuple[Anchor, ...], tuple[Anchor, ...]],
    ) -> Float[Array, "A T"]:
        """d sum / d scores of the block. Pairs: of the rows, and of the columns."""
        smoothing, total = self.options.label_smoothing, 0.0
        for axis in (1, 0):
            line = inverses[1 - axis]
            exponent = [
                _exponent(scores, anchor, power, axis)
                for anchor, power in zip(
                    anchors[1 - axis], (1.0, self.powers[-1]), strict=False
                )
            ]
            probability = jnp.exp(
                exponent[0]
                if len(exponent) == 1
                else jnp.where(target > 0, exponent[0], exponent[1])
            )
            wanted = (1 - smoothing) * target * jnp.expand_dims(line, axis)
            even = smoothing / (self.texts if axis else self.clips)
            active = jnp.expand_dims((line > 0).astype(scores.dtype), axis)
            total += (active * (probability - even) - wanted) / 2
        return total


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Binary cross entropy of every pair."""

    options: Options

    @property
    def powers(self) -> tuple[Number, ...]:
        beta = self.options.hard_negatives
        return (beta, beta) if beta else ()

    def empty(self, lines: int, dtype: Any, axis: int) -> Statistics:
        """Statistics of no scores at all."""
        sums = axis + (self.options.hard_negatives > 0)
        return _empty(len(self.powers), sums, lines, dtype)

    def statistics(
        self, scores: Float[Array, "A T"], target: Float[Array, "A T"], axis: int
    ) -> Statistics:
        """Of every row (axis 1, over which is summed) or column (axis 0)."""
        beta = self.options.hard_negatives
        if not beta and axis == 0:
            return Statistics((), (), ())
        terms = contrastive.binary_cross_entropy(scores, self._smooth(target))
        if not beta:
            return _reduce([], [terms], axis)
        negative = target <= 0
        negatives = jnp.where(negative, scores, NOTHING)
        sums = [jnp.where(negative, 0.0, terms)] if axis else []
        return _reduce(
            [Stream(negatives, beta), Stream(negatives, beta, terms)],
            [*sums, negative.astype(scores.dtype)],
            axis,
        )

    def finish(
        self, found: Statistics, inverse: Float[Array, " N"], axis: int
    ) -> tuple[Float[Array, " N"], tuple[Anchor, ...]]:
        """Loss of every line, and its anchors."""
        loss = found.sums[0] if axis else jnp.zeros_like(inverse)
        if not self.options.hard_negatives:
            return loss, ()
        amount, (flat, weighted) = found.sums[-1], found.masses
        anchor = Anchor(found.tops[0], _log(amount / flat))
        return loss + amount * weighted / flat / 2, (anchor,)

    def slopes(
        self,
        scores: Float[Array, "A T"],
        target: Float[Array, "A T"],
        inverses: tuple[Float[Array, " A"], Float[Array, " T"]],
        anchors: tuple[tuple[Anchor, ...], tuple[Anchor, ...]],
    ) -> Float[Array, "A T"]:
        """d sum / d scores of the block. Pairs: of the rows, and of the columns."""
        slope = jax.nn.sigmoid(scores) - self._smooth(target)
        beta = self.options.hard_negatives
        if not beta:
            return slope
        exponents = [
            _exponent(scores, anchors[1 - axis][0], beta, axis) for axis in (1, 0)
        ]
        weight = (jnp.exp(exponents[0]) + jnp.exp(exponents[1])) / 2
        return jnp.where(target > 0, slope, slope * weight)

    def _smooth(self, target: Float[Array, "A T"]) -> Float[Array, "A T"]:
        smoothing = self.options.label_smoothing
        return (1 - smoothing) * target + smoothing / 2


def _log(x: Float[Array, " N"]) -> Float[Array, " N"]:
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), NOTHING)


def _exponent(
    scores: Float[Array, "A T"], anchor: Anchor, power: Number, axis: int
) -> Float[Array, "A T"]:
    top, offset = (jnp.expand_dims(x, axis) for x in anchor)
    return power * (scores - top) + offset


def _empty(streams: int, sums: int, lines: int, dtype: Any) -> Statistics:
    return Statistics(
        (jnp.full(lines, NOTHING, dtype),) * streams,
        (jnp.zeros(lines, dtype),) * streams,
        (jnp.zeros(lines, dtype),) * sums,
    )


def make(options: Options, clips: int, texts: int) -> Softmax | Sigmoid:
    """The loss that `options` names, over so many clips and texts in all."""
    if options.name == "sigmoid":
        return Sigmoid(options)
    return Softmax(options, clips, texts)


def mark(
    labels: Labels, options: Options, dtype: Any, axes: tuple[str, ...]
) -> tuple[Rows, Columns]:
    """Weights of a device's own rows and columns, from its part of the labels.

    axes: the mesh axes over which the labels are split. Softmax needs to know how
    often each group occurs in the whole batch. That is counted in the sorted groups of
    all texts, O(T) numbers; there is never anything for every pair.
    """
    clip, text, partner, share = labels
    own = jnp.ones(clip.shape, dtype) if share is None else share.astype(dtype)
    other = None if partner is None else 1 - own
    if options.name == "sigmoid":
        rows = Rows(clip, partner, own, other, jnp.ones_like(own))
        return rows, Columns(text, jnp.ones(text.shape, dtype))

    everything = jax.lax.all_gather(text, axes, tiled=True) if axes else text
    ordered = jnp.sort(everything)

    def count(group: Array) -> tuple[Array, Array]:
        """Where a group begins in `ordered` (or beyond its end), and how often it is."""
        first = jnp.searchsorted(ordered, group, side="left")
        amount = jnp.searchsorted(ordered, group, side="right") - first
        return jnp.where(amount > 0, first, ordered.size), amount.astype(dtype)

    places, total = [], jnp.zeros_like(own)
    weights = jnp.zeros(ordered.shape, dtype)
    for group, weight in ((clip, own), (partner, other)):
        if group is None:
            places.append(None)
            continue
        first, amount = count(group)
        total += jnp.where(amount > 0, weight, 0.0)
        weight = weight / jnp.maximum(amount, 1.0)
        weights = weights.at[first].add(weight, mode="drop")
        places.append(weight)
    weights = jax.lax.psum(weights, axes) if axes else weights
    rows = Rows(clip, partner, *places, _inverse(total))
    return rows, Columns(text, _inverse(weights[count(text)[0]]))


def _inverse(x: Float[Array, " N"]) -> Float[Array, " N"]:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)
