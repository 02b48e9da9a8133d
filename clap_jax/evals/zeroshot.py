"""Zero-shot classification: labels become sentences, the nearest sentence wins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, class_metrics, per_answer, scores
from clap_jax.evals.base import (
    FUSED_SCORE,
    Encoder,
    Remembering,
    Result,
    encode_audio,
    encode_pairs,
    encode_text,
    hears_segments,
)
from clap_jax.evals.traps import Traps
from clap_jax.pipeline import labels as labels_lib
from clap_jax.text import descriptions as descriptions_lib
from clap_jax.text import prompts

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

EVALUATED = "as evaluated: {} sentences a class"

METRICS = ("auto", "accuracy", "mAP", "f1")

DECISIONS = {
    "best": "the best class of a clip alone is predicted",
    "positive": "classes of a positive cosine, or fused score, are predicted (sigmoid above 0.5)",
}
"""Which classes count as predicted, for F1."""


def class_embeddings(
    encoder: Encoder,
    labels: Sequence[str],
    templates: str | Sequence[str],
    descriptions: descriptions_lib.Descriptions | None = None,
) -> np.ndarray:
    """Classes as vectors: the mean over the sentences of each, normalised again.

    Args:
        encoder: anything with the method `text` of `Encoder`.
        labels: names of the classes, used as they are written (names out of data go
            through `clap_jax.text.prompts.class_name` before).
        templates: sentences with one `{}` for the label, one such sentence, or the
            name of a set in `clap_jax.text.prompts.TEMPLATES`. With descriptions they
            may also have `{description}`, and give a sentence for each.
        descriptions: label -> what it sounds like, a sentence or several.

    Returns:
        float32 [C, E] of unit length, in the order of the labels.

    Raises:
        TypeError: labels is one string instead of a sequence of them.
        ValueError: no labels, no templates, a template without `{}`, a label without
            description, embeddings are not finite, or the sentences of a label cancel
            out.
    """
    return _means(encoder, labels, class_texts(labels, templates, descriptions))


def class_texts(
    labels: Sequence[str],
    templates: str | Sequence[str],
    descriptions: descriptions_lib.Descriptions | None = None,
) -> list[list[str]]:
    """The sentences of every class; arguments and errors as of `class_embeddings`."""
    if isinstance(labels, str):
        raise TypeError(f"labels is the text {labels!r}, expected a sequence of texts")
    labels = list(labels)
    templates = _templates(templates, described=descriptions is not None)
    if not labels:
        raise ValueError("labels is empty, zero-shot classes need at least one")
    described = [()] * len(labels)
    if descriptions is not None:
        described = descriptions_lib.choose(descriptions, labels)
    return [
        prompts.sentences(templates, label, own)
        for label, own in zip(labels, described, strict=True)
    ]


def class_scores(values: np.ndarray, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Scores of classes, float32 [n, C], from those of all of their sentences, float32
    [n, m] in the order of `texts`: the mean over the sentences of each class."""
    starts = np.cumsum([0, *(len(own) for own in texts[:-1])])
    sums = np.add.reduceat(np.asarray(values, np.float64), starts, axis=1)
    return (sums / [len(own) for own in texts]).astype(np.float32)


def _means(
    encoder: Encoder, labels: Sequence[str], texts: Sequence[Sequence[str]]
) -> np.ndarray:
    """The normalised mean of the vectors of every label's texts, float32 [C, E]."""
    rows = encode_text(encoder, [text for own in texts for text in own])
    ends = np.cumsum([len(own) for own in texts])
    means = np.stack([own.mean(axis=0) for own in np.split(rows, ends[:-1])])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if not norms.all():
        label = labels[int(np.argmin(norms))]
        raise ValueError(f"the templates of label {label!r} cancel out")
    return means / norms


def _templates(templates: str | Sequence[str], described: bool) -> tuple[str, ...]:
    """Templates as `class_embeddings` takes them, looked up and checked."""
    if isinstance(templates, str):
        templates = prompts.TEMPLATES.get(templates, (templates,))
    templates = tuple(templates)
    if not templates:
        raise ValueError("templates is empty, zero-shot classes need at least one")
    for template in templates:
        prompts.check(template, described)
    if described and not any(prompts.DESCRIPTION in own for own in templates):
        raise ValueError(
            f"there are descriptions, but no template has {prompts.DESCRIPTION} (the "
            "sets 'described' and 'description_alone' have)"
        )
    return templates


