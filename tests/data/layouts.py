"""Data sets in miniature, laid out as they are published: files by path.

`LAYOUTS[name]` gives (files of a folder, clips that must come of it): bytes are sounds,
numbered so that each is another one; clips are (split, id, captions, tags).
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import soundfile

from tests.pipeline.clips import wave
from tests.pipeline.shards import pair, sound, tar_bytes

Files = dict[str, bytes | str]
Row = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def wav(number: int) -> bytes:
    """A sound of its own for each number."""
    return sound(number, "wav")


def noise(number: int, seconds: float) -> bytes:
    """A longer sound at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, wave(number, seconds, 16_000), 16_000, format="WAV")
    return file.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder; returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def table(*rows: tuple, delimiter: str = ",") -> str:
    """A table; cells with a delimiter or a quote in them are quoted."""

    def cell(value: object) -> str:
        text = str(value)
        quoted = delimiter in text or '"' in text
        return '"' + text.replace('"', '""') + '"' if quoted else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows)


# --- captions ---


def audiocaps() -> tuple[Files, list[Row]]:
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    texts = [f"a dog, number {number}" for number in range(5)]
    train = [(7, "aaa", 30, "a car"), (8, "-bb", 0, 'a "bird"'), (9, "ccc", 5, "rain")]
    files: Files = {
        "dataset/train.csv": table(header, *train),
        "dataset/val.csv": table(
            header, *((20 + n, "ddd", 70, text) for n, text in enumerate(texts))
        ),
        "dataset/test.csv": table(
            header,
            *((30 + n, "eee", 10, text) for n, text in enumerate(texts)),
            *((40 + n, "_ff", 20, "a cat") for n in range(5)),
        ),
        "audio/train/Yaaa.wav": wav(0),
        "audio/train/-bb_0.flac": wav(1),
        "audio/train/9.wav": wav(2),
        "audio/ddd_70000.wav": wav(3),
        "audio/test/eee.wav": wav(4),
        "audio/test/Y_ff_20.000_30.000.wav": wav(5),
    }
    clips: list[Row] = [
        ("train", "aaa_30", ("a car",), ()),
        ("train", "-bb_0", ('a "bird"',), ()),
        ("train", "ccc_5", ("rain",), ()),
        ("validation", "ddd_70", tuple(texts), ()),
        ("test", "eee_10", tuple(texts), ()),
        ("test", "_ff_20", ("a cat",), ()),
    ]
    return files, clips


def clotho() -> tuple[Files, list[Row]]:
    files: Files = {}
    clips: list[Row] = []
    columns = [f"caption_{n}" for n in range(1, 6)]
    about = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples")
    about += ("manufacturer", "license")
    for first, (split, count) in enumerate(
        {"development": 3, "validation": 1, "evaluation": 2}.items()
    ):
        rows, details = [], []
        for number in range(count):
            name = f"{split} sound {number}.wav"
            captions = tuple(f"{split} {number}, caption {n}" for n in range(5))
            rows.append((name, *captions))
            keywords = f"rain;caf\N{LATIN SMALL LETTER E WITH ACUTE};{number}"
            link = f"https://freesound.org/people/x/sounds/{number}"
            details.append((name, keywords, number, link, "[0, 44100]", "x", "CC0"))
            files[f"{split}/{name}"] = wav(10 * first + number)
            clips.append((split, name, captions, tuple(keywords.split(";"))))
        files[f"clotho_captions_{split}.csv"] = table(("file_name", *columns), *rows)
        latin = table(about, *details).encode("latin-1")
        files[f"clotho_metadata_{split}.csv"] = latin
    return files, clips


def musiccaps() -> tuple[Files, list[Row]]:
    header = ("ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list")
    header += ("caption", "author_id", "is_balanced_subset", "is_audioset_eval")
    rows = [
        (
            "aa",
            30,
            40,
            "/m/1",
            "['low, slow', 'piano']",
            "A slow\npiano.",
            4,
            False,
            False,
        ),
        ("-b", 10, 20, "/m/2", "['drums']", "Drums, fast.", 5, False, True),
    ]
    text = table(header, *rows).replace("A slow\npiano.", '"A slow\npiano."')
    files: Files = {
        "musiccaps-public.csv": text,
        "x/aa.mp3": wav(0),
        "y/-b.wav": wav(1),
    }
    return files, [
        ("train", "aa", ("A slow piano.",), ("low, slow", "piano")),
        ("eval", "-b", ("Drums, fast.",), ("drums",)),
    ]


