"""The Python API of captioners.

writer = clap_jax.load("runs/blat_captioner")
writer.caption(["dog.wav", "rain.wav"], tags=[["dog"], ["rain"]])
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clap_jax.evals.captioning import SEEDS, Caption, Captioning
from clap_jax.loaded import Audio, Loaded, as_list

__all__ = ["Caption", "CaptionWriter", "Captioned"]

# Of one clip: names, or numbers float [C]; None for no tag.
Tags = Sequence[str] | np.ndarray | None


class Captioned(NamedTuple):
    """A clip and its captions, or why it has none.

    item: the clip, as it was given. captions: best first. seconds: length of the sound.
    error: one sentence, "" where there are captions.
    """

    item: Audio
    captions: list[Caption]
    seconds: float = 0.0
    error: str = ""


class CaptionWriter(Loaded):
    """A captioner ready to use.

    `stream` gives the vector of each sound, as `embed_audio`, and `stream_captions` what
    `caption` gives.
    """

    def caption(
        self,
        audio: Audio | Sequence[Audio],
        n: int = 1,
        method: str = "beam",
        *,
        tags: Sequence[Tags] | np.ndarray | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> list[list[Caption]]:
        """Write n captions of each clip, best first.

        Of a clip that is longer than the model's window its middle is heard (the
        references crop at random), and a model of whole clips, as BLAT's, hears five
        minutes. A clip has the same captions alone and among others, unless two are
        equally likely but for rounding.

        Args:
            audio: as `Clap.embed_audio` takes it.
            n: captions a clip; greedy writes one.
            method: "greedy", "beam" (by default 3 beams, of a captioner with a prefix
                5, as the references search) or "sample".
            tags: of a captioner that tags guide, for each clip the names of its tags, or
                float32 [B, C], 0, 1 or probabilities in the order of `spec.tag_names`;
                None: of no tag is anything known.
            seed: of sampling; a clip draws by it and its position.
            seeds: one for each clip, in its place: a clip then has the same captions
                whatever the others are.
            options: fields of `models.decode_options.Options`: length (tokens at most),
                beams, temperature, top_p, top_k, min_length, no_repeat_ngram, alpha ...

        Raises:
            audio.io.AudioError: a clip cannot be read; names it and says why.
            ValueError: unknown tags, method or options; another number of tags or seeds
                than clips.
        """
        clips = as_list(audio)
        for name, given in (("tags", tags), ("seeds", seeds)):
            if given is not None and len(given) != len(clips):
                raise ValueError(f"{len(given)} {name} for {len(clips)} clips")
        found: list[list[Caption]] = []
        for clip, captions, _, error in self._written(
            clips, n, method, tags, seed, seeds, options
        ):
            if error is not None:
                raise error
            found.append(captions)
        return found

    def stream_captions(
        self,
        audio: Iterable[Audio],
        n: int = 1,
        method: str = "beam",
        *,
        tags: Iterable[Tags] | None = None,
        seed: int = 0,
        seeds: Iterable[int] | None = None,
        threads: int = 4,
        every: int = 0,
        **options: Any,
    ) -> Iterator[Captioned]:
        """Captions of any number of clips, in bounded memory; a bad one does not stop it.

        Arguments are those of `caption` and `Clap.stream`. A clip with unknown tags is a
        bad one. Errors: ValueError as there, when the first is asked for.
        """
        given = self._written(
            audio, n, method, tags, seed, seeds, options, threads, every
        )
        with contextlib.closing(given) as rows:
            for clip, captions, seconds, error in rows:
                why = "" if error is None else str(error).removeprefix(f"{clip}: ")
                yield Captioned(clip, captions, seconds, why)

    def _written(
        self,
        audio: Iterable[Audio],
        n: int,
        method: str,
        tags: Iterable[Tags] | None,
        seed: int,
        seeds: Iterable[int] | None,
        options: dict[str, Any],
        threads: int = 4,
        every: int = 0,
    ) -> Iterator[tuple[Audio, list[Caption], float, Exception | None]]:
        """Clip, captions, seconds and the reason why there are none."""
        captioning = Captioning(self._encoder, method, n, options)
        if tags is not None and not self.spec.is_guided:
            raise ValueError(f"{self.spec.name} has tags given, but none guide it")
        each_tags = itertools.repeat(None) if tags is None else iter(tags)
        draws = _draws(seed, seeds)
        hear = self._encoder.hear_middle
        with contextlib.closing(self._read(audio, threads, every, hear)) as groups:
            for group in groups:
                told, errors = {}, {}
                for number, (clip, heard, error) in enumerate(group):
                    own, draw = _next(each_tags, "tags"), _next(draws, "seeds")
                    try:
                        if error is not None:
                            raise error
                        told[number] = captioning.told(heard, draw, own)
                    except ValueError as problem:
                        errors[number] = problem
                captions = captioning.write(told.items()) if told else {}
                for number, (clip, heard, _) in enumerate(group):
                    if number in errors:
                        yield clip, [], 0.0, errors[number]
                    else:
                        seconds = float(heard.seconds.sum())
                        yield clip, captions[number], seconds, None

    def embed_audio(self, audio: Audio | Sequence[Audio]) -> np.ndarray:
        """What the audio tower makes of sounds, float32 [n, E], of length one.

        Of a captioner with a prefix the embedding that becomes it (clapcap's is that of
        MS-CLAP); of a guided one the tower's own. Longer clips as in `Clap.embed_audio`.
        Raises audio.io.AudioError.
        """
        return self._vectors(audio)


def _draws(seed: int, seeds: Iterable[int] | None) -> Iterator[tuple[int, int]]:
    """What each clip draws by. ValueError for a seed that is no such number."""
    own = zip(itertools.repeat(seed), itertools.count())
    if seeds is not None:
        own = zip(seeds, itertools.repeat(0))
    for number, position in own:
        if not isinstance(number, int | np.integer) or not 0 <= number < SEEDS:
            raise ValueError(f"a seed is {number!r}, expected 0 to {SEEDS - 1}")
        yield int(number), position


def _next(values: Iterator[Any], what: str) -> Any:
    """The next of `values`. ValueError when there are fewer than clips."""
    try:
        return next(values)
    except StopIteration:
        raise ValueError(f"there are fewer {what} than clips") from None
