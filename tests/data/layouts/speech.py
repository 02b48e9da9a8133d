"""Speech and voices, in miniature."""

import json

from tests.data.layouts.files import Files, Row, noise, wav


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
