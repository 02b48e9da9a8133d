"""Which of the tags that a tagger finds likely guide a captioner.

Source: wsntxxn/AudioCaption, the data sets of its keyword captioners; `TagRule` reads
their notation ("0.3", "top5", "0.3_top5").
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from clap_jax import config as config_lib

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


def row(
    tags: Sequence[str] | np.ndarray | None, names: Sequence[str], width: int
) -> np.ndarray:
    """What guides a captioner of one clip, float32 [C].

    Args:
        tags: names, or numbers float [C] as `guide` gives them; None for no tag.
        names: what each column means; () where nothing is known.
        width: C.

    Raises:
        ValueError: an unknown name, with those that come close; another number of
            numbers, one that is negative or not finite.
    """
    if tags is None or len(tags) == 0:
        return np.zeros(width, np.float32)
    if isinstance(tags, str):
        raise ValueError(f"tags are {tags!r}, expected a list of names for each clip")
    if isinstance(tags[0], str):
        return _named(tags, names, width)
    found = np.asarray(tags, np.float32)
    if found.shape != (width,):
        raise ValueError(f"tags have the shape {found.shape}, expected ({width},)")
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError("tags are not all finite and 0 or more")
    return found


def _named(tags: Sequence[str], names: Sequence[str], width: int) -> np.ndarray:
    if not names:
        raise ValueError(
            f"the model does not know its tags by name: expected {width} numbers for "
            f"each clip, found {', '.join(map(repr, tags[:3]))}"
        )
    column = {name: number for number, name in enumerate(names)}
    found = np.zeros(width, np.float32)
    for tag in tags:
        if tag not in column:
            raise ValueError(config_lib.unknown("tag", tag, names))
        found[column[tag]] = 1
    return found
