"""Data sets with several labels a clip, or from YouTube, in miniature."""

import json

from tests.data.layouts.files import Files, Row, table, wav


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