def wavcaps() -> tuple[Files, list[Row]]:
    names = {
        "audioset_sl": ("AudioSet_SL", "as_final.json", "Yb0RF.wav"),
        "bbc_sound_effects": ("BBC_Sound_Effects", "bbc_final.json", "NHU05"),
        "freesound": ("FreeSound", "fsd_final.json", "1234"),
        "soundbible": ("SoundBible", "sb_final.json", "1234"),
    }
    files: Files = {}
    clips: list[Row] = []
    for number, (split, (name, file, clip)) in enumerate(names.items()):
        data = [
            {"id": clip, "caption": f"{name} is heard.", "author": "A", "href": "h"}
        ]
        content = json.dumps({"num_captions_per_audio": 1, "data": data})
        files[f"json_files/{name}/{file}"] = content
        stem = clip.removesuffix(".wav")
        place = "mnt/data/waveforms" if number % 2 else "audio"
        files[f"{place}/{name}_flac/{stem}.flac"] = wav(number)
        clips.append((split, stem, (f"{name} is heard.",), ()))
    return files, clips


def macs() -> tuple[Files, list[Row]]:
    text = """files:
- filename: airport-barcelona-0-0-a.wav
  annotations:
  - annotator_id: 4
    sentence: people  walk
    tags: [footsteps, adults talking]
  - annotator_id: 7
    sentence: a voice
    tags: [adults talking]
- filename: park-lisbon-1-2-a.wav
  annotations:
  - {annotator_id: 1, sentence: birds sing, tags: [birds singing]}
"""
    audio = "TAU-urban-acoustic-scenes-2019-development/audio"
    files: Files = {
        "MACS.yaml": text,
        f"{audio}/airport-barcelona-0-0-a.wav": wav(0),
        f"{audio}/park-lisbon-1-2-a.wav": wav(1),
    }
    return files, [
        (
            "train",
            "airport-barcelona-0-0-a.wav",
            ("people walk", "a voice"),
            ("footsteps", "adults talking"),
        ),
        ("train", "park-lisbon-1-2-a.wav", ("birds sing",), ("birds singing",)),
    ]


def wavtext5k() -> tuple[Files, list[Row]]:
    header = ("view_link", "download_link", "title", "description", "fname", "tags")
    rows = [
        ("v", "d", "Forest", "Birds singing, far.", "0100.wav", ""),
        ("v", "d", "Wind", "", "0595.wav", ""),
        ("v", "d", "Slime", " Slimey.", "slime_1103.wav", "['goo', 'mud', 'goo']"),
        ("v", "d", "More slime", "Slime again.", "slime_1103.wav", "['goo']"),
    ]
    files: Files = {"WavText5K.csv": table(header, *rows)}
    for number, name in enumerate(("0100", "0595", "slime_1103")):
        files[f"WavText5K/44100/audios/{name}.wav"] = wav(number)
    return files, [
        ("train", "0100.wav", ("Birds singing, far.",), ()),
        ("train", "0595.wav", ("Wind",), ()),
        ("train", "slime_1103.wav", ("Slimey.", "Slime again."), ("goo", "mud")),
    ]


def laion_audio_630k() -> tuple[Files, list[Row]]:
    def shard(*numbers: int) -> bytes:
        return tar_bytes({k: v for n in numbers for k, v in pair(n).items()})

    files: Files = {
        "BBCSoundEffects/train/0.tar": shard(0, 1),
        "BBCSoundEffects/train/sizes.json": '{"0.tar": 2}',
        "BBCSoundEffects/test/0.tar": shard(2),
        "sonniss/train/0.tar": shard(3),
    }
    rows = [("train", "BBCSoundEffects/train/0/000", 0)]
    rows += [("train", "BBCSoundEffects/train/0/001", 1)]
    rows += [("train", "sonniss/train/0/003", 3), ("test", "0/002", 2)]
    return files, [
        (split, name, (f"number {n}", f"sound {n}"), ("tone",))
        for split, name, n in rows
    ]


