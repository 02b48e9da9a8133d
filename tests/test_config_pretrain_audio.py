"""configs/pretrain_audio.py: tasks and tables to sources, weights, and what is held out."""

import importlib.util
from pathlib import Path

import pytest

from clap_jax import config as config_lib
from clap_jax.pipeline.sources import build_source
from clap_jax.text import answers
from clap_jax.train import experiment

PATH = Path(__file__).resolve().parents[1] / "configs" / "pretrain_audio.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("pretrain_audio", PATH)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "clips.csv"
    rows = ["0.wav,dog,train", "1.wav,cat,test", "2.wav,cat,other"]
    path.write_text("\n".join(["path,label,split", *rows]))
    return path


def test_tables_of_tasks_are_sources(module, table):
    argument = (
        f"sound_event={table}+{table},question={table},mixture=balanced,test=test"
    )
    config = module.get_config(argument)
    found = [dict(source) for source in config.data.sources]
    assert [source["name"] for source in found] == [
        *("sound_event", "sound_event1", "question")
    ]
    assert [source["task"] for source in found] == [
        *("sound_event", "sound_event", "question")
    ]
    assert [source["weight"] for source in found] == [0.25, 0.25, 0.5]
    # What each clip asks by itself is not measured.
    assert set(config.evals) == {"sound_event", "sound_event1"}
    made = experiment.of_clips(found[0], config)
    options = {"check_files": False} | {
        name: value for name, value in made.items() if name not in ("kind", "weight")
    }
    name = options.pop("name")
    assert len(build_source("manifest", name, options)) == 2
    held = config_lib.plain(config.evals.sound_event)
    assert held["task"] == "sound_event"
    assert held["source"]["where"] == {"split": ("test",)}
    assert "weight" not in held["source"]


@pytest.mark.parametrize("separator", ["comma", "semicolon", "bar", "tab", "/"])
def test_cells_hold_several_labels(module, tmp_path, separator):
    """Of clips to train on and of those held out; names stand for what an argument
    cannot hold."""
    between = {"comma": ",", "semicolon": ";", "bar": "|", "tab": "\t"}
    cell = between.get(separator, separator).join(["Bark", "Dog", "Animal"])
    path = tmp_path / "clips.csv"
    rows = ["path,label,split", f'0.wav,"{cell}",train', f'1.wav,"{cell}",test']
    path.write_text("\n".join(rows))
    argument = f"sound_event={path},test=test,separator={separator}"
    config = module.get_config(argument)
    sections = config.data.sources[0], config.evals.sound_event.source
    for section in sections:
        options = dict(config_lib.plain(section)) | {"check_files": False}
        for key in ("kind", "task"):
            options.pop(key, "")
        source = build_source("manifest", options.pop("name"), options)
        assert source.tags(0) == ["Bark", "Dog", "Animal"]


def test_shards_have_no_cells(module, tmp_path):
    config = module.get_config(f"caption={tmp_path}/{{0..3}}.tar,separator=comma")
    assert "separator" not in config.data.sources[0]


def test_the_whole_recipe_freezes_gpt2(module, table):
    config = module.get_config(f"caption={table},audio=htsat.ckpt")
    assert config.model == "pengi" and config.task.name == "answer"
    assert config.init_from == ("htsat.ckpt", "openai-community/gpt2")
    assert config.optim.lr_multipliers[0] == ("decoder/.*", 0.0)
    assert not config.evals and "where" not in config.data.sources[0]
    small = module.get_config(f"caption={table},size=small,steps=7")
    assert small.model == "small_answers" and not small.init_from
    assert small.optim.lr_multipliers == ((".*", 1.0),)
    assert small.train.total_steps == 7


def test_the_mixture_of_the_paper_has_a_task_for_everything(module):
    assert set(module.MIXTURE) <= set(answers.tasks())
    assert len([name for names in module.MIXTURE.values() for name in names]) == 18


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("", "needs a task and a table"),
        ("size=large,smoke", "unknown value of size 'large'"),
        ("mixture=even,smoke", "unknown value of mixture 'even'"),
        ("sound_event={},test=9", "no column split or fold of .* has '9'"),
        ("sound_events={}", "did you mean 'sound_event'"),
    ],
)
def test_errors(module, table, argument, sentence):
    with pytest.raises(config_lib.ConfigError, match=sentence):
        module.get_config(argument.format(table))
