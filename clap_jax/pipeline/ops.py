"""What is done to one clip: decode, crop, mel, cache, replace where it is damaged.

A clip is prepared in two halves. The first depends on the audio alone, is costly and can
be cached; the second is the random crop, or the random views, cheap and different each
time.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from clap_jax.audio import crop, io, views
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import Frontend
from clap_jax.pipeline.features import Features
from clap_jax.pipeline.segments import Segmenter

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
    segmenter: cuts long clips into the segments of a model that hears these; finished
        clips are then as long as they are, [S, clip_samples] of waves ("device" or
        "exact"), and no part of at most `longest_seconds` is left out.

    A random crop of a host mel is cut out of the mel of the whole clip, so that its first
    and last frames know the sound beyond the cut; every other case is exactly the mel of
    the cropped wave. Cached or not, the result has the same bits.

    Two kinds of front ends need the mel of the whole clip: "host" or, as float32, "exact".
    Of a front end with views, random_crop says whether the windows of longer clips are
    random or fixed. Of one that takes whole clips, it cuts longer ones and pads shorter
    ones; otherwise clips are as long as they are. Their mels are those of the clip alone,
    and the padding behind them is silence in dB (zeros in the wave would be heard in the
    last frames). A minute of mel takes 0.8 MB of the cache.
    """

    def __init__(
        self,
        frontend: Frontend,
        mel: str = "host",
        random_crop: bool = True,
        cache_gib: float = 0.0,
        segmenter: Segmenter | None = None,
    ):
        if mel not in DTYPES:
            raise ValueError(f"mel is {mel!r}, expected one of {', '.join(DTYPES)}")
        if frontend.whole_mel and mel == "device":
            raise ValueError(
                "mel is 'device', expected 'host': this front end needs the mel of the "
                "whole clip, and devices get waves of one window"
            )
        if frontend.beside and mel == "host":
            raise ValueError(
                "mel is 'host', expected 'device': waves are what front ends beside "
                "each other share"
            )
        if segmenter is not None and mel == "host":
            raise ValueError(
                "mel is 'host', expected 'device': segments come as waves, since the "
                "mels of a batch of long clips are several times as large"
            )
        if cache_gib < 0:
            raise ValueError(f"cache_gib is {cache_gib}, expected 0 or more")
        self.frontend, self.mel, self.random_crop = frontend, mel, random_crop
        self.cache = Cache(int(cache_gib * 2**30))
        self.segmenter = segmenter

    @property
    def field(self) -> str:
        """Name of the sound in a batch: "mel", "wave" or "features"."""
        if self.segmenter is not None and self.segmenter.features_width:
            return "features"
        return "mel" if self.mel == "host" or self.frontend.whole_mel else "wave"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the sound of one finished clip."""
        frontend = self.frontend
        if self.segmenter is not None:
            return self.segmenter.shape
        if self.field == "wave":
            return (frontend.clip_samples,)
        stack = (frontend.views,) if frontend.views > 1 else ()
        return *stack, frontend.clip_frames, frontend.mels

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the sound of a finished clip."""
        if self.field == "features":
            return np.dtype(np.float32)
        return np.dtype(DTYPES[self.mel])

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of everything in a finished clip, by its name in a batch."""
        fields = {self.field: (self.shape, self.dtype)}
        if self.segmenter is not None:
            segments = self.shape[0]
            fields["seconds"] = ((segments, 2), np.dtype(np.float32))
            fields["heard"] = ((segments,), np.dtype(bool))
            fields["start_seconds"] = ((), np.dtype(np.float32))
        if self.frontend.views > 1:
            fields["longer"] = ((), np.dtype(bool))
        if self.frontend.whole_clip:
            fields["frames"] = ((), np.dtype(np.int32))
        return fields

    def blank(self, rows: int) -> dict[str, np.ndarray]:
        """Zeros in the shape of so many finished clips."""
        return {
            name: np.zeros((rows, *shape), dtype)
            for name, (shape, dtype) in self.fields.items()
        }

    def __call__(self, audio: Any, name: str = "") -> np.ndarray:
        """The half without chance: `finish` takes what this returns.

        audio: as `clap_jax.audio.io.load` takes it; `name` names it in errors.
        Returns float16 [frames, F] or int16 [t], the whole clip where a random crop
        follows or the front end needs it, never shorter than one clip (with whole
        clips, than half a transform, which is reflected at the ends). Of `Features`
        the table.
        Raises AudioError; ValueError for sound where features are wanted, and the other
        way round.
        """
        width = self.segmenter.features_width if self.segmenter else 0
        if isinstance(audio, Features) != bool(width):
            found, wanted = "features of segments", "sound"
            if width:
                found, wanted = wanted, found
            raise ValueError(f"{name or 'a clip'}: found {found}, expected {wanted}")
        if width:
            if audio.width != width:
                raise ValueError(
                    f"{name or 'a clip'}: features of {audio.width} numbers, expected "
                    f"{width}"
                )
            return audio.table()
        return self.whole(io.load(audio, self.frontend.rate_hz, name))

    def whole(self, wave: np.ndarray) -> np.ndarray:
        """As `__call__`, from a wave float32 [t] at the front end's rate."""
        frontend, segmented = self.frontend, self.segmenter is not None
        if not (self.random_crop or frontend.whole_mel or segmented):
            wave = crop.center_crop(wave, frontend.clip_samples)
        least = frontend.clip_samples
        if frontend.whole_clip:
            least = frontend.n_fft // 2 + 1
        if not segmented:
            wave = crop.fill(wave, least, frontend.fill)
        if self.mel == "device":
            return io.to_int16(wave)
        if frontend.int16_trip:
            wave = io.quantise(wave)
        if self.field == "wave":
            return wave
        return frontend_lib.log_mel(wave, frontend).astype(self.dtype, copy=False)

    def finish(
        self, whole: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """The sound of one clip: a random part or views drawn from `rng`, or all of it.

        Of `shape`; but for a whole clip without random_crop, which is [frames, F].
        """
        return self.example(whole, rng)[self.field]

    def example(
        self, whole: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """One finished clip: its sound, and what `fields` names besides."""
        frontend = self.frontend
        rng = rng if self.random_crop else None
        if self.segmenter is not None:
            return self.segmenter(whole, rng)
        if frontend.views > 1:
            mel, longer = views.views(
                whole, frontend.clip_frames, rng=rng, antialias=frontend.antialias
            )
            return {"mel": mel, "longer": longer}
        length = frontend.clip_frames if frontend.whole_clip else self.shape[0]
        part = crop.random_crop(whole, length, rng) if self.random_crop else whole
        if not frontend.whole_clip:
            return {self.field: part}
        frames = np.int32(len(part))
        if self.random_crop:
            part = crop.pad(part, length, frontend_lib.FLOOR_DB)
        return {"mel": part, "frames": frames}


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

    def load(self, index: int, read: Callable[[], Any] | None = None) -> np.ndarray:
        """The prepared clip; logs a damaged one, once, and raises AudioError.

        read: gives the clip's example, an AudioError in its place, or None, when the
        source is asked for it.
        """
        key = (self._number, index)
        whole = self.prepare.cache.get(key)
        if whole is not None:
            return whole
        try:
            example = read() if read is not None else None
            if isinstance(example, io.AudioError):
                raise example
            audio = (example or self.source[index])["audio"]
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

    def fetch(self, index: int, read: Callable[[], Any] | None = None) -> Clip:
        """The clip, or in place of a damaged one the next sound one by index.

        read: as in `load`.
        Raises AudioError when the next REPLACEMENT_TRIES are damaged as well.
        """
        for tries in range(REPLACEMENT_TRIES + 1):
            place = (index + tries) % len(self.source)
            try:
                if place not in self._damaged:
                    whole = self.load(place, None if tries else read)
                    return Clip(whole, place, bad=tries > 0)
            except io.AudioError:
                continue
        raise io.AudioError(
            f"{self.source.name}: clip {self.source.id(index)} and the "
            f"{REPLACEMENT_TRIES} after it are all damaged (the warnings name them)"
        )


def draw_caption(source: "Source", index: int, rng: np.random.Generator) -> str:
    """One of a clip's captions, as likely as its source says; ValueError for none."""
    captions = source.captions(index)
    if not captions:
        raise ValueError(
            f"{source.name}: clip {source.id(index)} has no captions: give its source a "
            "file of them (generated), and captions='only' to leave out clips without"
        )
    weights = getattr(source, "caption_weights", None)
    return pick_caption(captions, rng, weights and weights(index))


def pick_caption(
    captions: Sequence[str],
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
) -> str:
    """One of the captions, each equally likely or as `weights` say."""
    if weights is None:
        return captions[rng.integers(len(captions))]
    ends = np.cumsum(weights)
    return captions[np.searchsorted(ends[:-1] / ends[-1], rng.random(), side="right")]


def example_generator(seed: int, draw: int) -> np.random.Generator:
    """The generator of the `draw`-th training example: the same in every process."""
    return np.random.Generator(np.random.Philox(key=[seed, draw]))
