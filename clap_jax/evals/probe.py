"""Probes: a small head on what a frozen model makes of clips, fitted and tested."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, class_metrics, per_answer, recipes
from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.evals.recipes import Recipe
from clap_jax.pipeline import labels as labels_lib

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

FEATURES = ("projection", "normalised", "embedding")

# Of the training clips, where no part of the data is for validation: one in so many.
VALIDATION_SHARE = 5


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
                "embedding" (of the audio tower). The encoder's output has to be "embedding"
                for the last, else "projection".
            cache_folder: where vectors are kept (`vectors.cached`); "" for nowhere.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: nothing to learn from or to test on, a part that is not there, a
                clip in two parts, one without a tag or with an unknown one, an unknown
                recipe, or options that cannot be.
        """
        if recipe not in recipes.RECIPES:
            raise ValueError(
                config_lib.unknown("recipe of a probe", recipe, recipes.RECIPES)
            )
        if features not in FEATURES:
            raise ValueError(config_lib.unknown("features", features, FEATURES))
        base = dataclasses.asdict(recipes.RECIPES[recipe])
        self.recipe = config_lib.build(Recipe, base | dict(options or {}), "options")
        self.recipe_name, self.features = recipe, features
        self.cache_folder, self.draws = cache_folder, draws
        self.parts = dict(parts)
        self.source = _Joined(list(self.parts.values()))
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
        self.part_of = np.repeat(
            list(parts), [len(source) for source in parts.values()]
        )
        self.names, self._made_folds = list(parts), folds
        if folds:
            self.part_of = self._folds(folds)
            self.names = [str(fold + 1) for fold in range(folds)]
        self.test, self.validation = tuple(test), validation
        self._check()

    def _folds(self, folds: int) -> np.ndarray:
        """A fold for each clip of the only part, by its id."""
        if len(self.parts) > 1:
            raise ValueError(
                f"probe: folds={folds} is for data of one part, found "
                f"{', '.join(self.parts)}"
            )
        if folds < 2:
            raise ValueError(f"probe: folds is {folds}, expected 2 or more")
        (source,) = self.parts.values()
        digests = [
            hashlib.blake2b(source.id(clip).encode(), digest_size=8).hexdigest()
            for clip in range(len(source))
        ]
        keys = [(tuple(row), digests[clip]) for clip, row in enumerate(self.targets)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        found = np.empty(len(keys), dtype="U20")
        found[order] = [str(place % folds + 1) for place in range(len(keys))]
        return found

    def _check(self) -> None:
        names = self.names
        for part in (*self.test, *filter(None, [self.validation])):
            if part not in names:
                raise ValueError(f"probe: {config_lib.unknown('part', part, names)}")
        if self.validation in self.test:
            raise ValueError(
                f"probe: {self.validation!r} is for testing and for validation; what "
                "is chosen by test clips proves nothing"
            )
        if len(names) < 2 or not set(names) - set(self.test):
            raise ValueError(
                f"probe: the parts are {', '.join(names)}, of which "
                f"{', '.join(self.test) or 'each'} is to be tested: nothing is left to "
                "learn from (folds=5 makes five of one)"
            )
        seen: dict[str, str] = {}
        for name, source in self.parts.items():
            for clip in range(len(source)):
                other = seen.setdefault(source.id(clip), name)
                if other != name:
                    raise ValueError(
                        f"probe: clip {source.id(clip)} is in the parts {other} and {name}"
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
        targets, part_of = self.targets[clips], self.part_of[clips]
        values, heads = np.zeros(targets.shape, np.float32), {}
        for part in self.test or self.names:
            head, heads[part] = self._head(x, targets, part_of, part)
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
                "bad_clips": float(len(self.part_of) - len(clips)),
            },
            arrays=found.arrays,
            labels={"classes": self.labels},
            protocol=self._protocol(len(clips), heads, found.of_parts),
            intervals=found.intervals,
            misses=per_answer.class_misses(
                values, targets, clips[tested], self.labels, "score"
            ),
            per_clip=found.per_clip,
            clips=clips[tested],
            parts=np.unique(part_of, return_inverse=True)[1],
        )

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
        self, x: np.ndarray, targets: np.ndarray, part_of: np.ndarray, tested: str
    ) -> tuple[Any, dict[str, Any]]:
        """The head that a part is tested with, and how it came about."""
        from clap_jax.evals import fitting

        loss = "bce" if self.multi_label else "ce"
        held_out = np.isin(part_of, [tested, *self.test])
        own = part_of == tested
        if not own.any() or held_out.all():
            raise ValueError(f"probe: no clip could be read for the part {tested!r}")
        facts = {"train_clips": int((~held_out).sum()), "test_clips": int(own.sum())}
        strength = self.recipe.strengths[0]
        if len(self.recipe.strengths) > 1:
            held, words = self._validation(targets, part_of, tested, ~held_out)
            strength = self._choose(x, targets, ~held_out & ~held, held, loss)
            facts |= {"validation": words, "strength": strength}
        return fitting.fit(self.recipe, x, targets, ~held_out, loss, strength), facts

    def _choose(self, x, targets, train, held, loss) -> float:
        """The strength that is best on validation clips; of equals the strongest."""
        from clap_jax.evals import fitting

        best, chosen = -1.0, 0.0
        for strength in sorted(self.recipe.strengths, reverse=True):
            head = fitting.fit(self.recipe, x, targets, train, loss, strength)
            scores = head.scores(x[held])
            found = class_metrics.metrics(scores, targets[held], self.multi_label)
            value = found[class_metrics.headline(self.multi_label)]
            if value > best:
                best, chosen = value, strength
        return chosen

    def _validation(
        self, targets: np.ndarray, part_of: np.ndarray, tested: str, train: np.ndarray
    ) -> tuple[np.ndarray, str]:
        """Which of the training clips validate, bool [k], and that in words."""
        names = [name for name in self.names if (part_of[train] == name).any()]
        part = self.validation if self.validation != tested else ""
        if not part and len(names) > 1:
            # In cross-validation the next one, so that each part is used for it once.
            after = self.names[self.names.index(tested) + 1 :] + self.names
            part = names[-1] if self.test else next(n for n in after if n in names)
        if part:
            return train & (part_of == part), f"part {part}"
        held = np.zeros(len(train), bool)
        rows = np.flatnonzero(train)
        by_class = rows[np.lexsort((rows, targets[rows].argmax(axis=1)))]
        held[by_class[:: min(VALIDATION_SHARE, len(rows))]] = True
        return held, f"one in {VALIDATION_SHARE} training clips"

    def _protocol(
        self,
        clips: int,
        heads: Mapping[str, Mapping[str, Any]],
        of_parts: Mapping[str, Mapping[str, float]],
    ) -> dict[str, Any]:
        """The protocol of a result; what differs between models is in `of_each_part`."""
        used = {
            k: v
            for k, v in dataclasses.asdict(self.recipe).items()
            if k in _USED[self.recipe.solver]
        }
        if self._made_folds:
            how = f"cross-validation over {self._made_folds} folds made by chance"
        elif self.test:
            how = "the tested parts are never learnt from"
        else:
            how = f"cross-validation over {len(self.parts)} given parts"
        return {
            "kind": "probe",
            "source": ", ".join(dict.fromkeys(s.name for s in self.parts.values())),
            "clips": clips,
            "classes": len(self.labels),
            "multi_label": self.multi_label,
            "features": self.features,
            "recipe": {"name": self.recipe_name, **used},
            "parts": how,
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


# Fields of a recipe that a solver looks at.
_USED = {
    "lbfgs": ("solver", "strengths", "standardise"),
    "adam": tuple(field.name for field in dataclasses.fields(Recipe)),
}


class _Joined:
    """The clips of all parts, one part after the other, to be heard and named."""

    def __init__(self, sources: "Sequence[Source]"):
        self._sources = sources
        self._first = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, place = self._place(index)
        return source[place]

    def id(self, index: int) -> str:
        source, place = self._place(index)
        return source.id(place)

    def _place(self, index: int) -> "tuple[Source, int]":
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._sources[number], index - int(self._first[number])


class _Kept:
    """Vectors that are there already, with the face of an encoder."""

    def __init__(self, found: tuple[np.ndarray, np.ndarray]):
        self._found = found

    def audio(self, source: "Source") -> tuple[np.ndarray, np.ndarray]:
        return self._found
