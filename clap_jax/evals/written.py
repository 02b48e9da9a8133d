"""How well a captioner answers what a task asks of clips that it has not heard."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clap_jax.evals.base import Encoder, Result, encode_audio
from clap_jax.evals.classify import measured
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
    """

    def __init__(
        self, source: "Source", task: str = "", labels: Sequence[str] | None = None
    ):
        """Reads all tags and captions, so that a bad source fails before any training.

        Args:
            source: the clips.
            task: a name of `text/assets/tasks.json`.
            labels: the classes in order; by default those that occur, sorted.

        Raises:
            ValueError: empty source, unknown task, one whose prompt differs from clip to
                clip, a clip that has not what the task needs, or a tag outside labels.
        """
        self.source, self.template = source, find_task(task)
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
                _plain(self.template.write(source.tags(clip), [caption])[1])
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
        right = [_plain(text) in own for text, own in zip(written, expected)]
        metrics, arrays = {"exact": sum(right) / len(right)}, {}
        if self.labels:
            rows = writer(
                [(prompt, self.template.write([name], [""])[1]) for name in self.labels]
            )
            found = encoder.answer_scores(z, rows.ids, rows.answer)
            own, arrays = measured(found, self.targets[clips], self.multi_label)
            metrics |= {f"label_{name}": value for name, value in own.items()}
        examples = [
            {
                "id": self.source.id(clip),
                "expected": sorted(own)[0],
                "written": text,
            }
            for clip, own, text in list(zip(clips, expected, written))[:EXAMPLES]
        ]
        return Result(
            metrics={**metrics, "bad_clips": float(len(self.source) - len(clips))},
            arrays=arrays,
            labels={"classes": [prompts.class_name(name) for name in self.labels]},
            protocol={
                "kind": "answers",
                "source": self.source.name,
                "task": self.template.name,
                "prompt": prompt,
                "answer": self.template.answer,
                "clips": len(clips),
                "classes": len(self.labels),
                "decoding": f"greedy, at most {ids.shape[1]} tokens",
                "label_score": "sum of log-likelihoods, with the ending",
                "examples": examples,
            },
        )


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())
