"""The table of data sets: name -> row. `row.DataSet` says what a row holds.

from data.datasets import SETS
SETS["esc50"].splits, SETS["nsynth"].configs
"""

from data.datasets import captioned, environment, music, speech, tagged
from data.datasets.row import DataSet

THEMES = {
    "captions": captioned.ROWS,
    "labels, several a clip or from YouTube": tagged.ROWS,
    "environment": environment.ROWS,
    "music": music.ROWS,
    "speech and voices": speech.ROWS,
}
"""Rows by theme, in the order in which they are shown."""

SETS: dict[str, DataSet] = {row.name: row for rows in THEMES.values() for row in rows}
"""All data sets by name."""
