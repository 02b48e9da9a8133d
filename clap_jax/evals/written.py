"""How well a captioner answers what a task asks of clips that it has not heard."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clap_jax.evals import bootstrap, class_metrics, per_answer
from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.pipeline import answers as answers_lib
from clap_jax.pipeline import labels as labels_lib
from clap_jax.text import prompts
from clap_jax.text.answers import Writer
from clap_jax.text.answers import task as find_task

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

# So many answers stand in the protocol, for people to read.
EXAMPLES = 8


class WrittenAnswers:
    """Measures one task: the answers that a captioner writes, and those that it prefers.

    `exact`: the share of clips whose answer, the likeliest token each time, is what was
    expected, word for word but for case (of captions: is one of them). Where clips have
    labels (the task's answer has {tags}) the answer of every label is scored as well, by
    the sum of the log-likelihoods of its tokens and its ending: `label_acc` and
    `label_top5`, or, where clips have several labels, `label_mAP` and `label_AUC`, macro
    over the classes that occur. And `bad_clips`, left out because they could not be read.
    All but the last have intervals.
    """

    def __init__(
        self,
        source: "Source",
        task: str = "",
        labels: Sequence[str] | None = None,
        draws: int = bootstrap.DRAWS,
    ):
        """Reads all tags and captions, so that a bad source fails before any training.

        Args:
            source: the clips.
            task: a name of `text/assets/tasks.json`.
            labels: the classes in order; by default those that occur, sorted.
            draws: of the bootstrap; 0 for no intervals.

        Raises:
            ValueError: empty source, unknown task, one whose prompt differs from clip to
                clip, a clip that has not what the task needs, or a tag outside labels.
        """
        self.source, self.template, self.draws = source, find_task(task), draws
        what = "answers"
        if any("{" in prompt for prompt in self.template.prompts):
            raise ValueError(
                f"{what}: the task {task!r} asks each clip something else, which this "
                "evaluation does not do: expected a task with a fixed prompt"
            )
        if not len(source):
            raise ValueError(f"{what}: source '{source.name}' has no clips")
        answers_lib.check(what, source, self.template)
        self.expected = [
            {
                per_answer.plain(self.template.write(source.tags(clip), [caption])[1])
                for caption in (source.captions(clip) or [""])
            }
            for clip in range(len(source))
        ]
        self.labels: tuple[str, ...] = ()
        if "tags" in self.template.places:
            tags = labels_lib.tags_of(source)
            self.labels = tuple(labels or labels_lib.class_names(tags))
            self.targets = labels_lib.multi_hot(what, source.name, tags, self.labels)
            self.multi_label = bool((self.targets.sum(axis=1) > 1).any())

    def run(self, encoder: Encoder) -> Result:
        """Asks every clip, with the task's first prompt.

        Returns:
            Metrics as above. Arrays: `confusion`, int64 [C, C] (row = true class) or
            `average_precision`, float64 [C], where there are labels. Labels: `classes`.
            And the worst answers, those that were written (by the words that they share
            with what was expected) and, where there are labels, those that were
            preferred; and what every clip adds to the shares.

        Raises:
            ValueError: a model that does not write, no clip could be read.
        """
        if not hasattr(getattr(encoder, "spec", None), "captioner"):
            raise ValueError(
                "answers: the model writes no text; captioners are trained with "
                "task.name=answer"
            )
        z, clips = encode_audio(encoder, self.source)
        writer, prompt = Writer(encoder.tokenizer), self.template.prompts[0]
        asked = writer.prompt(prompt)
        ids = encoder.write(z, asked, writer.length - len(asked))
        written = [writer.read(row) for row in ids]
        expected = [self.expected[clip] for clip in clips]
        right = [per_answer.plain(text) in own for text, own in zip(written, expected)]
        found = class_metrics.shares({"exact": np.array(right)}, "", self.draws)
        misses = per_answer.written_misses(written, expected, clips)
        names = [prompts.class_name(name) for name in self.labels]
        if self.labels:
            values, targets = self._label_scores(encoder, z), self.targets[clips]
            of_labels = class_metrics.measure(
                values, targets, "label", self.multi_label, self.draws
            )
            found = class_metrics.joined(found, of_labels)
            misses += per_answer.class_misses(
                values, targets, clips, names, "log-likelihood"
            )
        return Result(
            metrics={
                **found.metrics,
                "bad_clips": float(len(self.source) - len(clips)),
            },
            arrays=found.arrays,
            labels={"classes": names},
            protocol=self._says(written, clips, ids.shape[1]),
            intervals=found.intervals,
            misses=misses,
            per_clip=found.per_clip,
            clips=clips,
        )

    def _label_scores(self, encoder: Encoder, z: np.ndarray) -> np.ndarray:
        """The log-likelihood of every label's answer, float32 [n, C]."""
        prompt = self.template.prompts[0]
        rows = Writer(encoder.tokenizer)(
            [(prompt, self.template.write([name], [""])[1]) for name in self.labels]
        )
        return encoder.answer_scores(z, rows.ids, rows.answer)

    def _says(
        self, written: Sequence[str], clips: np.ndarray, tokens: int
    ) -> dict[str, Any]:
        """The protocol of a result."""
        examples = [
            {
                "id": self.source.id(clip),
                "expected": min(self.expected[clip]),
                "written": text,
            }
            for clip, text in list(zip(clips, written))[:EXAMPLES]
        ]
        return {
            "kind": "answers",
            "source": self.source.name,
            "task": self.template.name,
            "prompt": self.template.prompts[0],
            "answer": self.template.answer,
            "clips": len(clips),
            "classes": len(self.labels),
            "decoding": f"greedy, at most {tokens} tokens",
            "label_score": "sum of log-likelihoods, with the ending",
            "intervals": bootstrap.describe(self.draws),
            "examples": examples,
        }
