"""Contrastive losses over one block of scores: the definition.

Everything is a pair (sum, count), so that losses of several batches merge exactly.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def softmax_pair_loss(
    logits: Float[Array, "A T"], targets: Float[Array, "A T"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy of audio -> text and of text -> audio, averaged.

    logits: scaled scores, audio in rows. targets: non-negative weights, None for the
    identity (which needs A = T). Row i normalised to sum one is what the softmax over
    row i should give, and column j likewise; a row or column without any weight takes
    no part. Returns float32 scalars: sum / count is the mean over all rows and
    columns, for the identity 1/2 [mean_i CE(row i) + mean_j CE(column j)], which is
    LAION-CLAP's default loss (`clap_module/loss.py`).
    """
    if targets is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(
                f"without targets, logits must be square; got {logits.shape}"
            )
        targets = jnp.eye(logits.shape[0], dtype=jnp.float32)
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    a2t_sum, a2t_count = _cross_entropy(logits, targets)
    t2a_sum, t2a_count = _cross_entropy(logits.T, targets.T)
    return (a2t_sum + t2a_sum) / 2, (a2t_count + t2a_count) / 2


def _cross_entropy(
    logits: Float[Array, "A T"], targets: Float[Array, "A T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    total = targets.sum(1, keepdims=True)
    weights = targets / jnp.where(total > 0, total, 1.0)
    log_probability = jax.nn.log_softmax(logits, axis=1)
    return -(weights * log_probability).sum(), (total > 0).sum().astype(jnp.float32)


def positives(group: Int[Array, " B"]) -> Float[Array, "B B"]:
    """Targets in which every clip and text of the same group belong together."""
    return (group[:, None] == group[None, :]).astype(jnp.float32)


def mix_targets(
    targets: Float[Array, "B T"], lam: Float[Array, " B"], partner: Int[Array, " B"]
) -> Float[Array, "B T"]:
    """Targets of clips that are mixed: `lam` of the clip itself, the rest of `partner`.

    Every row is normalised first, so that a clip with many texts does not outweigh
    its partner.
    """
    total = targets.sum(1, keepdims=True)
    rows = targets / jnp.where(total > 0, total, 1.0)
    return lam[:, None] * rows + (1 - lam[:, None]) * rows[partner]
