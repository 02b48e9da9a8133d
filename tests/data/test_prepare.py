"""The command, and what comes of it: the same clips as by other ways, and a run."""

import csv
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.evals import suite
from clap_jax.evals.zeroshot import ZeroShot
from clap_jax.pipeline import array_record
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.tfds import TfdsSource
from clap_jax.train import experiment
from data import clips, listing, pack, prepare
from data.datasets import SETS
from tests.data import planted
from tests.data.layouts import LAYOUTS, environment, music
from tests.data.layouts.files import wav, write
from tests.data.test_datasets import shrunk
from tests.evals.fakes import normalised, vector
from tests.pipeline.clips import RATE_HZ, write_table
from tests.pipeline.shards import tar_bytes
from tests.train import tiny

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def esc50(tmp_path, monkeypatch) -> Path:
    """ESC-50 in miniature is what the command knows by its name; its folder."""
    files, clips = environment.esc50()
    monkeypatch.setitem(SETS, "esc50", shrunk(SETS["esc50"], "", clips))
    return write(tmp_path / "manual", files)


def run(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


def test_a_set_by_its_name(esc50, tmp_path, capsys):
    place = ("esc50", f"--data_dir={tmp_path / 'tfds'}")
    assert run(*place, f"--manual_dir={esc50}") == 0
    said = capsys.readouterr().out
    folder = tmp_path / "tfds" / "esc50" / "1.0.0"
    assert "esc50: 5 clips (fold1 1, fold2 1, fold3 1, fold4 1, fold5 1)" in said
    assert f"Prepared: {folder}\n" in said and "Licence: CC BY-NC 3.0" in said
    # The line for a config does what it says.
    line = said[
        said.index("config.data.sources = (") + len("config.data.sources = (") :
    ]
    section = json.loads(line[: line.index("},") + 1])
    assert section.pop("kind") == "tfds"
    assert len(TfdsSource(**section)) == 1

    before = folder.stat().st_mtime_ns
    assert run(*place) == 0  # without the folder it came from
    assert "It was there already" in capsys.readouterr().out
    assert run(*place, f"--manual_dir={esc50}", "--overwrite", "--splits=fold2") == 0
    assert "esc50: 1 clips (fold2 1)" in capsys.readouterr().out
    assert folder.stat().st_mtime_ns != before


def test_a_download_that_fails_is_a_sentence(server, monkeypatch, tmp_path, capsys):
    row = dataclasses.replace(SETS["sesa"], urls=(f"{server}/SESA.zip",))
    monkeypatch.setitem(SETS, "sesa", row)
    assert run("sesa", f"--data_dir={tmp_path / 'tfds'}", "--download") == 1
    error = capsys.readouterr().err
    assert f"{server}/SESA.zip" in error and "404" in error


def test_less_than_all_when_asked_for(esc50, tmp_path, capsys):
    (esc50 / "ESC-50-master/audio/3-100033-A-0.wav").unlink()
    row = SETS["esc50"]
    splits = {"fold1": 1, "fold3": 2}
    files, _ = environment.esc50()
    csv = "ESC-50-master/meta/esc50.csv"
    write(esc50, {csv: files[csv] + "x.wav,3,0,dog,True,1,A\n"})
    write(esc50, {"ESC-50-master/audio/x.wav": wav(0)})
    SETS["esc50"] = dataclasses.replace(row, splits={**row.splits, **splits})
    place = ("esc50", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={esc50}")
    assert run(*place) == 1
    error = capsys.readouterr().err
    assert "esc50, fold3: 1 clips found, 2 expected; 1 have no audio file" in error
    assert "3-100033-A-0.wav" in error and "--allow_partial" in error
    assert run(*place, "--allow_partial") == 0
    assert "Incomplete: fold3 has 1 of 2 clips." in capsys.readouterr().out


def test_a_config_by_its_name(tmp_path, monkeypatch, capsys):
    files, clips = music.mridangam("tonic")
    row = shrunk(SETS["mridangam"], "tonic", clips)
    monkeypatch.setitem(SETS, "mridangam", row)
    folder = write(tmp_path / "manual", files)
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={folder}")
    assert run("mridangam/tonic", *place) == 0
    assert '"dataset": "mridangam/tonic"' in capsys.readouterr().out
    source = TfdsSource("mridangam/tonic", "full", tmp_path / "tfds")
    assert {source.tags(0)[0], source.tags(1)[0]} == {"B", "C#"}
    assert run("mridangam/tonik", *place) == 1
    assert "no config 'tonik' (configs: stroke, tonic)" in capsys.readouterr().err


def test_what_is_there_is_listed(capsys):
    assert run("list") == 0
    said = capsys.readouterr().out
    for name, row in SETS.items():
        assert f"\n{name}" in f"\n{said}" and row.licence in said
    assert "nsynth [instrument | pitch | velocity | qualities]" in said


@pytest.mark.parametrize("name", SETS)
def test_help_says_what_is_needed(capsys, name):
    with pytest.raises(SystemExit) as caught:
        run(name, "--help")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (SETS[name].get, SETS[name].note, SETS[name].licence):
        assert " ".join(text.split()) in said
    assert ("--download" in said) == bool(SETS[name].urls)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["esc51"], "there is no data set 'esc51' (there are: audiocaps, clotho"),
        (["manifest", "--table=no.csv"], "no.csv: No such file"),
        (["manifest", "--table=x.csv", "--options={"], "--options is not JSON"),
        (["manifest", "--table=x.csv", "--name=a/b"], "--name is 'a/b', expected"),
        (["esc50", "--splits=fold9"], "esc50 has no split 'fold9'"),
    ],
)
def test_what_cannot_be_is_a_sentence(esc50, tmp_path, capsys, arguments, reason):
    place = [f"--data_dir={tmp_path / 'tfds'}"]
    if arguments[0] == "esc50":
        place.append(f"--manual_dir={esc50}")
    assert run(*arguments, *place) == 1
    error = capsys.readouterr().err
    assert error.startswith("data.prepare: ") and reason in error


