"""Embedding any number of sounds or texts into one file, restartable.

ahead   decode in threads ahead of the device, in bounded memory
items   what is to be embedded: files, folders, tables, texts
parts   what is done already, on disk
stores  the result: .npz, .parquet, or a folder of ArrayRecord files
job     all of it
"""

from clap_jax.embed.ahead import Embedded, read_ahead
from clap_jax.embed.job import Interrupted, Summary, run
from clap_jax.embed.parts import ITEMS as PART_ITEMS
from clap_jax.embed.stores import read

__all__ = [
    "PART_ITEMS",
    "Embedded",
    "Interrupted",
    "Summary",
    "read",
    "read_ahead",
    "run",
]
