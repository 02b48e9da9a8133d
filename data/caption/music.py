"""Long captions of music, from its tags and what is measured (`data.caption.hearing`).

What is measured is said in words; which words, a clip's id and the seed decide. Each
section has a sentence with its time, as `clap_jax.text.sections` reads them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import librosa
import numpy as np

import clap_jax
from clap_jax.pipeline import order
from clap_jax.text.sections import clock
from data.caption import hearing
from data.caption.answers import Answer
from data.caption.clips import Clip
from data.caption.hearing import Heard, HearingError, Stretch
from data.caption.templates import Templates, listed

KIND = "music"
LEAST_SURENESS = 0.6  # of a key that is named
LEAST_ONSETS = 0.7  # a second of what has a tempo
CLEARLY_DB, CLEARLY_BRIGHTER = 2.5, 1.15  # against the whole clip
TREND_DB = 4.0

TEMPOS = ((76, "slow"), (108, "moderate"), (140, "lively"), (1e9, "fast"))
DENSITIES = (
    (1.0, "hardly any"),
    (2.5, "few"),
    (4.5, "a steady flow of"),
    (1e9, "many"),
)
COLOURS = ((900, "dark and muffled"), (1600, "warm"), (2600, "clear"), (1e9, "bright"))
LEVELS = ((-30, "very soft"), (-22, "soft"), (-15, "medium loud"), (1e9, "loud"))


class Fallback(Templates):
    """The template's caption of a clip that nothing can be said about."""

    def __call__(self, clip: Clip) -> str:
        return super().__call__(clip if clip.tags else clip._replace(tags=("music",)))


class Music:
    """Captions clips by listening; see `data.caption.answers.Writer`.

    sound: gives a clip's audio, as sources do, by its id. A clip that cannot be read,
    is silent or too short is named on standard error, and gets no answer.
    """

    group = 1

    def __init__(self, sound: Callable[[str], Any], seed: int = 0):
        self._sound, self._seed = sound, seed

    def origin(self) -> dict[str, Any]:
        """What the captions are measured with."""
        return {
            "kind": KIND,
            "model": f"librosa {librosa.__version__}",
            "version": f"clap_jax {clap_jax.__version__}",
            "settings": {"seed": self._seed},
        }

    def answers(self, clips: Iterable[Clip]) -> Iterator[Answer]:
        """A caption for every clip that can be heard."""
        for clip in clips:
            try:
                heard = hearing.hear(_given(self._sound, clip.id))
            except HearingError as error:
                why = f": {error.__cause__}" if error.__cause__ else ""
                print(f"{clip.id}: {error}{why}", file=sys.stderr, flush=True)
                yield Answer("", (str(error),))
            else:
                yield Answer(write(heard, clip.names, f"{self._seed}/{clip.id}"))


def _given(sound: Callable[[str], Any], clip_id: str) -> Any:
    try:
        return sound(clip_id)
    except (ValueError, OSError) as error:
        raise HearingError("cannot be read") from error


def write(heard: Heard, names: Sequence[str], entropy: str) -> str:
    """The caption, 100 words or more: the whole, then its sections, then its course."""
    digits = int(order.digest([entropy]), 16)
    rng = np.random.Generator(np.random.PCG64(digits))

    def one(*choices: str) -> str:
        return choices[rng.integers(len(choices))]

    parts = [*_whole(heard, names, one)]
    for number, section in enumerate(heard.sections):
        before = heard.sections[number - 1] if number else None
        parts.append(_section(section, before, heard.whole, one))
    return " ".join([*parts, *_course(heard, one)])


One = Callable[..., str]
"""Chooses one of several wordings."""


def _of(table: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for limit, word in table if value < limit)


