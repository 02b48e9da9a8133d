"""Tar shards as LAION writes them, of tiny sounds."""

import io
import json
import tarfile
from pathlib import Path

import soundfile

from tests.pipeline.clips import RATE_HZ, wave


def sound(number: int, kind: str = "flac") -> bytes:
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, wave(number), RATE_HZ, format=kind)
    return file.getvalue()


def pair(number: int, **fields) -> dict[str, bytes]:
    """The two members of a clip: audio and JSON."""
    fields = {"text": [f"number {number}", f"sound {number}"], "tag": ["tone"]} | fields
    return {
        f"{number:03}.flac": sound(number),
        f"{number:03}.json": json.dumps(fields).encode(),
    }


def tar_bytes(members: dict[str, bytes]) -> bytes:
    """A tar file of these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shard(first: int, count: int) -> bytes:
    """A shard of `count` clips, numbered from `first`."""
    return tar_bytes(
        {k: v for n in range(first, first + count) for k, v in pair(n).items()}
    )


def write_shards(folder: Path, shards: int = 3, clips: int = 4) -> list[Path]:
    """Shards 000.tar ... of so many clips each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        path.write_bytes(shard(number * clips, clips))
    return paths
