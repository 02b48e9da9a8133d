"""Every data set, in miniature and as it is published, through its builder and back."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from clap_jax.pipeline.tfds import TfdsSource
from data.datasets import SETS, builder
from data.datasets.layout import Folder, LayoutError
from data.datasets.row import Clip, DataSet
from tests.data.layouts import LAYOUTS, captioned, speech, tagged
from tests.data.layouts.files import wav, write


def named(name: str) -> tuple[DataSet, str]:
    """The row and the config of a layout."""
    name, _, config = name.partition("/")
    return SETS[name], config


def shrunk(row: DataSet, config: str, clips: list) -> DataSet:
    """The row, with the numbers of clips of a layout for those published."""
    numbers = Counter(clip[0] for clip in clips)
    published = row.splits_of(config)
    assert set(numbers) <= set(published)
    assert {s for s, n in published.items() if n is not None} <= set(numbers)
    splits = {split: number and numbers[split] for split, number in published.items()}
    if config:
        return dataclasses.replace(row, configs={**row.configs, config: splits})
    return dataclasses.replace(row, splits=splits)


def listed(row: DataSet, folder: Path, config: str = "") -> list[Clip]:
    """The clips of all splits that lie in a folder."""
    return list(row.read(Folder([folder]), config, tuple(row.splits_of(config))))


def prepared(
    tmp_path, row: DataSet, config: str = "", **options
) -> builder.ClipBuilder:
    """Prepare what lies in tmp_path/manual."""
    made = builder.make(row, config, data_dir=tmp_path / "tfds", **options)
    made.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual")
    )
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Indices of tar files are kept in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_data_set_has_a_layout():
    assert {name.partition("/")[0] for name in LAYOUTS} == set(SETS)
    for row in SETS.values():
        configs = {f"{row.name}/{config}" for config in row.configs} or {row.name}
        assert configs <= set(LAYOUTS)


@pytest.mark.parametrize("row", SETS.values(), ids=SETS)
def test_rows_are_whole(row):
    for text in (row.title, row.homepage, row.licence, row.citation, row.get):
        assert text.strip()
    assert row.homepage.startswith("https://")
    assert all(url.startswith("http") for url in row.urls)
    for config in row.configs or ("",):
        assert row.splits_of(config)
        assert all(n is None or n > 0 for n in row.splits_of(config).values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_prepared_and_read(tmp_path, name):
    files, clips = LAYOUTS[name]()
    write(tmp_path / "manual", files)
    row, config = named(name)
    prepared(tmp_path, shrunk(row, config, clips), config)

    by_split: dict[str, dict] = {}
    for split, *clip in clips:
        by_split.setdefault(split, {})[clip[0]] = clip
    heard = set()
    for split, own in by_split.items():
        source = TfdsSource(name, split, tmp_path / "tfds")
        assert len(source) == len(own)
        for index in range(len(source)):
            example = source[index]
            _, captions, tags = own.pop(example["id"])
            assert tuple(example["tags"]) == tags
            if captions:
                assert tuple(example["captions"]) == captions
                assert example["group"] == example["id"]
            else:
                assert example["group"] == ("|".join(tags) or example["id"])
                assert len(example["captions"]) == max(1, len(tags))
            audio = example["audio"]
            same = [c for f, c in files.items() if f.endswith(f"/{example['id']}")]
            if same:
                assert audio == same[0]
            elif "silence" not in tags and row.name != "laion_audio_630k":
                assert audio in files.values()
            heard.add(audio)
        assert not own
    assert len(heard) == len(clips)  # no sound stands for two clips


NOT_NEEDED = (
    *("clotho_metadata", "FSD50K.metadata", "ontology.json", "LICENSE", "sizes.json"),
    *("test/0_105-0001.json", "test/10_77-0002.json"),  # LibriCount's annotations
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_table_that_is_missing_is_named(tmp_path, name):
    files, clips = LAYOUTS[name]()
    row, config = named(name)
    row = shrunk(row, config, clips)
    folder = write(tmp_path / "manual", files)
    tables = [t for t in files if t.endswith((".csv", ".txt", ".json", ".yaml"))]
    for table in tables:
        (folder / table).unlink()
        if any(word in table for word in NOT_NEEDED):
            builder.gather(row, Folder([folder]), config)
        else:
            with pytest.raises(LayoutError) as caught:
                builder.gather(row, Folder([folder]), config)
            text = str(caught.value)
            assert table.rsplit("/", 1)[-1] in text and str(folder) in text
        write(folder, {table: files[table]})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_that_is_missing_is_counted(tmp_path, name):
    files, clips = LAYOUTS[name]()
    row, config = named(name)
    row = shrunk(row, config, clips)
    folder = write(tmp_path / "manual", files)
    found = listed(row, folder, config)
    used = sorted(clip.audio for clip in found if isinstance(clip.audio, Path))
    if row.name == "laion_audio_630k":  # tar files know what is in them
        assert not used
        return
    used[0].unlink()
    with pytest.raises(LayoutError, match=f"^{row.name}, .* clips found|no sound file"):
        builder.gather(row, Folder([folder]), config)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_split_needs_nothing_of_the_others(tmp_path, name):
    """What names another split is taken away; the rest still gives this one."""
    files, clips = LAYOUTS[name]()
    row, config = named(name)
    row = shrunk(row, config, clips)
    words = {
        "audiocaps": {"train": "/train", "validation": "val", "test": "test"},
        "nsynth": {"train": "-train", "validation": "-valid", "test": "-test"},
        "vocalsound": {"train": "tr.", "validation": "val.", "test": "te."},
        "wavcaps": {"freesound": "FreeSound", "soundbible": "SoundBible"},
        "fsd50k": {"test": "eval", "train": "dev", "validation": "dev"},
        "audioset": {split: f"{split}_segments" for split in SETS["audioset"].splits},
        "sesa": {"train": "/train/", "test": "/test/"},
    }
    words |= {
        name: {split: split for split in SETS[name].splits}
        for name in ("clotho", "dcase2017_task4", "tut2017")
    }
    own = words.get(row.name, {})
    for split, word in own.items():
        others = {other for other in own.values() if other != word}
        folder = write(
            tmp_path / split,
            {
                file: content
                for file, content in files.items()
                if not any(other in file for other in others) or word in file
            },
        )
        found, _ = builder.gather(row, Folder([folder]), config, wanted=[split])
        assert sorted(clip.id for clip in found[split]) == sorted(
            clip[1] for clip in clips if clip[0] == split
        )


def test_audiocaps_rows_of_a_clip_are_one_clip(tmp_path):
    files, _ = captioned.audiocaps()
    folder = write(tmp_path, files)
    clips = listed(SETS["audiocaps"], folder)
    assert Counter(clip.split for clip in clips) == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    (clip,) = (clip for clip in clips if clip.id == "ddd_70")
    assert len(clip.captions) == 5
    assert (clip.start_seconds, clip.end_seconds) == (70.0, 80.0)


@pytest.mark.parametrize("move_csv", [True, False])
def test_clotho_splits_that_are_swapped_are_refused(tmp_path, move_csv):
    files, _ = captioned.clotho()
    swapped = {"validation": "evaluation", "evaluation": "validation"}

    def swap(name: str) -> str:
        split = next((s for s in swapped if s in name), None)
        if split is None or name.startswith("clotho") != move_csv:
            return name
        if move_csv:
            return name.replace(split, swapped[split])
        return f"{swapped[split]}/{name.split('/')[1]}"

    folder = write(tmp_path, {swap(name): c for name, c in files.items()})
    with pytest.raises(LayoutError, match="the splits are swapped"):
        builder.gather(SETS["clotho"], Folder([folder]))


def test_clotho_says_where_a_clip_is_from(tmp_path):
    files, _ = captioned.clotho()
    folder = write(tmp_path, files)
    clip = listed(SETS["clotho"], folder)[0]
    assert (clip.start_seconds, clip.end_seconds) == (0.0, 1.0)
    assert clip.license == "CC0"
    assert clip.attribution == "x https://freesound.org/people/x/sounds/0"


def test_silence_is_cut_from_background_noise(tmp_path):
    files, clips = speech.speech_commands("commands")
    folder = write(tmp_path / "manual", files)
    row, config = named("speech_commands/commands")
    prepared(tmp_path, shrunk(row, config, clips), config)
    source = TfdsSource("speech_commands/commands", "train", tmp_path / "tfds")
    ids = [source.id(index) for index in range(len(source))]
    cut = source[ids.index("_background_noise_/pink_noise_8000")]["audio"]
    (tmp_path / "cut.wav").write_bytes(cut)
    found, rate_hz = soundfile.read(tmp_path / "cut.wav", dtype="int16")
    noise = folder / "speech_commands_v0.02/_background_noise_/pink_noise.wav"
    whole, _ = soundfile.read(noise, dtype="int16")
    assert rate_hz == 16_000
    np.testing.assert_array_equal(found, whole[8000:24000])


def test_video_names_prefer_those_with_a_start(tmp_path):
    files, _ = tagged.vggsound()
    files["audio/--0PQM4-hqg.wav"] = wav(9)
    folder = write(tmp_path, files)
    clips = listed(SETS["vggsound"], folder)
    assert [clip.audio.name for clip in clips if clip.split == "train"] == [
        "--0PQM4-hqg_000030.flac",
        "--0PQM4-hqg_000050.flac",
    ]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "esc50",
            ("ESC-50-master/meta/esc50.csv", "category", "klass"),
            r"esc50.csv: column 'category' is missing \(found: filename, fold",
        ),
        (
            "vggsound",
            ("vggsound.csv", "people marching,", ""),
            "vggsound.csv, line 1: 3 fields, expected 4",
        ),
        (
            "audioset",
            ("class_labels_indices.csv", "/m/0ytgt", "/m/other"),
            "video --4gqARaEJE has the label '/m/0ytgt', which is not in",
        ),
        ("nsynth/pitch", ("nsynth-test/examples.json", "{", "["), "is not JSON"),
        ("macs", ("MACS.yaml", "files:", "clips:"), "expected a list called 'files'"),
        (
            "tut2017",
            ("TUT-acoustic-scenes-2017-development/meta.txt", "\tbeach", " beach"),
            "has no scene after a tab",
        ),
    ],
)
def test_tables_that_are_otherwise_are_refused(tmp_path, name, change, reason):
    files, _ = LAYOUTS[name]()
    file, old, new = change
    assert old in files[file]
    files[file] = files[file].replace(old, new, 1)
    folder = write(tmp_path, files)
    row, config = named(name)
    if name == "tut2017":
        files[file] = files[file].replace("\tb020", "")
        write(tmp_path, {file: files[file]})
    with pytest.raises(LayoutError, match=reason):
        listed(row, folder, config)


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("crema_d", "AudioWAV/1001_DFA_XYZ_XX.wav", "part 3 of its name is 'XYZ'"),
        ("libricount", "test/11_5.wav", "expected <speakers, 0 to 10>_<id>.wav"),
        ("mridangam/tonic", "B/1__a__cha-f-1.wav", "with a tonic of b, c, csh"),
        ("beijing_opera", "loud.wav", "expected <id>__<user>__<instrument>-<number>"),
        ("gtzan/genres", "genres/blues/song.wav", "the folder is 'blues'"),
    ],
)
def test_file_names_that_say_nothing_are_refused(tmp_path, name, file, reason):
    folder = write(tmp_path, {file: wav(0)})
    row, config = named(name)
    with pytest.raises(LayoutError, match=reason):
        listed(row, folder, config)


def test_the_readme_lists_every_data_set():
    text = (Path(__file__).resolve().parents[2] / "data" / "README.md").read_text()
    for row in SETS.values():
        (line,) = (
            line for line in text.splitlines() if line.startswith(f"| `{row.name}`")
        )
        assert f"| {row.licence} |" in line
        for config in row.configs:
            assert f"`{config}`" in line
        for split, clips in row.splits.items():
            assert (f"{split} {clips:,}" if clips else split) in line
        assert ("--download" in line) == bool(row.urls)