def test_a_table_is_split_by_a_column(tmp_path, capsys):
    table = write_table(tmp_path / "sounds", 4)
    rows = table.read_text().splitlines()
    parts = ["part", "dev", "1", "dev", "1"]
    text = "".join(f"{row},{part}\n" for row, part in zip(rows, parts, strict=True))
    table.write_text(text)
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--table={table}", "--name=four")
    assert run("manifest", *place, "--split_column=part") == 0
    assert "four: 4 clips (dev 2, part1 2)" in capsys.readouterr().out
    source = TfdsSource("four", "part1", tmp_path / "tfds")
    assert [source.id(i) for i in range(2)] == ["1.flac", "3.flac"]
    assert run("manifest", *place, "--split_column=pard", "--overwrite") == 1
    assert "unknown column 'pard' (did you mean 'part'?" in capsys.readouterr().err


def real_table(shared_data: Path, path: Path, every: int) -> Path:
    """Every n-th clip of each labelled set as one table, by absolute paths."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption", "label_text"))
        for name in planted.SETS:
            with open(shared_data / name / "metadata.csv", newline="") as rows:
                for row in list(csv.DictReader(rows))[::every]:
                    sound = shared_data / name / row["path"]
                    writer.writerow((sound, row["caption"], row["label_text"]))
    return path


def test_manifest_tar_and_tfds_pack_to_the_same_clips(shared_data, tmp_path):
    """Real sounds of all sets: the same bytes, captions and labels by three ways."""
    table = real_table(shared_data, tmp_path / "real.csv", every=4)
    manifest = ManifestSource(table)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "data.prepare", "manifest", f"--table={table}"),
            *("--name=real", f"--data_dir={tmp_path}"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    count = len(manifest)
    assert count > 200 and f"real: {count} clips (train {count})" in done.stdout
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(tar_of(manifest))
    options = {"dataset": "real", "split": "train", "data_dir": str(tmp_path)}
    ways = {
        "manifest": listing.Query("manifest", str(table)),
        "laion_tar": listing.Query("laion_tar", str(tmp_path / "tars")),
        "tfds": listing.Query("tfds", "", json.dumps(options)),
    }
    packed = {}
    for kind, query in ways.items():
        pack.pack(query, clips.Settings(), str(tmp_path / "packed" / kind), 2)
        packed[kind] = array_record.ArrayRecordSource(tmp_path / "packed" / kind)
    for index in range(count):
        original = manifest[index]
        content = Path(original["audio"]).read_bytes()
        for kind, source in packed.items():
            assert len(source) == count
            assert source[index]["audio"] == content, (kind, original["id"])
            for key in ("captions", "tags"):
                assert source[index][key] == original[key], (kind, original["id"])
        assert packed["tfds"][index] == packed["manifest"][index]


def tar_of(source: ManifestSource) -> bytes:
    """Its clips as one of LAION's shards."""
    members: dict[str, bytes] = {}
    for index in range(len(source)):
        example = source[index]
        sound = Path(example["audio"])
        words = {"text": example["captions"], "tag": example["tags"]}
        members[f"{index:05}{sound.suffix}"] = sound.read_bytes()
        members[f"{index:05}.json"] = json.dumps(words).encode()
    return tar_bytes(members)


