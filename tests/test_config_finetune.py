"""configs/finetune.py: classes, rates and what is held out."""

import pytest

from clap_jax import config as config_lib
from clap_jax.models.classifier import HeadSpec
from clap_jax.pipeline import labels as labels_lib
from clap_jax.pipeline.sources import build_source
from clap_jax.train import heads, optim
from tests.test_configs import CONFIGS, get_config

PATH = CONFIGS[0].with_name("finetune.py")


def table(tmp_path, rows, columns="path,label,fold"):
    path = tmp_path / "clips.csv"
    path.write_text("\n".join([columns, *rows]))
    return path


def sources(config):
    """The clips to train on and those to test on; their files are not looked for."""
    found = []
    for section in (config.data.sources[0], config.evals.classes.source):
        options = dict(config_lib.plain(section)) | {"check_files": False}
        found.append(build_source(options.pop("kind"), "clips", options))
    return found


@pytest.mark.parametrize(
    ("separator", "text"), [(";", ";"), ("semicolon", ";"), ("comma", ",")]
)
def test_a_class_may_be_in_test_rows_alone(tmp_path, separator, text):
    """So may the only cell with several labels: the loss is that of the whole table."""
    rows = ["0.wav,dog,1", "1.wav,cat,1", f'2.wav,"cat{text}owl",2']
    path = table(tmp_path, rows)
    config = get_config(PATH, f"{path},test=2,separator={separator}")
    train, test = sources(config)
    found = heads.read(config, [train]).specs["labels"]
    assert found == HeadSpec(("cat", "dog", "owl"), "bce")
    tags = labels_lib.tags_of(test)
    assert tags == [["cat", "owl"]]
    labels_lib.check("test", "clips", tags, found.labels)  # raises for unknown ones


def test_cells_with_one_label_are_one_class(tmp_path):
    path = table(tmp_path, ["0.wav,dog;wet,1", "1.wav,cat,2"])
    config = get_config(PATH, str(path))
    (head,) = heads.read(config, sources(config)[:1]).specs.values()
    assert head == HeadSpec(("cat", "dog;wet"), "ce")


@pytest.mark.parametrize(
    ("argument", "head", "tower"),
    [
        ("", 1e-3, 1e-3),
        ("init=CKPT", 3e-3, 3e-4),
        ("init=CKPT,freeze", 3e-3, 0.0),
        ("freeze", 1e-3, 0.0),
        ("init=CKPT,recipe=laion,freeze", 1e-4, 0.0),
        ("init=CKPT,recipe=msclap", 1e-4, 1e-4),
        ("init=CKPT,recipe=msclap,freeze", 1e-3, 0.0),
    ],
)
def test_rates_are_those_of_the_header(tmp_path, argument, head, tower):
    path = table(tmp_path, ["0.wav,dog,1", "1.wav,cat,2"])
    config = get_config(PATH, f"{path},{argument}")
    params = {"heads": {"labels": {"kernel": 0}}, "audio_projection": {"kernel": 0}}
    found = optim.rate_multipliers(config.optim, params)
    rates = (found["heads"]["labels"]["kernel"], found["audio_projection"]["kernel"])
    expected = (head, tower)
    for rate, wanted in zip(rates, expected, strict=True):
        assert rate * config.optim.learning_rate == pytest.approx(wanted)
