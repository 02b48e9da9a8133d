"""Config keys, arguments and durations."""

import dataclasses

import pytest

from clap_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Options:
    path: str
    weight: float = 1.0


def test_an_unknown_key_is_an_error():
    config = config_lib.default()
    with pytest.raises((AttributeError, KeyError), match="learning_rate"):
        config.optim.learning_rat = 1e-3


def test_build_names_unknown_and_missing_keys():
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.build(Options, {"wieght": 2.0}, "data.sources[0]")
    message = str(error.value)
    assert "unknown key of data.sources[0] 'wieght' (did you mean 'weight'?" in message
    assert "data.sources[0].path is missing" in message


def test_build_fills_a_dataclass():
    assert config_lib.build(Options, {"path": "a"}, "x") == Options("a", 1.0)


def test_argument_words_paths_and_values():
    defaults = {"path": "", "smoke": False, "fold": 1, "rate": 0.5}
    parsed = config_lib.parse_argument("a/b.csv,smoke,fold=4,rate=2", **defaults)
    assert dict(parsed) == {"path": "a/b.csv", "smoke": True, "fold": 4, "rate": 2.0}
    assert dict(config_lib.parse_argument(None, **defaults)) == defaults


def test_unknown_argument_names_the_nearest():
    with pytest.raises(config_lib.ConfigError, match="did you mean 'smoke'"):
        config_lib.parse_argument("smoek", smoke=False)


KEYS = {"path": "", "smoke": False, "steps": 1, "rate": 0.5}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("a.csv,smok", r"'smok' .did you mean 'smoke'\?.*path is 'a.csv' already"),
        ("path=a.csv,b.csv", "'b.csv' .*path is 'a.csv' already"),
        ("a.csv,stpes=5", r"'stpes' .did you mean 'steps'\?"),
        ("stpes=5", r"'stpes' .did you mean 'steps'\?"),
        ("steps=abc", "steps=abc: 'abc' is not a whole number"),
        ("steps=1.5", "steps=1.5: '1.5' is not a whole number"),
        ("rate=fast", "rate=fast: 'fast' is not a number"),
        ("smoke=maybe", "smoke=maybe: 'maybe' is not true, false, yes, no, 1 or 0"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.parse_argument(argument, **KEYS)


@pytest.mark.parametrize("path", ["/data/fold=1/a.csv", "a=b.csv", "./steps=1/a.csv"])
def test_a_path_may_hold_an_equals_sign(path):
    assert config_lib.parse_argument(f"{path},smoke", **KEYS).path == path
    assert config_lib.parse_argument(f"path={path}", **KEYS).path == path


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("Yes", True), ("1", True)]
    + [("false", False), ("no", False), ("0", False)],
)
def test_switches(word, value):
    assert config_lib.parse_argument(f"smoke={word}", **KEYS).smoke is value


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(10, 0.0, 10), (0, 2.0, 4), (0, 0.5, 1)]
)
def test_total_steps(steps, epochs, expected):
    config = config_lib.default()
    config.train.total_steps, config.train.total_epochs = steps, epochs
    config.train.batch_size = 64
    assert config_lib.total_steps(config, examples=100) == expected


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0.0), (5, 1.0)])
def test_total_steps_needs_exactly_one(steps, epochs):
    config = config_lib.default()
    config.train.total_steps, config.train.total_epochs = steps, epochs
    with pytest.raises(config_lib.ConfigError, match="exactly one"):
        config_lib.total_steps(config, examples=100)


def test_warmup_in_steps_or_percent():
    config = config_lib.default()
    config.optim.warmup_percent = 8.0
    assert config_lib.warmup_steps(config, 1500) == 120
    config.optim.warmup_steps = 7
    with pytest.raises(config_lib.ConfigError, match="only one"):
        config_lib.warmup_steps(config, 1500)
    config.optim.warmup_percent = 0.0
    assert config_lib.warmup_steps(config, 1500) == 7


def test_json_round_trip_of_the_default():
    import json

    written = json.loads(config_lib.to_json(config_lib.default()))
    assert written["optim"]["learning_rate"] == 1e-3
    assert written["optim"]["lr_multipliers"] == [[".*", 1.0]]


def test_write_text_is_atomic(tmp_path):
    path = tmp_path / "deep" / "spec.json"
    config_lib.write_text(path, "one")
    config_lib.write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.ema_decay", 1.5, "0 (off) to less than 1"),
        ("train.ema_decay", -0.5, "0 (off) to less than 1"),
        ("train.log_steps", -1, "0 (never) or more"),
        ("checkpoint.every_steps", -1, "0 (only at the end) or more"),
        ("checkpoint.keep", 0, "1 or more"),
        ("optim.warmup_percent", 200.0, "0 to 100"),
        ("optim.clip_norm", -1.0, "0 (no clipping) or more"),
        ("optim.learning_rate", float("nan"), "0 or more"),
        ("profile.first_step", -3, "0 or more"),
        ("mesh.heartbeat_seconds", 0, "1 or more"),
        ("data.vocab_size", None, "1 or more"),
    ],
)
def test_a_number_that_cannot_be(key, value, expected):
    config = config_lib.default()
    config_lib.check_numbers(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(config_lib.ConfigError) as caught:
        config_lib.check_numbers(config)
    assert str(caught.value) == f"{key} is {value}, expected {expected}"


def test_all_numbers_that_cannot_be_are_told_at_once():
    config = config_lib.default()
    config.checkpoint.keep = 0
    config.optim.clip_norm = -1.0
    message = "optim.clip_norm is -1.0, .* more; checkpoint.keep is 0, expected 1"
    with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.check_numbers(config)
