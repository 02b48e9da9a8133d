"""Environmental sounds and scenes, in miniature."""

from tests.data.layouts.files import Files, Row, table, wav


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
