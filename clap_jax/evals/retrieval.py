"""Text-to-audio and audio-to-text retrieval."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, per_answer, scores
from clap_jax.evals.base import (
    FUSED_SCORE,
    Encoder,
    Result,
    encode_audio,
    encode_pairs,
    encode_text,
    hears_segments,
)
from clap_jax.evals.traps import Traps

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

HEAT_MAP_CLIPS = 64
CURVE_LENGTH = 50
LAION_CAPTIONS = 5


class Protocol(NamedTuple):
    """How retrieval is done; a row of `PROTOCOLS`."""

    captions: str  # all | five (all, and there must be five) | one
    positives: str  # clip | group
    depths: tuple[int, ...]  # of mAP
    says: str


PROTOCOLS = {
    "all_captions": Protocol(
        "all",
        "clip",
        (10,),
        "all captions of a clip, however many, are right for it alone",
    ),
    "laion5": Protocol(
        "five",
        "clip",
        (10,),
        "five captions a clip; text to audio: 5 N queries, one right clip; audio to "
        "text: N queries, R@k and rank of the best caption, mAP@10 the sum of i / r_i "
        "over the captions found by rank 10, divided by 5 (LAION-CLAP's evaluation of "
        "AudioCaps and Clotho)",
    ),
    "one_to_one": Protocol(
        "one",
        "clip",
        (10,),
        "one caption a clip, N x N (LAION-CLAP's evaluation of all other sets)",
    ),
    "multi_positive": Protocol(
        "all",
        "group",
        (10, 16),
        "all captions and clips of a group are right for each other, and what a group "
        "says twice is one caption; mAP@16 as in DCASE 2025 task 6, divided by "
        "min(right answers, 16)",
    ),
}
"""Retrieval protocols by name."""


class Retrieval:
    """Finds the clip of every caption, and a caption of every clip.

    Metrics `t2a_*` (text to audio, a query is a caption) and `a2t_*` (audio to text, a
    query is a clip, the best of its captions counts): R@1, R@5, R@10, mAP@10,
    median_rank (and mAP@16, multi_positive); and `bad_clips`, the number of clips left
    out because they could not be read. All but the last have intervals.
    """

    def __init__(
        self,
        source: "Source",
        protocol: str = "all_captions",
        caption_seed: int | None = None,
        official: Mapping[str, Any] | None = None,
        accept: Sequence[str] = (),
        draws: int = bootstrap.DRAWS,
    ):
        """Reads all captions, so that a bad source fails before any training.

        Args:
            source: clips with captions.
            protocol: a key of `PROTOCOLS`.
            caption_seed: with "one_to_one", a caption drawn at random in place of the
                first.
            official: what the data should be, keys of `traps.OFFICIAL`.
            accept: known traps that are no reason to refuse, from `traps.TRAPS`.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: empty source, a clip with no or an empty caption, unknown
                `protocol`, a known trap.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(
                config_lib.unknown("retrieval protocol", protocol, PROTOCOLS)
            )
        self.protocol, chosen = protocol, PROTOCOLS[protocol]
        if caption_seed is not None and chosen.captions != "one":
            raise ValueError(
                f"retrieval: caption_seed draws one caption, but {protocol} takes all"
            )
        if not len(source):
            raise ValueError(f"retrieval: source '{source.name}' has no clips")
        self.source, self.caption_seed, self.draws = source, caption_seed, draws
        self.traps = Traps(f"retrieval of source '{source.name}'", accept, official)
        captions = _captions(source)
        self.traps.check_clips(len(source))
        self.traps.check_clotho(text for own in captions for text in own)
        if chosen.captions == "five":
            self.traps.check_captions([len(own) for own in captions], LAION_CAPTIONS)
        if chosen.captions == "one":
            captions = _one_each(captions, caption_seed)
        self.texts = [text for own in captions for text in own]
        counts = [len(own) for own in captions]
        fewest, most = min(counts), max(counts)
        self.captions_per_clip = f"{fewest} to {most}" if fewest < most else f"{most}"
        self.clip_of = np.repeat(np.arange(len(source)), counts)
        self.group = np.arange(len(source))
        if chosen.positives == "group":
            names = [source.group(clip) for clip in range(len(source))]
            numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
            self.group = np.array([numbers[name] for name in names])

    def run(self, encoder: Encoder) -> Result:
        """Encodes both sides and ranks them.

        Returns:
            Metrics as above. Arrays: `recall_t2a` and `recall_a2t`, float64 [k], recall
            at 1 ... min(50, clips); `similarity`, float32 [h, h], cosines of h <= 64
            clips spread over the source (columns) with the first caption of each
            (rows). Labels: `captions` of these rows. And the worst answers, and what every
            clip adds to recall and precision.

        Raises:
            ValueError: no clip could be read, embeddings are not finite, or the same
                audio is there several times.
        """
        za, clips = encode_audio(encoder, self.source)
        used = np.flatnonzero(np.isin(self.clip_of, clips))
        texts = [self.texts[i] for i in used]
        self.traps.check_audio(self.source, clips, za, self.group[clips])
        fused = hears_segments(encoder)
        if fused:
            # No vectors have these products but those of a space with an axis a clip.
            zt = encode_pairs(encoder, self.source, clips, texts)
            za = np.eye(len(clips), dtype=np.float32)
        else:
            zt = encode_text(encoder, texts)
        clip_group, text_group = self.group[clips], self.group[self.clip_of[used]]
        # What a group says twice is one text. (A clip that does is as it is.)
        asked = np.arange(len(texts))
        if PROTOCOLS[self.protocol].positives == "group":
            places: dict[tuple[int, str], int] = {}
            for place, key in enumerate(zip(text_group.tolist(), texts, strict=True)):
                places.setdefault(key, place)
            asked = np.array(list(places.values()))

        t2a = scores.ranks(zt[asked], za, text_group[asked], clip_group)
        a2t = scores.ranks(za, zt[asked], clip_group, text_group[asked])
        longest = min(CURVE_LENGTH, len(clips))
        shown = np.linspace(0, len(clips) - 1, min(HEAT_MAP_CLIPS, len(clips)))
        shown = shown.round().astype(int)
        first_text = np.searchsorted(self.clip_of[used], clips[shown])
        depths = PROTOCOLS[self.protocol].depths
        sides = per_answer.Sides(
            za,
            zt[asked],
            clips,
            [texts[i] for i in asked],
            self.clip_of[used[asked]],
            self.group,
        )
        return Result(
            metrics={
                **scores.retrieval_metrics(t2a, "t2a", depths),
                **scores.retrieval_metrics(a2t, "a2t", depths),
                "bad_clips": float(len(self.source) - len(clips)),
            },
            arrays={
                "similarity": zt[first_text] @ za[shown].T,
                "recall_t2a": scores.recall_curve(scores.best_ranks(t2a), longest),
                "recall_a2t": scores.recall_curve(scores.best_ranks(a2t), longest),
            },
            labels={"captions": [texts[i] for i in first_text]},
            protocol=self._says(len(clips), len(asked), fused),
            intervals=self._intervals(
                {"t2a": t2a, "a2t": a2t},
                {"t2a": np.searchsorted(clips, self.clip_of[used[asked]]), "a2t": None},
                len(clips),
            ),
            misses=per_answer.retrieval_misses(sides, t2a, a2t),
            per_clip=per_answer.retrieval_per_clip(sides, t2a, a2t, depths),
            clips=clips,
        )

    def _says(self, clips: int, captions: int, fused: bool) -> dict[str, Any]:
        """The protocol of a result."""
        chosen = PROTOCOLS[self.protocol]
        said = {
            "kind": "retrieval",
            "source": self.source.name,
            "clips": clips,
            "captions": captions,
            "captions_per_clip": self.captions_per_clip,
            "protocol": self.protocol,
            "rules": chosen.says,
            "multi_positive": chosen.positives == "group",
            "ties": "count against the model",
            "intervals": bootstrap.describe(self.draws),
        }
        if fused:
            said["score"] = FUSED_SCORE
        if chosen.captions == "one":
            seed = self.caption_seed
            said["caption"] = "the first" if seed is None else f"drawn, seed {seed}"
        return said | self.traps.protocol()

    def _intervals(
        self,
        ranks: Mapping[str, list[np.ndarray]],
        clip_of: Mapping[str, np.ndarray | None],
        clips: int,
    ) -> dict[str, tuple[float, float]]:
        """Intervals of all metrics of both directions; clip_of: of the queries."""
        depths = PROTOCOLS[self.protocol].depths
        values = {
            way: scores.query_scores(found, depths) for way, found in ranks.items()
        }
        best = {way: scores.best_ranks(found) for way, found in ranks.items()}

        def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
            drawn = {}
            for way, of in clip_of.items():
                for name, own in values[way].items():
                    drawn[f"{way}_{name}"] = bootstrap.means(own, weights, of)
                drawn[f"{way}_median_rank"] = bootstrap.median_ranks(
                    best[way], weights, of
                )
            return drawn

        return bootstrap.intervals(clips, statistic, self.draws)


def _captions(source: "Source") -> list[list[str]]:
    """The captions of every clip. Raises ValueError where one has none."""
    captions = []
    for clip in range(len(source)):
        own = source.captions(clip)
        if not own or not all(text.strip() for text in own):
            raise ValueError(
                f"retrieval: clip {clip} of source '{source.name}' has "
                + ("an empty caption" if own else "no caption")
            )
        captions.append(own)
    return captions


def _one_each(captions: list[list[str]], seed: int | None) -> list[list[str]]:
    """The first caption of every clip, or one that is drawn."""
    if seed is None:
        return [own[:1] for own in captions]
    generator = np.random.default_rng(seed)
    return [[own[generator.integers(len(own))]] for own in captions]
