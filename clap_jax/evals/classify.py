"""How well a classifier's own heads name the classes of clips that it has not seen."""

from typing import TYPE_CHECKING

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import scores
from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.pipeline import labels as labels_lib

if TYPE_CHECKING:
    from clap_jax.models.classifier import ClassifierSpec
    from clap_jax.pipeline.sources import Source

TOP_DEPTH = 5


class HeadScores:
    """Measures one head of a classifier on clips with tags.

    With loss "ce": `head_acc` and `head_top5`; with "bce": `head_mAP` and `head_AUC`,
    macro over the classes that occur. And `bad_clips`, the number of clips left out
    because they could not be read.
    """

    def __init__(self, source: "Source", spec: "ClassifierSpec", head: str = ""):
        """Reads all tags, so that a bad source fails before any training.

        Args:
            source: clips with tags, of classes that the head knows.
            spec: of the classifier.
            head: its name; the only one by default.

        Raises:
            ValueError: empty source, a model without heads, no such head, several and
                none named, a clip without a tag, or with one that the head does not
                know.
        """
        heads = getattr(spec, "heads", None)
        if heads is None:
            raise ValueError(
                f"classifier: {spec.name} has no heads; they come with task.name=classify"
            )
        if not head and len(heads) == 1:
            (head,) = heads
        if head not in heads:
            raise ValueError(f"classifier: {config_lib.unknown('head', head, heads)}")
        if not len(source):
            raise ValueError(f"classifier: source '{source.name}' has no clips")
        self.source, self.name, self.head = source, head, heads[head]
        self._columns = spec.columns[head]
        self.targets = labels_lib.multi_hot(
            "classifier",
            source.name,
            labels_lib.tags_of(source),
            self.head.labels,
            one_each=self.head.loss == "ce",
        )

    def run(self, encoder: Encoder) -> Result:
        """Scores every clip.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] (row = true class) or,
            with "bce", `average_precision`, float64 [C]. Labels: `classes`.

        Raises:
            ValueError: no clip could be read, or scores are not finite.
        """
        found, clips = encode_audio(encoder, self.source, unit=False)
        targets, multi_label = self.targets[clips], self.head.loss == "bce"
        own, arrays = measured(found[:, self._columns], targets, multi_label)
        metrics = {f"head_{name}": value for name, value in own.items()}
        return Result(
            metrics={**metrics, "bad_clips": float(len(self.source) - len(clips))},
            arrays=arrays,
            labels={"classes": list(self.head.labels)},
            protocol={
                "kind": "classifier",
                "source": self.source.name,
                "head": self.name,
                "clips": len(clips),
                "classes": len(self.head.labels),
                "classes_without_a_clip": int((~targets.any(axis=0)).sum()),
                "multi_label": multi_label,
                "ties": "count against the model",
            },
        )


def measured(
    values: np.ndarray, targets: np.ndarray, multi_label: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of class scores, and arrays for plots.

    With one class a clip `acc` and `top5` (best min(5, C) of C), and `confusion`, int64
    [C, C]; with several `mAP` and `AUC`, macro over the classes that occur (AUC: that
    not every clip has), and `average_precision`, float64 [C], NaN for the others.

    Args:
        values: scores, float [n, C].
        targets: bool [n, C].
        multi_label: whether clips may have several classes.
    """
    if multi_label:
        metrics = {"mAP": scores.mean_average_precision(values, targets)}
        if (targets.any(axis=0) & ~targets.all(axis=0)).any():
            metrics["AUC"] = scores.mean_roc_auc(values, targets)
        precisions = scores.class_average_precisions(values, targets)
        return metrics, {"average_precision": precisions}
    truth = targets.argmax(axis=1)
    metrics = {
        "acc": scores.top_accuracy(values, truth, 1),
        "top5": scores.top_accuracy(values, truth, TOP_DEPTH),
    }
    predicted = scores.predictions(values, truth)
    confusion = scores.confusion_matrix(truth, predicted, targets.shape[1])
    return metrics, {"confusion": confusion}
