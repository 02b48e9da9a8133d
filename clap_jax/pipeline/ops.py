"""What is done to one clip: decode, crop, mel, cache, replace where it is damaged.

A clip is prepared in two halves. The first depends on the audio alone, is costly and can
be cached; the second is the random crop, cheap and different each time.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from clap_jax.audio import crop, io
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import Frontend

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

REPLACEMENT_TRIES = 16
"""So many neighbours of a damaged clip are tried before giving up."""


# Where mels are computed, and the dtype of what a batch then holds.
DTYPES = {"host": np.float16, "device": np.int16, "exact": np.float32}


class Cache:
    """Arrays in memory, up to a budget. What is in it stays: an epoch visits every clip
    once, so dropping old ones for new ones would never hit. Safe in threads; a pickled
    copy starts empty."""

    def __init__(self, budget_bytes: int):
        self._budget = self._left = budget_bytes
        self._arrays: dict[Any, np.ndarray] = {}
        self._owners: list[Any] = []
        self._lock = threading.Lock()

    def __reduce__(self):
        return Cache, (self._budget,)

    def number(self, owner: Any) -> int:
        """A number for `owner` in keys: always the same for this very object."""
        with self._lock:
            for number, known in enumerate(self._owners):
                if known is owner:
                    return number
            self._owners.append(owner)
            return len(self._owners) - 1

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def used_bytes(self) -> int:
        """Bytes of all arrays held."""
        return self._budget - self._left

    def get(self, key: Any) -> np.ndarray | None:
        """The array under `key`, if it is there."""
        return self._arrays.get(key)

    def put(self, key: Any, array: np.ndarray) -> None:
        """Keep `array` if there is room for it."""
        with self._lock:
            if array.nbytes <= self._left and key not in self._arrays:
                self._arrays[key] = array
                self._left -= array.nbytes


class Prepare:
    """Makes model inputs from audio.

    frontend: rate, clip length, mels and how short clips are filled up.
    mel: "host" gives log-mels, float16 [clip_frames, F] in dB; "device" gives 16-bit
        waves, int16 [clip_samples], whose mels the device computes; "exact" the same
        waves as float32, which only have 16 bits where the front end says so.
    random_crop: a random part of longer clips (training); else their middle.
    cache_gib: memory for prepared clips, in GiB for each process.

    A random crop of a host mel is cut out of the mel of the whole clip, so that its first
    and last frames know the sound beyond the cut; every other case is exactly the mel of
    the cropped wave. Cached or not, the result has the same bits.
    """

    def __init__(
        self,
        frontend: Frontend,
        mel: str = "host",
        random_crop: bool = True,
        cache_gib: float = 0.0,
    ):
        if mel not in DTYPES:
            raise ValueError(f"mel is {mel!r}, expected one of {', '.join(DTYPES)}")
        if cache_gib < 0:
            raise ValueError(f"cache_gib is {cache_gib}, expected 0 or more")
        self.frontend, self.mel, self.random_crop = frontend, mel, random_crop
        self.cache = Cache(int(cache_gib * 2**30))

    @property
    def field(self) -> str:
        """Its name in a batch: "mel" or "wave"."""
        return "mel" if self.mel == "host" else "wave"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one finished clip."""
        if self.mel == "host":
            return self.frontend.clip_frames, self.frontend.mels
        return (self.frontend.clip_samples,)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a finished clip."""
        return np.dtype(DTYPES[self.mel])

    def __call__(self, audio: Any, name: str = "") -> np.ndarray:
        """The half without chance: `finish` takes what this returns.

        audio: as `clap_jax.audio.io.load` takes it; `name` names it in errors.
        Returns float16 [frames, F] or int16 [t], the whole clip where a random crop
        follows, never shorter than one clip. Raises AudioError.
        """
        frontend = self.frontend
        wave = io.load(audio, frontend.rate_hz, name)
        if not self.random_crop:
            wave = crop.center_crop(wave, frontend.clip_samples)
        wave = crop.fill(wave, frontend.clip_samples, frontend.fill)
        if self.mel == "device":
            return io.to_int16(wave)
        if frontend.int16_trip:
            wave = io.quantise(wave)
        if self.mel == "exact":
            return wave
        return frontend_lib.log_mel(wave, frontend).astype(np.float16)

    def finish(
        self, whole: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """One clip of `shape`, a view: a random crop drawn from `rng`, or all of it."""
        if not self.random_crop:
            return whole
        return crop.random_crop(whole, self.shape[0], rng)


class Clip(NamedTuple):
    """A prepared clip and where in its source it comes from."""

    whole: np.ndarray
    index: int
    bad: bool  # the one asked for was damaged, this is another


class Clips:
    """The prepared clips of one source, by index."""

    def __init__(self, source: "Source", prepare: Prepare):
        self.source, self.prepare = source, prepare
        self._number = prepare.cache.number(source)
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __reduce__(self):
        return Clips, (self.source, self.prepare)

    def cached(self, index: int) -> Clip | None:
        """The clip if it takes no work."""
        whole = self.prepare.cache.get((self._number, index))
        return None if whole is None else Clip(whole, index, False)

    def load(self, index: int) -> np.ndarray:
        """The prepared clip; logs a damaged one, once, and raises AudioError."""
        key = (self._number, index)
        whole = self.prepare.cache.get(key)
        if whole is not None:
            return whole
        try:
            audio = self.source[index]["audio"]
            is_path = isinstance(audio, str)
            name = "" if is_path else f"{self.source.name} {self.source.id(index)}"
            whole = self.prepare(audio, name)
        except io.AudioError as error:
            with self._lock:
                known = index in self._damaged
                self._damaged.add(index)
            if not known:
                logging.warning("%s: bad clip: %s", self.source.name, error)
            raise
        self.prepare.cache.put(key, whole)
        return whole

    def fetch(self, index: int) -> Clip:
        """The clip, or in place of a damaged one the next sound one by index.

        Raises AudioError when the next REPLACEMENT_TRIES are damaged as well.
        """
        for tries in range(REPLACEMENT_TRIES + 1):
            place = (index + tries) % len(self.source)
            try:
                if place not in self._damaged:
                    return Clip(self.load(place), place, bad=tries > 0)
            except io.AudioError:
                continue
        raise io.AudioError(
            f"{self.source.name}: clip {self.source.id(index)} and the "
            f"{REPLACEMENT_TRIES} after it are all damaged (the warnings name them)"
        )


def pick_caption(captions: Sequence[str], rng: np.random.Generator) -> str:
    """One of the captions, each equally likely."""
    return captions[rng.integers(len(captions))]


def example_generator(seed: int, draw: int) -> np.random.Generator:
    """The generator of the `draw`-th training example: the same in every process."""
    return np.random.Generator(np.random.Philox(key=[seed, draw]))
