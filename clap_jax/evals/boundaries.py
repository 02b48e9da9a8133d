"""Where one section of a clip ends and the next begins: a probe on its segments.

What an example is, and where its label comes from, says `clap_jax.evals.junctions`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from clap_jax.evals import (
    bootstrap,
    boundary_scores,
    class_metrics,
    junctions,
    over_time,
    recipes,
    scores,
)
from clap_jax.evals.base import Encoder, Result
from clap_jax.evals.class_metrics import Measured
from clap_jax.evals.division import Division, Joined
from clap_jax.evals.junctions import Junctions

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

TOLERANCES_SECONDS = (0.5, 3.0)
"""Of MIREX's hit rates."""

CHANCE_DRAWS = 20

RULE = (
    "junctions of segments that are both heard, of which one begins where the other ends; "
    "heads on |a - b| and a * b, standardised over the clip; a boundary is at the nearest "
    "one within half a hop; found are the highest within half a segment"
)


class Boundaries:
    """Fits heads on junctions of segments; tests them on clips not seen.

    Metrics, means over the tested parts: `boundary_AP` and `boundary_F1` over all
    junctions, the latter from the threshold on that was best on validation clips;
    `boundary_hit_F@0.5` and `boundary_hit_F@3`, the hit rates of what that finds,
    within so many seconds, means over clips; and `bad_clips`. All but the last have
    intervals over clips. The protocol says what comes without any model (`chance`):
    where every junction is a boundary, where so many are as there are but drawn by
    chance, and where the right junctions are, which is the most that segments of this
    hop can reach.
    """

    def __init__(
        self,
        parts: "Mapping[str, Source]",
        test: Sequence[str] = (),
        validation: str = "",
        folds: int = 0,
        recipe: str = "linear",
        options: Mapping[str, Any] | None = None,
        tolerances: Sequence[float] = TOLERANCES_SECONDS,
        draws: int = bootstrap.DRAWS,
    ):
        """Looks for sections, so that a bad source fails before anything is encoded.

        Args:
            parts, test, validation, folds, recipe, options, draws: as of `Probe`.
            tolerances: of hit rates, in seconds.

        Raises:
            ValueError: as `Probe`, and a clip without sections.
        """
        self.parts, self.recipe_name = dict(parts), recipe
        self.recipe = recipes.get(recipe, options)
        self.tolerances, self.draws = tuple(tolerances), draws
        if not self.tolerances or min(self.tolerances) <= 0:
            raise ValueError(
                f"boundaries: tolerances are {self.tolerances}, in seconds"
            )
        self.source = Joined(list(self.parts.values()))
        self.division = Division("boundaries", self.parts, test, validation, folds)
        for source in self.parts.values():
            for clip in range(len(source)):
                if not junctions.sections_of(source, clip, 1e3):
                    raise ValueError(
                        f"boundaries: clip {source.id(clip)} of source '{source.name}' "
                        "has no sections: expected captions that say when, or a table "
                        "of them (annotations)"
                    )

    def run(self, encoder: Encoder) -> Result:
        """Encodes clips whose features are not there, fits and tests.

        Returns:
            Metrics as above, and what every tested clip that has a boundary adds to the
            hit rates; positions of clips count through all parts.

        Raises:
            ValueError: no clip of a part could be read, no boundary to learn from, to
                choose by or to find, or a fit that fails.
        """
        found = self._junctions(encoder)
        clips = np.array(list(found), np.int64)
        part_of = self.division.part_of[clips]
        each = list(found.values())
        clip_of = np.repeat(np.arange(len(each)), [len(own.seconds) for own in each])
        x = np.concatenate([own.x for own in each])
        targets = np.concatenate([own.targets for own in each])
        values, said = np.zeros(len(x), np.float32), np.zeros(len(x), bool)
        heads: dict[str, dict[str, Any]] = {}
        for part in self.division.tested:
            head, heads[part] = self._head(x, targets, clips, each, part)
            own = (part_of == part)[clip_of]
            values[own] = head.scores(x[own])[:, 0]
            said[own] = values[own] >= heads[part]["threshold"]
        said &= junctions.peaks(each, values)
        tested = np.isin(part_of, list(heads))
        rows = tested[clip_of]
        outcome = Outcome([each[i] for i in np.flatnonzero(tested)], part_of[tested])
        measured = outcome.measure(
            values[rows], said[rows], self.tolerances, self.draws
        )
        asked = np.flatnonzero(tested)[outcome.asked]
        protocol = self._protocol(len(clips), outcome, heads, measured.of_parts)
        for name, own in protocol["chance"].items():
            logging.info("boundaries, %s: %s", name, own)
        return Result(
            metrics={
                **measured.metrics,
                "bad_clips": float(len(self.source) - len(clips)),
            },
            protocol=protocol,
            intervals=measured.intervals,
            per_clip=measured.per_clip,
            clips=clips[asked],
            parts=np.unique(part_of[asked], return_inverse=True)[1],
        )

    def _junctions(self, encoder: Encoder) -> dict[int, Junctions]:
        """Those of every clip that could be read, by its position in all parts."""
        found, start = {}, 0
        for source in self.parts.values():
            for clip, features in over_time.clips(encoder, source):
                duration = float(features.seconds[-1, 1])
                sections = junctions.sections_of(source, clip, duration)
                has_features = getattr(source, "features_width", 0)
                junctions.check_heard(
                    *("boundaries", source.id(clip), sections, features.seconds),
                    junctions.SLACK_SECONDS if has_features else junctions.EDGE_SECONDS,
                )
                true = junctions.boundaries(sections, duration)
                found[start + clip] = junctions.of_clip(features, true)
            start += len(source)
        if not any(own.targets.any() for own in found.values()):
            raise ValueError(
                f"boundaries: none between the segments of {len(found)} clips that "
                "could be read"
            )
        return found

    def _head(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        clips: np.ndarray,
        each: Sequence[Junctions],
        tested: str,
    ) -> tuple[Any, dict[str, Any]]:
        """The head that a part is tested with, and how it came about."""
        from clap_jax.evals import fitting

        train = self.division.learns(clips, tested)
        held, words = self.division.validates(clips, tested, train)
        own = self.division.part_of[clips] == tested
        facts = {
            "train_clips": int(train.sum()),
            "test_clips": int(own.sum()),
            "validation": words,
        }
        sizes = [len(found.seconds) for found in each]
        train, held, own = (np.repeat(which, sizes) for which in (train, held, own))
        for what, rows in (
            ("learn from", train & ~held),
            ("choose by", held),
            ("find", own),
        ):
            if not targets[rows].any():
                raise ValueError(
                    f"boundaries: part {tested!r} has no boundary to {what}, in "
                    f"{rows.sum()} junctions of segments"
                )
        targets, recipe = targets[:, None], self.recipe
        strength = recipe.strengths[0]
        if len(recipe.strengths) > 1:
            strength = fitting.choose(recipe, x, targets, train & ~held, held, True)
        head = fitting.fit(recipe, x, targets, train & ~held, "bce", strength)
        values = np.full(len(x), -np.inf)
        values[held] = head.scores(x[held])[:, 0]
        found = held & junctions.peaks(each, values)
        if not targets[found].any():  # all are beside peaks: any will do
            found = held
        threshold = boundary_scores.best_threshold(values[found], targets[found, 0])
        facts |= {"strength": strength, "threshold": threshold}
        return fitting.fit(recipe, x, targets, train, "bce", strength), facts

    def _protocol(
        self,
        clips: int,
        outcome: "Outcome",
        heads: Mapping[str, Mapping[str, Any]],
        of_parts: Mapping[str, Mapping[str, float]],
    ) -> dict[str, Any]:
        """The protocol of a result; what differs between models is in `of_each_part`."""
        chosen = ("strength", "threshold")
        return {
            "kind": "boundaries",
            "source": ", ".join(dict.fromkeys(s.name for s in self.parts.values())),
            "clips": clips,
            "junctions": len(outcome.targets),
            "boundaries": sum(len(own.true) for own in outcome.clips),
            "chance": outcome.chance(self.tolerances),
            "rules": RULE,
            "tolerances_seconds": list(self.tolerances),
            "recipe": recipes.says(self.recipe_name, self.recipe),
            "parts": self.division.says(),
            "tested": {
                name: {k: v for k, v in facts.items() if k not in chosen}
                for name, facts in heads.items()
            },
            "of_each_part": {
                name: {k: facts[k] for k in chosen} | of_parts[name]
                for name, facts in heads.items()
            },
            "data_digests": {name: s.digest() for name, s in self.parts.items()},
            "intervals": bootstrap.describe(
                self.draws, more="within each tested part; heads stay as fitted"
            ),
        }


