"""Data sets with captions, in miniature."""

import json

from tests.data.layouts.files import Files, Row, table, wav
from tests.pipeline.shards import pair, tar_bytes


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
        ("test", "_ff_20", ("a cat",) * 5, ()),
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
