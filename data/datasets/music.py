"""Music: genres, instruments, notes, strokes."""

from collections.abc import Iterator

from data.datasets.layout import Folder, LayoutError
from data.datasets.row import FULL, Clip, DataSet, Splits

# --- GTZAN ---

_FAULT_FILTERED = {"train": "train", "validation": "valid", "test": "test"}


def _gtzan(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    listed = {}
    if config == "fault_filtered":
        for split, name in _FAULT_FILTERED.items():
            for line in folder.lines(f"{name}_filtered.txt"):
                listed[line.rsplit("/", 1)[-1].rsplit(".", 1)[0]] = split
    for path in folder.sounds():
        genre = path.parent.name
        if not path.name.startswith(f"{genre}."):
            raise LayoutError(
                f"{path}: expected <genre>/<genre>.00000.wav, the folder is {genre!r}"
            )
        split = listed.get(path.stem, "excluded") if listed else FULL
        yield Clip(split, path.name, path, tags=(genre,))


GTZAN = DataSet(
    "gtzan",
    "GTZAN: 10 genres of music, 30 s",
    "https://www.tensorflow.org/datasets/catalog/gtzan",
    "not stated; for research",
    "Tzanetakis, Cook. Musical genre classification of audio signals. IEEE TSAP 2002",
    {FULL: 1000},
    _gtzan,
    """The folder of genres: blues/blues.00000.wav (or .au) ... rock/rock.00099.wav.
    For the fault-filtered splits also train_filtered.txt, valid_filtered.txt and
    test_filtered.txt (https://github.com/coreyker/dnn-mgr, gtzan/) beside it.""",
    configs={
        "genres": None,
        "fault_filtered": {
            "train": 443,
            "validation": 197,
            "test": 290,
            "excluded": 70,
        },
    },
    note="""GTZAN has repetitions, mislabelled and distorted pieces (Sturm, arXiv
    1306.1461): config fault_filtered has the splits of Kereliuk, Sturm, Larsen (IEEE
    TMM 2015), and what they left out as split excluded. Config genres is all 1000;
    jazz.00054 is broken in some copies.""",
)

# --- GTZAN music/speech ---


def _gtzan_music_speech(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for label in ("music", "speech"):
        for path in folder.sounds(f"{label}_wav"):
            yield Clip(FULL, f"{label}/{path.name}", path, tags=(label,))


GTZAN_MUSIC_SPEECH = DataSet(
    "gtzan_music_speech",
    "GTZAN music/speech: 30 s of one or the other",
    "https://www.tensorflow.org/datasets/catalog/gtzan_music_speech",
    "not stated; for research",
    "Tzanetakis. GTZAN Music/Speech Collection. 1999",
    {FULL: 128},
    _gtzan_music_speech,
    """music_speech.tar.gz, or what it holds: music_speech/music_wav and
    music_speech/speech_wav, 64 files each.""",
)

# --- Beijing Opera ---


def _beijing_opera(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for path in folder.sounds():
        parts = path.stem.split("__")[-1].split("-")
        if len(parts) < 2:
            raise LayoutError(
                f"{path}: expected <id>__<user>__<instrument>-<number>.wav"
            )
        yield Clip(FULL, path.name, path, tags=(parts[-2],))


BEIJING_OPERA = DataSet(
    "beijing_opera",
    "Beijing Opera percussion instruments: single strokes of 4 instruments",
    "https://zenodo.org/records/1285212",
    "Creative Commons; see the homepage",
    "Tian, Srinivasamurthy, Sandler, Serra. A study of instrument-wise onset detection "
    "in Beijing Opera percussion ensembles. ICASSP 2014",
    {FULL: 236},
    _beijing_opera,
    """beijing_opera_percussion_instrument_1.0.zip of
    https://zenodo.org/records/1285212, or what it holds.""",
    urls=(
        "https://zenodo.org/record/1285212/files/"
        "beijing_opera_percussion_instrument_1.0.zip",
    ),
)

# --- NSynth ---


def _nsynth(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for split in splits:
        part = "valid" if split == "validation" else split
        audio = folder.path(f"nsynth-{part}/audio")
        notes = folder.json(f"nsynth-{part}/examples.json")
        for name, note in notes.items():
            yield Clip(
                split,
                name,
                audio / f"{name}.wav",
                tags=_nsynth_tags(note, config),
            )


def _nsynth_tags(note: dict, config: str) -> tuple[str, ...]:
    if config == "qualities":
        return tuple(note["qualities_str"])
    key = "instrument_family_str" if config == "instrument" else config
    return (str(note[key]),)


NSYNTH = DataSet(
    "nsynth",
    "NSynth: 4 s notes of 1006 instruments",
    "https://magenta.tensorflow.org/datasets/nsynth",
    "CC BY 4.0",
    "Engel et al. Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders. "
    "ICML 2017",
    {"train": 289205, "validation": 12678, "test": 4096},
    _nsynth,
    """nsynth-train.jsonwav.tar.gz, nsynth-valid... and nsynth-test..., or what they
    hold: nsynth-test/examples.json and nsynth-test/audio. --splits=test is 0.5 GB
    instead of 40.""",
    urls=tuple(
        "http://download.magenta.tensorflow.org/datasets/nsynth/"
        f"nsynth-{part}.jsonwav.tar.gz"
        for part in ("train", "valid", "test")
    ),
    configs=dict.fromkeys(("instrument", "pitch", "velocity", "qualities")),
    note="""Labels by config: the family of the instrument; the MIDI pitch; the MIDI
    velocity (25, 50, 75, 100, 127); the qualities, several or none.""",
)

# --- Mridangam ---

_TONICS = {"b": "B", "c": "C", "csh": "C#", "d": "D", "dsh": "D#", "e": "E"}


def _mridangam(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for path in folder.sounds():
        parts = path.stem.split("__")[-1].split("-")
        if len(parts) != 3 or parts[1] not in _TONICS:
            raise LayoutError(
                f"{path}: expected <id>__<user>__<stroke>-<tonic>-<number>.wav with a "
                f"tonic of {', '.join(_TONICS)}"
            )
        label = parts[0] if config == "stroke" else _TONICS[parts[1]]
        yield Clip(FULL, path.name, path, tags=(label,))


MRIDANGAM = DataSet(
    "mridangam",
    "Mridangam strokes: 10 strokes on drums of 6 tonics",
    "https://zenodo.org/records/4068196",
    "CC BY 3.0",
    "Anantapadmanabhan, Bellur, Murthy. Modal analysis and transcription of strokes of "
    "the mridangam using non-negative matrix factorization. ICASSP 2013",
    {FULL: 6977},
    _mridangam,
    """mridangam_stroke_1.5.zip of https://zenodo.org/records/4068196, or what it
    holds: folders B, C, C#, D, D#, E.""",
    urls=("https://zenodo.org/record/4068196/files/mridangam_stroke_1.5.zip",),
    configs=dict.fromkeys(("stroke", "tonic")),
)

ROWS = (GTZAN, GTZAN_MUSIC_SPEECH, BEIJING_OPERA, NSYNTH, MRIDANGAM)
