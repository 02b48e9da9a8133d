"""Probes on embeddings over time: boundaries of sections, and labels of whole clips.

    clap-jax embed --segments --model=CKPT --out=features music.csv
    python -m clap_jax.main --mode=eval --workdir=runs/boundaries \
        --config=configs/probe_time.py:features,table=sections.csv
    python -m data.caption.measured music.csv --out=measured.csv
    python -m clap_jax.main --mode=eval --workdir=runs/tempo_key \
        --config=configs/probe_time.py:features,of=clips,table=measured.csv,label=tempo+mode

The first argument is a folder of features, of whatever towers, and no model is needed;
or, with `init=CKPT`, sounds for a model that hears segments (configs/collap_roberta.py).

of=boundaries: whether a section ends between two neighbouring segments
(clap_jax/evals/junctions.py). table: CSV, JSON lines or Parquet with id, begin, end (in
seconds) and label, or with id and sections as JSON. Without one, sections are those that
captions name with times, or that the source knows (kind pieces).
of=clips: genre, tempo class, key: the mean and the deviation of a clip's segments, joined.
table: id and one column for each label=; without one the labels that the clips came with.
Clips that the table does not have are left out. test=: features to test on; without
it, `folds` parts by chance. recipe: as of configs/probe.py.

Seen, with the quickstart's model (segments of 2.56 s), on 60 procedural pieces of 60 to 90 s in
4 to 8 sections, whose captions say when; percent, five folds:

    clap-jax embed --segments --hop=0.64 --model=runs/quickstart --out=features \
        '{"kind": "pieces", "examples": 60, "seconds": [60, 90], "style": "timing"}'

| | AP | F1 | hits 0.5 s F | hits 3 s F |
|---|---|---|---|---|
| hop 0.64 s | 69.8 | 77.0 | 94.1 | 96.5 |
| as many junctions by chance | | 5.0 | 7.0 | 33.8 |
| every junction | 4.7 | 9.0 | 9.1 | 9.1 |
| hop 2.56 s | 92.6 | 83.6 | 35.8 | 85.6 |
| as many junctions by chance | | 18.9 | 6.7 | 35.6 |
| every junction | 18.1 | 30.6 | 12.1 | 30.7 |
| the right junctions | 100 | 100 | 38.3 | 100 |

The names of the pieces' textures (of=clips): mAP 92.5, of any order 25.7. Sonic Pi's 190 samples
(CC0, 0.02 to 11 s): their kind 56.3 % accuracy, the commonest 13.7 %; tempo class of the 27 and
mode of the 9 that are long and clear enough to be measured: 40.7 and 22.2 %, the commonest 51.9 and
55.6 %, so nothing was learnt from so few.
"""

from clap_jax import config as config_lib
from clap_jax.pipeline import sources, splits

OF = ("boundaries", "clips")

SMOKE = {
    "kind": "pieces",
    "split": "test",
    "examples": 4,
    "seconds": (24, 26),
    "sections": 4,
}


def get_config(argument=None):
    """`:FEATURES[,of=boundaries|clips][,table=TABLE][,label=COLUMN+...][,separator=TEXT]
    [,test=FEATURES][,recipe=NAME][,folds=N][,init=CKPT][,smoke]`."""
    options = config_lib.parse_argument(
        argument,
        path="",
        of="boundaries",
        table="",
        label="label",
        separator="",
        test="",
        recipe="linear",
        folds=5,
        init="",
        smoke=False,
    )
    if options.of not in OF:
        raise config_lib.ConfigError(config_lib.unknown("of", options.of, OF))
    asks = options.label != "label" or options.separator
    if asks and (options.of == "boundaries" or not options.table):
        raise config_lib.ConfigError(
            "label and separator are of a table of labels: give of=clips and table=TABLE"
        )
    config = config_lib.default()
    config.train.total_steps = 1  # of the smoke run; nothing else trains
    if options.smoke:
        return smoke(config)
    if not options.path:
        raise config_lib.ConfigError(
            "configs/probe_time.py needs features, which clap-jax embed --segments "
            "writes: --config=configs/probe_time.py:FEATURES"
        )
    config.model = "init_from" if options.init else "none"
    config.init_from = options.init
    if options.of == "boundaries":
        annotations = {"table": options.table} if options.table else {}
        config.evals.boundaries = evaluation("boundaries", options, annotations)
        return config
    for label in options.label.split("+") if options.table else ("labels",):
        annotations = {
            "table": options.table,
            "label": label,
            "separator": splits.separator(options.separator),
        }
        found = evaluation("probe", options, annotations if options.table else {})
        name = label.replace(".", "_")  # dots are no part of a config's names
        config.evals[name] = found | {"features": "segments"}
    return config


def evaluation(kind, options, annotations):
    """An entry of `evals`."""
    source = sources.section(options.path)
    if not options.init:
        source["kind"] = "features"
    if annotations:
        source["annotations"] = annotations
    found = {"kind": kind, "source": source, "recipe": options.recipe}
    if not options.test:
        return found | {"folds": options.folds}
    parts = {"train": {}, "test": {"path": options.test}}
    return found | {"parts": parts, "test": ("test",)}


def smoke(config):
    """A model that hears segments of 4 s, after one step, and pieces of 24 s."""
    config.model = "small_conv"
    config.model_overrides = {
        "frontend": {"clip_seconds": 4.0},
        "audio": {"options": {"widths": (8, 8)}},
        "text": {"options": {"depth": 1}},
        "temporal": {"hop_seconds": 4.0, "longest_seconds": 26.0},
    }
    config.train.batch_size = 8
    config.train.log_steps = 1
    config.data.audio_buckets = ()
    train = {"kind": "synthetic", "split": "train", "examples": 16}
    config.data.sources = (train,)
    probed = {"source": SMOKE, "folds": 2, "batch_size": 8}
    probed["options"] = {"strengths": (0.1,)}
    config.evals.boundaries = probed | {"kind": "boundaries"}
    config.evals.labels = probed | {"kind": "probe", "features": "segments"}
    return config
