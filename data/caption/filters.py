"""Which of the captions that a model wrote of clips are kept, and why the others are not.

The rows of `criteria.FILTERS` are applied in their order; each sees what those before it
left. Most look at one clip alone, so that neither its neighbours nor their order matter.
The last two go by two passes over all clips:

1. `Filters.of_clip` for every clip, and `frequencies` of what that leaves, in any order
   and in any parts, which `merged` adds up;
2. `Filters.finish` for every clip: the captions that more than `max_clips` clips have
   stay with that many of them, those whose digest of caption and clip's id is smallest;
   then the best `top` of each clip.

So what is kept depends on the clips and on the thresholds, not on order or shards.
"""

import hashlib
import heapq
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clap_jax import config as config_lib
from data.caption.answers import words
from data.caption.clips import Clip
from data.caption.criteria import COUNT, FILTERS, Asked, Candidate, Filter, ranked
from data.caption.tags import TagWords

Frequencies = dict[str, tuple[int, tuple[int, ...]]]
"""Caption as its words -> how many clips have it, and the smallest digests of them."""

EXAMPLES = 5
"""So many of what each filter dropped are kept for the report."""


class Drop(NamedTuple):
    """A caption that a filter dropped; `found` is what it found."""

    clip_id: str
    filter: str
    caption: str
    found: str


class Sifted(NamedTuple):
    """What filters left of a clip's candidates, in their order, and what they dropped."""

    kept: tuple[Candidate, ...]
    dropped: tuple[Drop, ...]


_BY_OPTION = {row.option: row for row in FILTERS}


class Filters:
    """The filters with their thresholds.

    thresholds: option -> value, None to turn a filter off; the others have their default.
    tag_words: by which words captions name tags.

    Raises ValueError for an unknown option, or a value that cannot be.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float | None] | None = None,
        tag_words: TagWords | None = None,
    ):
        self.thresholds = {row.option: row.default for row in FILTERS}
        for option, value in (thresholds or {}).items():
            if option not in _BY_OPTION:
                raise ValueError(
                    config_lib.unknown("option of the filters", option, _BY_OPTION)
                )
            _check(_BY_OPTION[option], value)
            self.thresholds[option] = value
        self._tag_words = tag_words or TagWords()

    def origin(self) -> dict[str, Any]:
        """For a caption's origin: the thresholds, and which table of words it was."""
        said: dict[str, Any] = dict(self.thresholds)
        if said["min_tag_share"] is not None:
            said["tag_words"] = self._tag_words.digest
        return said

    def of_clip(self, clip: Clip, candidates: Iterable[Candidate]) -> Sifted:
        """The first pass over a clip: all filters that look at one clip alone.

        Raises ValueError where a candidate lacks what a filter asks for.
        """
        left, dropped = list(candidates), []
        for one in left:
            _check_candidate(clip, one)
        for row in FILTERS:
            threshold = self.thresholds[row.option]
            if row.find is None or threshold is None or not left:
                continue
            found = row.find(Asked(clip, left, self._tag_words), threshold)
            pairs = list(zip(left, found, strict=True))
            left = [one for one, problem in pairs if not problem]
            dropped += [
                Drop(clip.id, row.name, one["caption"], problem)
                for one, problem in pairs
                if problem
            ]
        return Sifted(tuple(left), tuple(dropped))

    def frequencies(self, clips: Iterable[tuple[Clip, Sifted]]) -> Frequencies:
        """How often captions occur among what the first pass left of some clips."""
        most = self.thresholds["max_clips"]
        if most is None:
            return {}
        return merged(
            (
                {plain: (1, (_digest(plain, clip.id),))}
                for clip, sifted in clips
                for plain in {_plain(one) for one in sifted.kept}
            ),
            int(most),
        )

    def finish(self, clip: Clip, sifted: Sifted, common: Frequencies) -> Sifted:
        """The second pass over a clip; common: the frequencies of all clips, merged."""
        left, dropped = sifted.kept, sifted.dropped
        most, top = self.thresholds["max_clips"], self.thresholds["top"]
        if most is not None:
            counts = [_others(clip, one, common, int(most)) for one in left]
            found = [f"of {count} clips" if count else "" for count in counts]
            left, dropped = _divided(clip, left, dropped, "over-frequent", found)
        if top is not None:
            places = {place: i for i, place in enumerate(ranked(left))}
            found = [
                f"number {places[i] + 1} of {len(left)}" if places[i] >= top else ""
                for i in range(len(left))
            ]
            left, dropped = _divided(clip, left, dropped, "surplus", found)
        return Sifted(left, dropped)

    def apply(
        self, clips: Sequence[tuple[Clip, Sequence[Candidate]]]
    ) -> tuple[list[Sifted], "Report"]:
        """Both passes over clips that fit in memory, and what came of it."""
        first = [(clip, self.of_clip(clip, candidates)) for clip, candidates in clips]
        common = self.frequencies(first)
        found = [self.finish(clip, sifted, common) for clip, sifted in first]
        report = Report()
        for sifted in found:
            report.add(sifted)
        return found, report


