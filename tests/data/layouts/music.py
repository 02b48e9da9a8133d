"""Music, in miniature."""

import json

from tests.data.layouts.files import Files, Row, wav


def gtzan(config: str) -> tuple[Files, list[Row]]:
    names = [f"{genre}.0000{n}.wav" for genre in ("blues", "rock") for n in range(3)]
    files: Files = {
        f"genres/{name.split('.')[0]}/{name}": wav(number)
        for number, name in enumerate(names)
    }
    splits = ["full"] * len(names)
    if config == "fault_filtered":
        files["train_filtered.txt"] = "blues/blues.00000.wav\nrock/rock.00002.wav\n"
        files["valid_filtered.txt"] = "rock/rock.00000.wav\n"
        files["test_filtered.txt"] = "blues/blues.00002.wav\n"
        splits = ["train", "excluded", "test", "validation", "excluded", "train"]
    return files, [
        (split, name, (), (name.split(".")[0],))
        for split, name in zip(splits, names, strict=True)
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
