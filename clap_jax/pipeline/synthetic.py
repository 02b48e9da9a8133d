"""The embedded default corpus: captioned sounds by index, from a seed, with no file.

What a scene is, and what makes its caption true, stands in `clap_jax.pipeline.scenes`;
here scenes become waves and a source.
"""

import operator

import numpy as np

from clap_jax.pipeline import order, scenes, sounds
from clap_jax.pipeline.scenes import CATALOGUE, KINDS, Scene

__all__ = ["KINDS", "SyntheticSource"]

SPLITS = {"train": 16_000, "test": 250, "kinds": 260}  # split -> default examples
LEVELS_DB = {"loud": -20.0, "quiet": -42.0, "front": -18.0, "back": -31.0}
LEVEL_SPREAD_DB = {"loud": 2.0, "quiet": 2.0, "front": 1.5, "back": 1.5}
MINIMUM_RATE_HZ = 16_000  # the generators use the band up to 7.6 kHz
MINIMUM_SECONDS = 2.5  # two times three strikes fit


def spans(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Start and end of each part as shares of the clip."""
    if scene.form == "single":
        return [(rng.uniform(0.01, 0.08), rng.uniform(0.92, 0.99))]
    if scene.form == "then":
        cut = rng.uniform(0.48, 0.52)
        start, end = rng.uniform(0.01, 0.03), rng.uniform(0.97, 0.99)
        return [(start, cut - 0.02), (cut + 0.02, end)]
    return [(rng.uniform(0.15, 0.22), rng.uniform(0.82, 0.88)), (0.01, 0.99)]


def stems(
    scene: Scene, rng: np.random.Generator, rate_hz: int, samples: int
) -> np.ndarray:
    """Each part by itself at its level and in its place, float32 [parts, samples]."""
    layers = np.zeros((len(scene.parts), samples), np.float32)
    unsaid = ("front", "back")
    edges = spans(scene, rng)
    for index, (part, (start, end)) in enumerate(zip(scene.parts, edges, strict=True)):
        first, last = int(start * samples), int(end * samples)
        wave = scenes.render(part.kind, part.value, rng, last - first, rate_hz)
        role = part.loudness or unsaid[index]
        spread = LEVEL_SPREAD_DB[role]
        level_db = LEVELS_DB[role] + rng.uniform(-spread, spread)
        layers[index, first:last] = wave * np.float32(10 ** (level_db / 20))
    return layers


def mix(layers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum of the parts and a faint noise, float32 [samples], peak at most 0.99."""
    floor = np.float32(10 ** (rng.uniform(-75, -60) / 20))
    wave = layers.sum(axis=0) + floor * sounds.noise(rng, layers.shape[1])
    peak = np.abs(wave).max()
    return wave * np.float32(0.99 / peak) if peak > 0.99 else wave


class SyntheticSource:
    """Captioned scenes by index; example i depends on (split, seed, i) alone.

    split: "train" (random scenes that are not held out; captions are full
    descriptions in seven phrasings and, for a single sound, two that only name it),
    "test" (held-out scenes with distinct descriptions; full descriptions only) or
    "kinds" (single sounds, spread evenly over the kinds, for zero-shot). examples:
    how many, by default 16 000, 250 and 260.

    An example is {"audio": (float32 [t], rate_hz), "captions", "tags" (the names of
    its kinds), "id", "group" (the key of the scene: clips of one group are positives
    of each other)}. Raises ValueError for settings that cannot be met and IndexError
    outside 0 <= i < len.
    """

    def __init__(
        self,
        split: str = "train",
        examples: int | None = None,
        seed: int = 0,
        rate_hz: int = 16_000,
        seconds: float = 2.56,
    ):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        examples = SPLITS[split] if examples is None else examples
        if examples < 1:
            raise ValueError(f"examples is {examples}; expected 1 or more")
        if split == "test" and examples > len(scenes.held_out_scenes(seed)):
            raise ValueError(
                f"examples is {examples}; seed {seed} has {len(scenes.held_out_scenes(seed))} "
                "distinct test scenes"
            )
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        if rate_hz < MINIMUM_RATE_HZ:
            raise ValueError(f"rate_hz is {rate_hz}; expected >= {MINIMUM_RATE_HZ}")
        if seconds < MINIMUM_SECONDS:
            raise ValueError(f"seconds is {seconds}; expected >= {MINIMUM_SECONDS}")
        self.name = f"synthetic_{split}"
        self._split, self._examples, self._seed = split, examples, seed
        self._rate_hz, self._samples = rate_hz, round(seconds * rate_hz)

    def __len__(self) -> int:
        return self._examples

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The scene of an example and the generator that its audio is drawn from."""
        index = operator.index(index)
        if not 0 <= index < self._examples:
            raise IndexError(f"{self.name} has {self._examples} examples, no {index}")
        entropy = (self._seed, list(SPLITS).index(self._split), index)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        if self._split == "test":
            return scenes.held_out_scenes(self._seed)[index], rng
        if self._split == "kinds":
            kind = CATALOGUE[index % len(CATALOGUE)]
            return Scene("single", (scenes.draw_part(rng, kind, "single"),)), rng
        return scenes.draw_scene(rng), rng

    def __getitem__(self, index: int) -> dict:
        scene, rng = self.scene(index)
        wave = mix(stems(scene, rng, self._rate_hz, self._samples), rng)
        return {
            "audio": (wave, self._rate_hz),
            "captions": self.captions(index),
            "tags": self.tags(index),
            "id": self.id(index),
            "group": scene.key,
        }

    def captions(self, index: int) -> list[str]:
        """The captions of an example, without its audio."""
        scene = self.scene(index)[0]
        partial = [] if self._split == "test" else scenes.partial_captions(scene)
        return scenes.captions(scene) + partial

    def tags(self, index: int) -> list[str]:
        """The names of the kinds of sound in an example."""
        return [part.kind.name for part in self.scene(index)[0].parts]

    def group(self, index: int) -> str:
        """The key of an example's scene."""
        return self.scene(index)[0].key

    def id(self, index: int) -> str:
        """A name for an example that no other has."""
        return f"{self.name}-{self._seed}-{index}"

    def description(self) -> str:
        """One line on what the source holds."""
        return (
            f"{self.name}: {self._examples} procedural scenes over {len(KINDS)} kinds of "
            f"sound, {self._samples / self._rate_hz:g} s at {self._rate_hz} Hz, "
            f"seed {self._seed}"
        )

    def digest(self) -> str:
        """Short hex of the settings that make the clips."""
        settings = (self._split, self._examples, self._seed)
        return order.digest([*settings, self._rate_hz, self._samples])
