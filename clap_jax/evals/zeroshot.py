"""Zero-shot classification: labels become sentences, the nearest sentence wins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import scores
from clap_jax.evals.base import Encoder, Result, encode_audio, encode_text
from clap_jax.text import prompts

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

TOP_DEPTH = 5


def class_embeddings(
    encoder: Encoder, labels: Sequence[str], templates: str | Sequence[str]
) -> np.ndarray:
    """Classes as vectors: the mean over the templates, normalised again.

    Args:
        encoder: anything with the method `text` of `Encoder`.
        labels: names of the classes, used as they are written (names out of data go
            through `clap_jax.text.prompts.class_name` before).
        templates: sentences with one `{}` for the label, one such sentence, or the
            name of a set in `clap_jax.text.prompts.TEMPLATES`.

    Returns:
        float32 [C, E] of unit length, in the order of the labels.

    Raises:
        TypeError: labels is one string instead of a sequence of them.
        ValueError: no labels, no templates, a template without `{}`, embeddings are
            not finite, or the templates of a label cancel out.
    """
    if isinstance(labels, str):
        raise TypeError(f"labels is the text {labels!r}, expected a sequence of texts")
    labels, templates = list(labels), _sentences(templates)
    if not labels:
        raise ValueError("labels is empty, zero-shot classes need at least one")
    texts = prompts.expand(templates, labels)
    rows = encode_text(encoder, [text for own in texts for text in own])
    means = rows.reshape(len(labels), len(templates), -1).mean(axis=1)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if not norms.all():
        label = labels[int(np.argmin(norms))]
        raise ValueError(f"the templates of label {label!r} cancel out")
    return means / norms


def _sentences(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates as `class_embeddings` takes them, looked up and checked."""
    if isinstance(templates, str):
        templates = prompts.TEMPLATES.get(templates, (templates,))
    templates = tuple(templates)
    if not templates:
        raise ValueError("templates is empty, zero-shot classes need at least one")
    for template in templates:
        prompts.render(template, "label")
    return templates


class ZeroShot:
    """Classifies clips by the similarity with the texts of the labels.

    Where every clip has one tag: `zeroshot_acc`, `zeroshot_top5` (best min(5, C) of C
    classes). Where any clip has several: `zeroshot_mAP`, macro over the classes that
    occur. And `bad_clips`, the number of clips left out because they could not be read.
    """

    def __init__(
        self,
        source: "Source",
        templates: str | Sequence[str] = "laion",
        labels: Sequence[str] | None = None,
    ):
        """Reads all tags, so that a bad source fails before any training.

        Args:
            source: clips with tags.
            templates: as in `class_embeddings`.
            labels: the classes in order; by default the sorted set of the tags. Both
                are made into text by `clap_jax.text.prompts.class_name`.

        Raises:
            ValueError: empty source, a clip with no tag or with a tag outside the
                labels, repeated labels, no templates or one without `{}`.
        """
        self.source, self.templates = source, _sentences(templates)
        if not len(source):
            raise ValueError(f"zeroshot: source '{source.name}' has no clips")
        tags = [list(dict.fromkeys(source.tags(i))) for i in range(len(source))]
        if labels is None:
            labels = sorted({tag for own in tags for tag in own})
        self.labels = list(labels)
        self.targets = _targets(source.name, tags, self.labels)
        self.multi_label = bool((self.targets.sum(axis=1) > 1).any())
        self.names = [prompts.class_name(label) for label in self.labels]

    def run(self, encoder: Encoder) -> Result:
        """Encodes clips and labels and compares.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] (row = true class) or,
            multi-label, `average_precision`, float64 [C] (NaN: class without a clip).
            Labels: `classes`.

        Raises:
            ValueError: no clip could be read, embeddings are not finite, or the
                templates of a class cancel out.
        """
        za, clips = encode_audio(encoder, self.source)
        classes = class_embeddings(encoder, self.names, self.templates)
        similarity = np.concatenate(list(scores.similarity_rows(za, classes)))
        targets = self.targets[clips]
        measure = _multi_label if self.multi_label else _single_label
        metrics, arrays = measure(similarity, targets)
        return Result(
            metrics={**metrics, "bad_clips": float(len(self.source) - len(clips))},
            arrays=arrays,
            labels={"classes": self.labels},
            protocol={
                "kind": "zeroshot",
                "source": self.source.name,
                "clips": len(clips),
                "classes": len(self.labels),
                "multi_label": self.multi_label,
                "templates": list(self.templates),
                "ties": "count against the model",
            },
        )


def _single_label(similarity, targets):
    truth = targets.argmax(axis=1)
    classes = targets.shape[1]
    predicted = scores.predictions(similarity, truth)
    metrics = {
        "zeroshot_acc": scores.top_accuracy(similarity, truth, 1),
        "zeroshot_top5": scores.top_accuracy(similarity, truth, TOP_DEPTH),
    }
    return metrics, {"confusion": scores.confusion_matrix(truth, predicted, classes)}


def _multi_label(similarity, targets):
    metrics = {"zeroshot_mAP": scores.mean_average_precision(similarity, targets)}
    precisions = scores.class_average_precisions(similarity, targets)
    return metrics, {"average_precision": precisions}


def _targets(source_name: str, tags: list[list[str]], labels: list[str]) -> np.ndarray:
    """Which clip has which label, bool [n, C]; errors as in `ZeroShot`."""
    column = {label: i for i, label in enumerate(labels)}
    if len(column) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(f"zeroshot: labels repeat: {', '.join(twice)}")
    targets = np.zeros((len(tags), len(labels)), bool)
    for clip, own in enumerate(tags):
        if not own:
            raise ValueError(
                f"zeroshot: clip {clip} of source '{source_name}' has no tag"
            )
        for tag in own:
            if tag not in column:
                raise ValueError(
                    f"zeroshot: clip {clip} of source '{source_name}' has an "
                    + config_lib.unknown("label", tag, labels)
                )
            targets[clip, column[tag]] = True
    return targets
