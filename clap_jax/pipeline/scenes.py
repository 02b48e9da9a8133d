"""Scenes of one or two sounds: what there is, what is held out, how it is described.

A scene is one sound ("a loud high whistle"), one sound after another ("a quiet fast
siren, then three loud knocks") or one sound over another ("two bell strikes over
rain"). The description of a scene is its key; one key in ten is held out of training
by a hash of the key, so that test scenes are new *combinations* of kinds, values and
positions that training had. What makes a caption true is fixed here:

* loud and quiet are the level of the loudest 20 ms: -20 dBFS and -42 dBFS, +-2 dB.
  A scene of one sound over another leaves loudness unsaid.
* low and high, slow and fast, are intervals an octave or more apart (`CATALOGUE`).
* "X, then Y": Y starts after X has stopped, near the middle of the clip.
* "X over Y": Y runs through the whole clip; X starts later, stops earlier and is 10 dB
  or more above it.

A faint noise (-75 to -60 dBFS) lies under every clip.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from clap_jax.pipeline import sounds

Render = Callable[[np.random.Generator, int, int, float], np.ndarray]

SINGLE_SHARE = 0.3  # of training scenes; pairs are half "then", half "over"
HELD_OUT_SHARE = 0.1
TEST_SINGLES = range(20, 240, 40)  # positions of single sounds among test scenes


@dataclass(frozen=True)
class Kind:
    """A kind of sound, its words and its attribute.

    name: as a label ("a recording of {name}"). noun: what a description counts or
    qualifies ("two loud {noun}s"). attribute: "pitch", "rate", "count" or "". ranges:
    from the attribute's value ("low", "fast", "two") to the interval of amounts.
    articles: whether name and noun take "a" or "an" (mass nouns and plurals do not).
    """

    name: str
    render: Render
    noun: str = ""
    attribute: str = ""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    name_article: bool = True
    noun_article: bool = True

    @property
    def values(self) -> tuple[str, ...]:
        """Values of the attribute; ("",) for a kind that has none."""
        return tuple(self.ranges) or ("",)

    @property
    def sustained(self) -> bool:
        """Whether the sound fills its time, and so can be a background."""
        return self.attribute != "count"


# --- the catalogue ---


COUNTS = {"one": (1, 1), "two": (2, 2), "three": (3, 3)}


def pitched(name: str, render: Render, low, high) -> Kind:
    return Kind(name, render, name, "pitch", {"low": low, "high": high})


def paced(name: str, render: Render, slow, fast, article: bool = True) -> Kind:
    ranges = {"slow": slow, "fast": fast}
    return Kind(name, render, name, "rate", ranges, article, article)


def struck(name: str, render: Render, noun: str, article: bool = True) -> Kind:
    return Kind(name, render, noun, "count", COUNTS, article, True)


def plain(name: str, render: Render, article: bool = False) -> Kind:
    return Kind(name, render, name, name_article=article, noun_article=article)


CATALOGUE: tuple[Kind, ...] = (
    pitched("pure tone", sounds.pure_tone, (220, 400), (1500, 2600)),
    pitched("buzzer", sounds.buzzer, (110, 180), (560, 850)),
    pitched("whistle", sounds.whistle, (850, 1150), (2600, 3400)),
    pitched("organ chord", sounds.organ_chord, (110, 165), (500, 750)),
    pitched("engine hum", sounds.engine_hum, (60, 85), (190, 260)),
    pitched("rising sweep", sounds.rising_sweep, (280, 420), (2200, 3000)),
    pitched("falling sweep", sounds.falling_sweep, (280, 420), (2200, 3000)),
    paced("siren", sounds.siren, (0.9, 1.2), (3.6, 4.6)),
    paced("ticking clock", sounds.ticking_clock, (2.2, 2.8), (7, 9)),
    paced("helicopter", sounds.helicopter, (5, 6.5), (13, 16)),
    paced("cricket trill", sounds.cricket_trill, (2.2, 2.8), (7, 9)),
    paced("beeping alarm", sounds.beeping_alarm, (1.9, 2.4), (6, 7.5)),
    paced("footsteps", sounds.footsteps, (1.9, 2.3), (4.8, 6), article=False),
    struck("bell", sounds.bell, "bell strike"),
    struck("drum", sounds.drum, "drum hit"),
    struck("clicking", sounds.clicking, "click", article=False),
    struck("knocking", sounds.knocking, "knock", article=False),
    struck("hand clapping", sounds.hand_clapping, "hand clap", article=False),
    struck("laser", sounds.laser, "laser shot"),
    struck("bird", sounds.bird, "bird chirp"),
    struck("frog", sounds.frog, "frog croak"),
    plain("white noise", sounds.white_noise),
    plain("rumble", sounds.rumble, article=True),
    plain("wind", sounds.wind),
    plain("running water", sounds.running_water),
    plain("rain", sounds.rain),
)


KINDS: tuple[str, ...] = tuple(kind.name for kind in CATALOGUE)


def render(
    kind: Kind, value: str, rng: np.random.Generator, samples: int, rate_hz: int
) -> np.ndarray:
    """One sound at unit level (see `sounds.level`), faded at both ends.

    value: one of `kind.values`. Returns float32 [samples]. Raises KeyError where the
    kind has no such value.
    """
    amount = 0.0
    if kind.attribute:
        low, high = kind.ranges[value]
        amount = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    wave = sounds.fade(kind.render(rng, samples, rate_hz, amount), rate_hz)
    return wave / np.float32(sounds.level(wave, rate_hz))


# --- scenes ---


@dataclass(frozen=True)
class Part:
    """One sound of a scene; loudness is "" where the description leaves it unsaid."""

    kind: Kind
    value: str
    loudness: str

    @property
    def key(self) -> str:
        return ":".join(filter(None, (self.kind.name, self.value, self.loudness)))


@dataclass(frozen=True)
class Scene:
    """form: "single", "then" or "over"; parts: one or two sounds, front one first."""

    form: str
    parts: tuple[Part, ...]

    @property
    def key(self) -> str:
        """All that the full description says, and nothing else."""
        return f" {self.form} ".join(part.key for part in self.parts)

    @property
    def held_out(self) -> bool:
        """Whether training never has this combination (the same for every seed)."""
        return stable_hash(self.key) < HELD_OUT_SHARE


def stable_hash(text: str) -> float:
    """A number in [0, 1) from the text alone: the same in every process and machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def parts_of(kind: Kind, form: str) -> list[Part]:
    loudnesses = ("",) if form == "over" else ("loud", "quiet")
    return [Part(kind, v, s) for v, s in itertools.product(kind.values, loudnesses)]


