"""How well a classifier's own heads name the classes of clips that it has not seen."""

from typing import TYPE_CHECKING

from clap_jax import config as config_lib
from clap_jax.evals import bootstrap, class_metrics, per_answer
from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.pipeline import labels as labels_lib

if TYPE_CHECKING:
    from clap_jax.models.classifier import ClassifierSpec
    from clap_jax.pipeline.sources import Source


class HeadScores:
    """Measures one head of a classifier on clips with tags.

    With loss "ce": `head_acc` and `head_top5`; with "bce": `head_mAP` and `head_AUC`,
    macro over the classes that occur. And `bad_clips`, the number of clips left out
    because they could not be read. All but the last have intervals.
    """

    def __init__(
        self,
        source: "Source",
        spec: "ClassifierSpec",
        head: str = "",
        draws: int = bootstrap.DRAWS,
    ):
        """Reads all tags, so that a bad source fails before any training.

        Args:
            source: clips with tags, of classes that the head knows.
            spec: of the classifier.
            head: its name; the only one by default.
            draws: of the bootstrap; 0 for no intervals.

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
        self.draws = draws
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
            with "bce", `average_precision`, float64 [C]. Labels: `classes`. And the
            worst answers, and what every clip adds to the accuracies.

        Raises:
            ValueError: no clip could be read, or scores are not finite.
        """
        found, clips = encode_audio(encoder, self.source, unit=False)
        values, targets = found[:, self._columns], self.targets[clips]
        multi_label, labels = self.head.loss == "bce", self.head.labels
        own = class_metrics.measure(values, targets, "head", multi_label, self.draws)
        return Result(
            metrics={**own.metrics, "bad_clips": float(len(self.source) - len(clips))},
            arrays=own.arrays,
            labels={"classes": list(labels)},
            protocol={
                "kind": "classifier",
                "source": self.source.name,
                "head": self.name,
                "clips": len(clips),
                "classes": len(labels),
                "classes_without_a_clip": int((~targets.any(axis=0)).sum()),
                "multi_label": multi_label,
                "ties": "count against the model",
                "intervals": bootstrap.describe(self.draws),
            },
            intervals=own.intervals,
            misses=per_answer.class_misses(values, targets, clips, labels, "score"),
            per_clip=own.per_clip,
            clips=clips,
        )
