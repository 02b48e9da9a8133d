"""Which rows of a table learn and which are held out, by its split or fold column."""

from collections.abc import Mapping
from typing import Any

from clap_jax.config import ConfigError, unknown
from clap_jax.pipeline import tables
from clap_jax.pipeline.manifest import inspect_manifest

# Splits that never train, the one to test on first.
HELD_OUT = ("test", "eval", "validation", "valid", "val", "dev")

# What separates labels, by names for what a config's argument or a shell would take
# for something else.
SEPARATORS = {"comma": ",", "semicolon": ";", "bar": "|", "space": " ", "tab": "\t"}


def separator(text: str) -> str:
    """What is between the labels of a cell: the text, or what it is a name of."""
    return SEPARATORS.get(text, text)


def inspect(path: str, column: str = "", separator: str = "") -> dict[str, Any]:
    """`inspect_manifest`, with the values of `column` among its `values` as well, which
    then is what divides the table. Raises ManifestError, also for an unknown column."""
    table = inspect_manifest(path, separator)
    if not column:
        return table
    columns = tables.read(path).columns
    if column not in columns:
        raise ConfigError(f"{path}: {unknown('column', column, columns)}")
    values = {tables.text(value) for value in columns[column]}
    # 2 before 10, then words.
    numbers_first = sorted(values, key=lambda v: (not v.isdecimal(), v.zfill(20)))
    return table | {
        "split_column": column,
        "fold_column": "",
        "values": {column: numbers_first},
    }


def division(table: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The column that divides a table, split before fold, whichever has more than one
    value, and its values; "" and [] where none does. table: from `inspect`."""
    for name in (table["split_column"], table["fold_column"]):
        values = table["values"].get(name, ())
        if len(values) > 1:
            return name, list(values)
    return "", []


def folds(
    table: Mapping[str, Any],
) -> list[tuple[str, dict[str, list[str]], dict[str, list[str]]]]:
    """Each fold's name, and the filters for the rows to train on and to test on.

    table: from `inspect`. Every value of its column of folds, or of the one that was
    asked for, is tested once, and all other rows train. Rows without a value are never
    tested. Raises ConfigError where nothing, or splits, divide the table.
    """
    column = table["fold_column"] or table["split_column"]
    values = table["values"].get(column, [])
    names = [value for value in values if value]
    if len(names) < 2:
        raise ConfigError(
            f"{table['path']} has no folds: expected a column fold, or one that column= "
            f"names, with several values{f', found {names} in {column}' if column else ''}"
        )
    splits = reserved_values(names) + [
        n for n in names if n.lower().startswith("train")
    ]
    if splits:
        raise ConfigError(
            f"{column} of {table['path']} has splits ({', '.join(splits)}), expected "
            "folds: column=NAME names another column"
        )
    return [
        (name, {column: [value for value in values if value != name]}, {column: [name]})
        for name in names
    ]


def held_out(
    table: Mapping[str, Any], test: str = "", validation: str = ""
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Filters for the rows to train on and to test on.

    Rows of `test` are held out; unless given, that is the value test, else a validation
    split, else the last value. Rows of splits in `HELD_OUT` never train. With
    `validation`, the test rows stay unseen and validation rows are scored. Without a
    column with several values, both are all rows.
    Raises ConfigError for values that are not there, and where nothing is left to train.
    """
    column, names = division(table)
    asked = {test, validation} - {""}
    if not column:
        if asked:
            raise ConfigError(
                f"there is no {min(asked)!r} to hold out: {table['path']} has no split or "
                "fold column with more than one value; leave out test and validation to "
                "train and test on every row"
            )
        return {}, {}
    absent = asked - set(names)
    if absent:
        raise ConfigError(f"{column} has no value {min(absent)!r}; it has {names}")
    reserved = reserved_values(names)
    # Rows without a value train, unless all other rows are said to.
    others = [name for name in names if name and not name.lower().startswith("train")]
    rest = "" if "" in names else names[-1]
    test = test or next(iter(reserved + others[::-1]), rest)
    train = [name for name in names if name not in {test, *asked, *reserved}]
    if not train:
        raise ConfigError(
            f"no rows are left to train on: {column} has only {names}, all held out; "
            "name the rows to train on train"
        )
    return {column: train}, {column: [validation or test]}


def reserved_values(names: list[str]) -> list[str]:
    """Those that never train, in the order of `HELD_OUT`."""
    reserved = [name for name in names if name.lower() in HELD_OUT]
    return sorted(reserved, key=lambda name: HELD_OUT.index(name.lower()))
