"""Pieces of minutes in sections, with long captions: a task that only time can solve.

A piece is 4 to 8 sections, each a texture of its own (`clap_jax.pipeline.textures`); its
caption has a sentence for each, in their order, 100 words or more. Test galleries
hold everything equal but the order of the sections, so that averages over time say
nothing about which caption belongs to which piece; or everything but their times.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence

import numpy as np

from clap_jax.pipeline import order, sounds, textures
from clap_jax.pipeline.textures import TEXTURES
from clap_jax.text.sections import clock

SPLITS = {"train": 4_000, "test": 120}  # split -> default examples
STYLES = ("order", "timing", "percent", "mixed")
GALLERIES = ("free", "order", "timing")
FEWEST, MOST = 4, 8  # sections
WORDINGS = {"train": 4, "test": 1}  # captions of a piece
MINIMUM_RATE_HZ = 16_000
SHORTEST_SECTION_SECONDS = 3
GRID = 20  # parts of a piece between which the sections of a "timing" gallery change
LEVEL_DB, LEVEL_SPREAD_DB = -20.0, 2.0
FLOOR_DB, FLOOR_SECONDS = -66.0, 8.0
CONNECTED_SHARE = 0.4  # of the sentences after a training caption's first


@dataclasses.dataclass(frozen=True)
class Piece:
    """which: the texture of each section, as its place in TEXTURES; edges: whole
    seconds, one more than sections, from 0 to the length."""

    which: tuple[int, ...]
    edges: tuple[int, ...]

    @property
    def key(self) -> str:
        """All that a caption in the style "timing" says of the piece."""
        parts = zip(self.which, self.edges[1:])
        return ", ".join(f"{textures.NAMES[i]} to {clock(end)}" for i, end in parts)


# --- captions ---

OPENINGS = (
    "This is a longer piece without a singer, made of several sections, each with "
    "a sound of its own.",
    "A recording of some minutes in which one kind of sound gives way to another "
    "from time to time.",
    "The piece is put together from a number of clearly different parts that never "
    "play at the same time.",
    "A collage of music and other sounds, one at a time, each of which goes on for "
    "quite a while.",
)
CLOSINGS = (
    "No voice speaks or sings at any point, and the changes between the parts are abrupt.",
    "The sections follow each other directly, without fading over, and about equally loud.",
    "Nobody speaks, and no two of the sections have the same sound or the same character.",
    "Every part keeps to its own sound from its beginning to its end and then just stops.",
)
# {x}: the texture; {when}: its time, or a connective, before what begins a sentence.
FRAMES = (
    "{when}we hear {x}, {more}.",
    "{when}the sound is that of {x}, {more}.",
    "{when}what plays is {x}, {more}.",
    "{when}there comes the sound of {x}; one hears {more}.",
    "{when}{x} can be heard: {more}.",
    "{when}the listener gets {x}, {more}.",
)
CONNECTIVES = ("Then ", "Next ", "After that, ", "Following this, ", "Now ")
TIMES = {
    "timing": ("From {0} to {1} ", "Between {0} and {1} ", "{0}-{1}: "),
    "percent": (
        "From {0}% to {1}% of the piece ",
        "Between {0}% and {1}% of the whole ",
        "From {0}% to {1}% ",
    ),
}


def draw(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[rng.integers(len(choices))]


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def sentence(rng: np.random.Generator, which: int, when: str) -> str:
    """A sentence on a section, in words drawn anew."""
    texture = TEXTURES[which]
    phrase, more = draw(rng, texture.phrases), draw(rng, texture.clauses)
    return upper_first(draw(rng, FRAMES).format(when=when, x=phrase, more=more))


def times(rng: np.random.Generator, style: str, piece: Piece) -> list[str]:
    """How each section's sentence begins: with its time, or nothing for "order"."""
    if style == "order":
        return [""] * len(piece.which)
    marks = list(map(clock, piece.edges))
    if style == "percent":
        marks = [str(round(100 * edge / piece.edges[-1])) for edge in piece.edges]
    frame = draw(rng, TIMES[style])
    return [frame.format(*pair) for pair in itertools.pairwise(marks)]


