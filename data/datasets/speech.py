"""Speech and voices: emotions, vocal sounds, key words, numbers of speakers."""

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import soundfile

from data.datasets.layout import Folder, LayoutError
from data.datasets.row import FULL, Clip, DataSet, Splits

# --- CREMA-D ---

_CREMA_D = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}


def _crema_d(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for path in folder.sounds("AudioWAV"):
        parts = path.stem.split("_")
        yield Clip(FULL, path.name, path, tags=(_coded(path, parts, 2, _CREMA_D),))


def _coded(path: Path, parts: list[str], place: int, names: dict[str, str]) -> str:
    """The label that a part of a file's name stands for."""
    code = parts[place] if place < len(parts) else ""
    if code not in names:
        raise LayoutError(
            f"{path}: part {place + 1} of its name is {code!r}, expected one of "
            f"{', '.join(names)}"
        )
    return names[code]


CREMA_D = DataSet(
    "crema_d",
    "CREMA-D: 12 sentences in 6 emotions by 91 actors",
    "https://github.com/CheyneyComputerScience/CREMA-D",
    "ODbL 1.0",
    "Cao et al. CREMA-D: Crowd-Sourced Emotional Multimodal Actors Dataset. "
    "IEEE TAC 2014",
    {FULL: 7442},
    _crema_d,
    """A clone of the homepage (git lfs pull), of which AudioWAV/ is needed.""",
    note="""Labels are the emotions that were intended. 1076_MTI_SAD_XX.wav is
    silent.""",
)

# --- RAVDESS ---

_RAVDESS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}


