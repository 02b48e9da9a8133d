"""The table of tasks, and the evaluations made of it."""

import json

import numpy as np
import pytest
import soundfile

from clap_jax import config as config_lib
from clap_jax.evals import (
    EVALUATORS,
    build_evaluator,
    msclap_tasks,
    retrieval,
    suite,
    tasks,
)
from clap_jax.pipeline.sources import build_source
from clap_jax.text import prompts
from tests.evals.fakes import FakeEncoder


def of_suite(name):
    return [task for task in tasks.TASKS.values() if name in task.suites]


def test_the_suites_have_the_papers_tasks():
    """MS-CLAP 2023 counts both directions of retrieval: 26; 2022 has 16."""
    counted = {
        name: sum(len(task.covers) or 1 for task in of_suite(name))
        for name in tasks.SUITES
    }
    assert counted["msclap"] == 26 and counted["msclap2022"] == 16
    assert {task.name for task in of_suite("laion")} == {
        *("audiocaps", "clotho"),
        *("esc50_laion", "urbansound8k_laion", "vggsound_laion", "gtzan_laion"),
    }
    for task in of_suite("msclap2022"):
        assert "MS22" in task.published, task.name
    for task in of_suite("msclap"):
        assert any("MS23" in key for key in task.published), task.name


def test_each_suite_asks_with_its_papers_prompt():
    rows = {name: {t.name: t for t in of_suite(name)} for name in tasks.SUITES}
    assert rows["msclap"]["esc50"].options["templates"] == "msclap"
    assert rows["msclap2022"]["esc50_2022"].options["templates"] == "msclap2022"
    assert rows["msclap2022"]["esc50_2022"].published == {"MS22": 0.826}
    for task in rows["msclap2022"].values():
        assert task.options["templates"].startswith("msclap2022"), task.name
    for task in rows["msclap"].values():
        assert task.options.get("templates") != "msclap2022", task.name


def test_names_are_of_one_row_each():
    rows = (
        *msclap_tasks.MSCLAP,
        *(*tasks.RETRIEVAL, *tasks.CAPTIONING, *tasks.LAION, *tasks.SMALL),
    )
    assert len(rows) == len(tasks.TASKS)


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_every_row_says_what_and_why(task):
    assert set(task.suites) <= set(tasks.SUITES)
    assert task.kind in {*EVALUATORS, "captioning"}
    if task.kind == "zeroshot":
        assert "prompt" in task.reasons
        templates = task.options["templates"]
        if isinstance(templates, str):
            templates = prompts.TEMPLATES.get(templates, (templates,))
        assert all("dog" in prompts.render(one, "dog") for one in templates)
        if "labels" in task.options:
            assert len(task.options["labels"]) == task.classes
    if task.kind == "retrieval":
        assert task.options["protocol"] in retrieval.PROTOCOLS
        assert "protocol" in task.reasons
    if not task.source:
        assert task.dataset and task.split
        assert {"split", "metric"} & set(task.reasons)


def test_nothing_is_there(tmp_path):
    """Every task is listed all the same, with what to do."""
    found = suite.sections("all+small", data_dir=str(tmp_path))
    assert list(found) == list(tasks.TASKS)
    for name, section in found.items():
        assert section["kind"] == "absent"
        assert section["about"]["metric"] == tasks.TASKS[name].metric
        options = {key: section[key] for key in ("reason", "prepare") if key in section}
        result = build_evaluator("absent", None, options).run(None)
        assert result.metrics == {} and result.protocol["kind"] == "absent"
    command = f"python -m data.prepare nsynth/pitch --data_dir={tmp_path}"
    assert found["nsynth_pitch"]["prepare"] == command
    assert found["nsynth_pitch"]["reason"] == (
        f"nsynth/pitch is not prepared in {tmp_path}"
    )
    assert "captioner" in found["clotho_captioning"]["reason"]
    assert found["esc10"]["reason"] == f"there is no {tmp_path}/esc10/metadata.csv"


def prepared(folder, dataset, *splits, version="1.0.0"):
    """As much of a data set of TFDS as tells that it is there."""
    place = folder / dataset / version
    place.mkdir(parents=True)
    info = {"name": dataset, "splits": [{"name": name} for name in splits]}
    (place / "dataset_info.json").write_text(json.dumps(info))


def test_what_is_there_is_evaluated(tmp_path):
    prepared(tmp_path, "clotho", "development", "validation", "evaluation")
    prepared(tmp_path, "esc50", *(f"fold{number}" for number in range(1, 6)))
    prepared(tmp_path, "fsd50k", "train")
    found = suite.sections("all", data_dir=str(tmp_path), draws=50, batch_size=8)
    assert found["clotho"] == {
        "about": found["clotho"]["about"],
        "kind": "retrieval",
        "source": {
            "name": "clotho",
            "kind": "tfds",
            "dataset": "clotho",
            "split": "evaluation",
            "data_dir": str(tmp_path),
        },
        "protocol": "laion5",
        "official": {"clips": 1045, "clotho_split": "evaluation"},
        "accept": (),
        "batch_size": 8,
        "draws": 50,
    }
    assert found["clotho"]["about"]["published"]["MS23 t2a_R@1"] == 0.157
    assert found["esc50"]["source"]["split"] == "all"
    # Two prompts on one data set: its sounds are heard once.
    assert found["esc50"]["source"] == found["esc50_laion"]["source"]
    assert found["esc50"]["templates"] != found["esc50_laion"]["templates"]
    assert found["fsd50k"]["reason"] == (
        f"fsd50k in {tmp_path} has no split test (there: train)"
    )
    assert "crop_seed" not in found["esc50"]
    fold = suite.sections(data_dir=str(tmp_path), tasks=["esc50"], fold=4, crop_seed=0)
    assert fold["esc50"]["source"]["split"] == "fold4"
    assert fold["esc50"]["crop_seed"] == 0


