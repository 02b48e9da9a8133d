"""Contrastive losses over one block of scores: the definition.

Everything is a pair (sum, count), so that losses of several batches merge exactly.
`losses.sharded` computes the same without ever holding all scores.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NAMES = ("softmax", "sigmoid")
IMPLEMENTATIONS = ("auto", "global", "gather", "ring")

Number = int | float
Pair = tuple[Float[Array, ""], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Which loss, and how it is computed; the fields are the keys of `config.loss`.

    name: softmax | sigmoid. impl: global | gather | ring | auto (see
    `sharded.choose`). chunk: rows of scores that a device holds at a time, 0: by their
    size. label_smoothing: the share e of the target that is spread evenly.
    hard_negatives: the exponent beta, see `softmax_pair_loss`. multi_positive: whether
    pairs of one group are positives of each other (for who makes the labels).
    Raises ValueError for what cannot be.
    """

    name: str = "softmax"
    impl: str = "auto"
    chunk: int = 0
    label_smoothing: Number = 0.0
    hard_negatives: Number = 0.0
    multi_positive: bool = True

    def __post_init__(self) -> None:
        for key, known in (("name", NAMES), ("impl", IMPLEMENTATIONS)):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"loss.{key} is {getattr(self, key)!r}, expected one of "
                    + ", ".join(known)
                )
        if self.chunk < 0:
            raise ValueError(f"loss.chunk is {self.chunk}, expected 0 or more rows")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"loss.label_smoothing is {self.label_smoothing}, expected 0 to below 1"
            )
        if not 0 <= self.hard_negatives < float("inf"):
            raise ValueError(
                f"loss.hard_negatives is {self.hard_negatives}, expected 0 or more"
            )


class Labels(NamedTuple):
    """Which clips and texts belong together: those with equal numbers.

    clip: int32 [A]; text: int32 [T]. With mixup, clip i is `share[i]` of itself and
    otherwise of a clip that is labelled `partner[i]` (int32 [A], float32 [A]).
    """

    clip: Int[Array, " A"]
    text: Int[Array, " T"]
    partner: Int[Array, " A"] | None = None
    share: Float[Array, " A"] | None = None


def targets(
    labels: Labels, normalised: bool, dtype: Any = jnp.float32
) -> Float[Array, "A T"]:
    """What belongs together, as weights from 0 to 1.

    Row i is `share_i` of the texts of `clip_i` and the rest of those of `partner_i`.
    normalised: each of the two is a mean over its texts, so that a clip with many texts
    does not outweigh its partner (softmax); otherwise every such text has the whole
    share (sigmoid).
    """
    labels = jax.tree.map(jnp.asarray, labels)

    def side(group: Int[Array, " A"]) -> Float[Array, "A T"]:
        equal = (group[:, None] == labels.text[None, :]).astype(dtype)
        if not normalised:
            return equal
        return equal / jnp.maximum(equal.sum(1, keepdims=True), 1.0)

    own = side(labels.clip)
    if labels.partner is None or labels.share is None:
        return own
    share = labels.share.astype(dtype)[:, None]
    return share * own + (1 - share) * side(labels.partner)


def pair_loss(
    logits: Float[Array, "A T"], labels: Labels, options: Options = Options()
) -> Pair:
    """The loss that `options` names, of a whole batch's scores: (sum, count)."""
    softmax = options.name == "softmax"
    loss = softmax_pair_loss if softmax else sigmoid_pair_loss
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return loss(
        logits,
        targets(labels, softmax, dtype),
        options.label_smoothing,
        options.hard_negatives,
    )


