"""The jobs of a search for training clips in evaluation sets: index, then look up.

They are apart from the command, whose module is `__main__` and has no name for workers.
"""

import functools
import io
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clap_jax import remote
from clap_jax.audio import io as audio_io
from data import landmarks, listing

BLOCK_CLIPS = 200
"""Clips of one job."""

VERSION = 1
"""Of what the jobs leave in OUT."""

_KEPT_WAVES = 64


class Hit(NamedTuple):
    """A training clip that is in an evaluation set.

    how: "id" or "sound"; offset_seconds: where in the evaluation clip the training clip
    begins; seconds: of the part in common; score: 0 to 1.
    """

    id: str
    set: str
    eval_id: str
    how: str
    offset_seconds: float = 0.0
    seconds: float = 0.0
    score: float = 1.0


class Search(NamedTuple):
    """All that a worker has to know; it can be pickled."""

    train: listing.Query
    evals: tuple[listing.Query, ...]
    folder: str  # for what jobs leave

    def part(self, kind: str, block: int) -> str:
        """Where a job leaves its result."""
        suffix = "npz" if kind == "index" else "json"
        return remote.join(self.folder, f"{kind}-{block:06d}.{suffix}")

    @property
    def index(self) -> str:
        """Where the whole index is."""
        return remote.join(self.folder, "index.npy")


def _waves(
    clip_list: listing.Listing, block: int
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Number and wave of each clip of a block; in place of a wave, why there is none."""
    first = block * BLOCK_CLIPS
    for index in range(first, min(first + BLOCK_CLIPS, len(clip_list))):
        try:
            yield index, _wave(clip_list, index)
        except audio_io.AudioError as error:
            yield index, str(error)


def _wave(clip_list: listing.Listing, index: int) -> np.ndarray:
    example = clip_list[index]
    name = example["audio"] if isinstance(example["audio"], str) else example["id"]
    return audio_io.load(example["audio"], landmarks.RATE_HZ, name)


def _eval_clip(search: Search, number: int) -> tuple[int, int]:
    """Which evaluation set a clip of the index is of, and its place in it."""
    for which, query in enumerate(search.evals):
        size = len(listing.read(query))
        if number < size:
            return which, number
        number -= size
    raise IndexError(number)


def blocks(clip_list: listing.Listing) -> int:
    return -(-len(clip_list) // BLOCK_CLIPS)


def index_block(search: Search, block: int) -> None:
    """Leave the index of one block of the evaluation sets, and who cannot be heard."""
    number, before = block, 0
    for query in search.evals:
        clip_list = listing.read(query)
        if number < blocks(clip_list):
            break
        number -= blocks(clip_list)
        before += len(clip_list)
    sounds, unheard = [], []
    for index, wave in _waves(clip_list, number):
        if isinstance(wave, str):
            unheard.append([clip_list.id(index), query.label, wave])
        else:
            sounds.append((before + index, wave))
    found = landmarks.build(sounds)
    file = io.BytesIO()
    reasons = np.frombuffer(json.dumps(unheard).encode(), np.uint8)
    np.savez(file, **found._asdict(), unheard=reasons)
    remote.write(search.part("index", block), file.getvalue())


def merge_index(search: Search, count: int) -> list[list[str]]:
    """Write the whole index of so many blocks; returns which clips of it could not be heard."""
    parts, unheard = [], []
    for block in range(count):
        content = io.BytesIO(remote.read(search.part("index", block)))
        with np.load(content, allow_pickle=False) as arrays:
            fields = landmarks.Index._fields
            parts.append(landmarks.Index(*(arrays[field] for field in fields)))
            unheard += json.loads(arrays["unheard"].tobytes())
    whole = landmarks.joined(parts)
    file = io.BytesIO()
    np.save(file, np.stack([whole.hashes.view(np.int32), whole.clips, whole.frames]))
    remote.write(search.index, file.getvalue())
    return unheard


@functools.lru_cache(maxsize=1)
def _index(path: str) -> landmarks.Index:
    """The whole index; processes of one machine share its memory."""
    if remote.is_remote(path):
        rows = np.load(io.BytesIO(remote.read(path)))
    else:
        rows = np.load(path, mmap_mode="r")
    return landmarks.Index(rows[0].view(np.uint32), rows[1], rows[2])


@functools.lru_cache(maxsize=_KEPT_WAVES)
def _eval_wave(search: Search, number: int) -> np.ndarray:
    which, place = _eval_clip(search, number)
    return _wave(listing.read(search.evals[which]), place)


def forget() -> None:
    """Begin a run: nothing is taken from what this process read before."""
    for function in (listing.read, _index, _eval_wave):
        function.cache_clear()


def find_block(search: Search, block: int) -> None:
    """Leave the hits of one block of training clips, and who cannot be heard."""
    train, index = listing.read(search.train), _index(search.index)
    hits, unheard = [], []
    for number, wave in _waves(train, block):
        name = train.id(number)
        if isinstance(wave, str):
            unheard.append([name, search.train.label, wave])
            continue
        sound = landmarks.landmarks(wave)
        if not len(sound.hashes):
            unheard.append(
                [name, search.train.label, "too short or silent to be found"]
            )
        best: dict[int, landmarks.Likeness] = {}
        for candidate in index.find(sound):
            clip = _eval_wave(search, candidate.clip)
            found = landmarks.same_recording(wave, clip, candidate)
            known = best.get(candidate.clip)
            if found and (known is None or found.score > known.score):
                best[candidate.clip] = found
        for clip, likeness in best.items():
            which, place = _eval_clip(search, clip)
            query = search.evals[which]
            hits.append(
                Hit(
                    name,
                    query.label,
                    listing.read(query).id(place),
                    "sound",
                    round(likeness.lag_samples / landmarks.RATE_HZ, 3),
                    round(likeness.seconds, 3),
                    round(likeness.score, 3),
                )
            )
    content = json.dumps({"hits": hits, "unheard": unheard}).encode()
    remote.write(search.part("hits", block), content)
