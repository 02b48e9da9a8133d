"""Zero-shot classification of MS-CLAP 2022 and 2023; `tasks` says what sources mean."""

from clap_jax.evals.task import Task

BOTH = ("msclap", "msclap2022")


def _classes(name, dataset, split, prompt, published, **fields) -> tuple[Task, ...]:
    """Zero-shot classification of MS-CLAP's suites.

    The papers differ in the prompt of most tasks (4 points on ESC-50, says the first):
    such a task of both suites is a row for each, the one of 2022 called so.
    """
    suites = fields.pop("suites", BOTH)
    if prompt == "msclap" and suites == BOTH:
        numbers = {"msclap": "MS23", "msclap2022": "MS22"}
        return tuple(
            _row(
                name if suite == "msclap" else f"{name}_2022",
                dataset,
                split,
                suite,
                {paper: published[paper]},
                (suite,),
                **fields,
            )
            for suite, paper in numbers.items()
        )
    return (_row(name, dataset, split, prompt, published, suites, **fields),)


def _row(name, dataset, split, prompt, published, suites, **fields) -> Task:
    metric = fields.pop("metric", "zeroshot_acc")
    options = {"templates": prompt} | fields.pop("options", {})
    source = "MS22" if suites == ("msclap2022",) else "MS23"
    reasons = {"metric": source, "prompt": _PROMPTS[prompt]}
    return Task(
        name,
        suites,
        dataset,
        split,
        "zeroshot",
        metric,
        options,
        reasons=reasons | fields.pop("reasons", {}),
        published=published,
        **fields,
    )


# Where a prompt comes from.
_PROMPTS = {
    "msclap": "MS-CLAP's esc50_evaluation.py of 2023; for other tasks: here",
    "msclap2022": "MS22",
    "msclap2022_emotion": "MS22",
    "msclap2022_keyword": "MS22",
    "msclap2022_speakers": "MS22",
    "a musical note of MIDI pitch {}": "here",
    "a musical note played with MIDI velocity {}": "here",
    "a musical note that sounds {}": "here",
}
_TEST = {"split": "the published test split"}
WHOLE = {"split": "all clips: the authors publish no split (here)"}
FOLDS = {"split": "all folds (microsoft/CLAP, issue 31)"}

_FAMILIES = "bass brass flute guitar keyboard mallet organ reed string synth_lead vocal"
_QUALITIES = (
    "bright dark distortion fast_decay long_release multiphonic nonlinear_env percussive "
    "reverb tempo-synced"
)