def _ravdess(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for path in folder.sounds():
        parts = path.stem.split("-")
        if parts[:2] == ["03", "01"]:  # sound alone, speech
            yield Clip(FULL, path.name, path, tags=(_coded(path, parts, 2, _RAVDESS),))


RAVDESS = DataSet(
    "ravdess",
    "RAVDESS: two sentences in 8 emotions by 24 actors",
    "https://zenodo.org/records/1188976",
    "CC BY-NC-SA 4.0",
    "Livingstone, Russo. The Ryerson Audio-Visual Database of Emotional Speech and "
    "Song. PLoS ONE 2018",
    {FULL: 1440},
    _ravdess,
    """Audio_Speech_Actors_01-24.zip of https://zenodo.org/records/1188976, or what
    it holds: Actor_01/ ... Actor_24/.""",
    urls=("https://zenodo.org/record/1188976/files/Audio_Speech_Actors_01-24.zip",),
    note="Speech only: songs (vocal channel 02) and videos are left out.",
)

# --- VocalSound ---

_VOCAL_SOUNDS = {
    "laughter": "laughter",
    "sigh": "sigh",
    "cough": "cough",
    "throatclearing": "throat clearing",
    "sneeze": "sneeze",
    "sniff": "sniff",
}


def _vocalsound(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    parts = {"train": "tr", "validation": "val", "test": "te"}
    for split in splits:
        for row in folder.json(f"datafiles/{parts[split]}.json")["data"]:
            # A path on the authors' machine, of which the name counts.
            path = Path(row["wav"])
            label = _coded(path, path.stem.split("_"), 2, _VOCAL_SOUNDS)
            yield Clip(split, path.name, folder.sound(path.stem), tags=(label,))


VOCALSOUND = DataSet(
    "vocalsound",
    "VocalSound: 6 vocal sounds of 3365 people",
    "https://github.com/YuanGongND/vocalsound",
    "CC BY-SA 4.0",
    "Gong, Yu, Glass. VocalSound: A Dataset for Improving Human Vocal Sounds "
    "Recognition. ICASSP 2022",
    {"train": 15570, "validation": 1860, "test": 3594},
    _vocalsound,
    """vs_release_16k.zip (or 44k) of the homepage, or what it holds: audio_16k/ and
    datafiles/tr.json, val.json, te.json.""",
    urls=("https://www.dropbox.com/s/c5ace70qh1vbyzb/vs_release_16k.zip?dl=1",),
    note="""Some recordings cannot be decoded (those of speakers m0600 and m0072
    among them): training and evaluation count them as bad clips.""",
)

# --- Speech Commands ---

_COMMANDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
_BACKGROUND = "_background_noise_"
_RATE_HZ = 16_000


def _speech_commands(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    main = folder.path("testing_list.txt").parent
    lists = {
        line: split
        for split, name in (("validation", "validation"), ("test", "testing"))
        for line in folder.lines(f"{name}_list.txt")
    }
    for path in sorted(main.glob("*/*.wav")):
        word, name = path.parent.name, f"{path.parent.name}/{path.name}"
        split = lists.get(name, "train")
        if word == _BACKGROUND:
            continue
        if config == "words":
            yield Clip(split, name, path, tags=(word,))
        elif split != "test":  # commands have a test set of their own
            label = word if word in _COMMANDS else "unknown"
            yield Clip(split, name, path, tags=(label,))
    if config == "commands":
        yield from _silence(folder.path(_BACKGROUND))
        for path in sorted(folder.path("_silence_").parent.glob("*/*.wav")):
            name = f"{path.parent.name}/{path.name}"
            yield Clip("test", name, path, tags=(path.parent.name.strip("_"),))


def _silence(noises: Path) -> Iterator[Clip]:
    """Seconds of background noise, one every half a second, as TFDS cuts them."""
    for path in sorted(noises.glob("*.wav")):
        frames = soundfile.info(path).frames
        split = "validation" if path.stem == "running_tap" else "train"
        for start in range(0, frames - _RATE_HZ, _RATE_HZ // 2):
            yield Clip(
                split,
                f"{_BACKGROUND}/{path.stem}_{start}",
                functools.partial(_second, path, start),
                tags=("silence",),
                start_seconds=start / _RATE_HZ,
                end_seconds=start / _RATE_HZ + 1,
            )


def _second(path: Path, start: int) -> bytes:
    wave, rate_hz = soundfile.read(path, _RATE_HZ, start, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()


_SPEECH_COMMANDS = "http://download.tensorflow.org/data/speech_commands_{}v0.02.tar.gz"

SPEECH_COMMANDS = DataSet(
    "speech_commands",
    "Speech Commands v2: 1 s key words",
    "https://arxiv.org/abs/1804.03209",
    "CC BY 4.0",
    "Warden. Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. "
    "arXiv 1804.03209",
    {"train": 84843, "validation": 9981, "test": 11005},
    _speech_commands,
    """speech_commands_v0.02.tar.gz, and for config commands also
    speech_commands_test_set_v0.02.tar.gz; or what they hold, in two folders.""",
    urls=(_SPEECH_COMMANDS.format(""), _SPEECH_COMMANDS.format("test_set_")),
    configs={
        "words": None,
        "commands": {"train": 85511, "validation": 10102, "test": 4890},
    },
    note="""Config words: all 35. Config commands: ten of them, unknown and silence;
    its test set is the published one of 4890 clips, and silence in training and
    validation is cut from the background noises as TFDS does.""",
)

# --- LibriCount ---


def _libricount(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for path in folder.sounds():
        speakers = path.stem.split("_")[0]
        if not speakers.isdecimal() or int(speakers) > 10:
            raise LayoutError(f"{path}: expected <speakers, 0 to 10>_<id>.wav")
        yield Clip(FULL, path.name, path, tags=(speakers,))


LIBRICOUNT = DataSet(
    "libricount",
    "LibriCount: 0 to 10 people speak at once, 5 s",
    "https://zenodo.org/records/1216072",
    "CC BY 4.0",
    "Stoeter, Chakrabarty, Edler, Habets. Classification vs. Regression in Supervised "
    "Learning for Single Channel Speaker Count Estimation. ICASSP 2018",
    {FULL: 5720},
    _libricount,
    """LibriCount10-0dB.zip of https://zenodo.org/records/1216072, or what it holds:
    test/.""",
    urls=("https://zenodo.org/record/1216072/files/LibriCount10-0dB.zip",),
    note="The label is the number of speakers, as a number.",
)

ROWS = (CREMA_D, RAVDESS, VOCALSOUND, SPEECH_COMMANDS, LIBRICOUNT)
