"""What `data.prepare` writes, and entries of configs, are packed and searched."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from clap_jax.evals.retrieval import Retrieval
from clap_jax.pipeline.array_record import ArrayRecordSource
from clap_jax.pipeline.loader import train_dataset
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import build_source
from clap_jax.pipeline.tfds import TfdsSource
from data import overlap, pack
from data.datasets import SETS, builder, packed
from data.datasets.row import Clip
from tests.data.layouts import captioned
from tests.data.layouts.files import write
from tests.data.test_datasets import prepared, shrunk
from tests.data.test_overlap import write_set
from tests.pipeline.clips import FRONTEND, make_tokenizer, write_table
from tests.pipeline.shards import sound, write_shards

# Two videos, by the names of AudioSet and of AudioCaps.
DOG, RAIN = "--0PQM4-hqg", "-0BIyqJj9ZU"


def write_prepared(folder: Path, name: str, splits: dict[str, dict[str, int]]) -> Path:
    """A prepared data set; splits: of each the number of the sound of each id."""
    clips = [
        Clip(split, own, lambda number=number: sound(number), (f"caption of {own}",))
        for split, rows in splits.items()
        for own, number in rows.items()
    ]
    row = dataclasses.replace(
        packed.row(name, {}, name),
        splits={split: len(rows) for split, rows in splits.items()},
        read=lambda *_: clips,
    )
    builder.make(row, data_dir=folder).download_and_prepare()
    return folder / name / "1.0.0"


@pytest.fixture(scope="module")
def tfds(tmp_path_factory) -> Path:
    """`captioned`, with the splits train and test, and `labelled`, with eval."""
    folder = tmp_path_factory.mktemp("tfds")
    splits = {"train": {f"{DOG}_30": 1}, "test": {f"{RAIN}_30": 2, "other": 3}}
    write_prepared(folder, "captioned", splits)
    write_prepared(folder, "labelled", {"eval": {"heard": 4}})
    return folder


def test_five_captions_a_clip_are_five(tmp_path):
    """AudioCaps has clips with the same caption several times."""
    files, clips = captioned.audiocaps()
    write(tmp_path / "manual", files)
    prepared(tmp_path, shrunk(SETS["audiocaps"], "", clips))
    source = TfdsSource("audiocaps", "test", tmp_path / "tfds")
    evaluation = Retrieval(source, "laion5", draws=0)
    assert len(evaluation.texts) == 5 * len(source) == 10
    assert evaluation.captions_per_clip == "5"
    # Packed, and trained on, they are what they were.
    place = {
        "dataset": "audiocaps",
        "split": "test",
        "data_dir": str(tmp_path / "tfds"),
    }
    assert pack.main([entry(kind="tfds", **place), str(tmp_path / "out")]) == 0
    shards = ArrayRecordSource(tmp_path / "out")
    captions = {shards.id(index): shards.captions(index) for index in range(2)}
    assert captions["_ff_20"] == ["a cat"] * 5 and len(set(captions["eee_10"])) == 5
    options = {"batch_size": 2, "seed": 0}
    batches = iter(
        train_dataset([(shards, None)], Prepare(FRONTEND), make_tokenizer(), **options)
    )
    assert not next(batches)["bad"].any()
    batches.close()


def ids(out: Path) -> list[str]:
    source = ArrayRecordSource(out)
    return sorted(source.id(index) for index in range(len(source)))


def entry(**fields: object) -> str:
    return json.dumps(fields)


def test_a_prepared_set_is_packed(tfds, tmp_path):
    source = str(tfds / "captioned" / "1.0.0")
    assert pack.main([source, str(tmp_path / "all")]) == 0
    assert ids(tmp_path / "all") == sorted([f"{DOG}_30", f"{RAIN}_30", "other"])
    packed_clips = ArrayRecordSource(tmp_path / "all")
    assert sound(3) in [packed_clips[index]["audio"] for index in range(3)]
    (tmp_path / "ids.txt").write_text("other\n")
    options = ['--options={"split": "test"}', f"--exclude={tmp_path / 'ids.txt'}"]
    assert pack.main([source, str(tmp_path / "one"), *options]) == 0
    assert ids(tmp_path / "one") == [f"{RAIN}_30"]
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert (report["kind"], report["path"]) == ("tfds", source)
    assert (report["listed"], report["excluded"]) == (2, 1)


def test_entries_of_a_config_are_packed(tfds, tmp_path):
    """As data.caption takes them, with what a config says besides."""
    table = write_table(tmp_path / "sounds", 4)
    (tmp_path / "ids.txt").write_text("1.flac\n000/002\n")
    write_shards(tmp_path / "tars", 2, 3)
    made = {"id": "0.flac", "caption": "made", "origin": {"kind": "t5"}}
    (tmp_path / "made.jsonl").write_text(json.dumps(made))
    exclude = {"exclude": str(tmp_path / "ids.txt")}
    set_of = {"kind": "tfds", "dataset": "captioned", "data_dir": str(tfds)}
    tars = [str(tmp_path / "tars" / f"00{n}.tar") for n in range(2)]
    cache = str(tmp_path / "cache")
    few = {"kind": "synthetic", "name": "few", "examples": 2}
    for number, (text, wanted) in enumerate(
        (
            (entry(**set_of), [f"{DOG}_30"]),  # train, as in a config
            (entry(**set_of, split="test", weight=2.0), [f"{RAIN}_30", "other"]),
            (
                entry(kind="manifest", path=str(table), **exclude),
                ["0.flac", "2.flac", "3.flac"],
            ),
            (
                entry(kind="laion_tar", path=tars, cache_folder=cache, **exclude),
                ["000/000", "000/001", "001/003", "001/004", "001/005"],
            ),
            (entry(**few), ["few-0-0", "few-0-1"]),
        )
    ):
        assert pack.main([text, str(tmp_path / f"{number}")]) == 0
        assert ids(tmp_path / f"{number}") == wanted
    report = json.loads((tmp_path / "3" / "report.json").read_text())
    assert (report["clips"], report["excluded"]) == (5, 1)

    # Captions that were made go into the shards, whichever of several has the clip.
    assert pack.main([str(table), str(tmp_path / "two"), "--shards=2"]) == 0
    two = {"kind": "array_record", "path": str(tmp_path / "two")} | exclude
    more = {"generated": str(tmp_path / "made.jsonl")}
    assert pack.main([entry(**two, **more), str(tmp_path / "more")]) == 0
    source = build_source("array_record", "x", {"path": str(tmp_path / "more")})
    assert ids(tmp_path / "more") == ["0.flac", "2.flac", "3.flac"]
    assert source.captions(0)[-1] == "made" and len(source.captions(1)) == 2


def test_a_search_in_prepared_sets(tfds, tmp_path, capsys):
    """By paths with all splits, and by entries with one; ids of one video meet."""
    train = write_set(tmp_path / "a", {f"Y{DOG}.wav": 1, f"{RAIN}_000090.wav": 2})
    sets = [str(tfds / name / "1.0.0") for name in ("captioned", "labelled")]
    out = tmp_path / "out"
    assert overlap.main([str(train), "--against", *sets, f"--out={out}"]) == 0
    assert "2 clips against 4 of 2 evaluation sets" in capsys.readouterr().err
    assert hits(out) == [
        (f"{RAIN}_000090.wav", f"{sets[0]}, all", f"{RAIN}_30", "id"),
        (f"Y{DOG}.wav", f"{sets[0]}, all", f"{DOG}_30", "id"),
    ]
    place = {"kind": "tfds", "data_dir": str(tfds)}
    evals = [
        entry(**place, dataset="captioned", split="train"),
        entry(**place, dataset="captioned", split="test", name="exam"),
        str(train.parent),  # a folder, whose kind and options are given for paths
    ]
    out = tmp_path / "more"
    options = ["--against_kind=manifest", '--against_options={"check_files": true}']
    # Training on what is prepared: its own split is no other recording.
    command = [entry(**place, dataset="labelled", split="eval"), *options]
    assert overlap.main([*command, "--against", *evals[1:], f"--out={out}"]) == 0
    assert hits(out) == []
    command = [str(train), "--against", *evals[:2], *options, f"--out={out}"]
    assert overlap.main(command) == 0
    assert hits(out) == [
        (f"{RAIN}_000090.wav", "exam", f"{RAIN}_30", "id"),
        (f"Y{DOG}.wav", "captioned, train", f"{DOG}_30", "id"),
    ]


def hits(out: Path) -> list[tuple[str, ...]]:
    with open(out / "hits.csv", newline="") as file:
        rows = csv.DictReader(file)
        return sorted((r["id"], r["set"], r["eval_id"], r["how"]) for r in rows)


def test_what_is_found_is_left_out_of_training(tfds, tmp_path):
    """Of a prepared set as it is: the ids are its own, whatever the other's are."""
    evaluation = write_set(tmp_path / "a", {f"{RAIN}.wav": 9})
    section = {"dataset": "captioned", "split": "all", "data_dir": str(tfds)}
    command = [entry(kind="tfds", **section), "--against", str(evaluation)]
    assert overlap.main([*command, f"--out={tmp_path / 'out'}"]) == 0
    section["exclude"] = str(tmp_path / "out" / "exclude.txt")
    source = build_source("tfds", "captions", section)
    assert [source.id(index) for index in range(2)] == [f"{DOG}_30", "other"]
    assert source[1]["audio"] == sound(3)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (['{"kind": "tfds", '], 2, "the source is not JSON"),
        (['{"path": "x"}'], 2, "the source has no kind"),
        (['{"kind": "tfds"}', "--kind=tfds"], 2, "--kind and --options are for paths"),
        (['{"kind": "tfds"}'], 1, "option 'dataset' is missing"),
        (['{"kind": "tdfs", "path": "x"}'], 1, "did you mean 'tfds'"),
        (['{"kind": "tfds", "dataset": "no"}'], 1, "no is not prepared in"),
    ],
)
def test_entries_that_are_none(tmp_path, capsys, arguments, status, message):
    command = [*arguments, str(tmp_path / "out")]
    if status == 2:
        with pytest.raises(SystemExit) as caught:
            pack.main(command)
        assert caught.value.code == 2
    else:
        assert pack.main(command) == status
    assert message in capsys.readouterr().err