class Ears:
    """Tells the number of a sound by its pitch, and knows what each number means.

    numbers: text -> the number of the sound that it is about.
    """

    scale = 10.0

    def __init__(self, numbers: Callable[[str], int]):
        self._numbers = numbers

    def audio(self, source) -> tuple[np.ndarray, np.ndarray]:
        heard = []
        for index in range(len(source)):
            wave = io.load(source[index]["audio"], RATE_HZ)
            pitch_hz = np.abs(np.fft.rfft(wave)).argmax() * RATE_HZ / len(wave)
            heard.append(round((pitch_hz - 200) / 37))  # as `wave` makes them
        return self._rows(heard), np.ones(len(source), bool)

    def text(self, texts) -> np.ndarray:
        return self._rows([self._numbers(text) for text in texts])

    def _rows(self, numbers: list[int]) -> np.ndarray:
        return normalised(np.array([vector(str(number)) for number in numbers]))


def test_from_published_layouts_to_batches_and_evaluators(tmp_path, monkeypatch):
    """Sounds stay with their labels and captions all the way."""
    for name in ("urbansound8k", "clotho", "sesa"):
        files, clips = LAYOUTS[name]()
        monkeypatch.setitem(SETS, name, shrunk(SETS[name], "", clips))
        folder = write(tmp_path / name, files)
        place = f"--data_dir={tmp_path / 'tfds'}"
        assert run(name, place, f"--manual_dir={folder}") == 0

    def section(dataset: str, split: str, **options) -> dict:
        place = {"dataset": dataset, "split": split, "data_dir": str(tmp_path / "tfds")}
        return {"kind": "tfds", **place, **options}

    config = tiny.get_config()
    config.train.batch_size = 8
    folds = "+".join(f"fold{fold}" for fold in range(1, 9))
    config.data.sources = (
        section("urbansound8k", folds, name="city", templates=("the sound of {}",)),
        section("clotho", "development+validation", name="captions"),
    )
    labels, captions = section("sesa", "all"), section("clotho", "evaluation")
    config.evals = {
        "sesa": {
            "kind": "zeroshot",
            "source": labels,
            "templates": "{}",
            "compared_templates": (),
        },
        "clotho": {"kind": "retrieval", "source": captions},
    }
    config.checkpoint.best_metric = ""
    built = experiment.build(config, tmp_path / "run")
    assert built.examples() == 8 + 4
    batches = iter(built.train_dataset())
    batch = next(batches)
    batches.close()
    assert batch["ids"].shape[0] == 8 and not batch["bad"].any()
    assert np.isfinite(batch["mel"]).all()

    sesa = Ears({"casual": 0, "siren": 1, "gunshot": 2}.__getitem__)
    found = built.evaluations["sesa"].evaluator.run(sesa)
    assert found.metrics["zeroshot_acc"] == 1.0
    assert found.labels["classes"] == ["casual", "gunshot", "siren"]
    clotho = Ears(lambda text: 20 + int(re.fullmatch(r"\D+ (\d), .*", text)[1]))
    found = built.evaluations["clotho"].evaluator.run(clotho)
    assert found.metrics["t2a_R@1"] == found.metrics["a2t_R@1"] == 1.0


