"""Where in a clip a sentence about one of its sections is heard, by attention over time."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax.evals import bootstrap, junctions
from clap_jax.evals.base import Encoder, Result, hears_segments

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

RULE = (
    "of each sentence that is about one section, the mean time of the segments, weighted "
    "by attention, and the middle of the strongest one; inside: not before the section's "
    "beginning and before its end"
)


class Told(NamedTuple):
    """A sentence of a clip's caption, by its place, that is about one section.

    begin, end: of the section, in seconds.
    """

    clip: int
    place: int
    begin: float
    end: float


class Localisation:
    """Asks a model that hears segments where it hears what a caption says.

    Metrics, shares of sentences, with intervals over clips: `localisation_centre`, for
    which the centre of attention lies inside the section, and `localisation_peak`, for
    which the middle of the strongest segment does; and `bad_clips`. The protocol has
    what comes without listening (`chance`): of the middle of the clip, and of a segment
    drawn by chance.
    """

    def __init__(self, source: "Source", draws: int = bootstrap.DRAWS):
        """
        Args:
            source: clips whose sections are known: by the source (`sections(index)`,
                with the words of a caption, see `junctions.sections_of`), or by captions
                that say when. Where these say when, so may the model read it.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: no clips, or a clip without captions.
        """
        if not len(source):
            raise ValueError(f"localisation: source '{source.name}' has no clips")
        for clip in range(len(source)):
            if not source.captions(clip):
                raise ValueError(
                    f"localisation: clip {source.id(clip)} of source '{source.name}' has "
                    "no captions"
                )
        self.source, self.draws = source, draws

    def run(self, encoder: Encoder) -> Result:
        """Attends with each clip's own caption, once.

        Raises ValueError for a model that does not hear segments or read sentences,
        where no sentence is about a section, and for a clip of which a part is heard.
        """
        if not hears_segments(encoder) or not encoder.spec.temporal.sentences:
            raise ValueError(
                "localisation: the model compares no sentences with segments: expected "
                "one with temporal.sentences, such as a run of configs/collap_roberta.py"
            )
        song, kept = encoder.source_songs(self.source)
        clips = np.flatnonzero(kept)
        captions, told = self._told(encoder, song, clips)
        if not told:
            raise ValueError(
                f"localisation: source '{self.source.name}' has no clip with a sentence "
                "that is about one of its sections"
            )
        row_of = {clip: row for row, clip in enumerate(captions)}
        own = type(song)(*(x[list(captions)] for x in song))
        weights = encoder.attention(own, encoder.stories(list(captions.values())))
        middles = song.seconds.mean(axis=2, dtype=np.float64)
        found: dict[str, list[float]] = {name: [] for name in ("centre", "peak")}
        chance: dict[str, list[float]] = {"middle of the clip": [], "any segment": []}
        for clip, place, begin, end in told:
            row, when = weights[row_of[clip], place], middles[clip]
            heard = when[song.heard[clip]]
            inside = {
                "centre": row @ when,
                "peak": when[row.argmax()],
                "middle of the clip": song.seconds[clip].max() / 2,
                "any segment": heard,
            }
            for name, times in inside.items():
                share = np.mean((begin <= times) & (times < end))
                (found if name in found else chance)[name].append(float(share))
        return self._result(clips, told, found, chance)

    def _told(
        self, encoder: Any, song: Any, clips: np.ndarray
    ) -> tuple[dict[int, str], list[Told]]:
        """The caption of each clip that is asked with, and its sentences that count."""
        captions: dict[int, str] = {}
        told: list[Told] = []
        for clip in clips:
            seconds = song.seconds[clip]
            seconds = seconds[seconds[:, 1] > 0]
            sections = junctions.sections_of(self.source, clip, float(seconds[-1, 1]))
            name = self.source.id(clip)
            junctions.check_heard("localisation", name, sections, seconds)
            for caption in self.source.captions(clip):
                own = _sentences(encoder.sentences(caption), sections, int(clip))
                if own:
                    captions[int(clip)] = caption
                    told += own
                    break
        return captions, told

    def _result(
        self,
        clips: np.ndarray,
        told: list[Told],
        found: dict[str, list[float]],
        chance: dict[str, list[float]],
    ) -> Result:
        clip_of = np.searchsorted(clips, [sentence.clip for sentence in told])
        values = {f"localisation_{name}": np.array(x) for name, x in found.items()}

        def means(weights: np.ndarray) -> dict[str, np.ndarray]:
            return {
                name: bootstrap.means(x, weights, clip_of) for name, x in values.items()
            }

        counts = np.bincount(clip_of, minlength=len(clips))
        metrics = {name: float(x.mean()) for name, x in values.items()}
        return Result(
            metrics=metrics | {"bad_clips": float(len(self.source) - len(clips))},
            protocol={
                "kind": "localisation",
                "source": self.source.name,
                "clips": len(clips),
                "sentences": len(told),
                "chance": {name: float(np.mean(x)) for name, x in chance.items()},
                "rules": RULE,
                "data_digest": self.source.digest(),
                "intervals": bootstrap.describe(self.draws),
            },
            intervals=bootstrap.intervals(len(clips), means, self.draws),
            per_clip={
                name: np.stack([np.bincount(clip_of, x, len(clips)), counts], axis=1)
                for name, x in values.items()
            },
            clips=clips,
        )


def _sentences(
    sentences: list[str], sections: list[tuple[float, float, str]], clip: int
) -> list[Told]:
    """The sentences that hold the words of one section, which no other holds."""
    holding = [
        [place for place, text in enumerate(sentences) if words.strip() in text]
        for _, _, words in sections
    ]
    alone = [places[0] for places in holding if len(places) == 1]
    return [
        Told(clip, places[0], begin, end)
        for places, (begin, end, _) in zip(holding, sections, strict=True)
        if len(places) == 1 and alone.count(places[0]) == 1
    ]
