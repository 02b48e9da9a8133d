"""Every file in configs/ trains, shrunk by its own `:smoke`."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.pipeline.sources import build_source
from clap_jax.train import loop

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def get_config(path: Path, argument: str):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_run_trains_and_reports(path, tmp_path, request):
    data = ""
    if path.stem == "manifest":
        shared_data = request.getfixturevalue("shared_data")
        data = f"{shared_data / 'esc10' / 'metadata.csv'},"
    config = get_config(path, f"{data}smoke")
    loop.train(config, tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert any("train/loss" in line for line in lines)
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "plots").is_dir()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_holds_a_command(path):
    assert f"--config=configs/{path.name}" in path.read_text()


def test_unknown_argument_is_an_error():
    with pytest.raises(config_lib.ConfigError, match="did you mean 'smoke'"):
        get_config(CONFIGS[0].with_name("quickstart.py"), "smok")


def test_manifest_config_needs_a_path():
    with pytest.raises(config_lib.ConfigError, match="needs a table or a folder"):
        get_config(CONFIGS[0].with_name("manifest.py"), None)


def test_manifest_config_splits_folds(shared_data):
    path = CONFIGS[0].with_name("manifest.py")
    table = shared_data / "esc10" / "metadata.csv"
    config = get_config(path, str(table))
    assert config.data.sources[0]["where"]["fold"] == ["1", "2", "3"]
    assert tuple(config.evals.classes.source.where.fold) == ("4",)
    config = get_config(path, f"{table},test=4,validation=3")
    assert config.data.sources[0]["where"]["fold"] == ["1", "2"]
    assert tuple(config.evals.classes.source.where.fold) == ("3",)
    with pytest.raises(config_lib.ConfigError, match="fold has no value '9'"):
        get_config(path, f"{table},test=9")


MANIFEST = CONFIGS[0].with_name("manifest.py")


def held_out(tmp_path, column, values, argument=""):
    """Values that configs/manifest.py trains on and tests on, None for all rows."""
    rows = [f"{number}.wav,x,{value}" for number, value in enumerate(values)]
    table = tmp_path / "clips.csv"
    table.write_text("\n".join([f"path,label,{column}", *rows]))
    config = get_config(MANIFEST, f"{table}{argument}")
    test = next(iter(config.evals.values())).source.where
    train = config.data.sources[0]["where"]
    return tuple(
        sorted(where[column]) if column in where else None for where in (train, test)
    )


@pytest.mark.parametrize(
    ("column", "values", "argument", "train", "test"),
    [
        ("fold", ["1", "2", "3"], "", ["1", "2"], ["3"]),
        ("fold", ["1", "1"], "", None, None),
        ("fold", ["", ""], "", None, None),
        ("fold", ["1", ""], "", [""], ["1"]),
        ("split", ["train", "train"], "", None, None),
        ("split", ["train", "test"], "", ["train"], ["test"]),
        ("split", ["train", "Test", "VAL"], "", ["train"], ["Test"]),
        ("split", ["train", "val", "dev", "test"], "", ["train"], ["test"]),
        ("split", ["train", "Validation"], "", ["train"], ["Validation"]),
        ("split", ["train", "test", "val"], ",validation=val", ["train"], ["val"]),
        ("split", ["train", "test", "val"], ",test=val", ["train"], ["val"]),
        ("split", ["train", ""], "", ["train"], [""]),
        ("split", ["", "test"], "", [""], ["test"]),
        ("subset", ["training", "eval", "extra"], "", ["extra", "training"], ["eval"]),
        ("subset", ["here", "there", "training"], "", ["here", "training"], ["there"]),
    ],
)
def test_manifest_config_holds_out(tmp_path, column, values, argument, train, test):
    assert held_out(tmp_path, column, values, argument) == (train, test)


@pytest.mark.parametrize(
    ("values", "argument", "message"),
    [
        (["1", "1"], ",test=9", "no '9' to hold out.*leave out test"),
        (["1", "2"], ",test=1,validation=2", "no rows are left to train on"),
        (["test", "val"], "", "no rows are left to train on"),
    ],
)
def test_manifest_config_refuses_splits(tmp_path, values, argument, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        held_out(tmp_path, "fold", values, argument)


def test_manifest_config_takes_labels_before_captions(tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text("path,caption,label\n0.wav,,dog\n1.wav,a cat,cat\n")
    config = get_config(MANIFEST, str(table))
    assert list(config.evals) == ["classes"]
    options = {**config.data.sources[0], "check_files": False}
    source = build_source(options.pop("kind"), "mine", options)
    assert all("dog" in caption for caption in source.captions(0))
    table.write_text("path,caption\n0.wav,a dog\n1.wav,a cat\n")
    assert list(get_config(MANIFEST, str(table)).evals) == ["captions"]


# --- recipes of published models ------------------------------------------------------

PUBLISHED = [
    path
    for path in CONFIGS
    if path.stem == "blat" or path.stem.startswith(("laion", "ms"))
]


def shapes(config):
    """Paths of all parameters and statistics; nothing is computed."""
    spec = zoo.get_spec(config.model, config_lib.plain(config.model_overrides))
    tree = jax.eval_shape(zoo.build(spec).init, jax.random.key(0))
    return set(sharding.flatten(tree))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_recipe_starts_from_published_towers(path):
    config = get_config(path, "train.csv,audio=AudioSet-map=0.467.ckpt")
    assert config.data.sources[0]["path"] == "train.csv"
    text = zoo.SPECS[config.model].tokenizer
    assert config.init_from == ("AudioSet-map=0.467.ckpt", text)
    assert "Expected" in path.read_text()
    assert "Deviates" in path.read_text()
    assert get_config(path, "smoke").init_from == ""


@pytest.mark.parametrize(
    "kind",
    ["daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map"],
)
def test_only_what_joins_the_views_starts_fresh(kind):
    """All that a model of AudioSet has comes from there."""
    folder = CONFIGS[0].parent
    plain = shapes(get_config(folder / "laion_htsat_roberta.py", ""))
    fused = get_config(folder / "laion_htsat_roberta_fusion.py", f"fusion={kind}")
    everything = shapes(fused)
    filled = {x for x in everything if re.fullmatch(fused.init_pattern, x)}
    grown = {"params/audio/patch/kernel"} if kind == "channel_map" else set()
    assert filled == plain - grown
    assert everything >= plain


@pytest.mark.parametrize(
    ("name", "argument", "model"),
    [
        ("laion_htsat_roberta", "size=large", "laion_htsat_large_roberta"),
        ("laion_htsat_roberta_fusion", "size=base", "laion_htsat_base_fusion_roberta"),
        ("laion_pann_bert", "audio_model=pann6", "laion_pann6_bert"),
    ],
)
def test_variants_of_recipes(name, argument, model):
    path = CONFIGS[0].with_name(f"{name}.py")
    assert get_config(path, argument).model == model
    assert shapes(get_config(path, argument))
