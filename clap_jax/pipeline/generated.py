"""Captions that were made for clips (from their labels, say), beside the clips' own.

They stand in files of JSON lines, as `python -m data.caption` writes them:

    {"id": "dogs/rex.wav", "tags": ["dog"], "caption": "The sound of dog",
     "origin": {"kind": "template"}}

`id` is the clip's in its source, `origin.kind` says what made the caption; a line with
several has a list, `captions`, instead. What else is in a line is for people.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax import remote
from clap_jax.pipeline import order, tables

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

ORIGINAL = "original"
"""The origin of the captions that a source has by itself."""

CHOICES = ("none", "all", "augment_only", "only")


class Generated(NamedTuple):
    """One caption of such a file."""

    id: str
    caption: str
    kind: str


class GeneratedSource:
    """A source whose clips have more captions than their own.

    source: the clips. One that brings such captions by itself names their kinds in
        `origins`; `generated(index)` gives a clip's as (kind, caption), and
        `generated_clips()` how many have any.
    files: paths or URLs of files of captions; a clip may be in several, and in one
        several times.
    captions: which are used, as LAION-CLAP's --text-augment-selection: "none" (the
        clip's own), "all" (its own and the generated ones, each equally likely),
        "augment_only" (the generated ones where it has any, else its own); "only", the
        same, for clips without any to be left out (`with_generated`); or probabilities by kind that sum to 1, {"original": 0.5, "t5": 0.5}: the kind is
        drawn first, among those that the clip has, then one of its captions. A clip
        that has none of the kinds keeps its own captions.

    What else the source has, this has too. Files are read whole and held in memory:
    some 80 bytes for a caption of 60 letters. Raises ManifestError for lines that
    cannot be used, and for a file none of whose ids is a clip's; ValueError for
    `captions` that make no sense.
    """

    def __init__(
        self,
        source: "Source",
        files: str | Sequence[str] = (),
        captions: str | Mapping[str, float] = "all",
    ):
        files = (files,) if isinstance(files, str | os.PathLike) else files
        self.name, self._source = source.name, source
        self._files = [os.fspath(file) for file in files]
        self._brought = source.generated_clips() if hasattr(source, "origins") else 0
        self._kinds: list[str] = list(source.origins) if self._brought else []
        self._collect()
        if not self._kinds and captions != "none":
            raise ValueError(
                f"source {source.name!r}: captions is {captions!r}, but there are no "
                "generated captions: set generated to a file of them"
            )
        self._choice = self._checked(captions)

    def _collect(self) -> None:
        """Read all files into arrays, since workers get a copy: each clip's captions
        lie behind each other."""
        numbers = {self._source.id(i): i for i in range(len(self._source))}
        known = {kind: number for number, kind in enumerate(self._kinds)}
        clips, kinds, texts, self._strange = [], [], [], 0
        for file in self._files:
            before = len(clips)
            for line in read(file):
                clip = numbers.get(line.id)
                if clip is None:
                    self._strange += 1
                    continue
                clips.append(clip)
                kinds.append(known.setdefault(line.kind, len(known)))
                texts.append(line.caption.encode())
            if len(clips) == before:
                raise _nothing_fits(file, self._source)
        self._kinds = list(known)
        place = np.argsort(np.array(clips, np.int64), kind="stable")
        counts = np.bincount(np.array(clips, np.int64), minlength=len(self._source))
        self._first = np.cumsum([0, *counts])
        self._kind = np.array(kinds, np.int32)[place]
        self._text = b"".join(texts[row] for row in place)
        self._end = np.cumsum([0, *(len(texts[row]) for row in place)])

    def _checked(self, captions: Any) -> str | dict[str, float]:
        where = f"source {self.name!r}: captions"
        if isinstance(captions, str):
            if captions not in CHOICES:
                raise ValueError(
                    f"{where} is {captions!r}, expected one of {', '.join(CHOICES)}, or "
                    'probabilities such as {"original": 0.5, "t5": 0.5}'
                )
            return captions
        known = [ORIGINAL, *self._kinds]
        problems = config_lib.unknown_keys(captions, known, where)
        if problems:
            raise ValueError("; ".join(problems))
        values = list(captions.values())
        total = math.fsum(values)
        if not all(value >= 0 for value in values) or abs(total - 1) > 1e-6:
            raise ValueError(
                f"{where} is {dict(captions)}, expected probabilities that sum to 1"
            )
        return dict(captions)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here; names with "_" are asked for by pickle.
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._source, name)
        return self._read if name == "read" else found

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip with the captions that are used."""
        return {**self._source[index], "captions": self.captions(index)}

    def _read(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return [
            {**example, "captions": self.captions(index)}
            if isinstance(example, Mapping)
            else example
            for index, example in zip(indices, self._source.read(indices), strict=True)
        ]

    def captions(self, index: int) -> list[str]:
        """The captions of a clip that may be drawn."""
        return [caption for _, caption in self._used(index)]

    def caption_weights(self, index: int) -> list[float] | None:
        """How likely each of `captions` is, sum 1; None where all are equally."""
        if isinstance(self._choice, str):
            return None
        kinds = [kind for kind, _ in self._used(index)]
        counts = Counter(kinds)
        shares = {kind: self._choice.get(kind, 0.0) for kind in counts}
        total = math.fsum(shares.values())
        if not total:  # none of the kinds: the clip's own
            return [1 / len(kinds)] * len(kinds)
        return [shares[kind] / total / counts[kind] for kind in kinds]

    def _used(self, index: int) -> list[tuple[str, str]]:
        """(kind, caption) of those that may be drawn, the clip's own first."""
        own = [(ORIGINAL, caption) for caption in self._source.captions(index)]
        if self._choice == "none":
            return own
        made = self._made(index)
        if self._choice == "all":
            return own + made
        if self._choice in ("augment_only", "only"):
            return made or own
        some = [row for row in own + made if self._choice.get(row[0], 0.0) > 0]
        return some or own

    def with_generated(self) -> list[int]:
        """The clips that have generated captions."""
        return [index for index in range(len(self)) if self._made(index)]

    def _made(self, index: int) -> list[tuple[str, str]]:
        first, last = int(self._first[index]), int(self._first[index + 1])
        rows = self._source.generated(index) if self._brought else []
        for row in range(first, last):
            text = self._text[self._end[row] : self._end[row + 1]].decode()
            rows.append((self._kinds[self._kind[row]], text))
        return rows

    def tags(self, index: int) -> list[str]:
        """Labels of a clip."""
        return self._source.tags(index)

    def group(self, index: int) -> str:
        """Clips of one group are positives of each other."""
        return self._source.group(index)

    def id(self, index: int) -> str:
        """What the clip is called."""
        return self._source.id(index)

    def description(self) -> str:
        """The source's line, and how many captions of which kind there are besides."""
        line = self._source.description()
        if self._brought:
            line += f"; {self._brought:,} of them bring generated captions"
        if self._files:
            kinds = Counter(self._kinds[number] for number in self._kind)
            parts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
            with_one = int(np.count_nonzero(np.diff(self._first)))
            without = len(self) - with_one
            line += (
                f"; generated captions {len(self._kind):,} ({parts}) for {with_one:,} "
                f"clips, none for {without:,}; {self._strange:,} more in "
                f"{', '.join(map(os.path.basename, self._files))} are of no clip here"
            )
        return f"{line}; captions used: {self._choice}"

    def digest(self) -> str:
        """Short hex of the source's own, all generated captions and the choice."""
        choice = self._choice
        if not isinstance(choice, str):
            choice = sorted(choice.items())
        arrays = (self._first, self._kind, self._end)
        parts = [self._source.digest(), choice, self._kinds, self._text]
        return order.digest([*parts, *map(memoryview, arrays)])


def read(path: str) -> Iterator[Generated]:
    """What a file of captions holds, in its order.

    Raises ManifestError, which lists the first lines that cannot be used, at the end
    (the others are given before), and OSError for a file that cannot be read.
    """
    if not remote.is_remote(path):
        path = os.path.expanduser(path)
    problems = []
    with remote.opened(path) as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                yield from parse(text)
            except ValueError as error:
                problems.append(tables.Problem(number, "", str(error)))
                if len(problems) > tables.SHOWN_PROBLEMS:
                    break
    if problems:
        raise tables.ManifestError(path, problems)


def parse(text: str | bytes) -> list[Generated]:
    """One line of a file of captions. ValueError says what is wrong with it."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds a {type(row).__name__}, expected an object {{...}}")
    origin = row.get("origin")
    kind = origin.get("kind") if isinstance(origin, dict) else None
    texts = row.get("captions", [row.get("caption")])
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"captions is {texts!r:.60}, expected a list of texts")
    name = "captions" if "captions" in row else "caption"
    fields = [("id", row.get("id")), ("origin.kind", kind)]
    for name, value in [*fields, *((name, caption) for caption in texts)]:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} is {value!r:.60}, expected text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("caption holds half a character (a lone surrogate)") from None
    if kind == ORIGINAL:
        raise ValueError(
            f"origin.kind is {kind!r}, which means the clip's own captions"
        )
    return [Generated(row["id"], caption, kind) for caption in texts]


def _nothing_fits(file: str, source: "Source") -> tables.ManifestError:
    first = next(read(file), None)
    if first is None:
        return tables.ManifestError(file, [tables.Problem(0, "", "there are no lines")])
    reason = (
        f"none of its ids is a clip of source {source.name!r}: they are like "
        f"{first.id!r}, the clips' like {source.id(0)!r}"
    )
    return tables.ManifestError(file, [tables.Problem(0, "", reason)])
