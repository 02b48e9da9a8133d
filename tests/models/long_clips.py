"""Scores of long clips by their definition, and random songs and stories.

The definition is written from the formulas alone, pair by pair where that is clearest;
it shares no code with the package. Its arithmetic is that of its arguments, so that
under `jax.enable_x64` it can be differentiated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax.models import temporal
from clap_jax.models.temporal import Song, Story, Temporal

EVERYTHING = Temporal(
    heads=2, sentences=3, monotone=True, longest_seconds=60.0, temperature_init=3.0
)


def unit(x):
    """As float32 sees them, so that rounding the inputs is nobody's error."""
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def make(seed, clips, texts, segments, sentences, width=8):
    """A song per clip and a story per text, in float32; some of each is padding."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(segments)[None, :, None] * 10.0 + np.array([0.0, 10.0])
    length = rng.integers(1, segments + 1, clips)
    there = np.arange(segments) < length[:, None]
    heard = there & (rng.uniform(size=there.shape) < 0.8)
    heard[:, 0] |= ~heard.any(1)
    said = np.arange(sentences) < rng.integers(1, sentences + 1, texts)[:, None]

    def vectors(*shape):
        return unit(rng.normal(size=(*shape, width)))

    song = Song(
        vectors(clips),
        vectors(clips, segments),
        np.float32(np.where(there[..., None], seconds, 0.0)),
        heard,
    )
    story = Story(vectors(texts), vectors(texts, sentences), said)
    return jax.tree.map(jnp.asarray, (song, story))


def params(options: Temporal, width=8, seed=0):
    """Parameters off their start, with a scale and a bias, in float32."""
    rng = np.random.default_rng(seed)
    tree = {
        "logit_scale_a": np.float32(1.2),
        "logit_bias": np.float32(-0.5),
        "temporal": temporal.init(jax.random.key(0), options, width),
    }
    return jax.tree.map(
        lambda x: jnp.float32(x + 0.1 * rng.normal(size=np.shape(x))), tree
    )


def double(tree):
    """Floats of a tree as float64."""

    def one(x):
        x = np.asarray(x)
        return x.astype(float) if x.dtype.kind == "f" else x

    return jax.tree.map(one, tree)


def weights(params, song, story, options):
    """What sentence m of text t gives to segment s of clip a: [A, T, M, S]."""
    temporal = params["temporal"]
    clips, segments, width = song.segments.shape
    texts, sentences, _ = story.sentences.shape
    key = song.segments @ temporal["key"]
    query = story.sentences @ temporal["query"]
    middle, end = song.seconds.mean(-1), song.seconds[..., 1].max(-1)
    share = middle / end[:, None]
    count = story.said.sum(-1)[:, None]
    place = (np.cumsum(story.said, -1) - 0.5) / count
    if options.positions:
        features = []
        for i in range(12):
            period = 4.0 * (2 * options.longest_seconds / 4.0) ** (i / 11)
            features.append(jnp.sin(2 * np.pi * middle / period))
        for i in range(12):
            period = 4.0 * (2 * options.longest_seconds / 4.0) ** (i / 11)
            features.append(jnp.cos(2 * np.pi * middle / period))
        features += [jnp.cos(np.pi * k * share) for k in range(1, 9)]
        key = key + jnp.stack(features, -1) @ temporal["segment_position"]
        features = [jnp.cos(np.pi * k * place) for k in range(1, 9)]
        query = query + jnp.stack(features, -1) @ temporal["sentence_position"]
    total = 0.0
    for head in range(options.heads):
        part = slice(head * width // options.heads, (head + 1) * width // options.heads)
        product = (key[:, None, None, :, part] * query[None, :, :, None, part]).sum(-1)
        scores = jnp.exp(temporal["log_temperature"][head]) * product
        if options.monotone:
            apart = share[:, None, None, :] - place[None, :, :, None]
            scores = scores - jnp.exp(temporal["log_monotone"]) * apart**2
        raised = jnp.exp(scores - scores.max()) * song.heard[:, None, None, :]
        total = total + raised / raised.sum(-1, keepdims=True)
    return total / options.heads


def score(params, song, story, options):
    """[A, T], every segment and every sentence of a pair counting alike."""
    given = weights(params, song, story, options)
    even = song.heard / song.heard.sum(-1, keepdims=True)
    cosine = (song.segments[:, None, None] * story.sentences[None, :, :, None]).sum(-1)
    time = ((given - even[:, None, None]) * cosine).sum(-1)
    time = (time * story.said).sum(-1) / story.said.sum(-1)
    plain = (song.whole[:, None] * story.whole[None]).sum(-1)
    scale = jnp.exp(params["logit_scale_a"])
    mixed = plain + params["temporal"]["mix"] * time
    return scale * mixed + params["logit_bias"]
