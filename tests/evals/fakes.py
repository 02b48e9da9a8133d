"""A source without audio, and encoders whose answers are known."""

import zlib

import numpy as np

WIDTH = 32


class FakeSource:
    """Clips that are nothing but their captions and tags; reading one is an error.

    sounds: a number a clip, when clips may be read: equal numbers, equal sounds.
    """

    def __init__(self, captions, tags=None, groups=None, name="fake", sounds=None):
        self.name, self._sounds = name, sounds
        self._captions = captions
        self._tags = tags or [[] for _ in captions]
        self._groups = groups or [str(i) for i in range(len(captions))]

    def __len__(self):
        return len(self._captions)

    def __getitem__(self, index):
        if self._sounds is None:
            raise AssertionError("an evaluator must not read audio by itself")
        wave = np.random.default_rng(self._sounds[index]).normal(size=1600)
        return {"audio": (wave.astype(np.float32), 16_000)}

    def captions(self, index):
        return self._captions[index]

    def tags(self, index):
        return self._tags[index]

    def group(self, index):
        return self._groups[index]


class FakeEncoder:
    """Texts and clips get random unit vectors made from their meaning.

    Args:
        meaning: text -> what it means; equal meanings get equal vectors.
        clip_meanings: what every clip means; None for random vectors.
        noise: how far vectors lie from their meaning.
        bad: clips that could not be read; their rows are NaN.

    seen_texts: the first that were asked for.
    """

    scale = 10.0

    def __init__(self, clip_meanings=None, meaning=str, noise=0.0, bad=()):
        self.clip_meanings, self.meaning, self.noise = clip_meanings, meaning, noise
        self.bad = list(bad)
        self.seen_texts = []

    def audio(self, source):
        rng = np.random.default_rng(1)
        if self.clip_meanings is None:
            rows = rng.normal(size=(len(source), WIDTH))
        else:
            rows = np.array([vector(text) for text in self.clip_meanings])
            rows = rows + self.noise * rng.normal(size=rows.shape)
        rows = normalised(rows)
        kept = np.ones(len(source), bool)
        rows[self.bad], kept[self.bad] = np.nan, False
        return rows, kept

    def text(self, texts):
        self.seen_texts = self.seen_texts or list(texts)
        rows = np.array([vector(self.meaning(text)) for text in texts])
        rng = np.random.default_rng(2)
        return normalised(rows + self.noise * rng.normal(size=rows.shape))


def vector(meaning):
    return np.random.default_rng(zlib.crc32(meaning.encode())).normal(size=WIDTH)


def normalised(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
