"""Results of every kind, with names that try to break markup, formulas and paths."""

import numpy as np

from clap_jax.evals import Absent, Retrieval, ZeroShot
from tests.evals.fakes import FakeEncoder, FakeSource

# Dollar signs would start a formula, the last name has no glyphs in the font.
WORDS = ["a $5 coin", "x_y & <b>z</b>", "cost $3 or $4", "汽车"]
RATE_HZ = 16_000


class SoundSource(FakeSource):
    """Clips that can be heard: clip i is a tone, 0.5 (i + 1) s long; some are broken."""

    def __init__(self, *arguments, broken=(), **options):
        super().__init__(*arguments, **options)
        self.broken = broken

    def __getitem__(self, index):
        if index in self.broken:
            return {"audio": b"no sound at all"}
        time_s = np.arange(round(0.5 * (index + 1) * RATE_HZ)) / RATE_HZ
        wave = 0.5 * np.sin(2 * np.pi * (200 + 50 * index) * time_s)
        return {"audio": (wave.astype(np.float32), RATE_HZ)}

    def id(self, index):
        return f"sounds/<{index}>.wav"


def sources():
    """Evaluation name -> its clips."""
    captions = [[f"{word} {i}"] for i in range(6) for word in WORDS]
    single = [[WORDS[i % 4]] for i in range(12)]
    several = [WORDS[i % 3 : i % 3 + 2] for i in range(12)]
    return {
        "pairs [red]/a": SoundSource(captions, broken=(3,)),
        "few": SoundSource([["$a"], ["b"]]),
        "kinds": SoundSource([[]] * 12, tags=single),
        "tags": SoundSource([[]] * 12, tags=several),
    }


def results(noise=1.5):
    """Evaluation name -> result, of the clips in `sources`."""
    found = sources()
    meanings = [texts[0] for texts in found["pairs [red]/a"]._captions]
    noisy = FakeEncoder(meanings, noise=noise)
    return {
        "pairs [red]/a": Retrieval(found["pairs [red]/a"]).run(noisy),
        "few": Retrieval(found["few"]).run(FakeEncoder()),
        "kinds": ZeroShot(found["kinds"]).run(FakeEncoder()),
        "tags": ZeroShot(found["tags"]).run(FakeEncoder(bad=[1])),
        "audio<caps>": Absent(None, "no such [folder]", "python -m get").run(None),
    }
