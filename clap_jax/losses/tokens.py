"""Cross entropy of the tokens that a language model is to write, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_losses(
    logits: Float[Array, "B L C"], ids: Int[Array, "B L"], smoothing: float = 0.0
) -> Float[Array, "B L"]:
    """Negative log-likelihood of each token, `logits[:, i]` being those of `ids[:, i]`.

    smoothing: share of the target that is spread over all C tokens, the true one
    included (Szegedy et al. 2016, arXiv 1512.00567).
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    if not smoothing:
        return total - own
    return total - (1 - smoothing) * own - smoothing * logits.mean(axis=-1)


def counted(
    losses: Float[Array, "B L"], own: Bool[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count over the tokens that are `own`; prompt and padding are not."""
    return jnp.sum(jnp.where(own, losses, 0)), jnp.sum(own, dtype=jnp.float32)


def cross_entropy(
    logits: Float[Array, "B L C"],
    ids: Int[Array, "B L"],
    own: Bool[Array, "B L"],
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy over the tokens that are `own`, as sum and count."""
    return counted(token_losses(logits, ids, smoothing), own)