# --- what is played in which order, from when to when ---


def draw_edges(rng: np.random.Generator, sections: int, seconds: int) -> tuple:
    """Edges of sections of which the longest is at most three times the shortest."""
    shares = rng.uniform(0.5, 1.5, sections)
    edges = np.rint(np.cumsum([0, *shares]) / shares.sum() * seconds).astype(int)
    return tuple(edges.tolist())


@functools.lru_cache(maxsize=8)
def gallery_textures(seed: int) -> tuple[int, ...]:
    """TEXTURES in the order in which galleries take them: one of n sections the first n.

    A gallery of any size has the first FEWEST, so no training piece has all of these.
    """
    rng = generator(seed, "gallery")
    return tuple(rng.permutation(len(TEXTURES)).tolist())


@functools.lru_cache(maxsize=8)
def orders(seed: int, sections: int, examples: int) -> tuple[tuple[int, ...], ...]:
    """Different orders of the textures of a gallery, drawn from all there are."""
    every = list(itertools.permutations(gallery_textures(seed)[:sections]))
    if examples > len(every):
        raise ValueError(
            f"examples is {examples}; {sections} sections have {len(every)} orders"
        )
    rng = generator(seed, "orders", sections)
    return tuple(every[i] for i in rng.permutation(len(every))[:examples])


@functools.lru_cache(maxsize=8)
def timings(sections: int, examples: int) -> tuple[tuple[int, ...], ...]:
    """Edges in GRID-ths of a piece, as different as so many can be, one by one.

    The first has equal sections; each next one is that whose edges lie farthest, summed
    over edges, from the nearest of those before it.
    """
    shortest = 2 if 2 * sections <= GRID * 0.6 else 1
    inner = itertools.combinations(range(1, GRID), sections - 1)
    every = np.array([(0, *edges, GRID) for edges in inner])
    every = every[np.diff(every, axis=1).min(axis=1) >= shortest]
    if examples > len(every):
        raise ValueError(
            f"examples is {examples}; {sections} sections have {len(every)} timings"
        )
    equal = np.linspace(0, GRID, sections + 1)
    chosen = [int(np.abs(every - equal).sum(axis=1).argmin())]
    nearest = np.full(len(every), np.iinfo(int).max)
    while len(chosen) < examples:
        distance = np.abs(every - every[chosen[-1]]).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        chosen.append(int(nearest.argmax()))
    return tuple(tuple(every[i].tolist()) for i in chosen)


def generator(*entropy: int | str) -> np.random.Generator:
    """Random numbers that depend on these numbers and words alone."""
    words = [
        int.from_bytes(part.encode(), "big") if isinstance(part, str) else part
        for part in entropy
    ]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


# --- the source ---