# --- several labels, or from YouTube ---


def fsd50k() -> tuple[Files, list[Row]]:
    info = {
        "64760": {
            "title": "guitarras_63.wav",
            "description": "electric\nguitar",
            "tags": ["guitar"],
            "license": "http://creativecommons.org/licenses/sampling+/1.0/",
            "uploader": "casualsamples",
        }
    }
    dev = [
        ("fname", "labels", "mids", "split"),
        (64760, "Electric_guitar,Guitar,Music", "/m/1,/m/2,/m/3", "train"),
        (16399, "Rain", "/m/4", "val"),
    ]
    files: Files = {
        "FSD50K.ground_truth/dev.csv": table(*dev),
        "FSD50K.ground_truth/eval.csv": table(
            ("fname", "labels", "mids"), (37199, "Bark,Dog", "/m/5,/m/6")
        ),
        "FSD50K.metadata/dev_clips_info_FSD50K.json": json.dumps(info),
        "FSD50K.dev_audio/64760.wav": wav(0),
        "FSD50K.dev_audio/16399.wav": wav(1),
        "FSD50K.eval_audio/37199.wav": wav(2),
    }
    guitar = ("Electric_guitar", "Guitar", "Music")
    return files, [
        ("train", "64760", ("guitarras_63.wav. electric guitar",), guitar),
        ("validation", "16399", (), ("Rain",)),
        ("test", "37199", (), ("Bark", "Dog")),
    ]


def audioset() -> tuple[Files, list[Row]]:
    head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    names = [
        ("index", "mid", "display_name"),
        (0, "/m/09x0r", "Speech"),
        (1, "/m/0ytgt", "Child speech, kid speaking"),
    ]
    files: Files = {
        "class_labels_indices.csv": table(*names),
        "ontology.json": "[]",
        "balanced_train_segments.csv": head
        + '--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/0ytgt"\n',
        "unbalanced_train_segments.csv": head
        + '---1_cCGK4M, 30.000, 40.000, "/m/0ytgt"\n',
        "eval_segments.csv": head + '-0BIyqJj9ZU, 30.000, 40.000, "/m/09x0r"\n',
        "balanced_train/Y--4gqARaEJE.flac": wav(0),
        "unbalanced/---1_cCGK4M_30.wav": wav(1),
        "eval/Y-0BIyqJj9ZU_30.000_40.000.wav": wav(2),
    }
    child = "Child speech, kid speaking"
    return files, [
        ("balanced_train", "--4gqARaEJE", (), ("Speech", child)),
        ("unbalanced_train", "---1_cCGK4M", (), (child,)),
        ("eval", "-0BIyqJj9ZU", (), ("Speech",)),
    ]


def vggsound() -> tuple[Files, list[Row]]:
    rows = [
        ("---g-f_I2yQ", 1, "people marching", "test"),
        ("--0PQM4-hqg", 30, "waterfall burbling", "train"),
        ("--0PQM4-hqg", 50, "wind, whistling", "train"),
    ]
    files: Files = {
        "vggsound.csv": table(*rows),
        "audio/---g-f_I2yQ_000001.wav": wav(0),
        "audio/--0PQM4-hqg_000030.flac": wav(1),
        "audio/--0PQM4-hqg_000050.flac": wav(2),
    }
    return files, [
        ("train", "--0PQM4-hqg_000030", (), ("waterfall burbling",)),
        ("train", "--0PQM4-hqg_000050", (), ("wind, whistling",)),
        ("test", "---g-f_I2yQ_000001", (), ("people marching",)),
    ]


def dcase2017_task4() -> tuple[Files, list[Row]]:
    files: Files = {}
    clips: list[Row] = []
    for number, split in enumerate(("training", "testing", "evaluation")):
        stem = f"-A_b{number}_30.000_40.000"
        labels = ("Train horn", "Fire engine, fire truck (siren)")
        files[f"groundtruth_release/groundtruth_weak_label_{split}_set.csv"] = table(
            *((f"{stem}.wav", "30.000", "40.000", label) for label in labels),
            delimiter="\t",
        )
        files[f"{split}/Y{stem}.wav"] = wav(number)
        clips.append((split, stem, (), labels))
    return files, clips