def of(name: str, tmp_path: Path) -> dict[str, int]:
    """How many clips a prepared set has of each split."""
    info = json.loads(
        (tmp_path / "tfds" / name / "1.0.0/dataset_info.json").read_text()
    )
    return {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}


def test_splits_that_are_not_there_are_no_success(esc50, tmp_path, capsys):
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={esc50}")
    assert run("esc50", *place, "--splits=fold2,fold4") == 0
    capsys.readouterr()
    for options, missing, every in (
        (["--splits=fold4,fold1"], "fold1", "fold2,fold4,fold1"),
        ([], "fold1, fold3, fold5", "fold2,fold4,fold1,fold3,fold5"),
    ):
        assert run("esc50", *place, *options) == 1
        error = capsys.readouterr().err
        assert f"esc50/1.0.0 holds fold2 1, fold4 1, not {missing}." in error
        assert f"--overwrite --splits={every} prepares" in error
    assert of("esc50", tmp_path) == {"fold2": 1, "fold4": 1}
    # What is there, or less, is; and a split that there is not is said to be none.
    assert run("esc50", *place, "--splits=fold4") == 0
    assert "It was there already" in capsys.readouterr().out
    assert run("esc50", *place, "--splits=fold6") == 1
    assert "esc50 has no split 'fold6'" in capsys.readouterr().err
    # The advice does what it says, and what goes is named.
    assert run("esc50", *place, "--overwrite", f"--splits={every}") == 0
    assert "drops" not in capsys.readouterr().err
    assert of("esc50", tmp_path) == {f"fold{n}": 1 for n in range(1, 6)}
    assert run("esc50", *place, "--overwrite", "--splits=fold1,fold2,fold3") == 0
    assert "--overwrite drops fold4 1, fold5 1" in capsys.readouterr().err
    assert of("esc50", tmp_path) == {"fold1": 1, "fold2": 1, "fold3": 1}


def test_what_is_there_stays_when_overwriting_fails(esc50, tmp_path, capsys):
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={esc50}")
    assert run("esc50", *place) == 0
    folder = tmp_path / "tfds" / "esc50" / "1.0.0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (esc50 / "ESC-50-master/audio/3-100033-A-0.wav").unlink()
    assert run("esc50", *place, "--overwrite") == 1
    assert "esc50, fold3: 0 clips found" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    # So too where a run was killed before it had written the other.
    folder.rename(folder.with_name("before.1.0.0"))
    assert run("esc50", *place) == 0
    assert "It was there already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run("esc50", *place, "--overwrite", "--splits=fold1") == 0
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert of("esc50", tmp_path) == {"fold1": 1}


