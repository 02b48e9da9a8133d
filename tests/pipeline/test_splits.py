"""Which column divides a table (what follows from it: tests/test_configs.py)."""

import pytest

from clap_jax.config import ConfigError
from clap_jax.pipeline import splits


@pytest.fixture
def table(tmp_path):
    rows = ["path,label,fold,speaker,split"]
    rows += [f"{i}.wav,x,{i % 12},{'ab'[i % 2]},all" for i in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return str(tmp_path / "t.csv")


def test_a_column_with_one_value_divides_nothing(table):
    column, values = splits.division(splits.inspect(table))
    assert column == "fold"
    assert values == [str(i) for i in range(12)]


def test_any_column_may_divide(table):
    found = splits.inspect(table, "speaker")
    assert splits.division(found) == ("speaker", ["a", "b"])
    train, test = splits.held_out(found, test="a")
    assert (train, test) == ({"speaker": ["b"]}, {"speaker": ["a"]})
    with pytest.raises(ConfigError, match="did you mean 'speaker'"):
        splits.inspect(table, "speakers")