class PiecesSource:
    """Pieces by index; piece i depends on the settings and i alone.

    split: "train" (textures and times drawn freely, but never all of those that every
    gallery of the seed has; four captions each) or "test" (one). examples: how many, by
    default 4 000 and 120. seconds: the shortest and the longest piece; sections: one
    number, or the fewest and the most, of 4 to 8. style: of captions, "order" (only the
    order of sentences says when), "timing" ("From 0:30 to 1:10 ..."), "percent" ("From
    20% to 45% of the piece ...") or "mixed", one of these for each.
    gallery (test): "free" (as training pieces); "order" (orders of the same sections,
    equally long, in the same sentences; 5 sections have 120) or "timing" (the same
    sections in the same order, their times different). In the last two, sections are
    the first of `sections`, seconds the mean, and a texture always sounds the same.
    alike (train): so many neighbours have the same sections, in another order, or, with
    times in the captions, from case to case with other times only; with
    `data.read_together` the same, they come in one batch as hard negatives.

    An example is {"audio": (float32 [t], rate_hz), "captions", "tags" (the names of the
    textures), "id", "group" (what is played when)}. Raises ValueError for settings that
    cannot be met and IndexError outside 0 <= i < len.
    """

    def __init__(
        self,
        split: str = "train",
        examples: int | None = None,
        seed: int = 0,
        rate_hz: int = 16_000,
        seconds: Sequence[float] = (120, 300),
        sections: int | Sequence[int] = (FEWEST, MOST),
        style: str = "order",
        gallery: str = "free",
        alike: int = 1,
    ):
        for name, value, known in (
            ("split", split, SPLITS),
            ("style", style, STYLES),
            ("gallery", gallery, GALLERIES),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected {', '.join(known)}")
        sections = (sections, sections) if isinstance(sections, int) else sections
        if len(sections) != 2 or not FEWEST <= sections[0] <= sections[1] <= MOST:
            raise ValueError(f"sections is {sections}; expected {FEWEST} to {MOST}")
        shortest = 2 * SHORTEST_SECTION_SECONDS * sections[1]
        if len(seconds) != 2 or not shortest <= seconds[0] <= seconds[1]:
            raise ValueError(
                f"seconds is {tuple(seconds)}; expected the shortest and the longest, "
                f"{shortest} or more for {sections[1]} sections"
            )
        examples = SPLITS[split] if examples is None else examples
        for name, value, least in (
            ("examples", examples, 1),
            ("seed", seed, 0),
            ("rate_hz", rate_hz, MINIMUM_RATE_HZ),
            ("alike", alike, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more")
        if split == "train" and gallery != "free":
            raise ValueError(f"gallery is {gallery!r}; train pieces are free")
        if gallery == "timing" and style not in ("timing", "percent"):
            raise ValueError(
                f"style is {style!r}; captions of a gallery 'timing' differ only in "
                "their times, expected timing or percent"
            )
        if gallery != "free" and (style == "mixed" or alike > 1):
            raise ValueError(f"gallery is {gallery!r}; expected one style and alike 1")
        self.name = f"pieces_{split}" if gallery == "free" else f"pieces_{gallery}"
        self._split, self._examples, self._seed = split, examples, seed
        self._rate_hz, self._style, self._gallery = rate_hz, style, gallery
        self._seconds = int(np.ceil(seconds[0])), int(seconds[1])
        self._sections, self._alike = tuple(sections), alike
        if gallery == "order":
            orders(seed, sections[0], examples)
        elif gallery == "timing":
            timings(sections[0], examples)

    def __len__(self) -> int:
        return self._examples

    def _generator(self, index: int, purpose: str) -> np.random.Generator:
        return generator(self._seed, list(SPLITS).index(self._split), index, purpose)

    def piece(self, index: int) -> Piece:
        """What a piece plays, and when."""
        index = operator.index(index)
        if not 0 <= index < self._examples:
            raise IndexError(f"{self.name} has {self._examples} examples, no {index}")
        if self._gallery == "free":
            return self._free_piece(index)
        sections, seconds = self._sections[0], sum(self._seconds) // 2
        which = gallery_textures(self._seed)[:sections]
        if self._gallery == "order":
            each = seconds // sections
            edges = tuple(range(0, each * sections + 1, each))
            return Piece(orders(self._seed, sections, self._examples)[index], edges)
        edges = timings(sections, self._examples)[index]
        return Piece(which, tuple(edge * seconds // GRID for edge in edges))

    def _free_piece(self, index: int) -> Piece:
        group, member = divmod(index, self._alike)
        rng = self._generator(group, "piece")
        sections = int(rng.integers(self._sections[0], self._sections[1] + 1))
        seconds = int(rng.integers(self._seconds[0], self._seconds[1] + 1))
        held_out = set(gallery_textures(self._seed)[:FEWEST])
        while True:
            which = rng.permutation(len(TEXTURES))[:sections].tolist()
            if self._split == "test" or not held_out <= set(which):
                break
        retimed = self._style != "order" and rng.integers(2)
        if member:
            rng = self._generator(index, "alike")
            if not retimed:
                which = rng.permutation(which).tolist()
        return Piece(tuple(which), draw_edges(rng, sections, seconds))

    def __getitem__(self, index: int) -> dict:
        return {
            "audio": (self.wave(index), self._rate_hz),
            "captions": self.captions(index),
            "tags": self.tags(index),
            "id": self.id(index),
            "group": self.group(index),
        }

    def wave(self, index: int) -> np.ndarray:
        """The sound of a piece, float32 [t]."""
        piece, rate_hz = self.piece(index), self._rate_hz
        wave = np.empty(piece.edges[-1] * rate_hz, np.float32)
        for which, (begin, end) in zip(piece.which, itertools.pairwise(piece.edges)):
            rng = (
                self._generator(index, f"sound {which}")
                if self._gallery == "free"
                else generator(self._seed, f"gallery sound {which}")
            )
            level_db = LEVEL_DB + LEVEL_SPREAD_DB * rng.uniform(-1, 1)
            section = textures.render(
                TEXTURES[which], rng, (end - begin) * rate_hz, rate_hz
            )
            section *= np.float32(10 ** (level_db / 20))
            wave[begin * rate_hz : end * rate_hz] = section
        rng = self._generator(index, "floor")
        floor = sounds.noise(rng, int(FLOOR_SECONDS * rate_hz))
        floor *= np.float32(10 ** (FLOOR_DB / 20))
        for begin in range(0, len(wave), len(floor)):
            part = wave[begin : begin + len(floor)]
            part += floor[: len(part)]
        peak = np.abs(wave).max()
        return wave * np.float32(0.99 / peak) if peak > 0.99 else wave

    def _caption(self, index: int, wording: int) -> tuple[str, list[str], str]:
        """The opening, the sentences of the sections, and the closing."""
        piece = self.piece(index)
        if self._gallery == "free":
            rng = self._generator(index, f"words {wording}")
        else:
            rng = generator(self._seed, "gallery words")
        style = draw(rng, STYLES[:3]) if self._style == "mixed" else self._style
        opening, closing = draw(rng, OPENINGS), draw(rng, CLOSINGS)
        when = times(rng, style, piece)
        if self._gallery != "free":
            said = [
                sentence(generator(self._seed, f"gallery words {which}"), which, before)
                for which, before in zip(piece.which, when)
            ]
            return opening, said, closing
        if style == "order":
            connected = rng.uniform(size=len(when)) < CONNECTED_SHARE
            when[1:] = [draw(rng, CONNECTIVES) if c else "" for c in connected[1:]]
        said = [
            sentence(rng, which, before) for which, before in zip(piece.which, when)
        ]
        return opening, said, closing

    def sections(self, index: int) -> list[tuple[float, float, str]]:
        """Begin and end of each section in seconds, and what the first caption says of
        it."""
        edges = itertools.pairwise(self.piece(index).edges)
        said = self._caption(index, 0)[1]
        return [(float(b), float(e), words) for (b, e), words in zip(edges, said)]

    def captions(self, index: int) -> list[str]:
        """The captions of a piece, without its audio."""
        found = []
        for wording in range(WORDINGS[self._split]):
            opening, said, closing = self._caption(index, wording)
            found.append(" ".join([opening, *said, closing]))
        return found

    def tags(self, index: int) -> list[str]:
        """The names of the textures of a piece, in order."""
        return [textures.NAMES[which] for which in self.piece(index).which]

    def group(self, index: int) -> str:
        """What a piece plays, and when."""
        return self.piece(index).key

    def id(self, index: int) -> str:
        """A name for a piece that no other has."""
        return f"{self.name}-{self._seed}-{operator.index(index)}"

    def description(self) -> str:
        """One line on what the source holds."""
        return (
            f"{self.name}: {self._examples} procedural pieces of "
            f"{self._sections[0]}-{self._sections[1]} sections over {len(TEXTURES)} "
            f"textures, {self._seconds[0]}-{self._seconds[1]} s at {self._rate_hz} Hz, "
            f"captions in the style {self._style!r}, seed {self._seed}"
        )

    def digest(self) -> str:
        """Short hex of the settings that make the pieces."""
        settings = [self._split, self._examples, self._seed, self._rate_hz]
        settings += [self._seconds, self._sections, self._style, self._gallery]
        return order.digest([*settings, self._alike])
