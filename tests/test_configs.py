"""Every file in configs/ trains, shrunk by its own `:smoke`."""

import importlib.util
import json
from pathlib import Path

import pytest

from clap_jax import config as config_lib
from clap_jax.train import loop

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def get_config(path: Path, argument: str):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_run_trains_and_reports(path, tmp_path, shared_data):
    data = (
        f"{shared_data / 'esc10' / 'metadata.csv'}," if path.stem == "manifest" else ""
    )
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
