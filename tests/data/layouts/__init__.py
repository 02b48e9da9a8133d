"""Data sets in miniature, laid out as they are published: files by path.

`LAYOUTS[name]` gives (files of a folder, clips that must come of it): bytes are sounds,
numbered so that each is another one; clips are (split, id, captions, tags).
"""

import functools
from collections.abc import Callable

from tests.data.layouts import captioned, environment, music, speech, tagged
from tests.data.layouts.files import Files, Row

WITHOUT_CONFIGS = (
    *(captioned.audiocaps, captioned.clotho, captioned.musiccaps, captioned.wavcaps),
    *(captioned.macs, captioned.wavtext5k, captioned.laion_audio_630k),
    *(tagged.fsd50k, tagged.audioset, tagged.vggsound, tagged.dcase2017_task4),
    *(environment.esc50, environment.esc50_actions, environment.urbansound8k),
    *(environment.tut2017, environment.sesa),
    *(music.gtzan_music_speech, music.beijing_opera),
    *(speech.crema_d, speech.ravdess, speech.vocalsound, speech.libricount),
)
WITH_CONFIGS = {
    music.gtzan: ("genres", "fault_filtered"),
    music.nsynth: ("instrument", "pitch", "velocity", "qualities"),
    music.mridangam: ("stroke", "tonic"),
    speech.speech_commands: ("words", "commands"),
}

LAYOUTS: dict[str, Callable[[], tuple[Files, list[Row]]]] = {
    make.__name__: make for make in WITHOUT_CONFIGS
} | {
    f"{make.__name__}/{config}": functools.partial(make, config)
    for make, configs in WITH_CONFIGS.items()
    for config in configs
}
"""Layouts by the name of the data set, with its config where it has some."""