# --- environment ---


def esc50() -> tuple[Files, list[Row]]:
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [
        (f"{fold}-10003{fold}-A-0.wav", fold, 0, category, True, f"10003{fold}", "A")
        for fold, category in enumerate(
            ("dog", "chirping_birds", "dog", "rain", "dog"), start=1
        )
    ]
    root = "ESC-50-master"
    files: Files = {f"{root}/meta/esc50.csv": table(header, *rows)}
    files[f"{root}/LICENSE"] = "1-100031-A.ogg CC-BY-NC by somebody\n"
    for number, row in enumerate(rows):
        files[f"{root}/audio/{row[0]}"] = wav(number)
    return files, [(f"fold{row[1]}", row[0], (), (row[3],)) for row in rows]


def esc50_actions() -> tuple[Files, list[Row]]:
    files, clips = esc50()
    header = ("filename", "fold", "target", "category", "blowing", "calling", "tapping")
    ratings = [(0, 10 / 3, 1), (2, 2, 0), (1 / 3, 0, 1), (0, 0.5, 4), (2, 0, 0)]
    labels = [
        ("calling",),
        ("blowing", "calling"),
        ("tapping",),
        ("tapping",),
        ("blowing",),
    ]
    rows = [
        (row[1], row[0].removeprefix("fold"), 0, row[3][0], *own)
        for row, own in zip(clips, ratings, strict=True)
    ]
    del files["ESC-50-master/meta/esc50.csv"]  # it needs the sounds alone
    files["actionvector_one_per_audiofile.csv"] = table(header, *rows)
    return files, [
        (split, name, (), own)
        for (split, name, _, _), own in zip(clips, labels, strict=True)
    ]


def urbansound8k() -> tuple[Files, list[Row]]:
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID")
    rows = [
        (f"10003{fold}-3-0-0.wav", f"10003{fold}", 0.5, 4.5, 1, fold, 3, "dog_bark")
        for fold in range(1, 11)
    ]
    files: Files = {
        "UrbanSound8K/metadata/UrbanSound8K.csv": table((*header, "class"), *rows)
    }
    for number, row in enumerate(rows):
        files[f"UrbanSound8K/audio/fold{row[5]}/{row[0]}"] = wav(number)
    return files, [(f"fold{row[5]}", row[0], (), ("dog_bark",)) for row in rows]


def tut2017() -> tuple[Files, list[Row]]:
    root = "TUT-acoustic-scenes-2017"
    development = [
        ("b020_90_100.wav", "beach", "b020"),
        ("a001_0_10.wav", "cafe/restaurant", "a001"),
    ]
    files: Files = {
        f"{root}-development/meta.txt": "".join(
            f"audio/{name}\t{label}\t{place}\n" for name, label, place in development
        ),
        f"{root}-evaluation/evaluation_setup/evaluate.txt": "audio/1.wav\tbus\n",
        f"{root}-evaluation/audio/1.wav": wav(2),
    }
    for number, (name, label, _) in enumerate(development):
        files[f"{root}-development/audio/{name}"] = wav(number)
        lines = f"audio/{name}\t{label}\n"
        files[f"{root}-development/evaluation_setup/fold{number + 1}_evaluate.txt"] = (
            lines
        )
        files[f"{root}-development/evaluation_setup/fold{number + 3}_evaluate.txt"] = ""
    return files, [
        ("development", "b020_90_100.wav", (), ("beach",)),
        ("development", "a001_0_10.wav", (), ("cafe/restaurant",)),
        ("evaluation", "1.wav", (), ("bus",)),
    ]


def sesa() -> tuple[Files, list[Row]]:
    names = {"train": ("casual_000.wav", "siren_010.wav"), "test": ("gunshot_032.wav",)}
    files: Files = {}
    clips: list[Row] = []
    for split, own in names.items():
        for name in own:
            files[f"SESA/{split}/{name}"] = wav(len(clips))
            clips.append((split, name, (), (name.split("_")[0],)))
    return files, clips


# --- music ---