def scenes(form: str) -> list[Scene]:
    """Every scene of a form, in the order of the catalogue."""
    if form == "single":
        return [Scene(form, (x,)) for kind in CATALOGUE for x in parts_of(kind, form)]
    return [
        Scene(form, pair)
        for first, second in itertools.permutations(CATALOGUE, 2)
        if form == "then" or second.sustained
        for pair in itertools.product(parts_of(first, form), parts_of(second, form))
    ]


@functools.lru_cache(maxsize=8)
def held_out_scenes(seed: int) -> tuple[Scene, ...]:
    """All test scenes of a seed, distinct; a shorter test split is a prefix of them.

    The sounds of its six singles occur in none of its pairs, so that no description
    says less than another about the same clip.
    """
    held_out = {
        form: sorted(
            (scene for scene in scenes(form) if scene.held_out),
            key=lambda scene: stable_hash(f"{seed} {scene.key}"),
        )
        for form in ("single", "then", "over")
    }
    singles = held_out["single"][: len(TEST_SINGLES)]
    taken = {(scene.parts[0].kind.name, scene.parts[0].value) for scene in singles}
    then, over = (
        [
            scene
            for scene in held_out[form]
            if taken.isdisjoint((part.kind.name, part.value) for part in scene.parts)
        ]
        for form in ("then", "over")
    )
    alternating = itertools.chain.from_iterable(itertools.zip_longest(then, over))
    ordered = [scene for scene in alternating if scene is not None]
    for position, scene in zip(TEST_SINGLES, singles, strict=True):
        ordered.insert(position, scene)
    return tuple(ordered)


def draw_part(rng: np.random.Generator, kind: Kind, form: str) -> Part:
    choices = parts_of(kind, form)
    return choices[rng.integers(len(choices))]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A training scene: kinds evenly, then their values, until it is not held out."""
    position = rng.uniform()
    half = (1 + SINGLE_SHARE) / 2
    form = (
        "single" if position < SINGLE_SHARE else "then" if position < half else "over"
    )
    while True:
        order = rng.permutation(len(CATALOGUE))[: 1 if form == "single" else 2]
        kinds = [CATALOGUE[index] for index in order]
        if form == "over" and not kinds[1].sustained:
            continue
        scene = Scene(form, tuple(draw_part(rng, kind, form) for kind in kinds))
        if not scene.held_out:
            return scene


# --- captions ---

# Each template with the wording of its sounds: 0 plain, 1 with other adjectives.
TEMPLATES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "single": (
        ("{0}", 0),
        ("the sound of {0}", 0),
        ("a recording of {0}", 0),
        ("{0} can be heard", 0),
        ("listen to {0}", 1),
        ("we hear {0}", 1),
        ("someone recorded {0}", 1),
    ),
    "then": (
        ("{0}, then {1}", 0),
        ("{0} followed by {1}", 0),
        ("first {0}, then {1}", 0),
        ("{0} and then {1}", 0),
        ("{0}, and next {1}", 1),
        ("{0} before {1}", 1),
        ("{1} after {0}", 0),
    ),
    "over": (
        ("{0} over {1}", 0),
        ("{0} with {1} in the background", 0),
        ("{0} on top of {1}", 0),
        ("{0} in front of {1}", 0),
        ("{0} above {1}", 1),
        ("{0} against a background of {1}", 1),
        ("over {1}, {0}", 0),
    ),
}
PARTIAL_TEMPLATES = ("{name}", "the sound of {sound}")
WORDINGS: tuple[Mapping[str, str], ...] = (
    {},
    {"quiet": "soft", "low": "low-pitched", "high": "high-pitched"}
    | {"fast": "rapid", "one": "a single"},
)


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(part: Part, wording: int) -> str:
    """A noun phrase with every attribute of the part: "three loud knocks"."""
    words = WORDINGS[wording]
    loudness = words.get(part.loudness, part.loudness)
    value = words.get(part.value, part.value)
    if part.kind.attribute == "count":
        noun = part.kind.noun if part.value == "one" else part.kind.noun + "s"
        return " ".join(filter(None, (value, loudness, noun)))
    phrase = " ".join(filter(None, (loudness, value, part.kind.noun)))
    return with_article(phrase) if part.kind.noun_article else phrase


def captions(scene: Scene) -> list[str]:
    """Full descriptions, one a template: each says all that the key says."""
    return [
        template.format(*(describe(part, wording) for part in scene.parts))
        for template, wording in TEMPLATES[scene.form]
    ]


def partial_captions(scene: Scene) -> list[str]:
    """Captions of a single sound that name the kind only; none for a pair."""
    if scene.form != "single":
        return []
    kind = scene.parts[0].kind
    sound = with_article(kind.name) if kind.name_article else kind.name
    return [line.format(name=kind.name, sound=sound) for line in PARTIAL_TEMPLATES]
