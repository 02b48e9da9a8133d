"""Text-to-audio and audio-to-text retrieval."""

from typing import TYPE_CHECKING

import numpy as np

from clap_jax.evals import scores
from clap_jax.evals.base import Encoder, Result, encode_audio, encode_text

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

HEAT_MAP_CLIPS = 64
CURVE_LENGTH = 50


class Retrieval:
    """Finds the clip of every caption, and a caption of every clip.

    Metrics `t2a_*` (text to audio, a query is a caption) and `a2t_*` (audio to text, a
    query is a clip, the best of its captions counts): R@1, R@5, R@10, mAP@10,
    median_rank; and `bad_clips`, the number of clips left out because they could not be
    read. With `captions="all"` and five captions a clip this is the protocol of
    LAION-CLAP for AudioCaps and Clotho.
    """

    def __init__(
        self, source: "Source", captions: str = "all", multi_positive: bool = False
    ):
        """Reads all captions, so that a bad source fails before any training.

        Args:
            source: clips with captions.
            captions: "all", or "first" for one caption a clip.
            multi_positive: clips with the same `source.group` are right answers for
                each other's captions; by default only the clip itself is.

        Raises:
            ValueError: empty source, a clip with no or an empty caption, unknown `captions`.
        """
        if captions not in ("all", "first"):
            raise ValueError(
                f"retrieval: captions must be 'all' or 'first', found {captions!r}"
            )
        if not len(source):
            raise ValueError(f"retrieval: source '{source.name}' has no clips")
        self.source, self.mode, self.multi_positive = source, captions, multi_positive
        self.texts: list[str] = []
        clip_of: list[int] = []
        for clip in range(len(source)):
            own = source.captions(clip)
            if not own or not all(text.strip() for text in own):
                raise ValueError(
                    f"retrieval: clip {clip} of source '{source.name}' has "
                    + ("an empty caption" if own else "no caption")
                )
            own = own[:1] if captions == "first" else own
            self.texts += own
            clip_of += [clip] * len(own)
        self.clip_of = np.array(clip_of)
        names = (
            [source.group(clip) for clip in range(len(source))]
            if multi_positive
            else list(range(len(source)))
        )
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.group = np.array([numbers[name] for name in names])

    def run(self, encoder: Encoder) -> Result:
        """Encodes both sides and ranks them.

        Returns:
            Metrics as above. Arrays: `recall_t2a` and `recall_a2t`, float64 [k], recall
            at 1 ... min(50, clips); `similarity`, float32 [h, h], cosines of h <= 64
            clips spread over the source (columns) with the first caption of each
            (rows). Labels: `captions` of these rows.

        Raises:
            ValueError: no clip could be read, or embeddings are not finite.
        """
        za, clips = encode_audio(encoder, self.source)
        used = np.flatnonzero(np.isin(self.clip_of, clips))
        texts = [self.texts[i] for i in used]
        zt = encode_text(encoder, texts)
        clip_group, text_group = self.group[clips], self.group[self.clip_of[used]]

        t2a = scores.ranks(zt, za, text_group, clip_group)
        a2t = scores.ranks(za, zt, clip_group, text_group)
        longest = min(CURVE_LENGTH, len(clips))
        shown = np.linspace(0, len(clips) - 1, min(HEAT_MAP_CLIPS, len(clips)))
        shown = shown.round().astype(int)
        first_text = np.searchsorted(self.clip_of[used], clips[shown])
        return Result(
            metrics={
                **scores.retrieval_metrics(t2a, "t2a"),
                **scores.retrieval_metrics(a2t, "a2t"),
                "bad_clips": float(len(self.source) - len(clips)),
            },
            arrays={
                "similarity": zt[first_text] @ za[shown].T,
                "recall_t2a": scores.recall_curve(scores.best_ranks(t2a), longest),
                "recall_a2t": scores.recall_curve(scores.best_ranks(a2t), longest),
            },
            labels={"captions": [texts[i] for i in first_text]},
            protocol={
                "kind": "retrieval",
                "source": self.source.name,
                "clips": len(clips),
                "captions": len(texts),
                "captions_per_clip": self.mode,
                "multi_positive": self.multi_positive,
                "ties": "count against the model",
            },
        )
