"""Contrastive losses by their definition in float64 numpy, and what they are tried on.

The definition here is written from the formulas alone, gradients too; it shares no code
with the package.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax import sharding
from clap_jax.losses import sharded
from clap_jax.losses.contrastive import Labels, Options

WIDTH = 16


class Case(NamedTuple):
    """Inputs of a loss as float64, and labels."""

    audio: np.ndarray
    text: np.ndarray
    clip: np.ndarray
    word: np.ndarray
    partner: np.ndarray | None
    share: np.ndarray | None
    scale: float
    bias: float

    def labels(self) -> Labels:
        share = None if self.share is None else np.float32(self.share)
        return Labels(self.clip, self.word, self.partner, share)

    def arguments(self, dtype=np.float32):
        params = {"scale": dtype(self.scale), "bias": dtype(self.bias)}
        return params, self.audio.astype(dtype), self.text.astype(dtype)


def make_case(seed, clips, texts=None, groups="identity", mixup=False, scale=10.0):
    """groups: identity | uneven (some of many, across devices, some without a text)."""
    rng = np.random.default_rng(seed)
    texts = clips if texts is None else texts

    def vectors(rows):
        x = rng.normal(size=(rows, WIDTH))
        # As float32 sees them, so that rounding the inputs is nobody's error.
        return np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(float)

    clip, word = np.arange(clips), np.arange(texts)
    if groups == "uneven":
        # A third is one group, which no device can hold, the rest of one to a few.
        clip = np.minimum(rng.integers(0, clips, clips), 2 * clips // 3)
        word = np.resize(clip, texts) if texts >= clips else clip[:texts]
        clip[1] = clips + 7
        word[2] = clips + 9
    partner = clip[rng.permutation(clips)] if mixup else None
    share = rng.uniform(size=clips) if mixup else None
    if mixup:
        share[:3] = 0, 1, 0.5
        share = np.float32(share).astype(float)
    clip, word = np.int32(clip) * 3 - 5, np.int32(word) * 3 - 5
    partner = None if partner is None else np.int32(partner) * 3 - 5
    return Case(vectors(clips), vectors(texts), clip, word, partner, share, scale, -3.0)


def target(case: Case, name: str) -> np.ndarray:
    def side(group):
        equal = (group[:, None] == case.word[None]) * 1.0
        if name == "sigmoid":
            return equal
        return equal / np.maximum(equal.sum(1, keepdims=True), 1)

    if case.partner is None:
        return side(case.clip)
    share = case.share[:, None]
    return share * side(case.clip) + (1 - share) * side(case.partner)


def weights(scores, targets, beta):
    """What negatives count in their row, 1 on average; positives 1."""
    result = np.ones_like(scores)
    for i, row in enumerate(targets <= 0):
        if row.any():
            raised = np.exp(beta * (scores[i, row] - scores[i, row].max()))
            result[i, row] = row.sum() * raised / raised.sum()
    return result


def softmax_rows(scores, targets, smoothing, beta):
    """Sum over rows, number of rows, and slopes; rows without a target are left out."""
    total, active, slopes = 0.0, 0, np.zeros_like(scores)
    importance = weights(scores, targets, beta)
    for i, row in enumerate(targets):
        if row.sum() == 0:
            continue
        wanted = (1 - smoothing) * row / row.sum() + smoothing / len(row)
        terms = importance[i] * np.exp(scores[i] - scores[i].max())
        denominator = scores[i].max() + np.log(terms.sum())
        total += (wanted * (denominator - scores[i])).sum()
        slopes[i] = terms / terms.sum() - wanted
        active += 1
    return total, active, slopes


def dense(scores, targets, options: Options):
    """Mean loss of all scores, and its slopes."""
    smoothing, beta = options.label_smoothing, options.hard_negatives
    if options.name == "softmax":
        rows = softmax_rows(scores, targets, smoothing, beta)
        columns = softmax_rows(scores.T, targets.T, smoothing, beta)
        total, count = (rows[0] + columns[0]) / 2, (rows[1] + columns[1]) / 2
        slopes = (rows[2] + columns[2].T) / 2
    else:
        y = targets * (1 - smoothing) + smoothing / 2
        importance = weights(scores, targets, beta)
        importance = (importance + weights(scores.T, targets.T, beta).T) / 2
        terms = y * np.logaddexp(0, -scores) + (1 - y) * np.logaddexp(0, scores)
        total, count = (importance * terms).sum(), len(scores)
        slopes = importance * (1 / (1 + np.exp(-scores)) - y)
    return total / count, slopes / count


def expected(case: Case, options: Options):
    """Mean loss, and its gradients: ({scale, bias}, audio, text)."""
    cosine = case.audio @ case.text.T
    scores = case.scale * cosine + case.bias
    value, slopes = dense(scores, target(case, options.name), options)
    params = {"scale": (slopes * cosine).sum(), "bias": slopes.sum()}
    audio, text = case.scale * slopes @ case.text, case.scale * slopes.T @ case.audio
    return value, (params, audio, text)


def score(params, audio, text):
    cosine = jnp.einsum("ae,te->at", audio, text, precision="highest")
    return params["scale"] * cosine + params["bias"]


def mean_loss(options, mesh):
    def loss(params, audio, text, labels):
        total, count = sharded.pair_loss(
            score, params, audio, text, labels, options, mesh
        )
        return total / count

    return loss


def measure(options: Options, mesh, cases):
    """Mean loss and gradients of several cases, as numpy: one program for all."""
    rows, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    program = jax.jit(
        jax.value_and_grad(mean_loss(options, mesh), (0, 1, 2)), out_shardings=every
    )

    def place(x, where):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

    for case in cases:
        params, *embeddings = case.arguments()
        found = program(
            jax.tree.map(lambda x: place(x, every), params),
            *(place(x, rows) for x in embeddings),
            jax.tree.map(lambda x: place(x, rows), case.labels()),
        )
        yield jax.tree.map(np.asarray, found)


def check(options: Options, mesh, cases):
    """Value within 1e-6, every gradient within 1e-5, relative to the largest number."""
    for case, (value, gradients) in zip(
        cases, measure(options, mesh, cases), strict=True
    ):
        want, want_gradients = expected(case, options)
        where = f"{options} on {dict(mesh.shape)}"
        assert abs(value - want) <= 1e-6 * abs(want), (where, value, want)
        # Adding to all scores changes no softmax: its bias has a gradient of zero.
        ((params, *rest), (want_params, *want_rest)) = gradients, want_gradients
        biggest = max(abs(want_params["scale"]), abs(want_params["bias"]))
        for name, number in params.items():
            error = abs(number - want_params[name])
            assert error <= 1e-5 * biggest, (where, name, number, want_params)
        for name, found, wanted in zip(("audio", "text"), rest, want_rest, strict=True):
            error = np.abs(found - wanted).max() / np.abs(wanted).max()
            assert error <= 1e-5, (where, name, error)


def data(clips, texts=None, mixup=False):
    """Cases that one program serves: identity, and groups at two scales."""
    return [
        make_case(seed, clips, texts, groups, mixup, scale)
        for seed, (groups, scale) in enumerate(
            [("identity", 10.0), ("uneven", 10.0), ("uneven", 100.0)]
        )
    ]


EVERYTHING = {"label_smoothing": 0.1, "hard_negatives": 0.5}
