"""Data sets whose clips have several labels each, or come from AudioSet's videos."""

from collections import defaultdict
from collections.abc import Iterator

from data.datasets.layout import Folder, LayoutError, youtube_link, youtube_names
from data.datasets.row import Clip, DataSet, Splits

# --- FSD50K ---


def _fsd50k(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    labels = ("fname", "labels", "mids")
    truth = "FSD50K.ground_truth"
    parts = {"eval": labels} if "test" in splits else {}
    if set(splits) - {"test"}:
        parts["dev"] = (*labels, "split")
    for part, columns in parts.items():
        about = {}
        details = f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
        if folder.find(details):
            about = folder.json(details)
        audio = folder.path(f"FSD50K.{part}_audio")
        for row in folder.table(f"{truth}/{part}.csv", columns):
            own = about.get(row["fname"], {})
            texts = (own.get("title", ""), own.get("description", ""))
            caption = ". ".join(filter(None, (" ".join(t.split()) for t in texts)))
            yield Clip(
                {"train": "train", "val": "validation"}.get(row.get("split"), "test"),
                row["fname"],
                audio / f"{row['fname']}.wav",
                captions=(caption,) if caption else (),
                tags=tuple(row["labels"].split(",")),
                license=own.get("license", ""),
                attribution=own.get("uploader", ""),
            )


FSD50K = DataSet(
    "fsd50k",
    "FSD50K: 200 classes of AudioSet's ontology on sounds of Freesound",
    "https://zenodo.org/records/4060432",
    "CC BY 4.0; audio by clip (Creative Commons)",
    "Fonseca, Favory, Pons, Font, Serra. FSD50K: an Open Dataset of Human-Labeled "
    "Sound Events. IEEE/ACM TASLP 2022",
    {"train": 36796, "validation": 4170, "test": 10231},
    _fsd50k,
    """All of https://zenodo.org/records/4060432. Join the parts of the audio first
    (zip -s 0 FSD50K.dev_audio.zip --out dev.zip), and unpack: FSD50K.dev_audio,
    FSD50K.eval_audio, FSD50K.ground_truth and FSD50K.metadata.""",
    archives=(),
    note="""Captions are title and description, as MS-CLAP 2022 trained on them,
    where FSD50K.metadata is there; captions_from="tags" makes them of the labels.""",
)

# --- AudioSet ---


def _audioset(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("mid", "display_name")
    names = {
        row["mid"]: row["display_name"]
        for row in folder.table("class_labels_indices.csv", columns)
    }
    segments = ("YTID", "start_seconds", "end_seconds", "positive_labels")
    for split in splits:
        file = f"{split}_segments.csv"
        for row in folder.table(file, segments, header=False):
            video, start, end = row["YTID"], row["start_seconds"], row["end_seconds"]
            mids = row["positive_labels"].strip(' "').split(",")
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                raise LayoutError(
                    f"{folder.path(file)}: video {video} has the label {unknown[0]!r}, "
                    "which is not in class_labels_indices.csv"
                )
            yield Clip(
                split,
                video,
                folder.sound(*youtube_names(video, start, end)),
                tags=tuple(names[mid] for mid in mids),
                start_seconds=float(start),
                end_seconds=float(end),
                attribution=youtube_link(video),
            )


AUDIOSET = DataSet(
    "audioset",
    "AudioSet: 527 classes on 10 s clips of YouTube",
    "https://research.google.com/audioset/",
    "labels: CC BY 4.0; ontology: CC BY-SA 4.0; audio: of the videos' owners",
    "Gemmeke et al. Audio Set: An ontology and human-labeled dataset for audio events. "
    "ICASSP 2017",
    {"balanced_train": 22160, "unbalanced_train": 2041789, "eval": 20371},
    _audioset,
    """balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
    and class_labels_indices.csv of
    https://research.google.com/audioset/download.html, ontology.json of
    https://github.com/audioset/ontology, and the clips that you cut from the videos,
    named by the video (ID, YID, ID_30, ID_30000, YID_30.000_40.000), in any folders.
    --splits=balanced_train,eval for less than all.""",
    archives=(),
    keep=("ontology.json", "class_labels_indices.csv"),
    vanishing=True,
    note="Labels are display names; ontology.json is kept beside the shards.",
)

# --- VGGSound ---


def _vggsound(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("youtube_id", "start_seconds", "label", "split")
    for row in folder.table("vggsound.csv", columns, header=False):
        video, start = row["youtube_id"], row["start_seconds"]
        yield Clip(
            row["split"].strip(),
            f"{video}_{int(start):06d}",
            folder.sound(*youtube_names(video, start, float(start) + 10)),
            tags=(row["label"].strip(),),
            start_seconds=float(start),
            end_seconds=float(start) + 10,
            attribution=youtube_link(video),
        )


VGGSOUND = DataSet(
    "vggsound",
    "VGGSound: 309 classes on 10 s clips of YouTube",
    "https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
    "CC BY 4.0; audio: of the videos' owners",
    "Chen, Xie, Vedaldi, Zisserman. VGGSound: A Large-scale Audio-Visual Dataset. "
    "ICASSP 2020",
    {"train": None, "test": None},
    _vggsound,
    """vggsound.csv of the homepage, and the sound of the clips, named ID_000030
    (start in six digits), ID or ID_30, in any folders.""",
    vanishing=True,
    note="Expected are the clips that vggsound.csv lists.",
)

# --- DCASE 2017 task 4 ---


def _dcase2017_task4(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("file", "start_seconds", "end_seconds", "label")
    for split in splits:
        name = f"groundtruth_weak_label_{split}_set.csv"
        clips = defaultdict(list)
        for row in folder.table(name, columns, delimiter="\t", header=False):
            clips[row["file"]].append(row)
        for file, rows in clips.items():
            stem = file.removesuffix(".wav")
            start, end = float(rows[0]["start_seconds"]), float(rows[0]["end_seconds"])
            video = stem.removesuffix(f"_{start:.3f}_{end:.3f}")
            yield Clip(
                split,
                stem,
                folder.sound(f"Y{stem}", stem),
                tags=tuple(dict.fromkeys(row["label"].strip() for row in rows)),
                start_seconds=start,
                end_seconds=end,
                attribution=youtube_link(video),
            )


DCASE2017_TASK4 = DataSet(
    "dcase2017_task4",
    "DCASE 2017 task 4: 17 warning and vehicle sounds of AudioSet",
    "https://dcase.community/challenge2017/task-large-scale-sound-event-detection",
    "labels: CC BY 4.0 (AudioSet); audio: of the videos' owners",
    "Mesaros et al. DCASE 2017 challenge setup: Tasks, datasets and baseline system. "
    "DCASE 2017",
    {"training": 51172, "testing": 488, "evaluation": 1103},
    _dcase2017_task4,
    """groundtruth_weak_label_training_set.csv, ..._testing_set.csv and
    ..._evaluation_set.csv of the task's repository
    (https://github.com/ankitshah009/Task-4-Large-scale-weakly-supervised-sound-event-detection-for-smart-cars,
    groundtruth_release/), and the clips of its three archives, whose passwords the
    challenge gives (Y<video>_<start>_<end>.wav), in any folders.""",
    archives=(),
    vanishing=True,
    note="A clip with several rows has several labels. Papers test on evaluation.",
)

ROWS = (FSD50K, AUDIOSET, VGGSOUND, DCASE2017_TASK4)
