"""What a model makes of every clip of a source, kept on disk."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from clap_jax import hosts, remote
from clap_jax.pipeline import order

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


def cached(
    encoder: Any, source: "Source", folder: str | Path = ""
) -> tuple[np.ndarray, np.ndarray]:
    """`encoder.audio(source)`, from a file in `folder` where it has been asked before.

    A file's name holds the digests of the encoder (weights, front end, how it hears, the
    precision that it computes in), of the source (ids, captions, labels), and of what can
    be told of its sounds without reading them (`sounds`). "": no files.
    """
    if not folder:
        return encoder.audio(source)
    path = Path(folder) / f"{encoder.digest()}-{source.digest()}-{sounds(source)}.npz"
    found = _read(path, len(source)) if jax.process_index() == 0 else None
    known = bool(hosts.from_first(np.array([found is not None]))[0])
    if not known:
        vectors, kept = encoder.audio(source)
        if jax.process_index() == 0:
            _write(path, vectors, kept)
        return vectors, kept
    logging.info("%s: %d clips as they were encoded before", source.name, len(source))
    if found is None:
        width = encoder.width
        found = np.zeros((len(source), width), np.float32), np.zeros(len(source), bool)
    vectors, kept = found
    return hosts.from_first(vectors), hosts.from_first(kept)


def sounds(source: "Source") -> str:
    """Short hex that changes when a source's sounds do, as far as that is cheap to see.

    Of local files (`audio_files`) size and time of change, wherever they lie; of a URL
    the URL alone, since asking the store takes a request each. Of a source without files
    its description: what it makes follows from its settings. So a folder of vectors has
    to be emptied when sounds change behind the same URLs.
    """
    files = getattr(source, "audio_files", None)
    if files is None:
        return order.digest([source.description()])
    return order.digest(map(_stamp, files()))


def _stamp(path: str) -> tuple[Any, ...]:
    if remote.is_remote(path):
        return (path,)
    try:
        return tuple(remote.find(path))
    except OSError:  # that it cannot be read is found out later
        return ()


def _read(path: Path, clips: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays of a file; None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            vectors, kept = file["vectors"], file["kept"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    if len(vectors) != clips or len(kept) != clips:
        logging.warning("%s has %d clips, expected %d", path, len(vectors), clips)
        return None
    return vectors, kept


def _write(path: Path, vectors: np.ndarray, kept: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, vectors=vectors, kept=kept)
    partial.replace(path)