class ZeroShot:
    """Classifies clips by the similarity with the texts of the labels.

    Where every clip has one tag: `zeroshot_acc`, `zeroshot_top5` (best min(5, C) of C
    classes). Where any clip has several, or where asked for: `zeroshot_mAP`,
    `zeroshot_AUC`, macro over the classes that occur; with "f1" also
    `zeroshot_F1_micro` and `zeroshot_F1_macro`. And `bad_clips`, the number of clips
    left out because they could not be read. All but the last have intervals.

    A class is one vector, the mean over its sentences. Of a model that hears segments,
    what attention finds in time counts, too: a class is scored by the mean of the fused
    scores of its sentences, each of which is a text of its own.
    """

    def __init__(
        self,
        source: "Source",
        templates: str | Sequence[str] = "laion",
        labels: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
        descriptions: str | descriptions_lib.Descriptions | None = None,
        metric: str = "auto",
        decision: str = "best",
        untagged: bool = False,
        official: Mapping[str, Any] | None = None,
        accept: Sequence[str] = (),
        draws: int = bootstrap.DRAWS,
        compared_templates: str | Sequence[str] = "plain",
    ):
        """Reads all tags, so that a bad source fails before any training.

        Args:
            source: clips with tags.
            templates: as in `class_embeddings`; several are an ensemble.
            labels: the classes in order; by default the sorted set of the tags. Both
                are made into text by `clap_jax.text.prompts.class_name` ...
            names: ... but for those that have a text here.
            descriptions: label or text -> sentences, or the path of a file with them
                (`clap_jax.text.descriptions`).
            metric: "accuracy", "mAP", "f1", or "auto": by the number of tags.
            decision: with "f1", a key of `DECISIONS`.
            untagged: clips without a tag stay, as negatives of every class.
            official: what the data should be, keys of `traps.OFFICIAL`.
            accept: known traps that are no reason to refuse, from `traps.TRAPS`.
            draws: of the bootstrap; 0 for no intervals.
            compared_templates: templates that are tried one by one beside those of the
                evaluation itself, to see how much hangs on the wording; may be empty.

        Raises:
            ValueError: empty source, a clip with no tag or with a tag outside the
                labels, repeated labels, no templates or one without `{}`, several tags
                where accuracy is asked for, a known trap.
        """
        _check_choices(metric, decision)
        self.source, self.draws, self.decision = source, draws, decision
        self.templates = _templates(templates, described=descriptions is not None)
        if not len(source):
            raise ValueError(f"zeroshot: source '{source.name}' has no clips")
        tags = labels_lib.tags_of(source)
        self.labels = list(labels_lib.class_names(tags) if labels is None else labels)
        self.targets = labels_lib.multi_hot(
            "zeroshot", source.name, tags, self.labels, untagged=untagged
        )
        self.metric = _metric(metric, self.targets, source.name)
        self.multi_label = self.metric != "accuracy"
        self.traps = Traps(f"zeroshot of source '{source.name}'", accept, official)
        self.traps.check_clips(len(source))
        self.traps.check_classes(len(self.labels))
        names = dict(names or {})
        self.names = [names.get(x, prompts.class_name(x)) for x in self.labels]
        self.descriptions_file = ""
        if isinstance(descriptions, str):
            self.descriptions_file = Path(descriptions).name
            descriptions = descriptions_lib.read(descriptions)
        self.described = [()] * len(self.labels)
        if descriptions is not None:
            self.described = _described(descriptions, self.labels, self.names)
        self.texts = self._texts(self.templates)
        self.compared_templates = (
            _templates(compared_templates, described=False)
            if compared_templates
            else ()
        )

    def run(self, encoder: Encoder) -> Result:
        """Encodes clips and labels and compares.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] (row = true class) or,
            multi-label, `average_precision`, float64 [C] (NaN: class without a clip).
            `prompt_scores`, float64 [P], accuracy or mAP as evaluated, then with single
            templates. Labels: `classes`, and `prompts` [P]. And the worst answers, and
            what every clip adds to the accuracies.

        Raises:
            ValueError: no clip could be read, embeddings are not finite, or the
                templates of a class cancel out.
        """
        fused = hears_segments(encoder)
        if fused:
            encoder = Remembering(encoder)  # every wording asks for the clips
        za, clips = encode_audio(encoder, self.source)
        similarity = self._similarity(encoder, za, clips, self.texts)
        targets = self.targets[clips]
        predicted = None
        if self.metric == "f1":
            predicted = _decided(similarity, targets, self.decision)
        found = class_metrics.measure(
            similarity, targets, "zeroshot", self.multi_label, self.draws, predicted
        )
        wordings = self._wordings(encoder, za, clips, found.metrics)
        return Result(
            metrics={
                **found.metrics,
                "bad_clips": float(len(self.source) - len(clips)),
            },
            arrays=found.arrays | {"prompt_scores": np.array([*wordings.values()])},
            labels={"classes": self.labels, "prompts": list(wordings)},
            protocol=self._says(len(clips), fused),
            intervals=found.intervals,
            misses=per_answer.class_misses(
                *(similarity, targets, clips, self.labels),
                "fused score" if fused else "cosine",
            ),
            per_clip=found.per_clip,
            clips=clips,
        )

    def _texts(self, templates: Sequence[str]) -> list[list[str]]:
        """The sentences of every class."""
        return [
            prompts.sentences(templates, name, own)
            for name, own in zip(self.names, self.described, strict=True)
        ]

    def _similarity(self, encoder, za, clips, texts) -> np.ndarray:
        """Scores float32 [n, C] of the clips with the classes that have these texts."""
        if hears_segments(encoder):
            flat = [text for own in texts for text in own]
            pairs = encode_pairs(encoder, self.source, clips, flat)
            return class_scores(pairs.T, texts)
        classes = _means(encoder, self.labels, texts)
        return np.concatenate(list(scores.similarity_rows(za, classes)))

    def _wordings(self, encoder, za, clips, metrics) -> dict[str, float]:
        """Accuracy or mAP as evaluated, then with each template alone.

        These are its own templates, where there are several, and those it is compared
        with. Only texts are encoded for it.
        """
        own, targets = self.templates, self.targets[clips]
        truth = targets.argmax(axis=1)
        sentences = max(map(len, self.texts))
        name = own[0] if len(own) == 1 else EVALUATED.format(sentences)
        headline = class_metrics.headline(self.multi_label)
        found = {name: metrics[f"zeroshot_{headline}"]}
        for template in dict.fromkeys((*own, *self.compared_templates)):
            if template in found:
                continue
            texts = self._texts((template,))
            similarity = self._similarity(encoder, za, clips, texts)
            found[template] = (
                scores.mean_average_precision(similarity, targets)
                if self.multi_label
                else scores.top_accuracy(similarity, truth, 1)
            )
        return found

    def _says(self, clips: int, fused: bool) -> dict[str, Any]:
        """The protocol of a result."""
        counts = [len(own) for own in self.texts]
        said = {
            "kind": "zeroshot",
            "source": self.source.name,
            "clips": clips,
            "classes": len(self.labels),
            "multi_label": self.multi_label,
            "templates": list(self.templates),
            "prompts": _ensemble(counts, fused),
            "example": self.texts[0][0],
            "ties": "count against the model (in mAP clips pass together; half in AUC)",
            "intervals": bootstrap.describe(self.draws),
        }
        if self.metric == "f1":
            said["decision"] = DECISIONS[self.decision]
        if fused:
            said["score"] = FUSED_SCORE
        if self.descriptions_file:
            said["descriptions"] = self.descriptions_file
        return said | self.traps.protocol()