def _whole(heard: Heard, names: Sequence[str], one: One) -> Iterator[str]:
    whole, length = heard.whole, clock(heard.whole.end)
    if names:
        labels = listed(list(names))
        yield one(
            f"This recording, {length} long, is labelled as {labels}.",
            f"A recording, labelled as {labels}, which lasts {length}.",
        )
    else:
        yield one(
            f"This is a recording of music that lasts {length}.",
            f"A piece of music, {length} long from its beginning to its end.",
        )
    bpm, pace = round(heard.tempo_bpm), _of(TEMPOS, heard.tempo_bpm)
    if whole.onsets < LEAST_ONSETS:
        yield one(
            "There is no regular beat in it that one could count or tap a foot along to.",
            "No steady pulse can be made out, and hence it does not have a tempo either.",
        )
    else:
        yield one(
            f"Its tempo is {pace}, at about {bpm} beats in a minute.",
            f"The pulse goes at a {pace} pace of roughly {bpm} beats per minute.",
        )
    if whole.sureness >= LEAST_SURENESS:
        yield one(
            f"Harmony and melody point to the key of {whole.key} for most of the time.",
            f"Taken as a whole, the notes fit best with the key of {whole.key}.",
        )
    else:
        yield one(
            "The notes do not settle on a key that one could name with certainty.",
            "There is no clear key, since the pitches do not gather around one tonic.",
        )
    colour, level = _of(COLOURS, whole.brightness_hz), _of(LEVELS, whole.level_db)
    yield one(
        f"On the whole the sound is {colour} in its tone colour, and {level} in volume.",
        f"The tone colour is mostly {colour}, and the average volume is {level}.",
    )
    many = _of(DENSITIES, whole.onsets)
    yield one(
        f"The ear catches {many} attacks of notes or beats, about {whole.onsets:.1f} in "
        "each second.",
        f"One hears {many} new notes and strokes, some {whole.onsets:.1f} a second on "
        "average.",
    )


def _section(here: Stretch, before: Stretch | None, whole: Stretch, one: One) -> str:
    when = one("From {0} to {1}", "Between {0} and {1}").format(
        clock(here.begin), clock(here.end)
    )
    difference = here.level_db - whole.level_db
    if difference > CLEARLY_DB:
        level = one("louder than the rest", "clearly louder than on average")
    elif difference < -CLEARLY_DB:
        level = one("softer than the rest", "clearly quieter than on average")
    else:
        level = one("of average loudness", "about as loud as the whole")
    ratio = here.brightness_hz / max(whole.brightness_hz, 1.0)
    if ratio > CLEARLY_BRIGHTER:
        colour = one("brighter in tone", "with more treble")
    elif ratio < 1 / CLEARLY_BRIGHTER:
        colour = one("darker in tone", "with less treble")
    else:
        colour = one("similar in tone colour", "in the usual tone colour")
    many = _of(DENSITIES, here.onsets)
    text = f"{when} the music is {level} and {colour}, with {many} attacks"
    if here.sureness >= LEAST_SURENESS and (before is None or here.key != before.key):
        text += f", around {here.key}"
    if abs(here.trend_db) > TREND_DB:
        grows = here.trend_db > 0
        text += f", and {'grows louder' if grows else 'dies away'} towards its end"
    return f"{text}."


def _course(heard: Heard, one: One) -> Iterator[str]:
    """How the clip goes from its beginning to its end."""
    if heard.sections:
        loudest = max(heard.sections, key=lambda s: s.level_db)
        softest = min(heard.sections, key=lambda s: s.level_db)
        yield one(
            f"The {len(heard.sections)} sections differ in loudness by "
            f"{loudest.level_db - softest.level_db:.0f} decibels between the softest and "
            "the loudest.",
            f"Of its {len(heard.sections)} sections the loudest lies "
            f"{loudest.level_db - softest.level_db:.0f} decibels above the softest one.",
        )
    else:
        yield one(
            "It does not divide into sections that differ clearly; one texture is kept "
            "from its first second to its last.",
            "No change of section stands out in it, so that it can be heard as one "
            "single passage with one and the same sound.",
        )
    trend = heard.whole.trend_db
    if abs(trend) <= TREND_DB:
        yield one(
            "Its last third is about as loud as the first, so that the volume as a whole "
            "neither builds up nor fades.",
            "From the first third of the recording to the last third, the volume stays "
            "at nearly the same height.",
        )
    else:
        way = "louder" if trend > 0 else "softer"
        yield one(
            f"Its last third is clearly {way} than the first, by about "
            f"{abs(trend):.0f} decibels.",
            f"In the course of the recording it gets {way}, by some {abs(trend):.0f} "
            "decibels from the first third to the last.",
        )
    if heard.whole.onsets < LEAST_ONSETS:
        yield one(
            "Without a beat it floats along freely, and its sounds flow into one another.",
            "Its sounds come without any count, and no metre orders how they follow.",
        )
        return
    pace = heard.tempo_bpm
    feel = "relaxed" if pace < 90 else "steady" if pace < 130 else "driving"
    yield one(
        f"With such a pulse and this amount of notes, the movement comes across as "
        f"{feel} to a listener.",
        f"Its movement, going by pulse and number of attacks, may be described as "
        f"{feel} all in all.",
    )
