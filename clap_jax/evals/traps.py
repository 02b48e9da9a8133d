"""Known ways to get a number that cannot be compared, found before it is printed.

Each is refused with a reason, unless the evaluation's option `accept` names it; what was
accepted, and what was found, stands in the result's protocol.

    repeated_audio  the same sound stands in the source several times. AudioCaps' test
                    table has a row for each of the five captions of a clip; read row by
                    row, four of five right answers count as wrong, and R@1 falls to a
                    fifth (LAION-AI/CLAP, issue 59).
    clotho_split    Clotho's evaluation and validation splits have 1,045 clips each, and
                    LAION's shards call the former "valid" and the latter "test".
                    Published numbers are of evaluation.
    too_many_clips  more clips than the official split has.
    classes         another number of classes than the task has: fewer are easier.
    captions        clips without exactly five captions, under laion5 (a few, whose
                    captions repeat, are let through).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.audio import io

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

TRAPS = ("repeated_audio", "clotho_split", "too_many_clips", "classes", "captions")

OFFICIAL = ("clips", "classes", "captions", "clotho_split")
"""What may be said of the official data; `clotho_split` is evaluation or validation."""

# A few silent or otherwise equal clips are no repeated table.
REPEATED_SHARE = 0.1
# AudioCaps has a few clips with the same caption twice.
OTHER_CAPTIONS_SHARE = 0.05
# Pairs of clips whose sounds are looked at, at this rate.
COMPARED = 8
COMPARED_RATE_HZ = 16_000

# The first captions of 16 clips of each split of Clotho 2.1, as `mark` writes them.
CLOTHO = {
    "evaluation": """
        3b22c836422c 2b8d29213a94 17688f8880b8 f5072afcd9e3 408c3b48b91d 7a78e2d87048
        772e906e37b5 2a3f08326204 1f28216e4c4c 80fbebf389ce 9cd052477f21 fd61d5f0cfb1
        5e2a0e354462 d4f1726240e6 a565b214c97a 7d64d356a990
    """,
    "validation": """
        1cc640fa803e e18c40fd71e2 fdb6eb088119 731688d7c27d 3f15b4763c5f 121fcc835643
        2362c3689947 990c938d638b 44a1821db0f0 506a6f993f11 a70cf1f901fe 69933287b2d1
        f025c972531c c36e73a2aa6c 8317b4253c52 2168db0b098e
    """,
}
# Other clips may have one of them by chance.
CLOTHO_LEAST = 3


class Traps:
    """What is known of the data, which traps are accepted, and which were found.

    what: names the evaluation in errors, as "retrieval of source 'clotho'".
    accept: names from `TRAPS`.
    official: what the official data has, keys of `OFFICIAL`.

    Raises ValueError for unknown names.
    """

    def __init__(
        self, what: str, accept: Sequence[str] = (), official: Mapping | None = None
    ):
        accept = (accept,) if isinstance(accept, str) else tuple(accept)
        self.what, self.official = what, dict(official or {})
        unknown = [name for name in accept if name not in TRAPS]
        if unknown:
            raise ValueError(config_lib.unknown("trap in accept", unknown[0], TRAPS))
        problems = config_lib.unknown_keys(self.official, OFFICIAL, "official")
        if problems:
            raise ValueError("; ".join(problems))
        self._accept = accept
        self.found: dict[str, str] = {}

    def protocol(self) -> dict[str, Any]:
        """What the result says of it."""
        said: dict[str, Any] = {"official": self.official} if self.official else {}
        return said | ({"accepted": dict(self.found)} if self.found else {})

    def check_clips(self, clips: int) -> None:
        """More clips than the official split has cannot be that split."""
        official = self.official.get("clips", clips)
        if clips > official:
            self._refuse(
                "too_many_clips",
                f"it has {clips:,} clips, the official split has {official:,}: is "
                "another split in it, or a clip several times (a table with one row a "
                "caption; merge_rows=True makes one clip of the rows of a file)?",
            )

    def check_classes(self, classes: int) -> None:
        """The task's own number of classes."""
        official = self.official.get("classes", classes)
        if classes != official:
            self._refuse(
                "classes",
                f"it has {classes} classes, the task has {official}: name them all in "
                "`labels` where this split lacks some",
            )

    def check_captions(self, counts: Sequence[int], wanted: int) -> None:
        """`wanted` captions of every clip; counts: how many each has."""
        wrong = [clip for clip, count in enumerate(counts) if count != wanted]
        if len(wrong) > OTHER_CAPTIONS_SHARE * len(counts):
            found = counts[wrong[0]]
            hint = ""
            if max(counts) == 1:
                hint = (
                    ". One caption a clip is what a table with one row a caption gives: "
                    "merge_rows=True makes one clip of the rows of a file"
                )
            self._refuse(
                "captions",
                f"{len(wrong)} of its {len(counts)} clips do not have {wanted} "
                f"captions, the first is clip {wrong[0]} with {found}{hint}",
            )

    def check_clotho(self, texts: Iterable[str]) -> None:
        """The split that was meant; without being told, evaluation is."""
        wanted = self.official.get("clotho_split", "evaluation")
        known = {own: split for split, marks in CLOTHO.items() for own in marks.split()}
        hits = dict.fromkeys(CLOTHO, 0)
        for text in set(texts):
            split = known.get(mark(text))
            if split:
                hits[split] += 1
        others = {
            split: count
            for split, count in hits.items()
            if split != wanted and count >= CLOTHO_LEAST
        }
        for split, count in others.items():
            both = hits[wanted] >= CLOTHO_LEAST
            self._refuse(
                "clotho_split",
                f"{count} known captions are of Clotho's {split} split"
                + (f", {hits[wanted]} of its {wanted} split" if both else "")
                + f", expected {wanted} alone. LAION's shards call evaluation 'valid' "
                "and validation 'test'; official={'clotho_split': "
                f"'{split}'}} says that {split} is meant",
            )

    def check_audio(
        self,
        source: "Source",
        clips: np.ndarray,
        embeddings: np.ndarray,
        groups: np.ndarray,
    ) -> None:
        """The same sound in clips that count as wrong for each other.

        Where many clips are of one file, or many embeddings are equal (but for their
        last digits, in which a place in a batch may show), the sounds of a few of these
        clips are compared: a model that has collapsed is no fault of the data.

        clips: int [n], positions in the source; embeddings: float [n, E]; groups: int
        [n], clips of one are right for each other.
        """
        _, by_vector = np.unique(embeddings.round(3), axis=0, return_inverse=True)
        for sound_of in (_by_file(source, clips), by_vector.ravel()):
            repeated = _repeated(sound_of, groups)
            if len(repeated) <= REPEATED_SHARE * len(clips):
                continue
            chosen = np.linspace(0, len(repeated) - 1, COMPARED).round().astype(int)
            pairs = clips[repeated[np.unique(chosen)]].tolist()
            same = [pair for pair in pairs if _sound_alike(source, *pair)]
            if len(same) <= len(pairs) / 2:
                continue
            one, other = sorted(same[0])
            self._refuse(
                "repeated_audio",
                f"{len(repeated):,} of its {len(clips):,} clips repeat another's sound "
                f"(clips {one} and {other} are the same), which makes right answers "
                "wrong. AudioCaps' tables have one row a caption: merge_rows=True makes "
                "one clip of the rows of a file",
            )

    def _refuse(self, trap: str, reason: str) -> None:
        if trap not in self._accept:
            raise ValueError(
                f"{self.what}: {reason} (accept=['{trap}'] goes on, and says so in "
                "the results)"
            )
        self.found[trap] = reason


def _by_file(source: "Source", clips: np.ndarray) -> np.ndarray:
    """A number for the file of each clip; all differ where clips are not files."""
    files = getattr(source, "audio_files", list)()
    if len(files) != len(source):
        return np.arange(len(clips))
    return np.unique(np.array(files)[clips], return_inverse=True)[1]


def _repeated(sound_of: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Places [k, 2] of pairs with one sound in two groups: the first clip of each group
    that has the sound, and the one before it."""
    pairs = np.stack([sound_of, groups], axis=1)
    sounds, first = np.unique(pairs, axis=0, return_index=True)
    same = np.flatnonzero(sounds[1:, 0] == sounds[:-1, 0])
    return np.stack([first[same], first[same + 1]], axis=1)


def _sound_alike(source: "Source", one: int, other: int) -> bool:
    """Whether two clips hold the same samples; False where one cannot be read."""
    try:
        waves = [
            io.load(source[clip]["audio"], COMPARED_RATE_HZ) for clip in (one, other)
        ]
    except io.AudioError:
        return False
    return np.array_equal(*waves)


def mark(text: str) -> str:
    """A digest of a caption's words, whatever their case and what stands between."""
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    return hashlib.sha256(words.encode()).hexdigest()[:12]