def _ensemble(counts: Sequence[int], fused: bool) -> str:
    """How so many sentences of each class become one vector, or one score."""
    if max(counts) == 1:
        return "one sentence a class"
    many = str(counts[0])
    if min(counts) < max(counts):
        many = f"{min(counts)} to {max(counts)}"
    if fused:
        return f"mean of the scores of {many} sentences a class"
    return f"mean of the unit vectors of {many} sentences a class, normalised again"


def _check_choices(metric: str, decision: str) -> None:
    for what, name, known in (
        ("zeroshot metric", metric, METRICS),
        ("zeroshot decision", decision, DECISIONS),
    ):
        if name not in known:
            raise ValueError(config_lib.unknown(what, name, known))


def _metric(metric: str, targets: np.ndarray, source_name: str) -> str:
    """What is measured, where "auto" leaves it open."""
    single = (targets.sum(axis=1) == 1).all()
    if metric == "auto":
        return "accuracy" if single else "mAP"
    if metric == "accuracy" and not single:
        clip = int(np.argmax(targets.sum(axis=1) != 1))
        raise ValueError(
            f"zeroshot: accuracy needs one tag a clip, clip {clip} of source "
            f"'{source_name}' has {targets[clip].sum()}"
        )
    return metric


def _described(
    descriptions: descriptions_lib.Descriptions,
    labels: Sequence[str],
    names: Sequence[str],
) -> list[tuple[str, ...]]:
    """The sentences of every class, found by its label, or by its text."""
    known = dict(descriptions)
    for label, name in zip(labels, names, strict=True):
        if label not in known and name in known:
            known[label] = known[name]
    return descriptions_lib.choose(known, labels)


def _decided(similarity, targets, decision) -> np.ndarray:
    """Which classes count as predicted, bool [n, C]."""
    if decision == "positive":
        return similarity > 0
    best = scores.predictions(similarity, targets)
    return np.arange(similarity.shape[1]) == best[:, None]
