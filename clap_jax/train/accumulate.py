"""Gradient caching: the gradient of a loss over a whole batch, encoded in parts.

A contrastive loss compares every clip with every text, so that gradients of parts do
not add up to that of the batch. Those of the embeddings do (Gao et al. 2021, GradCache,
arXiv 2101.06983): encode all parts and keep nothing but the embeddings; take the
loss's gradient with respect to these; then encode every part again, with the same key,
and pull its share of that gradient back into the parameters. It is the same gradient,
for one more pass forward, and of the towers' activations there is one part's at a time.

What looks at other clips while it encodes sees those of its own part only: mixup draws
partners there, and batch norm normalises each part by its own statistics.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clap_jax import sharding

# (params, state, batch, key) -> (embeddings, (rows, new state))
Encode = Callable[[Any, Any, Any, jax.Array], tuple[Any, tuple[Any, Any]]]
# (params, embeddings, rows) -> (loss, aux)
Loss = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def value_and_grad(
    encode: Encode,
    loss: Loss,
    parts: int,
    mesh: Mesh,
    place: Callable[[Any], Any] = lambda gradients: gradients,
) -> Callable:
    """A function `(params, state, batch, key) -> ((loss, (aux, new state)), gradients)`.

    encode: its embeddings and rows are trees of arrays [b, ...] for a batch of b rows;
        gradients flow through the embeddings alone. state is what a forward pass
        leaves for the next (running statistics), and has no gradient.
    loss: of all B embeddings and rows, in the order of the batch; float32. Its own
        parameters (a scale) are among params.
    parts: k; a part has rows of every device, B / (devices * k) of each, so that no
        row moves. With 1 all is encoded at once, and differentiated as a whole. With
        more, part c is encoded with fold_in(key, c); the new state is the mean over
        parts of what each makes of the old one, in the leaves that are floats.
    place: what to do with gradients (to shard them), also while they add up.
    Batches must divide by devices * parts (`sharding.check_batch`).
    """

    def at_once(params: Any, state: Any, batch: Any, key: jax.Array):
        def whole(params: Any):
            embeddings, (rows, new_state) = encode(params, state, batch, key)
            value, aux = loss(params, embeddings, rows)
            return value, (aux, new_state)

        found, gradients = jax.value_and_grad(whole, has_aux=True)(params)
        return found, place(gradients)

    def in_parts(params: Any, state: Any, batch: Any, key: jax.Array):
        keys = jax.vmap(lambda part: jax.random.fold_in(key, part))(jnp.arange(parts))
        batches = jax.tree.map(lambda x: split(x, parts, mesh), batch)

        def embed(total: Any, part: Any):
            embeddings, (rows, new_state) = encode(params, state, *part)
            return _add_floats(total, new_state), (embeddings, rows)

        zeros = jax.tree.map(jnp.zeros_like, state)
        total, found = jax.lax.scan(embed, zeros, (batches, keys))
        new_state = jax.tree.map(lambda x: x / parts if _is_float(x) else x, total)
        embeddings, rows = jax.tree.map(lambda x: joined(x, mesh), found)

        value, pull, aux = jax.vjp(
            lambda *given: loss(*given, rows), params, embeddings, has_aux=True
        )
        # What the loss itself asks of the parameters; the towers' share is added.
        gradients, cotangents = pull(jnp.ones_like(value))
        # Masks among the embeddings have none.
        cotangents = jax.tree.map(
            lambda x: None if x.dtype == float0 else split(x, parts, mesh), cotangents
        )

        def pull_back(total: Any, part: Any):
            *part, cotangent = part
            again, pull = jax.vjp(
                lambda params: encode(params, state, *part)[0], params
            )
            cotangent = jax.tree.map(
                lambda x, y: np.zeros(x.shape, float0) if y is None else y,
                again,
                cotangent,
            )
            (more,) = pull(cotangent)
            return place(jax.tree.map(jnp.add, total, more)), None

        gradients, _ = jax.lax.scan(
            pull_back, place(gradients), (batches, keys, cotangents)
        )
        return (value, (aux, new_state)), gradients

    return at_once if parts == 1 else in_parts


def split(rows: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[B, ...] as [parts, B / parts, ...], each with rows of every device of `mesh`."""
    tail = rows.shape[1:]
    rows = rows.reshape(mesh.size, parts, -1, *tail)
    rows = jnp.moveaxis(rows, 1, 0).reshape(parts, -1, *tail)
    axes = PartitionSpec(None, sharding.BATCH_AXES)
    return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, axes))


def joined(rows: jax.Array, mesh: Mesh) -> jax.Array:
    """The inverse of `split`."""
    parts, tail = rows.shape[0], rows.shape[2:]
    rows = rows.reshape(parts, mesh.size, -1, *tail)
    rows = jnp.moveaxis(rows, 0, 1).reshape(-1, *tail)
    return jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))


def _add_floats(total: Any, new: Any) -> Any:
    """The sum; of leaves that are no floats the newer."""
    return jax.tree.map(lambda a, b: a + b if _is_float(b) else b, total, new)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
