"""Checkpoints of every published family to this project's folders, and back.

converted = convert.load("630k-audioset-best.pt")
convert.write(converted, "clap", to="clap_jax")

`python -m clap_jax.convert SRC DST --to=clap_jax|hf|laion|msclap|blat` does the same.
A folder that was made of another checkpoint keeps what the model does not use in
`extra.safetensors` and where it came from in `origin.json`, so that the way back gives
every tensor of the original again, bit for bit.
"""

from clap_jax.convert.files import FileError
from clap_jax.convert.models import Converted, Origin, load, read_any_spec
from clap_jax.convert.rules import ConversionError
from clap_jax.convert.save import TARGETS, convert, write

__all__ = [
    "TARGETS",
    "ConversionError",
    "Converted",
    "FileError",
    "Origin",
    "convert",
    "load",
    "read_any_spec",
    "write",
]