class Outcome:
    """Tested clips, and how well boundaries in them are found.

    clips: their junctions. part_of: str [n], the part of each; metrics are means over
    parts. targets: bool [r], over the junctions of all clips, one clip after the other.
    asked: bool [n], the clips that have a boundary: hit rates are about these.
    """

    def __init__(self, clips: Sequence[Junctions], part_of: np.ndarray):
        self.clips, self.part_of = list(clips), np.asarray(part_of)
        sizes = [len(own.seconds) for own in clips]
        self._clip_of = np.repeat(np.arange(len(clips)), sizes)
        self._ends = np.cumsum(sizes)[:-1]
        self.targets = np.concatenate([own.targets for own in clips])
        self.asked = np.array([len(own.true) > 0 for own in clips])

    def measure(
        self,
        values: np.ndarray,
        said: np.ndarray,
        tolerances: Sequence[float],
        draws: int,
    ) -> Measured:
        """Metrics of scores float [r], and of what is said to be a boundary, bool [r]."""
        rows = {
            part: np.flatnonzero((self.part_of == part)[self._clip_of])
            for part in dict.fromkeys(self.part_of.tolist())
        }
        found = class_metrics.shares(
            self._hit_f(said, tolerances), "boundary", draws, self.part_of[self.asked]
        )
        each = {
            part: {
                "AP": scores.average_precision(values[own], self.targets[own]),
                "F1": scores.f1(said[own, None], self.targets[own, None])[0],
            }
            for part, own in rows.items()
        }

        def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
            precisions, shares = [], []
            for own in rows.values():
                drawn, right = weights[self._clip_of[own]], self.targets[own, None]
                precisions.append(bootstrap.areas(values[own, None], right, drawn)[0])
                shares.append(bootstrap.f1(said[own, None], right, drawn)[0])
            return {
                "boundary_AP": np.mean(precisions, axis=0),
                "boundary_F1": np.mean(shares, axis=0),
            }

        names = ("AP", "F1")
        means = {n: float(np.mean([own[n] for own in each.values()])) for n in names}
        return found._replace(
            metrics={f"boundary_{n}": means[n] for n in names} | found.metrics,
            intervals=bootstrap.intervals(
                len(self.clips), statistic, draws, part_of=self.part_of
            )
            | found.intervals,
            of_parts={
                part: own | found.of_parts.get(part, {}) for part, own in each.items()
            },
        )

    def chance(self, tolerances: Sequence[float]) -> dict[str, dict[str, float]]:
        """Metrics, over all parts together, of what needs no model; see `Boundaries`."""
        share = self.targets.mean()
        rng = np.random.default_rng(0)
        random = [
            self._plain(rng.uniform(size=len(self.targets)) < share, tolerances)
            for _ in range(CHANCE_DRAWS)
        ]
        found = {
            "every junction": self._plain(np.ones_like(self.targets), tolerances),
            "as many by chance": {
                name: float(np.mean([own[name] for own in random]))
                for name in random[0]
            },
            "the right junctions": self._plain(self.targets, tolerances),
        }
        found["every junction"]["AP"] = float(share)
        return {
            name: {key: round(value, 4) for key, value in own.items()}
            for name, own in found.items()
        }

    def _plain(self, said: np.ndarray, tolerances: Sequence[float]) -> dict[str, float]:
        hit = self._hit_f(said, tolerances)
        return {
            "F1": scores.f1(said[:, None], self.targets[:, None])[0],
            **{name: float(own.mean()) for name, own in hit.items()},
        }

    def _hit_f(
        self, said: np.ndarray, tolerances: Sequence[float]
    ) -> dict[str, np.ndarray]:
        """F of the hit rates of each clip that has a boundary, float64 [asked]."""
        found = [
            (own.true, own.seconds[flags])
            for own, flags in zip(self.clips, np.split(said, self._ends), strict=True)
            if len(own.true)
        ]
        return {
            f"hit_F@{tolerance:g}": np.array(
                [boundary_scores.hit_rates(*pair, tolerance)[2] for pair in found]
            )
            for tolerance in tolerances
        }