def gtzan() -> tuple[Files, list[Row]]:
    names = [f"{genre}.0000{n}.wav" for genre in ("blues", "rock") for n in range(3)]
    files: Files = {
        f"genres/{name.split('.')[0]}/{name}": wav(number)
        for number, name in enumerate(names)
    }
    return files, [("full", name, (), (name.split(".")[0],)) for name in names]


def gtzan_fault_filtered() -> tuple[Files, list[Row]]:
    files, clips = gtzan()
    lists = {"train": "blues/blues.00000.wav\nrock/rock.00002.wav\n"}
    lists |= {"valid": "rock/rock.00000.wav\n", "test": "blues/blues.00002.wav\n"}
    files |= {f"{name}_filtered.txt": lines for name, lines in lists.items()}
    splits = ["train", "excluded", "test", "validation", "excluded", "train"]
    return files, [
        (split, *clip[1:]) for split, clip in zip(splits, clips, strict=True)
    ]


def gtzan_music_speech() -> tuple[Files, list[Row]]:
    files: Files = {
        "music_speech/music_wav/bagpipe.wav": wav(0),
        "music_speech/speech_wav/allison.wav": wav(1),
        "music_speech/speech_wav/._allison.wav": "an archive's leftover",
    }
    return files, [
        ("full", "music/bagpipe.wav", (), ("music",)),
        ("full", "speech/allison.wav", (), ("speech",)),
    ]


def beijing_opera() -> tuple[Files, list[Row]]:
    names = ("205971__ajaysm__bangu-006.wav", "205970__ajaysm__naobo-001.wav")
    root = "beijing_opera_percussion_instrument_1.0"
    files: Files = {f"{root}/{name}": wav(n) for n, name in enumerate(names)}
    return files, [
        ("full", names[0], (), ("bangu",)),
        ("full", names[1], (), ("naobo",)),
    ]


def nsynth(config: str) -> tuple[Files, list[Row]]:
    files: Files = {}
    clips: list[Row] = []
    parts = {"train": "train", "validation": "valid", "test": "test"}
    for number, (split, part) in enumerate(parts.items()):
        name = f"bass_synthetic_{number:03d}-06{number}-100"
        note = {"note_str": name, "pitch": 60 + number, "velocity": 100}
        note |= {"instrument_family_str": "bass", "sample_rate": 16000}
        qualities = ("dark", "long_release") if number else ()
        note["qualities_str"] = list(qualities)
        files[f"nsynth-{part}/examples.json"] = json.dumps({name: note})
        files[f"nsynth-{part}/audio/{name}.wav"] = wav(number)
        labels = {"instrument": ("bass",), "pitch": (str(60 + number),)}
        labels |= {"velocity": ("100",), "qualities": qualities}
        clips.append((split, name, (), labels[config]))
    return files, clips


def mridangam(config: str) -> tuple[Files, list[Row]]:
    names = {
        "B/224030__akshaylaya__bheem-b-001.wav": ("bheem", "B"),
        "C#/225359__akshaylaya__cha-csh-002.wav": ("cha", "C#"),
    }
    root = "mridangam_stroke_1.5"
    files: Files = {f"{root}/{name}": wav(n) for n, name in enumerate(names)}
    place = ("stroke", "tonic").index(config)
    return files, [
        ("full", name.split("/")[1], (), (labels[place],))
        for name, labels in names.items()
    ]


# --- speech ---


def crema_d() -> tuple[Files, list[Row]]:
    names = {"1001_DFA_ANG_XX.wav": "anger", "1091_WSI_HAP_HI.wav": "happy"}
    files: Files = {f"CREMA-D/AudioWAV/{name}": wav(n) for n, name in enumerate(names)}
    files["CREMA-D/AudioMP3/1001_DFA_ANG_XX.mp3"] = wav(9)
    return files, [("full", name, (), (label,)) for name, label in names.items()]


def ravdess() -> tuple[Files, list[Row]]:
    names = {
        "03-01-01-01-01-01-01.wav": "neutral",
        "03-01-08-02-02-02-24.wav": "surprised",
    }
    files: Files = {
        f"Actor_{name[-6:-4]}/{name}": wav(n) for n, name in enumerate(names)
    }
    files["Actor_01/03-02-01-01-01-01-01.wav"] = wav(9)  # a song
    return files, [("full", name, (), (label,)) for name, label in names.items()]