def test_splits_that_a_copy_does_not_have_are_not_missed(tmp_path, monkeypatch, capsys):
    """LAION's shards may lack a split, whose number nobody published."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, _ = LAYOUTS["laion_audio_630k"]()
    manual = write(tmp_path / "manual", files)
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={manual}")
    assert run("laion_audio_630k", *place) == 0
    assert set(of("laion_audio_630k", tmp_path)) == {"train", "test"}
    assert "set itself: train 3, valid 0, test 1." in capsys.readouterr().out
    assert run("laion_audio_630k", *place) == 0
    assert "It was there already" in capsys.readouterr().out


def test_a_table_that_changed_is_no_success(tmp_path, capsys):
    table = write_table(tmp_path / "sounds", 3)
    place = (f"--data_dir={tmp_path / 'tfds'}", f"--table={table}", "--name=three")
    assert run("manifest", *place) == 0
    assert run("manifest", *place) == 0
    assert "It was there already" in capsys.readouterr().out
    table.write_text(table.read_text().replace("number 1,", "another caption,"))
    assert run("manifest", *place) == 1
    error = capsys.readouterr().err
    assert "three/1.0.0 holds train 3, packed from another table" in error
    assert run("manifest", *place, "--overwrite") == 0
    source = TfdsSource("three", "train", tmp_path / "tfds")
    assert source.captions(1)[0] == "another caption"
    # Without what was written down of it, numbers are compared.
    metadata = tmp_path / "tfds" / "three" / "1.0.0" / "metadata.json"
    metadata.write_text("{}")
    assert run("manifest", *place) == 0
    write_table(tmp_path / "sounds", 2)
    assert run("manifest", *place) == 1


def test_a_set_that_says_itself_what_is_missing(tmp_path, monkeypatch, capsys):
    """VGGSound and WavText5K: no number is published, but there is a list."""
    for name, lost, numbers, short in (
        (
            "vggsound",
            "audio/--0PQM4-hqg_000030.flac",
            "train 2, test 1",
            "train has 1 of 2",
        ),
        ("wavtext5k", "WavText5K/44100/audios/0595.wav", "train 3", "train has 2 of 3"),
    ):
        files, rows = LAYOUTS[name]()
        monkeypatch.setitem(SETS, name, shrunk(SETS[name], "", rows))
        folder = write(tmp_path / name, files)
        place = (name, f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={folder}")
        assert run(*place) == 0
        said = capsys.readouterr().out
        assert f"Listed by the set itself: {numbers}." in said
        assert "Incomplete" not in said
        (folder / lost).unlink()
        assert run(*place, "--overwrite", "--allow_partial") == 0
        said = capsys.readouterr().out
        assert f"Listed by the set itself: {numbers}." in said
        assert f"Incomplete: {short} clips." in said


def test_the_suite_says_how_to_prepare_and_of_how_many_clips(
    tmp_path, monkeypatch, capsys
):
    files, rows = LAYOUTS["vggsound"]()
    monkeypatch.setitem(SETS, "vggsound", shrunk(SETS["vggsound"], "", rows))
    files["audio/---g-f_I2yQ_000002.wav"] = files["audio/---g-f_I2yQ_000001.wav"]
    files["vggsound.csv"] += "---g-f_I2yQ,2,people marching,test\n"
    data_dir = tmp_path / "data sets"
    manual = write(data_dir / "downloads" / "manual" / "vggsound", files)
    tasks = {"data_dir": str(data_dir), "tasks": ["vggsound_laion"], "draws": 0}
    absent = suite.sections(**tasks)["vggsound_laion"]
    assert absent["kind"] == "absent"
    assert run(*shlex.split(absent["prepare"])[3:], "--splits=train") == 0

    absent = suite.sections(**tasks)["vggsound_laion"]
    assert "has no split test (there: train)" in absent["reason"]
    (manual / "audio/---g-f_I2yQ_000002.wav").unlink()
    command = shlex.split(absent["prepare"])
    assert command[:3] == ["python", "-m", "data.prepare"]
    assert run(*command[3:], "--allow_partial") == 0
    infos = TfdsSource("vggsound", "all", data_dir), capsys.readouterr().err
    assert len(infos[0]) == 3 and "drops" not in infos[1]

    section = suite.sections(**tasks)["vggsound_laion"]
    official = {"clips": section["official"]["clips"]}
    source = TfdsSource("vggsound", section["source"]["split"], data_dir)
    found = ZeroShot(source, "{}", official=official, compared_templates=(), draws=0)
    said = found.run(Ears(lambda text: 0)).protocol
    assert said["clips"] == 1 and said["official"] == {"clips": 2}
