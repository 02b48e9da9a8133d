"""Data sets whose clips have captions."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator

import yaml

from clap_jax.pipeline import tables
from clap_jax.pipeline.tars import LaionTarSource
from data.datasets.layout import Folder, LayoutError, youtube_link, youtube_names
from data.datasets.row import Clip, DataSet, Splits

# --- AudioCaps ---


def _audiocaps(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    for split in splits:
        file = "val" if split == "validation" else split
        # Validation and test clips have five rows each: one clip with five captions.
        clips = defaultdict(list)
        for row in folder.table(f"{file}.csv", columns):
            clips[row["youtube_id"], row["start_time"]].append(row)
        for (video, start), rows in clips.items():
            numbers = [row["audiocap_id"] for row in rows]
            names = youtube_names(video, start, float(start) + 10)
            yield Clip(
                split,
                f"{video}_{start}",
                folder.sound(*names, *numbers),
                # Some repeat; LAION-CLAP's protocol asks for five all the same.
                captions=tuple(row["caption"].strip() for row in rows),
                start_seconds=float(start),
                end_seconds=float(start) + 10,
                attribution=youtube_link(video),
            )


AUDIOCAPS = DataSet(
    "audiocaps",
    "AudioCaps: captions for 10 s clips of AudioSet",
    "https://audiocaps.github.io",
    "captions: MIT; audio: of the videos' owners, not to be passed on",
    "Kim, Kim, Lee, Kim. AudioCaps: Generating captions for audios in the wild. "
    "NAACL-HLT 2019",
    {"train": 49838, "validation": 495, "test": 975},
    _audiocaps,
    """train.csv, val.csv and test.csv of https://github.com/cdjkim/audiocaps
    (dataset/), and the clips that you cut from the videos: 10 s each, in any
    folders, named by the video (ID, YID, ID_30, ID_30000) or by the audiocap_id.""",
    vanishing=True,
    note="""The numbers are AudioCaps 1's. A clip of validation and test stands in
    five rows of the csv: it is one clip with five captions here.""",
)

# --- Clotho ---


def _clotho(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    numbers = [f"caption_{number}" for number in range(1, 6)]
    for split in splits:
        rows = list(
            folder.table(f"clotho_captions_{split}.csv", ("file_name", *numbers))
        )
        _check_clotho(folder, split, {row["file_name"].strip() for row in rows})
        details = {}
        if folder.find(f"clotho_metadata_{split}.csv"):
            columns = ("file_name", "keywords", "start_end_samples", "license")
            for row in folder.table(f"clotho_metadata_{split}.csv", columns):
                details[row["file_name"].strip()] = row
        for row in rows:
            name = row["file_name"].strip()
            about = details.get(name, {})
            samples = re.findall(r"\d+", about.get("start_end_samples", ""))
            start, end = samples if len(samples) == 2 else ("nan", "nan")
            yield Clip(
                split,
                name,
                folder.path(split) / name,
                captions=tuple(row[number].strip() for number in numbers),
                tags=tuple(filter(None, tables.texts(about.get("keywords"), ";"))),
                start_seconds=float(start) / 44_100,
                end_seconds=float(end) / 44_100,
                license=about.get("license", ""),
                attribution=" ".join(
                    filter(None, map(about.get, ("manufacturer", "sound_link")))
                ),
            )


def _check_clotho(folder: Folder, split: str, names: set[str]) -> None:
    """Refuse captions of one split beside the sounds of another."""
    for other in CLOTHO.splits:
        place = folder.find(other)
        if other == split or place is None:
            continue
        strangers = sorted(name for name in names if (place / name).exists())
        if strangers:
            raise LayoutError(
                f"clotho: {strangers[0]} is in clotho_captions_{split}.csv but lies in "
                f"{place}: the splits are swapped (some published preprocessing takes "
                "evaluation for validation); unpack the archives again"
            )


CLOTHO = DataSet(
    "clotho",
    "Clotho 2.1: 15 to 30 s of Freesound, five captions each",
    "https://zenodo.org/records/4783391",
    "captions: Tampere University, non-commercial; audio: by clip (Creative Commons)",
    "Drossos, Lipping, Virtanen. Clotho: an Audio Captioning Dataset. ICASSP 2020",
    {"development": 3839, "validation": 1045, "evaluation": 1045},
    _clotho,
    """From https://zenodo.org/records/4783391: clotho_captions_*.csv and
    clotho_metadata_*.csv of the three splits, and clotho_audio_*.7z, which you
    unpack (7z x) so that development/, validation/ and evaluation/ lie beside the
    csv files.""",
    note="""Evaluation is the test split of papers. LAION's preprocessing calls
    evaluation "valid" and validation "test"; numbers got there are of the other
    split.""",
)

# --- MusicCaps ---


def _musiccaps(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("ytid", "start_s", "end_s", "aspect_list", "caption", "is_audioset_eval")
    for row in folder.table("musiccaps-public.csv", columns):
        video, start, end = row["ytid"], row["start_s"], row["end_s"]
        yield Clip(
            "eval" if row["is_audioset_eval"].strip().lower() == "true" else "train",
            video,
            folder.sound(*youtube_names(video, start, end)),
            captions=(" ".join(row["caption"].split()),),
            tags=_list(row["aspect_list"]),
            start_seconds=float(start),
            end_seconds=float(end),
            attribution=youtube_link(video),
        )


def _list(cell: str) -> tuple[str, ...]:
    """A cell that holds a Python list of strings; what is no list is one label."""
    try:
        values = ast.literal_eval(cell.strip() or "[]")
    except (ValueError, SyntaxError):
        values = [cell.strip()]
    return tuple(dict.fromkeys(str(value).strip() for value in values))


MUSICCAPS = DataSet(
    "musiccaps",
    "MusicCaps: 10 s of music from AudioSet, described by musicians",
    "https://www.kaggle.com/datasets/googleai/musiccaps",
    "captions: CC BY-SA 4.0; audio: of the videos' owners, not to be passed on",
    "Agostinelli et al. MusicLM: Generating Music From Text. arXiv 2301.11325",
    {"train": 2663, "eval": 2858},
    _musiccaps,
    """musiccaps-public.csv, and the clips that you cut from the videos, named by the
    video (ID, YID, ID_30, ID_30000), in any folders.""",
    vanishing=True,
    note="""The splits are those of AudioSet that the videos are in
    (is_audioset_eval). Labels are the aspects.""",
)

# --- WavCaps ---

_WAVCAPS = {
    "audioset_sl": ("AudioSet_SL", "as_final.json"),
    "bbc_sound_effects": ("BBC_Sound_Effects", "bbc_final.json"),
    "freesound": ("FreeSound", "fsd_final.json"),
    "soundbible": ("SoundBible", "sb_final.json"),
}


def _wavcaps(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for split in splits:
        name, file = _WAVCAPS[split]
        content = folder.json(f"{name}/{file}")
        for row in content["data"]:
            stem = str(row["id"]).removesuffix(".wav")
            yield Clip(
                split,
                stem,
                folder.sound(stem, inside=(name, f"{name}_flac")),
                captions=(row["caption"].strip(),),
                attribution=" ".join(
                    str(row[key]) for key in ("author", "href") if row.get(key)
                ),
            )


WAVCAPS = DataSet(
    "wavcaps",
    "WavCaps: weakly labelled captions by a language model",
    "https://huggingface.co/datasets/cvssp/WavCaps",
    "captions: CC BY 4.0; audio: academic use only",
    "Mei et al. WavCaps: A ChatGPT-Assisted Weakly-Labelled Audio Captioning Dataset. "
    "arXiv 2303.17395",
    {
        "audioset_sl": 108317,
        "bbc_sound_effects": 31201,
        "freesound": 262300,
        "soundbible": 1232,
    },
    _wavcaps,
    """json_files/ of https://huggingface.co/datasets/cvssp/WavCaps, and the joined
    and unpacked Zip_files/, in folders AudioSet_SL_flac, BBC_Sound_Effects_flac,
    FreeSound_flac and SoundBible_flac (with or without _flac) at any depth.""",
    archives=(),
    note="""The sources are the splits. It holds clips that are also in AudioCaps,
    Clotho, ESC-50, UrbanSound8K and VGGSound: filter before evaluating on these.""",
)

# --- MACS ---


def _macs(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    path = folder.path("MACS.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C: seconds, not minutes
    content = yaml.load(path.read_text(encoding="utf-8"), loader)
    if not isinstance(content, dict) or not isinstance(content.get("files"), list):
        raise LayoutError(f"{path}: expected a list called 'files'")
    for entry in content["files"]:
        name, annotations = entry["filename"], entry["annotations"]
        yield Clip(
            "train",
            name,
            folder.sound(name.removesuffix(".wav")),
            captions=tuple(" ".join(own["sentence"].split()) for own in annotations),
            tags=tuple(
                dict.fromkeys(tag for own in annotations for tag in own["tags"])
            ),
        )


MACS = DataSet(
    "macs",
    "MACS: captions of urban acoustic scenes, two to five a clip",
    "https://zenodo.org/records/5114771",
    "captions: Tampere University, non-commercial; audio: TAU Urban Acoustic Scenes "
    "2019, non-commercial",
    "Martin-Morato, Mesaros. Diversity and Bias in Audio Captioning Datasets. "
    "DCASE 2021",
    {"train": 3930},
    _macs,
    """MACS.yaml of https://zenodo.org/records/5114771, and the audio of TAU Urban
    Acoustic Scenes 2019, development (https://zenodo.org/records/2589280), unpacked
    or as its zip files.""",
)

# --- WavText5K ---


def _wavtext5k(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("view_link", "title", "description", "fname", "tags")
    rows = defaultdict(list)
    for row in folder.table("WavText5K.csv", columns):
        rows[row["fname"].strip()].append(row)
    for name, same in rows.items():
        texts = [
            " ".join(r["description"].split()) or " ".join(r["title"].split())
            for r in same
        ]
        yield Clip(
            "train",
            name,
            folder.sound(name.removesuffix(".wav")),
            captions=tuple(dict.fromkeys(filter(None, texts))),
            tags=tuple(dict.fromkeys(tag for r in same for tag in _list(r["tags"]))),
            attribution=same[0]["view_link"],
        )


WAVTEXT5K = DataSet(
    "wavtext5k",
    "WavText5K: sounds of BigSoundBank and SoundBible with their descriptions",
    "https://github.com/microsoft/WavText5K",
    "MIT for the list; audio: by the two sites",
    "Deshmukh, Elizalde, Wang. Audio Retrieval with WavText5K and CLAP Training. "
    "Interspeech 2023",
    {"train": None},
    _wavtext5k,
    """WavText5K.csv of https://github.com/microsoft/WavText5K, and the sounds that
    its process.py downloads, in any folder.""",
    note="""Where there is no description, the title is the caption. Rows of one file
    are one clip. The sites take sounds away, so expected is what the csv lists.""",
)

# --- LAION-Audio-630K ---


def _laion(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for split in splits:
        shards = [path for root in folder.roots for path in root.rglob("*.tar")]
        paths = sorted(str(path) for path in shards if path.parent.name == split)
        if not paths:
            continue
        source = LaionTarSource(paths)
        for index in range(len(source)):
            yield Clip(
                split,
                source.id(index),
                functools.partial(_bytes, source, index),
                captions=tuple(source.captions(index)),
                tags=tuple(source.tags(index)),
                audio_bytes=source.audio_bytes(index),
            )


def _bytes(source: LaionTarSource, index: int) -> bytes:
    return source[index]["audio"]


LAION_AUDIO_630K = DataSet(
    "laion_audio_630k",
    "LAION-Audio-630K: eight sources of sounds with texts, as webdataset shards",
    "https://github.com/LAION-AI/audio-dataset",
    "by source; see the data cards of LAION-AI/audio-dataset",
    "Wu et al. Large-scale Contrastive Language-Audio Pretraining with Feature Fusion "
    "and Keyword-to-Caption Augmentation. ICASSP 2023",
    dict.fromkeys(("train", "valid", "test")),
    _laion,
    """The shards as LAION lays them out: any folders SOURCE/train, SOURCE/valid and
    SOURCE/test with tar files of .flac and .json pairs.""",
    archives=(),
    note="""Shards can also be read as they are (kind laion_tar), without a copy. The
    corpus: 633,526 pairs of Freesound, Epidemic Sound, BBC Sound Effects,
    Audiostock, Free To Use Sounds, Sonniss, Paramount Motion and We Sound Effects.""",
)

ROWS = (AUDIOCAPS, CLOTHO, MUSICCAPS, WAVCAPS, MACS, WAVTEXT5K, LAION_AUDIO_630K)