def vocalsound() -> tuple[Files, list[Row]]:
    parts = {"train": "tr", "validation": "val", "test": "te"}
    sounds = ("cough", "throatclearing", "sniff")
    files: Files = {}
    clips: list[Row] = []
    for number, (split, part) in enumerate(parts.items()):
        name = f"f000{number}_0_{sounds[number]}.wav"
        data = [{"wav": f"/data/sls/audio_16k/{name}", "labels": "/m/01b_21"}]
        files[f"datafiles/{part}.json"] = json.dumps({"data": data})
        files[f"audio_16k/{name}"] = wav(number)
        label = sounds[number].replace("throat", "throat ")
        clips.append((split, name, (), (label,)))
    return files, clips


def speech_commands(config: str) -> tuple[Files, list[Row]]:
    root, test = "speech_commands_v0.02", "speech_commands_test_set_v0.02"
    names = ["yes/0a_nohash_0.wav", "bed/0a_nohash_0.wav", "no/1b_nohash_0.wav"]
    names += ["zero/1b_nohash_0.wav"]
    files: Files = {
        f"{root}/validation_list.txt": "bed/0a_nohash_0.wav\n",
        f"{root}/testing_list.txt": "no/1b_nohash_0.wav\n",
        f"{root}/_background_noise_/running_tap.wav": noise(0, seconds=1.7),
        f"{root}/_background_noise_/pink_noise.wav": noise(1, seconds=2.1),
        f"{test}/yes/aa_nohash_0.wav": wav(20),
        f"{test}/_unknown_/bed_aa_nohash_0.wav": wav(21),
        f"{test}/_silence_/1.wav": wav(22),
    }
    files |= {f"{root}/{name}": wav(2 + number) for number, name in enumerate(names)}
    if config == "words":
        splits = ("train", "validation", "test", "train")
        return files, [
            (split, name, (), (name.split("/")[0],))
            for split, name in zip(splits, names, strict=True)
        ]
    background = "_background_noise_"
    rows = [
        ("train", names[0], "yes"),
        ("train", names[3], "unknown"),
        *(
            ("train", f"{background}/pink_noise_{n}", "silence")
            for n in (0, 8000, 16000)
        ),
        ("validation", names[1], "unknown"),
        *(
            ("validation", f"{background}/running_tap_{n}", "silence")
            for n in (0, 8000)
        ),
        ("test", "yes/aa_nohash_0.wav", "yes"),
        ("test", "_unknown_/bed_aa_nohash_0.wav", "unknown"),
        ("test", "_silence_/1.wav", "silence"),
    ]
    return files, [(split, name, (), (label,)) for split, name, label in rows]


def libricount() -> tuple[Files, list[Row]]:
    names = ("0_105-0001.wav", "10_77-0002.wav")
    files: Files = {f"test/{name}": wav(n) for n, name in enumerate(names)}
    files |= {f"test/{name[:-4]}.json": "[]" for name in names}
    return files, [("full", name, (), (name.split("_")[0],)) for name in names]


LAYOUTS: dict[str, Callable[[], tuple[Files, list[Row]]]] = {
    make.__name__: make
    for make in (
        *(audiocaps, clotho, musiccaps, wavcaps, macs, wavtext5k, laion_audio_630k),
        *(fsd50k, audioset, vggsound, dcase2017_task4),
        *(esc50, esc50_actions, urbansound8k, tut2017, sesa),
        *(gtzan_music_speech, beijing_opera, crema_d, ravdess, vocalsound, libricount),
    )
} | {
    "gtzan/genres": gtzan,
    "gtzan/fault_filtered": gtzan_fault_filtered,
    **{
        f"{make.__name__}/{config}": lambda make=make, config=config: make(config)
        for make, configs in {
            nsynth: ("instrument", "pitch", "velocity", "qualities"),
            mridangam: ("stroke", "tonic"),
            speech_commands: ("words", "commands"),
        }.items()
        for config in configs
    },
}
"""Layouts by the name of the data set, with its config where it has some."""
