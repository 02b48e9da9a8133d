"""What a shortlist saves and loses among 10,000 clips, by `evals.shortlist`.

    python tests/bench/bench_shortlist.py [--clips=10000] [--texts=200] [--shortlist=100]

Synthetic embeddings: a clip's segments lie around a vector of its own, and a text's
sentences around segments of its clip, one behind the other in time.
"""

import argparse
import json

import jax
import numpy as np

from clap_jax.evals import shortlist
from clap_jax.models import temporal
from clap_jax.models.temporal import Song, Story


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(
    clips: int, texts: int, segments: int, sentences: int, width: int, noise: float
) -> tuple[Song, Story, np.ndarray]:
    """Songs, stories, and which song each story is of. noise: of a sentence, beside
    its segment, which has length 1."""
    rng = np.random.default_rng(0)
    own = unit(rng.normal(size=(clips, 1, width)))
    parts = unit(
        own + unit(rng.normal(size=(clips, segments, width)).astype(np.float32))
    )
    begin = np.arange(segments, dtype=np.float32) * 10
    seconds = np.broadcast_to(
        np.stack([begin, begin + 10], axis=-1), (clips, segments, 2)
    )
    heard = np.ones((clips, segments), bool)
    song = Song(unit(parts.mean(1)), parts, seconds, heard)
    right = rng.integers(clips, size=texts)
    places = np.sort(rng.integers(segments, size=(texts, sentences)), axis=1)
    told = parts[right[:, None], places]
    told = unit(told + noise * unit(rng.normal(size=told.shape)))
    story = Story(unit(told.mean(1)), told, np.ones((texts, sentences), bool))
    return song, story, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        ("clips", 10_000),
        ("texts", 200),
        ("shortlist", 100),
        ("segments", 30),
        ("sentences", 8),
        ("width", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--noise", type=float, default=4.0)
    given = parser.parse_args()
    made = embeddings(
        given.clips,
        given.texts,
        given.segments,
        given.sentences,
        given.width,
        given.noise,
    )
    options = temporal.Temporal(heads=4, sentences=given.sentences)
    params = {
        "logit_scale_a": np.float32(np.log(1 / 0.07)),
        "temporal": temporal.init(jax.random.key(0), options, given.width),
    }
    reranker = shortlist.Reranker(temporal.score(options), params)
    found = shortlist.recall_lost(reranker, *made, shortlist=given.shortlist)
    print(json.dumps({**vars(given), **found}, indent=2))


if __name__ == "__main__":
    main()
