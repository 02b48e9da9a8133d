"""Zero-shot classification: labels become sentences, the nearest sentence wins."""

import difflib
from collections.abc import Sequence

import numpy as np

from clap_jax.evals import scores
from clap_jax.evals.base import Encoder, Result, Source, encode_audio, encode_text
from clap_jax.text import prompts

TOP_DEPTH = 5


class ZeroShot:
    """Classifies clips by the similarity with the texts of the labels.

    Where every clip has one tag: `zeroshot_acc`, `zeroshot_top5` (best min(5, C) of C
    classes). Where any clip has several: `zeroshot_mAP`, macro over the classes that
    occur. And `bad_clips`, the number of clips left out because they could not be read.
    """

    def __init__(
        self,
        source: Source,
        templates: str | Sequence[str] = "laion",
        labels: Sequence[str] | None = None,
    ):
        """Reads all tags, so that a bad source fails before any training.

        Args:
            source: clips with tags.
            templates: sentences with one `{}` for the label, or the name of a set in
                `clap_jax.text.prompts.TEMPLATES`. The embeddings of all of them are
                averaged and normalised again.
            labels: the classes in order; by default the sorted set of the tags.

        Raises:
            ValueError: empty source, a clip with no tag or with a tag outside the
                labels, repeated labels, no templates or one without `{}`.
        """
        if isinstance(templates, str):
            templates = prompts.TEMPLATES.get(templates, (templates,))
        templates = tuple(templates)
        if not templates:
            raise ValueError("zeroshot: templates is empty, it needs at least one")
        if not len(source):
            raise ValueError(f"zeroshot: source '{source.name}' has no clips")
        self.source, self.templates = source, templates
        tags = [list(dict.fromkeys(source.tags(i))) for i in range(len(source))]
        if labels is None:
            labels = sorted({tag for own in tags for tag in own})
        self.labels = list(labels)
        self.targets = _targets(source.name, tags, self.labels)
        self.multi_label = bool((self.targets.sum(axis=1) > 1).any())
        names = map(prompts.class_name, self.labels)
        self.texts = prompts.expand(templates, names)

    def class_embeddings(self, encoder: Encoder) -> np.ndarray:
        """Mean over templates, normalised again: float32 [C, E].

        Raises:
            ValueError: embeddings are not finite, or the templates of a class cancel.
        """
        flat = [text for texts in self.texts for text in texts]
        rows = encode_text(encoder, flat)
        means = rows.reshape(len(self.labels), len(self.templates), -1).mean(axis=1)
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        if not norms.all():
            label = self.labels[int(np.argmin(norms))]
            raise ValueError(f"zeroshot: the templates of label {label!r} cancel out")
        return means / norms

    def run(self, encoder: Encoder) -> Result:
        """Encodes clips and labels and compares.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] (row = true class) or,
            multi-label, `average_precision`, float64 [C] (NaN: class without a clip).
            Labels: `classes`.

        Raises:
            ValueError: no clip could be read, or embeddings are not finite.
        """
        za, clips = encode_audio(encoder, self.source)
        classes = self.class_embeddings(encoder)
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
                near = difflib.get_close_matches(tag, labels, n=3, cutoff=0.5)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(
                    f"zeroshot: clip {clip} of source '{source_name}' has the tag "
                    f"{tag!r}, which is not among the {len(labels)} labels{hint}"
                )
            targets[clip, column[tag]] = True
    return targets
