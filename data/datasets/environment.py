"""Environmental sounds and acoustic scenes, one label a clip; actions, several."""

from collections.abc import Iterator

from data.datasets.layout import Folder, LayoutError
from data.datasets.row import Clip, DataSet, Splits

# --- ESC-50 ---


def _esc50(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("filename", "fold", "category", "src_file")
    for row in folder.table("meta/esc50.csv", columns):
        yield Clip(
            f"fold{row['fold']}",
            row["filename"],
            folder.path("audio") / row["filename"],
            tags=(row["category"],),
            fold=row["fold"],
            attribution=f"https://freesound.org/s/{row['src_file']}/",
        )


ESC50 = DataSet(
    "esc50",
    "ESC-50: 50 classes of environmental sounds, 5 s each",
    "https://github.com/karolpiczak/ESC-50",
    "CC BY-NC 3.0; by clip in its LICENSE",
    "Piczak. ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015",
    {f"fold{fold}": 400 for fold in range(1, 6)},
    _esc50,
    """https://github.com/karolpiczak/ESC-50, as a clone or its zip file:
    meta/esc50.csv and audio/.""",
    urls=("https://github.com/karolpiczak/ESC-50/archive/master.zip",),
    keep=("LICENSE",),
    note="""The folds are the splits: fold1+fold2+fold3+fold4 trains, fold5 tests;
    all is what zero-shot numbers are of.""",
)

# --- ESC50-Actions ---

_LIKELY = 2.0  # the middle of the annotators' scale, 0 (very unlikely) to 4


def _esc50_actions(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    known = ("filename", "fold", "target", "category")
    name = "actionvector_one_per_audiofile.csv"
    for row in folder.table(name, known):
        ratings = {key: float(row[key]) for key in row if key not in known}
        if not ratings:
            raise LayoutError(f"{folder.path(name)}: there are no columns of actions")
        bound = min(_LIKELY, max(ratings.values()))
        yield Clip(
            f"fold{row['fold']}",
            row["filename"],
            folder.path("audio") / row["filename"],
            tags=tuple(key for key, value in ratings.items() if value >= bound),
            fold=row["fold"],
        )


ESC50_ACTIONS = DataSet(
    "esc50_actions",
    "ESC50-Actions: which of 20 actions made the sounds of ESC-50",
    "https://github.com/bmartin1/Identifying_Actions_for_Sound_Event_Classification",
    "audio: CC BY-NC 3.0; ratings: no licence stated",
    "Elizalde, Revutchi, Das, Raj, Lane, Heller. Identifying Actions for Sound Event "
    "Classification. WASPAA 2021",
    {f"fold{fold}": 400 for fold in range(1, 6)},
    _esc50_actions,
    """ESC-50 as for esc50, and
    action_vectors_dataset/actionvector_one_per_audiofile.csv of the homepage beside
    it.""",
    note="""The authors publish mean ratings from 0 to 4 and no labels. Here a clip
    has the actions rated 2 or more, or its highest ones where none is: our choice,
    so that numbers compare with others' only roughly.""",
)

# --- UrbanSound8K ---


def _urbansound8k(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    columns = ("slice_file_name", "fsID", "start", "end", "fold", "class")
    audio = folder.path("audio")
    for row in folder.table("metadata/UrbanSound8K.csv", columns):
        yield Clip(
            f"fold{row['fold']}",
            row["slice_file_name"],
            audio / f"fold{row['fold']}" / row["slice_file_name"],
            tags=(row["class"],),
            fold=row["fold"],
            start_seconds=float(row["start"]),
            end_seconds=float(row["end"]),
            attribution=f"https://freesound.org/s/{row['fsID']}/",
        )


_URBAN_FOLDS = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)

URBANSOUND8K = DataSet(
    "urbansound8k",
    "UrbanSound8K: 10 classes of city sounds, up to 4 s",
    "https://urbansounddataset.weebly.com/urbansound8k.html",
    "CC BY-NC 3.0",
    "Salamon, Jacoby, Bello. A Dataset and Taxonomy for Urban Sound Research. "
    "ACM Multimedia 2014",
    {f"fold{fold}": clips for fold, clips in enumerate(_URBAN_FOLDS, start=1)},
    _urbansound8k,
    """UrbanSound8K.tar.gz, or what it holds: UrbanSound8K/metadata and
    UrbanSound8K/audio.""",
    urls=("https://zenodo.org/record/1203745/files/UrbanSound8K.tar.gz",),
    note="""The ten folds are the splits. Other folds put slices of one recording on
    both sides, and numbers got so are too high.""",
)

# --- TUT Acoustic Scenes 2017 ---


def _tut2017(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for split in splits:
        root = f"TUT-acoustic-scenes-2017-{split}"
        listing, folds = f"{root}/meta.txt", {}
        if split == "development":
            for fold in range(1, 5):
                for line in folder.lines(
                    f"{root}/evaluation_setup/fold{fold}_evaluate.txt"
                ):
                    folds[line.split("\t")[0]] = str(fold)
        elif not folder.find(listing):  # in some copies only
            listing = f"{root}/evaluation_setup/evaluate.txt"
        for line in folder.lines(listing):
            file, label, *_ = [*line.split("\t"), ""]
            if not label:
                raise LayoutError(
                    f"{folder.path(listing)}: {line!r} has no scene after a tab"
                )
            name = file.removeprefix("audio/")
            yield Clip(
                split,
                name,
                folder.sound(name.removesuffix(".wav"), inside=(root,)),
                tags=(label.strip(),),
                fold=folds.get(file, ""),
            )


_ZENODO_TUT = "https://zenodo.org/record/{}/files/TUT-acoustic-scenes-2017-{}.{}.zip"

TUT2017 = DataSet(
    "tut2017",
    "TUT Acoustic Scenes 2017: 15 scenes, 10 s",
    "https://zenodo.org/records/400515",
    "Tampere University, non-commercial",
    "Mesaros, Heittola, Virtanen. TUT database for acoustic scene classification and "
    "sound event detection. EUSIPCO 2016",
    {"development": 4680, "evaluation": 1620},
    _tut2017,
    """The zip files of https://zenodo.org/records/400515 (development) and
    https://zenodo.org/records/1040168 (evaluation), or what they hold:
    TUT-acoustic-scenes-2017-development/ and -evaluation/.""",
    urls=(
        *(
            _ZENODO_TUT.format(400515, "development", f"audio.{n}")
            for n in range(1, 11)
        ),
        _ZENODO_TUT.format(400515, "development", "meta"),
        *(_ZENODO_TUT.format(1040168, "evaluation", f"audio.{n}") for n in range(1, 5)),
        _ZENODO_TUT.format(1040168, "evaluation", "meta"),
    ),
    note="fold: the one of the four development folds that tests on the clip.",
)

# --- SESA ---


def _sesa(folder: Folder, config: str, splits: Splits) -> Iterator[Clip]:
    for split in splits:
        for path in folder.sounds(split):
            label = path.stem.rsplit("_", 1)[0]
            yield Clip(split, path.name, path, tags=(label,))


SESA = DataSet(
    "sesa",
    "SESA: sound events for surveillance, 4 classes",
    "https://zenodo.org/records/3519845",
    "CC BY 4.0",
    "Spadini. Sound Events for Surveillance Applications. Zenodo 2019",
    {"train": 480, "test": 105},
    _sesa,
    """SESA.zip of https://zenodo.org/records/3519845, or what it holds: train/ and
    test/ with files casual_000.wav, explosion_..., gunshot_..., siren_...""",
)

ROWS = (ESC50, ESC50_ACTIONS, URBANSOUND8K, TUT2017, SESA)
