"""Clips as embeddings of their segments, computed once by towers that stay as they are.

`feature_files` has the files that they lie in, and the source that reads these.
"""

import io
import zipfile
from typing import NamedTuple

import numpy as np

from clap_jax.audio.io import AudioError
from clap_jax.pipeline import npz

DTYPES = ("float16", "float32")
"""What features are written as."""


class Features(NamedTuple):
    """A clip of S segments; see `pipeline.segments.Segmenter`, which cuts them.

    features: float32 [S, D], whatever they were written as. seconds: float32 [S, 2],
    where each segment begins and ends. heard: bool [S], false for silence.
    """

    features: np.ndarray
    seconds: np.ndarray
    heard: np.ndarray

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    def part(self, first: int, count: int) -> "Features":
        """`count` neighbouring segments, in seconds from the beginning of the first."""
        rows = slice(first, first + count)
        seconds = self.seconds[rows] - self.seconds[first, 0]
        return Features(self.features[rows], seconds, self.heard[rows])

    def table(self) -> np.ndarray:
        """All of it in one array, float32 [S, 3 + D]."""
        columns = (self.seconds, self.heard[:, None], self.features)
        return np.concatenate(columns, axis=1, dtype=np.float32)

    @classmethod
    def from_table(cls, table: np.ndarray) -> "Features":
        """The inverse of `table`."""
        return cls(table[:, 3:], table[:, :2], table[:, 2] > 0)

    def to_bytes(self, dtype: str = "float16") -> bytes:
        """As `from_bytes` takes them; the same features are the same bytes.

        Raises ValueError for a dtype that is not in `DTYPES`, for what `checked` finds,
        and for values that float16 cannot hold.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        features, seconds, heard = checked(self)
        largest = float(np.abs(features).max())
        if largest > float(np.finfo(dtype).max):
            raise ValueError(
                f"features: {largest:g} is too large for {dtype}, expected float32"
            )
        file = io.BytesIO()
        np.savez(file, features=features.astype(dtype), seconds=seconds, heard=heard)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> "Features":
        """The inverse of `to_bytes`; `name` names the clip in errors.

        Raises AudioError for what are no features, or damaged ones.
        """
        try:
            arrays = npz.load(data)
            return checked(cls(*(arrays[field] for field in cls._fields)))
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            what = f"no features of segments, starts with {data[:8]!r}"
            raise AudioError(f"{name or 'features'}: {what}: {error}") from None


def checked(clip: Features) -> Features:
    """A clip's features in the dtypes of `Features`.

    Raises ValueError for shapes that do not fit, no segments, times that do not rise,
    and numbers that are not finite.
    """
    features, seconds, heard = (np.asarray(array) for array in clip)
    if features.ndim != 2 or not features.size or features.dtype.kind != "f":
        raise ValueError(
            f"features: {features.dtype} {list(features.shape)}, expected floating "
            "point [S, D], S and D 1 or more"
        )
    count = len(features)
    if seconds.shape != (count, 2):
        raise ValueError(
            f"seconds: {list(seconds.shape)}, expected [{count}, 2] beside features "
            f"{list(features.shape)}"
        )
    if heard.shape != (count,) or heard.dtype != np.bool_:
        raise ValueError(
            f"heard: {heard.dtype} {list(heard.shape)}, expected bool [{count}]"
        )
    for name, array in (("features", features), ("seconds", seconds)):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise ValueError(
                f"{name}: {len(bad)} of {array.size} numbers are not finite, the first "
                f"in segment {bad[0, 0]}"
            )
    bad = np.flatnonzero(seconds[:, 1] <= seconds[:, 0])
    if len(bad):
        begin, end = seconds[bad[0]]
        raise ValueError(
            f"seconds: segment {bad[0]} goes from {begin:g} to {end:g}, expected an end "
            "behind its beginning"
        )
    if (np.diff(seconds[:, 0]) <= 0).any():
        raise ValueError("seconds: segments are not in the order of their beginnings")
    features = features.astype(np.float32, copy=False)
    return Features(features, seconds.astype(np.float32, copy=False), heard)
