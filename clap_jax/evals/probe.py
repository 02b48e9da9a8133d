"""Probes: a small head on what a frozen model makes of clips, fitted and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, class_metrics, over_time, per_answer, recipes
from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.evals.division import Division, Joined
from clap_jax.pipeline import labels as labels_lib

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

FEATURES = ("projection", "normalised", "embedding", "segments")


class Probe:
    """Fits heads on frozen vectors; tests them on parts that they have not seen.

    Metrics, means over the tested parts: `probe_acc` and `probe_top5` or, where any clip
    has several tags, `probe_mAP` and `probe_AUC`; with several parts the deviation
    between them, `probe_acc_deviation` or `probe_mAP_deviation`; and `bad_clips`. All
    but the last two have intervals: clips are drawn within each tested part, for the
    heads as they were fitted. What was measured on each part stands in the protocol.
    """

    def __init__(
        self,
        parts: "Mapping[str, Source]",
        test: Sequence[str] = (),
        validation: str = "",
        folds: int = 0,
        labels: Sequence[str] | None = None,
        recipe: str = "linear",
        options: Mapping[str, Any] | None = None,
        features: str = "projection",
        cache_folder: str | Path = "",
        draws: int = bootstrap.DRAWS,
    ):
        """Reads all tags, so that a bad source fails before anything is encoded.

        Args:
            parts: name -> clips with tags; no clip in two of them.
            test: the parts to test on, each with a head that learnt from all parts that
                are not named here. () is cross-validation: every part is tested with a
                head that learnt from all others.
            validation: the part by which the strength is chosen. Without it, that is the
                part after the tested one (the last one, when `test` is given); where
                there is one part to learn from, one in five of its clips. The head
                that is tested learnt from these clips, too, in the end.
            folds: of the only part, as many are made by chance, each with its share of
                every class.
            labels: the classes in order; by default the sorted set of all tags.
            recipe: a name in `recipes.RECIPES`; options: changes to its fields.
            features: what heads hear, "projection" (before L2), "normalised" or
                "embedding" (of the audio tower), for which the encoder's output has to
                be "embedding", and for the former "projection". Or "segments": a clip
                over time, as `over_time.pooled` makes one vector of its segments, which
                the source holds, or else a model that hears segments makes.
            cache_folder: where vectors are kept (`vectors.cached`); "" for nowhere.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: nothing to learn from or to test on, a part that is not there, a
                clip in two parts, one without a tag or with an unknown one, an unknown
                recipe, or options that cannot be.
        """
        if features not in FEATURES:
            raise ValueError(config_lib.unknown("features", features, FEATURES))
        self.recipe = recipes.get(recipe, options)
        self.recipe_name, self.features = recipe, features
        self.cache_folder, self.draws = cache_folder, draws
        self.parts = dict(parts)
        self.source = Joined(list(self.parts.values()))
        tags = {name: labels_lib.tags_of(source) for name, source in parts.items()}
        every = [own for of_part in tags.values() for own in of_part]
        self.labels = list(labels or labels_lib.class_names(every))
        if len(self.labels) < 2:
            raise ValueError(
                f"probe: two or more classes are needed, found {self.labels}"
            )
        self.targets = np.concatenate(
            [
                labels_lib.multi_hot("probe", source.name, tags[name], self.labels)
                for name, source in parts.items()
            ]
        )
        self.multi_label = bool((self.targets.sum(axis=1) > 1).any())
        self.division = Division(
            "probe", self.parts, test, validation, folds, self.targets
        )

    def run(self, encoder: Encoder) -> Result:
        """Encodes every clip once, fits and tests.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] over all tested clips
            or, multi-label, `average_precision`, float64 [C], the mean over the tested
            parts. Labels: `classes`. And the worst answers, and what every tested clip
            adds to the accuracies; positions of clips count through all parts.

        Raises:
            ValueError: no clip of a part could be read, vectors are not finite, or a
                fit fails.
        """
        x, clips = self._encode(encoder)
        targets, part_of = self.targets[clips], self.division.part_of[clips]
        values, heads = np.zeros(targets.shape, np.float32), {}
        for part in self.division.tested:
            head, heads[part] = self._head(x, targets, clips, part)
            own = part_of == part
            values[own] = head.scores(x[own])
        tested = np.isin(part_of, list(heads))
        values, targets, part_of = values[tested], targets[tested], part_of[tested]
        found = class_metrics.measure(
            *(values, targets, "probe", self.multi_label, self.draws), part_of=part_of
        )
        return Result(
            metrics={
                **found.metrics,
                **self._deviation(found.of_parts),
                "bad_clips": float(len(self.source) - len(clips)),
            },
            arrays=found.arrays,
            labels={"classes": self.labels},
            protocol=self._protocol(len(clips), heads, found.of_parts)
            | self._over_time(targets),
            intervals=found.intervals,
            misses=per_answer.class_misses(
                values, targets, clips[tested], self.labels, "score"
            ),
            per_clip=found.per_clip,
            clips=clips[tested],
            parts=np.unique(part_of, return_inverse=True)[1],
        )

    def _over_time(self, targets: np.ndarray) -> dict[str, Any]:
        """What more is said where clips are heard over time: also what guessing gives.

        targets: bool [n, C], of the tested clips.
        """
        if self.features != "segments":
            return {}
        shares = targets.mean(axis=0)
        guess = {"accuracy of the commonest class": shares.max()}
        if self.multi_label:
            guess = {"mAP of any order": shares[shares > 0].mean()}
        chance = {name: round(float(value), 4) for name, value in guess.items()}
        logging.info("probe, by chance: %s", chance)
        return {"pooling": over_time.POOLED, "chance": chance}

    def _deviation(
        self, of_parts: Mapping[str, Mapping[str, float]]
    ) -> dict[str, float]:
        """How far the tested parts are apart; nothing where there is one."""
        headline = class_metrics.headline(self.multi_label)
        values = [own[headline] for own in of_parts.values()]
        if len(values) < 2:
            return {}
        return {f"probe_{headline}_deviation": float(np.std(values))}

    def _encode(self, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [k, D] of the clips that could be read, and their positions."""
        from clap_jax.evals import vectors  # jax, which compare and report do without

        rows, positions, start = [], [], 0
        for source in self.parts.values():
            if self.features == "segments":
                kept = _Kept(over_time.vectors(encoder, source))
            else:
                kept = _Kept(vectors.cached(encoder, source, self.cache_folder))
            own, clips = encode_audio(kept, source, unit=False)
            rows.append(own)
            positions.append(clips + start)
            start += len(source)
        x = np.concatenate(rows)
        if self.features == "normalised":
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return x, np.concatenate(positions)

    def _head(
        self, x: np.ndarray, targets: np.ndarray, clips: np.ndarray, tested: str
    ) -> tuple[Any, dict[str, Any]]:
        """The head that a part is tested with, and how it came about."""
        from clap_jax.evals import fitting

        train = self.division.learns(clips, tested)
        own = self.division.part_of[clips] == tested
        facts = {"train_clips": int(train.sum()), "test_clips": int(own.sum())}
        strength = self.recipe.strengths[0]
        if len(self.recipe.strengths) > 1:
            held, words = self.division.validates(clips, tested, train)
            strength = fitting.choose(
                *(self.recipe, x, targets, train & ~held, held, self.multi_label)
            )
            facts |= {"validation": words, "strength": strength}
        loss = "bce" if self.multi_label else "ce"
        return fitting.fit(self.recipe, x, targets, train, loss, strength), facts

    def _protocol(
        self,
        clips: int,
        heads: Mapping[str, Mapping[str, Any]],
        of_parts: Mapping[str, Mapping[str, float]],
    ) -> dict[str, Any]:
        """The protocol of a result; what differs between models is in `of_each_part`."""
        return {
            "kind": "probe",
            "source": ", ".join(dict.fromkeys(s.name for s in self.parts.values())),
            "clips": clips,
            "classes": len(self.labels),
            "multi_label": self.multi_label,
            "features": self.features,
            "recipe": recipes.says(self.recipe_name, self.recipe),
            "parts": self.division.says(),
            "tested": {
                name: {k: v for k, v in facts.items() if k != "strength"}
                for name, facts in heads.items()
            },
            "of_each_part": {
                name: {k: v for k, v in facts.items() if k == "strength"}
                | of_parts[name]
                for name, facts in heads.items()
            },
            "data_digests": {name: s.digest() for name, s in self.parts.items()},
            "ties": "count against the model",
            "intervals": bootstrap.describe(
                self.draws, more="within each tested part; heads stay as fitted"
            ),
        }


class _Kept:
    """Vectors that are there already, with the face of an encoder."""

    def __init__(self, found: tuple[np.ndarray, np.ndarray]):
        self._found = found

    def audio(self, source: "Source") -> tuple[np.ndarray, np.ndarray]:
        return self._found