MSCLAP = (
    *_classes(
        "esc50",
        "esc50",
        "all",
        "msclap",
        {"MS22": 0.826, "MS23": 0.939},
        clips=2000,
        classes=50,
        fold_splits=5,
        reasons=FOLDS,
    ),
    *_classes(
        "fsd50k",
        "fsd50k",
        "test",
        "msclap",
        {"MS22": 0.3024, "MS23": 0.485},
        metric="zeroshot_mAP",
        options={"metric": "mAP"},
        clips=10231,
        classes=200,
        reasons=_TEST,
    ),
    *_classes(
        "urbansound8k",
        "urbansound8k",
        "all",
        "msclap",
        {"MS22": 0.7324, "MS23": 0.823},
        clips=8732,
        classes=10,
        fold_splits=10,
        reasons=FOLDS,
    ),
    *_classes(
        "dcase2017_task4",
        "dcase2017_task4",
        "evaluation",
        "msclap",
        {"MS22": 0.3, "MS23": 0.466},
        metric="zeroshot_F1_micro",
        options={"metric": "f1", "decision": "best"},
        clips=1103,
        classes=17,
        reasons=_TEST
        | {"decision": "here: the papers print F1 and not which classes they predict"},
    ),
    *_classes(
        "audioset",
        "audioset",
        "eval",
        "msclap",
        {"MS22": 0.058, "MS23": 0.102},
        metric="zeroshot_mAP",
        options={"metric": "mAP"},
        clips=20371,
        classes=527,
        reasons={"split": "the evaluation split, as far as its videos are there"},
    ),
    *_classes(
        "vocalsound",
        "vocalsound",
        "test",
        "msclap",
        {"MS22": 0.4945, "MS23": 0.8},
        clips=3594,
        classes=6,
        reasons=_TEST,
    ),
    *_classes(
        "sesa",
        "sesa",
        "test",
        "msclap",
        {"MS23": 0.65},
        suites=("msclap",),
        clips=105,
        classes=4,
        reasons=_TEST,
    ),
    *_classes(
        "esc50_actions",
        "esc50_actions",
        "all",
        "msclap",
        {"MS23": 0.509},
        suites=("msclap",),
        metric="zeroshot_mAP",
        options={"metric": "mAP"},
        clips=2000,
        classes=20,
        fold_splits=5,
        reasons=FOLDS
        | {"labels": "ratings of 2 or more (here): the authors publish ratings alone"},
    ),
    *_classes(
        "tut2017",
        "tut2017",
        "evaluation",
        "msclap",
        {"MS22": 0.2963, "MS23": 0.538},
        clips=1620,
        classes=15,
        reasons=_TEST,
    ),
    *_classes(
        "gtzan_music_speech",
        "gtzan_music_speech",
        "full",
        "msclap",
        {"MS22": 1.0, "MS23": 0.992},
        clips=128,
        classes=2,
        reasons=WHOLE,
    ),
    *_classes(
        "gtzan",
        "gtzan/genres",
        "full",
        "msclap",
        {"MS22": 0.252, "MS23": 0.584},
        options={"names": {"hiphop": "hip hop"}},
        clips=1000,
        classes=10,
        reasons=WHOLE,
    ),
    *_classes(
        "nsynth_pitch",
        "nsynth/pitch",
        "test",
        "a musical note of MIDI pitch {}",
        {"MS23": 0.444},
        suites=("msclap",),
        clips=4096,
        reasons=_TEST | {"classes": "here: the pitches that occur in the split"},
    ),
    *_classes(
        "nsynth_velocity",
        "nsynth/velocity",
        "test",
        "a musical note played with MIDI velocity {}",
        {"MS23": 0.222},
        suites=("msclap",),
        clips=4096,
        classes=5,
        reasons=_TEST,
    ),
    *_classes(
        "nsynth_qualities",
        "nsynth/qualities",
        "test",
        "a musical note that sounds {}",
        {"MS23": 0.489},
        suites=("msclap",),
        metric="zeroshot_mAP",
        options={
            "metric": "mAP",
            "labels": tuple(_QUALITIES.split()),
            "untagged": True,
        },
        clips=4096,
        classes=10,
        reasons=_TEST | {"clips without a quality": "here: negatives of all"},
    ),
    *_classes(
        "beijing_opera",
        "beijing_opera",
        "full",
        "msclap",
        {"MS22": 0.4746, "MS23": 0.466},
        clips=236,
        classes=4,
        reasons=WHOLE,
    ),
    *_classes(
        "nsynth_instrument",
        "nsynth/instrument",
        "test",
        "msclap",
        {"MS23": 0.479},
        suites=("msclap",),
        options={"labels": tuple(_FAMILIES.split())},
        clips=4096,
        classes=11,
        reasons=_TEST | {"classes": "all eleven families, of which test lacks one"},
    ),
    *_classes(
        "crema_d",
        "crema_d",
        "full",
        "msclap2022_emotion",
        {"MS22": 0.1784, "MS23": 0.3},
        clips=7442,
        classes=6,
        reasons=WHOLE,
    ),
    *_classes(
        "ravdess",
        "ravdess",
        "full",
        "msclap2022_emotion",
        {"MS22": 0.1599, "MS23": 0.315},
        clips=1440,
        classes=8,
        reasons=WHOLE,
    ),
    *_classes(
        "speech_commands",
        "speech_commands/commands",
        "test",
        "msclap2022_keyword",
        {"MS22": 0.1063, "MS23": 0.164},
        clips=4890,
        classes=12,
        reasons=_TEST
        | {"classes": "here: ten words, unknown and silence (chance 0.083), not 35"},
    ),
    *_classes(
        "libricount",
        "libricount",
        "full",
        "msclap2022_speakers",
        {"MS22": 0.1788, "MS23": 0.246},
        clips=5720,
        classes=11,
        reasons=WHOLE,
    ),
    *_classes(
        "mridangam_stroke",
        "mridangam/stroke",
        "full",
        "msclap2022",
        {"MS22": 0.3447},
        suites=("msclap2022",),
        clips=6977,
        classes=10,
        reasons=WHOLE,
    ),
    *_classes(
        "mridangam_tonic",
        "mridangam/tonic",
        "full",
        "msclap2022",
        {"MS22": 0.1965},
        suites=("msclap2022",),
        clips=6977,
        classes=6,
        reasons=WHOLE,
    ),
)