def merged(parts: Iterable[Frequencies], max_clips: int) -> Frequencies:
    """Frequencies of clips that were counted in parts, no clip in two of them."""
    total: Frequencies = {}
    for part in parts:
        for plain, (count, digests) in part.items():
            before, smallest = total.get(plain, (0, ()))
            smallest = heapq.nsmallest(max_clips, (*smallest, *digests))
            total[plain] = (before + count, tuple(smallest))
    return total


class Report:
    """What filters did over many clips; parts of it add up in any order."""

    def __init__(self) -> None:
        self.clips = self.candidates = self.kept = self.emptied = 0
        self.dropped: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[int, Drop]]] = {}

    def add(self, sifted: Sifted) -> None:
        """Count a clip in, when all filters have seen it."""
        self.clips += 1
        self.candidates += len(sifted.kept) + len(sifted.dropped)
        self.kept += len(sifted.kept)
        self.emptied += not sifted.kept
        self.dropped.update(drop.filter for drop in sifted.dropped)
        for drop in sifted.dropped:
            self._example(_digest(drop.caption, drop.clip_id), drop)

    def merge(self, other: "Report") -> None:
        """Count in what another report has, of other clips."""
        self.clips += other.clips
        self.candidates += other.candidates
        self.kept += other.kept
        self.emptied += other.emptied
        self.dropped.update(other.dropped)
        for own in other._examples.values():
            for example in own:
                self._example(*example)

    def _example(self, digest: int, drop: Drop) -> None:
        # Which ones is chance, but not the order of the clips.
        own = self._examples.setdefault(drop.filter, [])
        self._examples[drop.filter] = heapq.nsmallest(EXAMPLES, [*own, (digest, drop)])

    def examples(self, name: str) -> list[Drop]:
        """Some of what a filter dropped."""
        return [drop for _, drop in self._examples.get(name, ())]

    def as_json(self, filters: Filters) -> dict[str, Any]:
        """All of it, for a report file."""
        return {
            "clips": self.clips,
            "clips_without_captions": self.emptied,
            "candidates": self.candidates,
            "kept": self.kept,
            "filters": [
                {
                    "name": row.name,
                    "option": row.option,
                    "threshold": filters.thresholds[row.option],
                    "dropped": self.dropped[row.name],
                    "examples": [drop._asdict() for drop in self.examples(row.name)],
                }
                for row in FILTERS
            ],
        }

    def lines(self, filters: Filters) -> Iterator[str]:
        """For reading: what each filter that is on dropped, with an example."""
        yield f"kept {self.kept:,} of {self.candidates:,} captions of {self.clips:,} clips"
        if self.emptied:
            yield f"clips without any caption: {self.emptied:,}"
        for row in FILTERS:
            threshold = filters.thresholds[row.option]
            if threshold is None:
                continue
            what = row.says.format(f"{threshold:g}")
            line = f"{row.name} ({what}): {self.dropped[row.name]:,}"
            for drop in self.examples(row.name)[:1]:
                line += (
                    f", as {drop.caption!r:.80} of {drop.clip_id} ({drop.found:.60})"
                )
            yield line


# --- helpers ---


def _check(row: Filter, value: float | None) -> None:
    least, most = row.allowed
    whole = row.allowed == COUNT
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is None or (
        number and least <= value <= most and not (whole and value % 1)
    ):
        return
    kind = "a whole number" if whole else "a number"
    upper = "" if most == math.inf else f" to {most:g}"
    raise ValueError(
        f"{row.option} is {value!r}, expected {kind} from {least:g}{upper}"
    )


def _check_candidate(clip: Clip, one: Candidate) -> None:
    if not isinstance(one.get("caption"), str):
        raise ValueError(
            f"clip {clip.id!r}: a candidate has the keys {', '.join(one)}, and no text "
            "as its caption"
        )
    for name in ("clap_score", "log_likelihood"):
        value = one.get(name)
        number = isinstance(value, numbers.Real) and math.isfinite(value)
        if value is not None and not number:
            raise ValueError(
                f"clip {clip.id!r}: {name} of {one['caption']!r:.60} is {value!r}, "
                "expected a finite number"
            )


def _plain(one: Candidate) -> str:
    return " ".join(words(one["caption"]))


def _digest(text: str, clip_id: str) -> int:
    key = f"{text}\n{clip_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def _others(clip: Clip, one: Candidate, common: Frequencies, most: int) -> int:
    """How many clips have a caption that this clip is not to have; 0 if it may."""
    plain = _plain(one)
    if plain not in common:
        raise ValueError(
            f"clip {clip.id!r}: the caption {plain!r:.60} was not counted in the first "
            "pass"
        )
    count, smallest = common[plain]
    return 0 if count <= most or _digest(plain, clip.id) in smallest else count


def _divided(
    clip: Clip,
    left: Sequence[Candidate],
    dropped: tuple[Drop, ...],
    name: str,
    found: Sequence[str],
) -> tuple[tuple[Candidate, ...], tuple[Drop, ...]]:
    """What stays, and all that is dropped by now."""
    pairs = list(zip(left, found, strict=True))
    more = [Drop(clip.id, name, one["caption"], what) for one, what in pairs if what]
    return tuple(one for one, what in pairs if not what), (*dropped, *more)
