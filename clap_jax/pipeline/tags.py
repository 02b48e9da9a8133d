"""Which of the tags that a tagger finds likely guide a captioner.

Source: wsntxxn/AudioCaption, the data sets of its keyword captioners; `TagRule` reads
their notation ("0.3", "top5", "0.3_top5").
"""

import dataclasses
import re

import numpy as np

_NOTATION = re.compile(r"(?P<least>[0-9.]+)?(?:(?:^|(?<=[0-9.])_)top(?P<most>\d+))?")


@dataclasses.dataclass(frozen=True)
class TagRule:
    """least: the probability that a tag needs. most: tags of a clip at most, the
    likeliest; 0: any number. Errors: ValueError on values that mean nothing."""

    least: float = 0.0
    most: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least}, expected a probability")
        if self.most < 0:
            raise ValueError(f"most is {self.most}, expected 0 (any number) or more")

    @classmethod
    def parse(cls, text: str) -> "TagRule":
        """From "0.3", "top5" or "0.3_top5". Errors: ValueError on anything else."""
        match = _NOTATION.fullmatch(text)
        try:
            if not text or match is None:
                raise ValueError
            return cls(float(match["least"] or 0), int(match["most"] or 0))
        except ValueError as error:
            raise ValueError(
                f"tags are to be chosen by {text!r}; expected a probability, top and a "
                "number, or both, such as 0.3, top5 or 0.3_top5"
            ) from error

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The chosen tags of clips, bool [n, C], from float [n, C].

        Of equally likely ones the first in order.
        """
        probabilities = np.asarray(probabilities)
        chosen = probabilities >= self.least
        if self.most:
            order = np.argsort(-probabilities, axis=-1, kind="stable")
            likeliest = np.zeros_like(chosen)
            np.put_along_axis(likeliest, order[..., : self.most], True, axis=-1)
            chosen &= likeliest
        return chosen


def guide(
    probabilities: np.ndarray, rule: TagRule, *, soft: bool = False
) -> np.ndarray:
    """What guides a captioner, float32 [n, C], by the tags that the rule chooses.

    1 for them, or with `soft` (the guide "keyword" alone) their probability; else 0.
    """
    chosen = rule(probabilities)
    return np.where(chosen, probabilities if soft else 1, 0).astype(np.float32)


def drop(
    tags: np.ndarray,
    rng: np.random.Generator,
    *,
    each: float = 0.0,
    whole: float = 0.0,
) -> np.ndarray:
    """Tags float32 [n, C] of which some are left out, so that a captioner listens too.

    each: the share of tags that are. whole: the share of clips that lose all of theirs,
    so that a captioner learns to do without. Errors: ValueError on shares outside 0 to 1.
    """
    for name, share in (("each", each), ("whole", whole)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}, expected a share from 0 to 1")
    kept = rng.random(tags.shape) >= each
    kept &= rng.random((*tags.shape[:-1], 1)) >= whole
    return np.where(kept, tags, 0).astype(np.float32)
