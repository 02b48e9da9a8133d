"""Short pieces of sounds that a page can carry and play."""

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
from absl import logging

from clap_jax.audio import io as audio_io

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

SECONDS = 5.0
# Every browser plays MP3; at this rate and quality a piece takes 5 to 40 kB.
RATE_HZ = 24_000
_MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE"}
_MP3_COMPRESSION = 0.5
BUDGET_BYTES = 2_500_000
"""What all pieces of a page may take together, as text."""


class Excerpt(NamedTuple):
    """A piece of a clip.

    uri: the sound as a data URI; "" when there is none, and `problem` says why.
    begin, end, total: seconds in the clip, and how long that is.
    """

    uri: str
    begin: float = 0.0
    end: float = 0.0
    total: float = 0.0
    problem: str = ""


class Excerpts:
    """Makes pieces until they fill the budget; the same clip is made once.

    Args:
        budget_bytes: characters that all data URIs may take together.
    """

    def __init__(self, budget_bytes: int = BUDGET_BYTES):
        self._left = budget_bytes
        self._made: dict[tuple[int, int], Excerpt] = {}

    def make(self, source: "Source", clip: int) -> Excerpt:
        """The loudest `SECONDS` of a clip; a clip that cannot be read is no error.

        Args:
            source: whose clips are files, bytes or arrays.
            clip: position in it.
        """
        key = (id(source), clip)
        if key not in self._made:
            self._made[key] = self._make(source, clip)
        excerpt = self._made[key]
        # A page repeats the bytes wherever a piece stands.
        if len(excerpt.uri) > self._left:
            return Excerpt("", problem="left out: the page would become too large")
        self._left -= len(excerpt.uri)
        return excerpt

    def _make(self, source: "Source", clip: int) -> Excerpt:
        try:
            wave = audio_io.load(source[clip]["audio"], RATE_HZ)
        except (audio_io.AudioError, OSError) as error:
            logging.warning("report: no sound of clip %d: %s", clip, error)
            return Excerpt("", problem="cannot be read")
        begin = loudest(wave, round(SECONDS * RATE_HZ))
        piece = wave[begin : begin + round(SECONDS * RATE_HZ)]
        return Excerpt(
            mp3_uri(piece),
            begin / RATE_HZ,
            (begin + len(piece)) / RATE_HZ,
            len(wave) / RATE_HZ,
        )


def loudest(wave: np.ndarray, samples: int) -> int:
    """Where the window with the most energy begins, in tenths of its length.

    Args:
        wave: float32 [T].
        samples: the window's length; 0 for a wave that is not longer.
    """
    if len(wave) <= samples:
        return 0
    energy = np.append(0.0, np.cumsum(np.square(wave, dtype=np.float64)))
    begins = np.append(np.arange(0, len(wave) - samples, max(samples // 10, 1)), 0)
    begins[-1] = len(wave) - samples
    return int(begins[np.argmax(energy[begins + samples] - energy[begins])])


def mp3_uri(wave: np.ndarray) -> str:
    """A mono wave float32 [T] at `RATE_HZ` as `data:audio/mpeg;base64,...`."""
    file = io.BytesIO()
    # Decoders go beyond full scale where a wave touches it.
    soundfile.write(
        file, np.clip(wave, -1, 1), RATE_HZ, compression_level=_MP3_COMPRESSION, **_MP3
    )
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
