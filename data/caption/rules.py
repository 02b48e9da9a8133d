"""Words of captions that are replaced by others, from a table."""

import csv
import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax.pipeline import order

FOLDER = Path(__file__).parent
NONE = "none"
COLUMNS = ["words", "instead"]


class RulesError(ValueError):
    """A table that cannot be used; says where and why."""


class Rules:
    """Replacements of a table.

    table: "none"; the name of a table of this folder ("neutral"); or the path of a CSV
        with the columns words and instead, lines with # in front left out. `words` are
        whole words in any case, parts of compounds with a hyphen excepted; where two
        fit, the longer one does.

    Raises RulesError for tables with missing, empty or repeated entries.
    """

    def __init__(self, table: str = NONE):
        self.table = table
        self._instead = {} if table == NONE else _read(_path(table))
        words = sorted(self._instead, key=len, reverse=True)
        # Of a word, neither "man" in "woman", nor the one in "man-made".
        body = "|".join(map(_pattern, words))
        self._found = re.compile(rf"(?<![\w'’-])(?:{body})(?![\w-])", re.IGNORECASE)
        self.digest = order.digest(sorted(self._instead.items()))

    def __call__(self, text: str) -> tuple[str, Counter]:
        """The text with its replacements, and how often each rule was used."""
        used: Counter = Counter()
        if not self._instead:
            return text, used
        return self._found.sub(functools.partial(self._replace, used), text), used

    def _replace(self, used: Counter, match: re.Match) -> str:
        found = match.group()
        words = " ".join(found.lower().replace("’", "'").split())
        instead = self._instead[words]
        used[f"{words} > {instead}"] += 1
        if found.isupper() and len(found) > 1:
            return instead.upper()
        return instead[0].upper() + instead[1:] if found[0].isupper() else instead

    def origin(self) -> dict[str, Any]:
        """Says in a caption's origin which rules these are."""
        return (
            {} if self.table == NONE else {"table": self.table, "digest": self.digest}
        )


def _pattern(words: str) -> str:
    return re.escape(words).replace(r"\ ", r"\s+").replace("'", "['’]")


def _path(table: str) -> Path:
    if Path(table).suffix:
        return Path(table).expanduser()
    path = FOLDER / f"{table}.csv"
    if not path.is_file():
        known = [NONE, *(found.stem for found in FOLDER.glob("*.csv"))]
        hint = config_lib.unknown("table of rules", table, known)
        raise RulesError(f"{hint}; or give the path of a .csv")
    return path


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RulesError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RulesError(f"{path}: is not UTF-8 text: save it as UTF-8") from None
    rules: dict[str, str] = {}
    header: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        row = [cell.strip() for cell in next(csv.reader([line]))]
        if not header:
            header = row
            if header != COLUMNS:
                raise RulesError(
                    f"{path}: line {number}: the columns are {', '.join(row)}, expected "
                    + ", ".join(COLUMNS)
                )
            continue
        if len(row) != len(COLUMNS) or not all(row):
            raise RulesError(f"{path}: line {number}: expected words and what instead")
        words = " ".join(row[0].lower().replace("’", "'").split())
        if words in rules:
            raise RulesError(f"{path}: line {number}: {words!r} has a rule already")
        rules[words] = row[1]
    if not rules:
        raise RulesError(f"{path}: there are no rules")
    return rules