def test_the_newest_version_counts(tmp_path):
    """By its number, as for training: 10 is newer than 9."""
    prepared(tmp_path, "sesa", "train", "test", version="10.0.0")
    prepared(tmp_path, "sesa", "train", version="9.0.0")
    found = suite.sections(data_dir=str(tmp_path), tasks=["sesa"])
    assert found["sesa"]["kind"] == "zeroshot"


def test_a_split_that_is_missing_is_prepared_beside_the_others(tmp_path):
    prepared(tmp_path, "sesa", "train", "more")
    section = {"kind": "tfds", "dataset": "sesa", "split": "test[:10]+train"}
    for source, data_dir in (
        (section | {"data_dir": str(tmp_path)}, tmp_path / "elsewhere"),
        (section, tmp_path),  # the default
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TFDS_DATA_DIR", str(tmp_path))
            found = suite.sections(
                data_dir=str(data_dir), tasks=["sesa"], sources={"sesa": source}
            )["sesa"]
        assert found["reason"] == (
            f"sesa in {tmp_path} has no split test (there: more, train)"
        )
        assert found["prepare"] == (
            f"python -m data.prepare sesa --data_dir={tmp_path} --overwrite "
            "--splits=train,more,test"
        )


def test_the_clips_that_a_set_lists_are_the_official_ones(tmp_path):
    """Where nobody published a number."""
    prepared(tmp_path, "vggsound", "train", "test")
    prepared(tmp_path, "esc50", "fold1")
    listed = {"listed_clips": {"train": 20, "test": 5, "fold1": 7}}
    for name in ("vggsound", "esc50"):
        place = tmp_path / name / "1.0.0" / "metadata.json"
        place.write_text(json.dumps(listed))
    found = suite.sections("laion", data_dir=str(tmp_path))
    assert found["vggsound_laion"]["official"] == {"clips": 5, "classes": 309}
    assert found["esc50_laion"]["official"] == {"clips": 2000, "classes": 50}
    source = found["vggsound_laion"]["source"] | {"split": "all"}
    more = {"sources": {"vggsound_laion": source}, "tasks": ["vggsound_laion"]}
    every = suite.sections(data_dir=str(tmp_path), **more)["vggsound_laion"]
    assert every["official"]["clips"] == 25


def test_where_data_sets_are_by_default(tmp_path, monkeypatch):
    prepared(tmp_path, "sesa", "test")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = suite.sections("msclap", tasks=["sesa", "ravdess"])
    assert list(found) == ["sesa", "ravdess"]
    assert found["sesa"]["source"]["data_dir"] == str(tmp_path)
    assert found["ravdess"]["kind"] == "absent"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "msclip"}, "unknown suite 'msclip' .did you mean 'msclap"),
        ({"tasks": ["esc"]}, "unknown task 'esc'"),
        ({"sources": {"esc": {"kind": "manifest"}}}, "unknown task in sources 'esc'"),
        ({"tasks": ["esc50"], "fold": 6}, "esc50 has the folds 1 to 5, no fold 6"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        suite.sections(**arguments)


@pytest.fixture
def tables(tmp_path):
    """A table of ten labelled sounds, and the file that gives ESC-50 this source."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rows = ["filename,category,fold"]
    for number in range(10):
        wave = np.random.default_rng(number).normal(size=1600) / 10
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        rows.append(f"{number}.wav,{'dog' if number % 2 else 'rain'},{number % 5 + 1}")
    (folder / "esc50.csv").write_text("\n".join(rows))
    path = tmp_path / "sources.json"
    source = {
        "kind": "manifest",
        "path": str(folder / "esc50.csv"),
        "label_column": "category",
    }
    path.write_text(json.dumps({"esc50": source}))
    return path


def test_tasks_on_other_sources(tables):
    """A table in place of the prepared data set; the task's classes are still asked for."""
    sources = suite.read_sources(str(tables))
    section = suite.sections(tasks=["esc50"], sources=sources)["esc50"]
    own = {"name": "esc50"} | sources["esc50"]
    assert section["source"] == own
    del own["name"], own["kind"]
    source = build_source("manifest", "esc50", own)
    kept = ("templates", "official", "accept", "draws")
    options = {name: section[name] for name in kept}
    with pytest.raises(ValueError, match="it has 2 classes, the task has 50"):
        build_evaluator("zeroshot", source, options)
    options["accept"] = ("classes",)
    result = build_evaluator("zeroshot", source, options).run(FakeEncoder())
    assert result.protocol["official"] == {"clips": 2000, "classes": 50}
    assert "zeroshot_acc" in result.intervals
    sources["esc50"]["path"] += ".gone"
    section = suite.sections(tasks=["esc50"], sources=sources)["esc50"]
    assert section["kind"] == "absent" and ".gone" in section["reason"]
    assert "prepare" not in section


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "sources=.*Expecting"),
        ("[]", "expected {task: source}"),
        ('{"esc50": "a.csv"}', "found 'esc50': 'a.csv'"),
        ('{"esc50": {"path": "a.csv"}}', "each source a table with kind"),
    ],
)
def test_bad_files_of_sources(tmp_path, text, message):
    path = tmp_path / "sources.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(config_lib.ConfigError, match=message):
        suite.read_sources(str(path))


def test_patterns_and_urls_are_taken_to_be_there():
    for path in ("gs://bucket/x.csv", "shards/*.tar", "shards/{0..3}.tar"):
        assert suite.what_is_missing({"kind": "laion_tar", "path": path}) == ""
    assert suite.what_is_missing({"kind": "synthetic"}) == ""
