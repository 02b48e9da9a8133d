"""The tasks that models of sound and text are examined on, as one table.

A row says what is measured on which split with which prompts, and where each choice comes
from. `clap_jax.evals.suite` makes evaluations of rows. Numbers that papers print are in
`published`, so that a result can be read beside them.

Short names of sources:
    MS22   MS-CLAP 2022, arXiv 2206.04769     MS23  MS-CLAP 2023, arXiv 2309.05767, Table 2
    LAION  LAION-CLAP, arXiv 2211.06687, its evaluation scripts, README and Table 4
    here   not stated in any source that was read: chosen in this table
"""

from clap_jax.evals.msclap_tasks import FOLDS, MSCLAP, WHOLE
from clap_jax.evals.task import Task
from clap_jax.text.prompts import TEMPLATES

NO_CAPTIONER = "needs a captioner, and SPICE, for the papers' SPIDEr"
"""Why a task cannot be done yet, with whatever data."""

_LAION5 = {
    "protocol": "LAION's eval_retrieval_main.py: five captions a clip",
    "metric": "LAION and MS23",
}

RETRIEVAL = (
    Task(
        "audiocaps",
        ("msclap", "laion"),
        "audiocaps",
        "test",
        "retrieval",
        "t2a_R@1",
        {"protocol": "laion5"},
        clips=975,
        covers=("AudioCaps, audio to text", "AudioCaps, text to audio"),
        reasons=_LAION5
        | {"split": "the published test split, as far as its videos are there"},
        published={
            "MS23 t2a_R@1": 0.356,
            "MS23 t2a_mAP@10": 0.51,
            "MS23 a2t_R@1": 0.425,
            "MS23 a2t_mAP@10": 0.319,
            "LAION t2a_R@1": 0.327,
            "LAION a2t_R@1": 0.439,
            "LAION K2C t2a_R@1": 0.361,
            "LAION K2C a2t_R@1": 0.468,
        },
    ),
    Task(
        "clotho",
        ("msclap", "laion"),
        "clotho",
        "evaluation",
        "retrieval",
        "t2a_R@1",
        {"protocol": "laion5", "official": {"clotho_split": "evaluation"}},
        clips=1045,
        covers=("Clotho, audio to text", "Clotho, text to audio"),
        reasons=_LAION5
        | {"split": "evaluation, the test split of papers; LAION's shards: 'valid'"},
        published={
            "MS23 t2a_R@1": 0.157,
            "MS23 t2a_mAP@10": 0.257,
            "MS23 a2t_R@1": 0.229,
            "MS23 a2t_mAP@10": 0.155,
            "LAION t2a_R@1": 0.156,
            "LAION a2t_R@1": 0.237,
            "LAION K2C t2a_R@1": 0.161,
            "LAION K2C a2t_R@1": 0.227,
        },
    ),
    Task(
        "musiccaps",
        ("more",),
        "musiccaps",
        "eval",
        "retrieval",
        "t2a_R@1",
        {"protocol": "one_to_one"},
        clips=2858,
        reasons={"split": "videos of AudioSet's evaluation split", "protocol": "here"},
    ),
    Task(
        "macs",
        ("more",),
        "macs",
        "train",
        "retrieval",
        "t2a_R@1",
        {"protocol": "all_captions"},
        clips=3930,
        reasons={"split": "all of it: MACS has no test split", "protocol": "here"},
    ),
)

CAPTIONING = tuple(
    Task(
        f"{dataset}_captioning",
        ("msclap",),
        dataset,
        split,
        "captioning",
        "SPIDEr",
        reasons={"metric": "MS23"},
        published={"MS23": number},
    )
    for dataset, split, number in (
        ("audiocaps", "test", 0.455),
        ("clotho", "evaluation", 0.271),
    )
)


def _laion(name, dataset, split, published, templates="laion", **fields) -> Task:
    """Zero-shot classification of LAION-CLAP."""
    return Task(
        f"{name}_laion",
        ("laion",),
        dataset,
        split,
        "zeroshot",
        "zeroshot_acc",
        {"templates": templates} | fields.pop("options", {}),
        published=published,
        **fields,
    )


_LAION_REASONS = {
    "prompt": "LAION's eval_zeroshot_classification.py",
    "metric": "LAION: R@1 is the accuracy",
}

LAION = (
    _laion(
        "esc50",
        "esc50",
        "all",
        {"LAION": 0.891, "LAION fusion": 0.88, "LAION K2C": 0.91},
        clips=2000,
        classes=50,
        fold_splits=5,
        reasons=_LAION_REASONS | {"split": "all folds; the README's 0.9275 is fold 1"},
    ),
    _laion(
        "urbansound8k",
        "urbansound8k",
        "all",
        {"LAION": 0.732, "LAION fusion": 0.758, "LAION K2C": 0.77},
        clips=8732,
        classes=10,
        fold_splits=10,
        reasons=_LAION_REASONS | FOLDS,
    ),
    _laion(
        "vggsound",
        "vggsound",
        "test",
        {"LAION": 0.291, "LAION fusion": 0.263, "LAION K2C": 0.462},
        classes=309,
        reasons=_LAION_REASONS
        | {"split": "the published test split, as far as its videos are there"},
    ),
    _laion(
        "gtzan",
        "gtzan/genres",
        "full",
        {"LAION music_audioset": 0.71, "LAION music_speech_audioset": 0.51},
        "laion_readme_music_genre",
        options={"names": {"hiphop": "hip hop"}},
        clips=1000,
        classes=10,
        reasons=_LAION_REASONS
        | WHOLE
        | {"prompt": "LAION's README, of these numbers (the script: a {} song)"},
    ),
)


def _small(name: str, classes: int, fold_splits: int = 0) -> tuple[Task, Task]:
    """Two tasks on a table of labelled sounds, {data_dir}/NAME/metadata.csv."""
    table = {
        "kind": "manifest",
        "path": f"{{data_dir}}/{name}/metadata.csv",
        "label_column": "label_text",
        "caption_columns": ("caption",),
        "group_by": "label",
    }
    plain = {"templates": TEMPLATES["plain"]}
    chosen = {"prompt": "here: the five of configs/manifest.py, averaged"}
    return (
        Task(
            name,
            ("small",),
            name,
            "",
            "zeroshot",
            "zeroshot_acc",
            plain,
            classes=classes,
            fold_splits=fold_splits,
            source=table,
            reasons=chosen,
        ),
        Task(
            f"{name}_retrieval",
            ("small",),
            name,
            "",
            "retrieval",
            "t2a_mAP@16",
            {"protocol": "multi_positive"},
            fold_splits=fold_splits,
            source=table,
            reasons={"protocol": "here: a label's caption fits all clips of it"},
        ),
    )


SMALL = (
    *_small("esc10", classes=10, fold_splits=4),
    *_small("fsdk_instruments", classes=8),
    *_small("fsdd", classes=10),
)

TASKS = {task.name: task for task in (*MSCLAP, *RETRIEVAL, *CAPTIONING, *LAION, *SMALL)}
"""All tasks by name."""

SUITES = {
    "msclap": "the 26 tasks of MS-CLAP 2023",
    "msclap2022": "the 16 tasks of MS-CLAP 2022",
    "laion": "retrieval and zero-shot classification of LAION-CLAP",
    "more": "further sets with captions",
    "small": "tables of labelled sounds: ESC-10, instruments, spoken digits",
}
"""Suites by name, and what they are."""
