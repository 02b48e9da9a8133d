"""Tiny sounds, sources and settings for the tests of the pipeline."""

from pathlib import Path

import numpy as np
import soundfile

from clap_jax.audio.mel import Frontend
from clap_jax.text import tokenize

RATE_HZ = 8000

# 0.25 s clips: 26 frames of 16 mels.
FRONTEND = Frontend(
    rate_hz=RATE_HZ,
    clip_seconds=0.25,
    n_fft=256,
    window_samples=256,
    hop_samples=80,
    mels=16,
    fmin_hz=50.0,
    fmax_hz=3800.0,
    bank="slaney",
    fill="repeatpad",
)


def wave(number: int, seconds: float = 0.4, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone whose pitch tells the clip, in noise: float32 [t]."""
    rng = np.random.default_rng(number)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * (200 + 37 * number) * time)
    return (tone + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def write_sounds(folder: Path, count: int, suffix: str = "flac") -> list[str]:
    """Sound files `0.flac` ... in `folder`; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.{suffix}" for number in range(count)]
    for number, name in enumerate(names):
        soundfile.write(folder / name, wave(number), RATE_HZ)
    return names


def write_table(folder: Path, count: int, name: str = "clips.csv") -> Path:
    """A CSV of `count` sound files with two captions each, and the files."""
    rows = [
        f"{file},number {number},the sound of number {number}"
        for number, file in enumerate(write_sounds(folder, count))
    ]
    path = folder / name
    path.write_text("\n".join(["path,caption_1,caption_2", *rows]) + "\n")
    return path


class TinySource:
    """Clips from memory; counts how often audio is asked for."""

    def __init__(self, count: int, name: str = "tiny", broken: dict | None = None):
        self.name, self.count, self.reads = name, count, 0
        self.broken = broken or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        self.reads += 1
        audio = (self.broken.get(index, wave(index)), RATE_HZ)
        return {
            "audio": audio,
            "captions": self.captions(index),
            "tags": self.tags(index),
            "id": self.id(index),
            "group": self.group(index),
        }

    def captions(self, index: int) -> list[str]:
        return [f"{self.name} {index}", f"{self.name} clip number {index}"]

    def tags(self, index: int) -> list[str]:
        return ["even" if index % 2 == 0 else "odd"]

    def group(self, index: int) -> str:
        return self.id(index)

    def id(self, index: int) -> str:
        return f"clip{index}"

    def description(self) -> str:
        return f"{self.name}: {self.count} tones"

    def digest(self) -> str:
        return f"{self.count:08x}"


def make_tokenizer(length: int = 16) -> tokenize.Tokenizer:
    """A tokenizer that knows the captions of `TinySource`."""
    texts = [caption for i in range(30) for caption in TinySource(30).captions(i)]
    return tokenize.train(texts, 300, length)