def softmax_pair_loss(
    logits: Float[Array, "A T"],
    targets: Float[Array, "A T"] | None = None,
    label_smoothing: Number = 0.0,
    hard_negatives: Number = 0.0,
) -> Pair:
    """Cross entropy of audio -> text and of text -> audio, averaged.

    logits: scaled scores, audio in rows. targets: non-negative weights, None for the
    identity (which needs A = T). Row i normalised to sum one is what the softmax over
    row i should give, and column j likewise; a row or column without any weight takes
    no part. label_smoothing e: that share of each row's target is spread evenly over
    the row, 1/T each, and 1/A over a column.

    hard_negatives beta > 0: in the denominator of a row, a negative (a pair whose
    target is 0) counts M exp(beta l) / sum exp(beta l), the sum over the row's M
    negatives; it counts once, as ever, on average. Columns likewise; no gradient flows
    through these weights (arXiv 2010.04592, with the positives kept in the
    denominator, and their debiasing off).

    Returns float32 scalars: sum / count is the mean over all rows and columns, for the
    identity 1/2 [mean_i CE(row i) + mean_j CE(column j)], which is LAION-CLAP's
    default loss (`clap_module/loss.py`).
    """
    logits, targets = _prepared(logits, targets)
    a2t_sum, a2t_count = _cross_entropy(
        logits, targets, label_smoothing, hard_negatives
    )
    t2a_sum, t2a_count = _cross_entropy(
        logits.T, targets.T, label_smoothing, hard_negatives
    )
    return (a2t_sum + t2a_sum) / 2, (a2t_count + t2a_count) / 2


def sigmoid_pair_loss(
    logits: Float[Array, "A T"],
    targets: Float[Array, "A T"] | None = None,
    label_smoothing: Number = 0.0,
    hard_negatives: Number = 0.0,
) -> Pair:
    """Every pair by itself: is this the text of this clip? (SigLIP, arXiv 2303.15343)

    logits: as for softmax, with the learned bias in them. targets: from 0 to 1, None
    for the identity. The sum is over the binary cross entropies of all pairs, the count
    is the number of rows A. label_smoothing e: targets y become y (1 - e) + e / 2.
    hard_negatives: the term of a negative counts by the mean of its weights in its row
    and in its column, which are those of `softmax_pair_loss`.
    """
    logits, targets = _prepared(logits, targets)
    terms = binary_cross_entropy(
        logits, (1 - label_smoothing) * targets + label_smoothing / 2
    )
    if hard_negatives:
        rows = negative_weights(logits, targets, hard_negatives)
        columns = negative_weights(logits.T, targets.T, hard_negatives).T
        terms = terms * (rows + columns) / 2
    return terms.sum(), jnp.float32(logits.shape[0])


def binary_cross_entropy(
    logits: Float[Array, "A T"], targets: Float[Array, "A T"]
) -> Float[Array, "A T"]:
    """-y log sigmoid(l) - (1 - y) log sigmoid(-l), exact also where it is near 0."""
    least = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    up, down = jnp.maximum(logits, 0.0), jnp.maximum(-logits, 0.0)
    return least + targets * down + (1 - targets) * up


def negative_weights(
    logits: Float[Array, "A T"], targets: Float[Array, "A T"], beta: Number
) -> Float[Array, "A T"]:
    """What each pair counts in its row: positives 1, negatives 1 on average."""
    negative = targets <= 0
    amount = negative.sum(1, keepdims=True).astype(logits.dtype)
    share = jax.nn.softmax(beta * logits, axis=1, where=negative)
    weights = jnp.where(negative, amount * share, 1.0)
    return jax.lax.stop_gradient(weights)


def _prepared(
    logits: Float[Array, "A T"], targets: Float[Array, "A T"] | None
) -> tuple[Float[Array, "A T"], Float[Array, "A T"]]:
    """Both in float32 at least, and the identity where there are no targets."""
    if targets is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(
                f"without targets, logits must be square; got {logits.shape}"
            )
        targets = jnp.eye(logits.shape[0], dtype=jnp.float32)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return logits.astype(dtype), targets.astype(dtype)


def _cross_entropy(
    logits: Float[Array, "A T"],
    targets: Float[Array, "A T"],
    smoothing: Number,
    beta: Number,
) -> Pair:
    total = targets.sum(1, keepdims=True)
    active = total > 0
    weights = targets / jnp.where(active, total, 1.0)
    if smoothing:
        even = jnp.where(active, smoothing / targets.shape[1], 0.0)
        weights = (1 - smoothing) * weights + even
    if beta:
        importance = negative_weights(logits, targets, beta)
        denominator = jax.nn.logsumexp(logits, axis=1, b=importance, keepdims=True)
        log_probability = logits - denominator
    else:
        log_probability = jax.nn.log_softmax(logits, axis=1)
    return -(weights * log_probability).sum(), active.sum().astype(jnp.float32)
