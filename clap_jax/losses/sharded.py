"""Contrastive losses over a batch that is split over devices, exactly, in three ways.

global: the definition, on whole arrays; the compiler splits it and keeps all scores.
gather: every device gets all texts, and has its own rows of scores, some at a time.
ring: texts go round, so that a device has one block of scores at a time.

The last two keep O(B / devices) numbers between the passes: the backward pass computes
the scores again, block by block (its gradients are written out, not derived).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from clap_jax import sharding
from clap_jax.losses import blocks, contrastive
from clap_jax.losses.contrastive import Labels, Options

Score = Callable[[Any, Any, Any], Array]

# All scores of a device may take this before they are computed in blocks: the compiler
# keeps about seven arrays of that size.
GLOBAL_BYTES = 16 * 2**20
# What one block of scores may take, and one of scores that are made of many numbers.
BLOCK_BYTES = 64 * 2**20
WIDE_BLOCK_BYTES = 8 * 2**20
# What all texts and their gradients may take before they go round instead.
TEXTS_BYTES = 128 * 2**20


def choose(
    options: Options,
    batch: int,
    devices: int,
    width: int,
    numbers_per_pair: int = 1,
    clip_width: int = 0,
) -> tuple[Options, str]:
    """`options` with `impl` and `chunk` decided, and a line for the log that says why.

    batch: clips (and texts) over all devices; width: numbers in an embedding, or in all
    those of a text; numbers_per_pair: what a score is made of, such as the attention of
    every sentence to every segment; clip_width: then, the numbers in all embeddings of
    a clip.
    """
    rows = -(-batch // devices)
    scores, texts = 4 * rows * batch * numbers_per_pair, 2 * 4 * batch * width
    impl = options.impl
    if impl == "auto":
        impl = "global"
        if scores > GLOBAL_BYTES:
            impl = "gather" if texts <= TEXTS_BYTES or devices == 1 else "ring"
    chunk = options.chunk
    if not chunk and impl != "global":
        numbers, most_bytes = (batch if impl == "gather" else rows), BLOCK_BYTES
        if numbers_per_pair > 1:
            # What attention sees of a clip, and the gradients of both.
            numbers = numbers * numbers_per_pair + 4 * clip_width
            most_bytes = WIDE_BLOCK_BYTES
        chunk = _fitting_rows(rows, most_bytes // (4 * numbers))
    told = "" if options.impl == "auto" else ", as loss.impl says"
    at_once = f"{min(chunk, rows)} rows at a time" if chunk else "all rows at once"
    made_of = f" of {numbers_per_pair} numbers" if numbers_per_pair > 1 else ""
    reason = (
        f"{options.name} loss, {impl}{told}: {batch} x {batch} scores{made_of} over "
        f"{devices} device(s) are {_size(scores)} a device (global up to "
        f"{_size(GLOBAL_BYTES)}), "
        f"all texts with gradients {_size(texts)} (gather up to {_size(TEXTS_BYTES)}); "
        f"{at_once}"
    )
    return dataclasses.replace(options, impl=impl, chunk=chunk), reason


def _fitting_rows(rows: int, most: int) -> int:
    """Rows at a time: a divisor of all rows if a good one is near, else 8 or more."""
    most = max(most, 8)
    if most >= rows:
        return rows
    divisor = next(n for n in range(most, 0, -1) if rows % n == 0)
    return divisor if 2 * divisor > most else most // 8 * 8


def _size(count_bytes: int) -> str:
    power = min(max(count_bytes.bit_length() - 1, 0) // 10, 3)
    return f"{count_bytes / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def pair_loss(
    score: Score,
    params: Any,
    audio: Any,
    text: Any,
    labels: Labels,
    options: Options,
    mesh: Mesh,
    numbers_per_pair: int = 1,
) -> contrastive.Pair:
    """The loss of a whole batch as (sum, count), float32 scalars.

    score: `(params, audio block, text block) -> float32 [a, t]`, differentiable; it must
    not close over traced values. params: small, the same on all devices. audio, text:
    an array, or a tree of them, [B, ...], split over `sharding.BATCH_AXES`; narrow
    floats become float32 before they are scored. labels: see `contrastive.Labels`.
    numbers_per_pair: see `choose`.
    Call it inside jit. Differentiable in the floats of params, audio and text.

    Raises ValueError when the batch does not divide over the devices.
    """
    labels = jax.tree.map(jnp.asarray, labels)
    clips, texts = labels.clip.shape[0], labels.text.shape[0]
    for what, amount, tree in (("clips", clips, audio), ("texts", texts, text)):
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
        if sizes != {amount}:
            raise ValueError(f"{amount} labels for {sorted(sizes)} {what}")
    for what, amount in (("clips", clips), ("texts", texts)):
        if amount % mesh.size:
            raise ValueError(
                f"{amount} {what} are not divisible by {mesh.size} devices"
            )
    clip_width, width = (
        sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(tree))
        for tree in (audio, text)
    )
    batch = max(clips, texts)
    options, _ = choose(options, batch, mesh.size, width, numbers_per_pair, clip_width)

    if options.impl == "global" and not options.chunk:
        scores = score(params, _wide(audio), _wide(text))
        return contrastive.pair_loss(scores, labels, options)
    exact = _Exact(score, options, mesh, clips, texts)
    return _pair_loss(exact, params, audio, text, labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_loss(
    exact: "_Exact", params: Any, audio: Any, text: Any, labels: Labels
) -> contrastive.Pair:
    return exact.forward(params, audio, text, labels)[0]


def _forward(exact: "_Exact", params: Any, audio: Any, text: Any, labels: Labels):
    pair, kept = exact.forward(params, audio, text, labels)
    return pair, (params, audio, text, kept)


def _backward(exact: "_Exact", residuals: Any, cotangents: Any):
    # The count depends on the labels alone.
    return *exact.backward(*residuals, cotangents[0]), None


_pair_loss.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Exact:
    """A loss by blocks, over whole arrays (global) or split ones (gather, ring).

    Row chunks of `global` take rows of every device, so that all have work.
    """

    score: Score
    options: Options
    mesh: Mesh
    clips: int
    texts: int

    @property
    def axes(self) -> tuple[str, ...]:
        return () if self.options.impl == "global" else sharding.BATCH_AXES

    @property
    def loss(self) -> blocks.Softmax | blocks.Sigmoid:
        return blocks.make(self.options, self.clips, self.texts)

    def split(self, function: Callable, inputs: str, outputs: tuple) -> Callable:
        """`function` on each device's part; "s" marks what is split, "r" what is not."""
        if not self.axes:
            return function
        spec = {"s": PartitionSpec(self.axes), "r": PartitionSpec()}
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(spec[c] for c in inputs),
            out_specs=jax.tree.map(spec.get, outputs),
            check_vma=False,
        )

    def forward(self, params: Any, audio: Any, text: Any, labels: Labels):
        """((sum, count), what the backward pass needs of every row and column)."""
        return self.split(self._forward, "rsss", (("r", "r"), "s"))(
            params, audio, text, labels
        )

    def backward(self, params: Any, audio: Any, text: Any, kept: Any, cotangent: Array):
        """Gradients of params, audio and text."""
        return self.split(self._backward, "rsssr", ("r", "s", "s"))(
            params, audio, text, kept, cotangent
        )

    def _forward(self, params: Any, audio: Any, text: Any, labels: Labels):
        loss = self.loss
        dtype = self._dtype(params, audio, text)
        rows, columns = blocks.mark(labels, self.options, dtype, self.axes)
        merge = functools.partial(blocks.merge, loss.powers)

        def visit(guest: Any, of_rows: blocks.Statistics):
            text, columns = guest

            def step(of_columns: blocks.Statistics, mine: Any, of_rows: Any):
                audio, rows = mine
                scores = self._score(params, audio, text)
                target = blocks.targets(rows, columns)
                of_columns = merge(of_columns, loss.statistics(scores, target, 0))
                return of_columns, merge(of_rows, loss.statistics(scores, target, 1))

            nothing = loss.empty(columns.text.shape[0], dtype, 0)
            return self._by_rows(step, nothing, (audio, rows), of_rows)

        of_rows, of_columns = self._meet(
            visit,
            (text, columns),
            merge,
            loss.empty(rows.clip.shape[0], dtype, 1),
            loss.empty(columns.text.shape[0], dtype, 0),
            self._scatter_statistics,
        )
        row_loss, row_anchors = loss.finish(of_rows, rows.inverse, 1)
        column_loss, column_anchors = loss.finish(of_columns, columns.inverse, 0)
        total = self._sum(row_loss.sum() + column_loss.sum())
        if self.options.name == "sigmoid":
            count = jnp.asarray(self.clips, dtype)
        else:
            active = [(line.inverse > 0).sum() for line in (rows, columns)]
            count = self._sum(sum(active).astype(dtype)) / 2
        return (total, count), ((rows, row_anchors), (columns, column_anchors))

    def _backward(
        self, params: Any, audio: Any, text: Any, kept: Any, cotangent: Array
    ):
        loss, (of_rows, of_columns) = self.loss, kept

        def visit(guest: Any, found: Any):
            text, (columns, column_anchors) = guest
            of_params, of_audio = found

            def step(found: Any, mine: Any, of_audio: Any):
                audio, (rows, row_anchors) = mine
                scores, pull = self._slopes(params, audio, text)
                slopes = loss.slopes(
                    scores,
                    blocks.targets(rows, columns),
                    (rows.inverse, columns.inverse),
                    (row_anchors, column_anchors),
                )
                of_params, more, of_text = pull(slopes)
                return _add(found, (of_params, of_text)), _add(of_audio, more)

            (of_params, of_text), of_audio = self._by_rows(
                step, (of_params, _zeros(text)), (audio, of_rows), of_audio
            )
            return of_text, (of_params, of_audio)

        (of_params, of_audio), of_text = self._meet(
            visit,
            (text, of_columns),
            _add,
            _zeros((params, audio)),
            _zeros(text),
            self._scatter_sum,
        )
        of_params = jax.tree.map(self._sum, of_params)
        return jax.tree.map(
            lambda g, x: (cotangent * g).astype(x.dtype),
            (of_params, of_audio, of_text),
            _floats((params, audio, text)),
        )

    def _slopes(self, *arguments: Any) -> tuple[Float[Array, "A T"], Callable]:
        """Scores, and what turns their slopes into those of all floats."""

        def score(floats: Any) -> Float[Array, "A T"]:
            joined = jax.tree.map(
                lambda x, part: x if part is None else part, arguments, floats
            )
            return self._score(*joined)

        scores, pull = jax.vjp(score, _wide(_floats(arguments)))
        return scores, lambda slopes: pull(slopes)[0]

    def _score(self, params: Any, audio: Any, text: Any) -> Float[Array, "A T"]:
        scores = self.score(_wide(params), _wide(audio), _wide(text))
        return _wide(scores)

    def _dtype(self, *arguments: Any) -> Any:
        return jax.eval_shape(self._score, *arguments).dtype

    def _by_rows(
        self, step: Callable, carry: Any, rows: Any, found: Any
    ) -> tuple[Any, Any]:
        """`step(carry, rows, found) -> (carry, found)` over chunks, as if over all.

        found: what is known of each row, changed in place. A last chunk may be smaller.
        """
        parts = 1 if self.axes else self.mesh.size
        size = jax.tree.leaves(rows)[0].shape[0] // parts
        chunk = min(self.options.chunk or size, size)
        if chunk == size:
            return step(carry, rows, found)

        def together(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        def take(x: Array, first: Any, count: int) -> Array:
            return together(jax.lax.dynamic_slice_in_dim(x, first, count, axis=1))

        def put(x: Array, new: Array, first: Any) -> Array:
            new = new.reshape(parts, -1, *new.shape[1:])
            return jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=1)

        def one(state: Any, first: Any, count: int) -> Any:
            carry, found = state
            mine, known = jax.tree.map(lambda x: take(x, first, count), (rows, found))
            carry, known = step(carry, mine, known)
            return carry, jax.tree.map(lambda x, y: put(x, y, first), found, known)

        rows, found = jax.tree.map(
            lambda x: x.reshape(parts, size, *x.shape[1:]), (rows, found)
        )
        state, whole = (carry, found), size // chunk
        state = jax.lax.fori_loop(
            0, whole, lambda i, state: one(state, i * chunk, chunk), state
        )
        if rest := size - whole * chunk:
            state = one(state, whole * chunk, rest)
        return state[0], jax.tree.map(together, state[1])

    def _meet(
        self,
        visit: Callable,
        guest: Any,
        join: Callable,
        mine: Any,
        theirs: Any,
        scatter: Callable,
    ) -> tuple[Any, Any]:
        """Let this device's rows meet all columns.

        visit: `(guest, mine) -> (theirs, mine)`: what my rows add to a block of columns
        `guest`, to be joined over all meetings, and what is known of my rows, with what
        the guest adds. Both begin with the given empty ones. theirs: comes back to where
        the guest is at home.
        """
        if not self.axes:
            theirs, mine = visit(guest, mine)
            return mine, theirs
        if self.options.impl == "gather":
            everyone = jax.tree.map(
                lambda x: jax.lax.all_gather(x, self.axes, tiled=True), guest
            )
            theirs, mine = visit(everyone, mine)
            return mine, scatter(theirs)

        def hop(carry: Any, _: None) -> tuple[Any, None]:
            guest, mine, theirs = carry
            # Both transfers run while the block is computed: what the guest has
            # collected so far follows it one hop later than it could.
            following, theirs = self._send((guest, theirs))
            more, mine = visit(guest, mine)
            return (following, mine, join(theirs, more)), None

        (_, mine, theirs), _ = jax.lax.scan(
            hop, (guest, mine, theirs), None, length=self.mesh.size
        )
        return mine, self._send(theirs)

    def _send(self, tree: Any) -> Any:
        """One device on; vectors travel as one message, embeddings on their own."""
        size = self.mesh.size
        ring = [(source, (source - 1) % size) for source in range(size)]
        leaves, structure = jax.tree.flatten(tree)
        messages: dict[Any, list[int]] = {}
        for number, leaf in enumerate(leaves):
            alike = (leaf.shape, leaf.dtype) if leaf.ndim == 1 else number
            messages.setdefault(alike, []).append(number)
        for numbers in messages.values():
            message = jnp.stack([leaves[number] for number in numbers])
            received = jax.lax.ppermute(message, self.axes, ring)
            for number, leaf in zip(numbers, received, strict=True):
                leaves[number] = leaf
        return jax.tree.unflatten(structure, leaves)

    def _sum(self, x: Array) -> Array:
        return jax.lax.psum(x, self.axes) if self.axes else x

    def _scatter_sum(self, tree: Any) -> Any:
        """Sum over devices; each keeps the part of its own columns."""
        return jax.tree.map(
            lambda x: jax.lax.psum_scatter(x, self.axes, tiled=True), tree
        )

    def _scatter_statistics(self, found: blocks.Statistics) -> blocks.Statistics:
        tops = tuple(jax.lax.pmax(top, self.axes) for top in found.tops)
        masses = tuple(
            mass * jnp.exp(power * (top - highest))
            for mass, power, top, highest in zip(
                found.masses, self.loss.powers, found.tops, tops, strict=True
            )
        )
        masses, sums = self._scatter_sum((masses, found.sums))
        size = self.texts // self.mesh.size
        first = jax.lax.axis_index(self.axes) * size
        mine = tuple(jax.lax.dynamic_slice_in_dim(top, first, size) for top in tops)
        return blocks.Statistics(mine, masses, sums)


def _wide(tree: Any) -> Any:
    """Floats of less than 32 bits as float32."""

    def widen(x: Any) -> Any:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(widen, tree)


def _floats(tree: Any) -> Any:
    """`tree` with None for all that has no gradient, such as masks."""

    def one(x: Any) -> Any:
        return x if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else None

    return jax.tree.map(one, tree)


def _zeros(tree: Any) -> Any:
    """Where gradients of the floats of `tree` are added up."""
    return jax.tree.map(lambda x: jnp.zeros(np.shape(x), _wide(x).dtype), _floats(tree))


def _add(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)
