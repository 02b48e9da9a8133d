"""Writing tiny sounds and tables."""

import io
from collections.abc import Mapping
from pathlib import Path

import soundfile

from tests.pipeline.clips import wave
from tests.pipeline.shards import sound

Files = dict[str, bytes | str]
Row = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def wav(number: int) -> bytes:
    """A sound of its own for each number."""
    return sound(number, "wav")


def noise(number: int, seconds: float) -> bytes:
    """A longer sound at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, wave(number, seconds, 16_000), 16_000, format="WAV")
    return file.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder; returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def table(*rows: tuple, delimiter: str = ",") -> str:
    """A table; cells with a delimiter or a quote in them are quoted."""

    def cell(value: object) -> str:
        text = str(value)
        quoted = delimiter in text or '"' in text
        return '"' + text.replace('"', '""') + '"' if quoted else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows)
