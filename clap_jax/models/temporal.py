"""Scores of long clips and long texts: attention of sentences over segments.

CoLLAP (arXiv 2410.02271) states in its abstract that an attention mechanism over the
segments of a song weighs and enhances the final fusion score. Its formulas are not
public; those here are our own, and are meant to be the plainest that do this.

A clip is S segments and their common embedding, a text M sentences and its own. With
w the attention of sentence m over the segments of a clip, averaged over heads,

    score = scale * (<whole clip, whole text> + mix * time)
    time = mean over m of sum over s of (w_s - 1/S) <segment s, sentence m>

so that `time` is what attention finds beyond the mean of all segments: nothing at all
where there is one segment, and the score is that of a plain CLAP, bit for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clap_jax.models import layers
from clap_jax.models.dual import cosine_score

# Position features: sines and cosines of so many periods, and harmonics of the share of
# the clip, or of the text, that lies before.
PERIODS, HARMONICS = 12, 8
SHORTEST_PERIOD_SECONDS = 4.0


class Song(NamedTuple):
    """What is known of A long clips.

    whole: [A, E], rows of length one. segments: [A, S, E], likewise. seconds: [A, S, 2],
    where each begins and ends; zeros for padding. heard: bool [A, S], false for padding
    and for segments that are left out, such as silent ones.
    """

    whole: Float[Array, "A E"]
    segments: Float[Array, "A S E"]
    seconds: Float[Array, "A S 2"]
    heard: Bool[Array, "A S"]


class Story(NamedTuple):
    """What is known of T long texts.

    whole: [T, E], rows of length one. sentences: [T, M, E], likewise. said: bool [T, M],
    false for padding.
    """

    whole: Float[Array, "T E"]
    sentences: Float[Array, "T M E"]
    said: Bool[Array, "T M"]


@dataclasses.dataclass(frozen=True)
class Temporal:
    """How a model compares what is longer than its window; part of a `spec.Spec`.

    hop_seconds: from the beginning of a segment to that of the next; a segment is as
    long as the front end's window. heads: of the attention; they divide the joint
    space. sentences: M, how many of a text are compared by themselves at most; 0: the
    text as a whole is its only sentence. positions: attention knows when a segment is,
    in seconds and as a share of the clip, and which of the text's sentences asks.
    monotone: attention prefers segments that lie as far into the clip as the sentence
    lies into the text, by a learned amount. longest_seconds: clips up to this long have
    positions that differ. temperature_init: the factor on cosines in attention at the
    start. mix_init: that on `time`. Errors: ValueError on what cannot be.
    """

    hop_seconds: float | int = 10.0
    heads: int = 8
    sentences: int = 0
    positions: bool = True
    monotone: bool = False
    longest_seconds: float | int = 300.0
    temperature_init: float | int = 10.0
    mix_init: float | int = 1.0

    def segments(self, window_seconds: float | int) -> int:
        """S of a clip of `longest_seconds`."""
        more = max(self.longest_seconds - window_seconds, 0)
        return 1 + math.ceil(round(more / self.hop_seconds, 6))

    def __post_init__(self) -> None:
        for name, least in (("heads", 1), ("sentences", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}, expected {least} or more")
        for name in ("hop_seconds", "temperature_init"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value!r}, expected more than 0")
        if not self.longest_seconds > SHORTEST_PERIOD_SECONDS:
            raise ValueError(
                f"longest_seconds is {self.longest_seconds!r}, expected more than "
                f"{SHORTEST_PERIOD_SECONDS:g}"
            )


def init(key: jax.Array, options: Temporal, embed_dim: int) -> dict[str, Any]:
    """The parameters of the attention, float32.

    Queries and keys begin as the embeddings themselves, cut into heads, and know of no
    positions: attention is by cosine until it has learned more, so that `time` begins
    as the likeness of a sentence with what is most like it. (With positions that begin
    by chance, attention may learn to look where a section is not, for sentences that
    learn to be unlike it, which tells most clips apart as well.)
    """
    log_temperature = math.log(options.temperature_init * options.heads)
    params = {
        "query": jnp.eye(embed_dim),
        "key": jnp.eye(embed_dim),
        "log_temperature": jnp.full(options.heads, log_temperature),
        "mix": jnp.float32(options.mix_init),
    }
    if options.positions:
        features = 2 * PERIODS + HARMONICS
        params["segment_position"] = jnp.zeros((features, embed_dim))
        params["sentence_position"] = jnp.zeros((HARMONICS, embed_dim))
    if options.monotone:
        params["log_monotone"] = jnp.float32(math.log(10.0))
    return params


def numbers_per_pair(options: Temporal, segments: int) -> int:
    """How many numbers the score of one clip and one text holds at a time."""
    return segments * max(options.sentences, 1) * options.heads


def whole(z: Any) -> Any:
    """The one embedding [B, E] of each clip or text, also of a plain model."""
    return z.whole if isinstance(z, Song | Story) else z


def score(
    options: Temporal, plain: Callable[..., jax.Array] = cosine_score
) -> Callable[..., jax.Array]:
    """`score(params, song, story) -> float32 [A, T]`, as `Dual.score`.

    plain: the score of embeddings, `(params, za, zt)`; it is linear in za but for a
    bias. Of the parameters it reads what `plain` does, and "temporal". Of whole
    embeddings alone, [A, E] and [T, E], it is the plain score.
    """

    def fused(params: Mapping[str, Any], song: Any, story: Any) -> jax.Array:
        if not (isinstance(song, Song) and isinstance(story, Story)):
            return plain(params, whole(song), whole(story))
        weights = attend(options, params["temporal"], song, story)
        even = _even(song.heard)[:, None, None]
        found = jnp.einsum(
            "ase,tme->atms", song.segments, story.sentences, precision="highest"
        )
        time = jnp.einsum("atms,atms,tm->at", weights - even, found, _even(story.said))
        scale = jnp.exp(params["logit_scale_a"])
        mix = params["temporal"]["mix"]
        return plain(params, song.whole, story.whole) + scale * mix * time

    return fused


def attend(
    options: Temporal, params: Mapping[str, Any], song: Song, story: Story
) -> Float[Array, "A T M S"]:
    """How much each sentence of every text attends to each segment of every clip.

    params: those of `init`. The mean over heads; sums to one over the segments that are
    heard, and is 0 elsewhere.
    """
    heads = options.heads

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], heads, -1)

    product = functools.partial(jnp.matmul, precision="highest")
    query = product(story.sentences, params["query"])
    key = product(song.segments, params["key"])
    if options.positions:
        places = sentence_features(story.said)
        query += product(places, params["sentence_position"])
        times = segment_features(options, song.seconds)
        key += product(times, params["segment_position"])
    scores = jnp.einsum(
        "tmhd,ashd,h->atmhs",
        split(query),
        split(key),
        jnp.exp(params["log_temperature"]),
        precision="highest",
    )
    if options.monotone:
        ahead = (
            _text_share(story.said)[:, :, None] - _share(song.seconds)[:, None, None]
        )
        scores -= jnp.exp(params["log_monotone"]) * jnp.square(ahead)[:, :, :, None]
    heard = song.heard[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(heard, scores, layers.MASKED), axis=-1)
    return jnp.where(heard, weights, 0.0).mean(3)


def align(
    options: Temporal, params: Mapping[str, Any], song: Song, story: Story
) -> Float[Array, "B M S"]:
    """The attention of each text over the clip of the same row, see `attend`."""

    def one(song: Song, story: Story) -> jax.Array:
        song, story = jax.tree.map(lambda x: x[None], (song, story))
        return attend(options, params, song, story)[0, 0]

    return jax.vmap(one)(song, story)


def segment_features(
    options: Temporal, seconds: Float[Array, "A S 2"]
) -> Float[Array, "A S P"]:
    """What attention knows of when segments are: their middle in seconds, as sines and
    cosines of periods up to twice `longest_seconds`, and as a share of the clip."""
    ratio = 2 * options.longest_seconds / SHORTEST_PERIOD_SECONDS
    exponents = jnp.arange(PERIODS) / (PERIODS - 1)
    periods_seconds = SHORTEST_PERIOD_SECONDS * ratio**exponents
    phase = 2 * jnp.pi * seconds.mean(-1, keepdims=True) / periods_seconds
    parts = (jnp.sin(phase), jnp.cos(phase), _harmonics(_share(seconds)))
    return jnp.concatenate(parts, axis=-1)


def sentence_features(said: Bool[Array, "T M"]) -> Float[Array, "T M P"]:
    """What attention knows of where sentences stand: their share of the text."""
    return _harmonics(_text_share(said))


def _share(seconds: Float[Array, "A S 2"]) -> Float[Array, "A S"]:
    """How far into its clip the middle of a segment is, from 0 to 1."""
    end = seconds[..., 1].max(-1, keepdims=True)
    return seconds.mean(-1) / jnp.where(end > 0, end, 1.0)


def _text_share(said: Bool[Array, "T M"]) -> Float[Array, "T M"]:
    """How far into its text a sentence is, from 0 to 1."""
    count = said.sum(-1, keepdims=True)
    return (jnp.cumsum(said, axis=-1) - 0.5) / jnp.maximum(count, 1)


def _harmonics(share: Float[Array, "*n"]) -> Float[Array, "*n P"]:
    return jnp.cos(jnp.pi * share[..., None] * jnp.arange(1, HARMONICS + 1))


def _even(mask: Bool[Array, "B S"]) -> Float[Array, "B S"]:
    """1 / count where `mask` is true, 0 elsewhere."""
    return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)
