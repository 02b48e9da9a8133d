"""Tags of clips by ear: how likely each of a tagger's classes is heard in a clip.

Taggers are classifiers that were trained here (`configs/finetune.py`,
`configs/pretrain_audio.py`), and the towers that PANNs and HTSAT publish, with their
head for the classes of AudioSet.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clap_jax
from clap_jax import config as config_lib
from clap_jax import convert, hub, sharding
from clap_jax.audio import io as audio_io
from clap_jax.audio.mel import FRONTENDS, Frontend
from clap_jax.convert import banks
from clap_jax.convert.starts import TowerStart
from clap_jax.embed import Embedded
from clap_jax.evals.encode import ModelEncoder
from clap_jax.models import dual, zoo
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.models.spec import TowerSpec
from clap_jax.pipeline import tables

LABEL_COLUMNS = ("display_name", "name", "label")
"""Columns of a table of classes, as AudioSet's class_labels_indices.csv; the first counts."""

SECONDS = 10.0
"""Of a clip of AudioSet: what HTSAT hears at a time."""

BATCH_SIZE = 16


class TaggerError(ValueError):
    """A model that gives no tags, or none that have names; says why."""


class Tagger(NamedTuple):
    """What gives tags.

    labels: its classes, in order. digest: short hex, other weights, another digest.
    probabilities: `(audio) -> float32 [n, C]`, of a list of clips as `Clap.embed_audio`
        takes them, each the same alone and among others. Raises AudioError.
    """

    labels: tuple[str, ...]
    digest: str
    probabilities: Callable[[Sequence[Any]], np.ndarray]


def load(path: str, labels_file: str = "", frontend: str = "") -> Tagger:
    """Load a tagger.

    path: a classifier of ours, or a PANNs or HTSAT checkpoint with its head. Of the
        latter: labels_file: names of the classes in the order of the head, a table with
        one of LABEL_COLUMNS, or text with a name a line. frontend: a name in
        `mel.FRONTENDS`, where the file does not tell what it hears.

    PANN hears a clip whole, however long or short, as its authors' code does; HTSAT in
    windows of 10 s, whose probabilities are averaged by the seconds that they cover.

    Raises TaggerError for a model without such a head, or names that do not fit it;
    what `clap_jax.load` raises.
    """
    found = hub.find(path)
    if not found.exists():
        raise TaggerError(f"there is no tagger {path}")
    converted = convert.load(found)
    if isinstance(converted.spec, ClassifierSpec):
        return _classifier(path)
    if not isinstance(converted.spec, TowerStart) or converted.spec.side != "audio":
        raise TaggerError(
            f"{path} holds {converted.spec.name}: a tagger is a classifier, or an audio "
            "tower of PANNs or HTSAT with its head for AudioSet"
        )
    return _tower(path, converted, labels_file, frontend)


def _classifier(path: str) -> Tagger:
    model = clap_jax.load(path)
    heads = list(model.spec.heads)
    labels = [label for head in heads for label in model.labels(head)]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise TaggerError(f"{path} has the class {twice[0]!r} in two of its heads")

    def probabilities(audio: Sequence[Any]) -> np.ndarray:
        """Those of all heads, side by side."""
        rows = list(_vectors(model.stream(audio)))
        scores = np.stack(rows) if rows else np.zeros((0, len(labels)), np.float32)
        parts = [model.head_probabilities(scores, head) for head in heads]
        return np.concatenate(parts, axis=1)

    return Tagger(tuple(labels), model.digest(), probabilities)


def _vectors(embedded: Iterable[Embedded]) -> Iterator[np.ndarray]:
    for found in embedded:
        if found.vector is None:
            raise audio_io.AudioError(found.error)
        yield found.vector


# --- one tower with its head ---


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Of a spec what an encoder asks for."""

    name: str
    frontend: Frontend
    audio: TowerSpec
    head: str = "tags"


class _Model(NamedTuple):
    """A tower as an encoder takes it: its "embedding" are the probabilities."""

    init: Callable[..., dict[str, Any]]
    encode_audio: Callable[..., Any]


def _tower(path: str, converted: Any, labels_file: str, frontend: str) -> Tagger:
    start = converted.spec
    classes = start.options["classes"]
    if not classes:
        raise TaggerError(f"{path} is a tower without a head: it gives no tags")
    if start.options["fusion"] != "none":
        raise TaggerError(f"{path} is a tower with fusion, which is no tagger")
    labels = read_labels(labels_file, classes, path)
    options = dict(start.options)
    if start.kind == "pann":
        options["length_mask"] = "every_layer"
    audio = TowerSpec(start.kind, options)
    spec = _Spec(start.name, _frontend(path, converted, frontend), audio)
    tower = zoo.audio_tower(spec)

    def init(key: jax.Array) -> dict[str, Any]:
        example = zoo.example_sound(spec)
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        own = tower.init(key, example)
        return {name: {"audio": tree} for name, tree in own.items()}

    def encode_audio(variables: Mapping[str, Any], sound: Any, **_: Any) -> Any:
        own = {name: tree["audio"] for name, tree in variables.items()}
        (_, aux), state = tower.apply(own, dual.heard(sound), train=False, key=None)
        return (aux["clipwise"], {"embedding": aux["clipwise"]}), {"audio": state}

    encoder = ModelEncoder(
        spec,
        _Model(init, encode_audio),
        None,
        mesh=sharding.make_mesh(devices=jax.local_devices()[:1]),
        batch_size=BATCH_SIZE,
        output="embedding",
    ).using(converted.variables)

    def probabilities(audio: Sequence[Any]) -> np.ndarray:
        return encoder.clips([encoder.hear(clip) for clip in audio])

    return Tagger(labels, encoder.digest(), probabilities)


def _frontend(path: str, converted: Any, name: str) -> Frontend:
    """What the tower hears, by the filter bank in its file."""
    kind = converted.spec.kind
    if name:
        if name not in FRONTENDS:
            raise TaggerError(config_lib.unknown("front end", name, FRONTENDS))
        base = FRONTENDS[name]
    else:
        bank, window = _stored(converted)
        if bank is None:
            raise TaggerError(
                f"{path} does not tell what it hears (there is no filter bank in it): "
                f"name a front end of {', '.join(FRONTENDS)}"
            )
        base = _published(bank)
        found, _ = banks.frontend_of(base, bank, window)
        if found.bank_rate_hz == FRONTENDS["laion_unfused"].rate_hz:
            # LAION-CLAP's towers, which hear at that rate.
            base = FRONTENDS["laion_unfused"]
            found, _ = banks.frontend_of(base, bank, window)
        base = found
    whole = kind == "pann"
    fill = "pad" if whole else "repeatpad"
    return dataclasses.replace(base, whole_clip=whole, fill=fill)


def _published(bank: np.ndarray) -> Frontend:
    """What PANNs and HTSAT have in common: 32 kHz and a hop of 10 ms; PANNs' towers for
    16 and 8 kHz have smaller transforms, and everything else in proportion."""
    n_fft = 2 * (len(bank) - 1)
    rate_hz = 32_000 * n_fft // 1024
    return dataclasses.replace(
        FRONTENDS["blat"],
        rate_hz=rate_hz,
        clip_seconds=SECONDS,
        n_fft=n_fft,
        window_samples=n_fft,
        hop_samples=320 * n_fft // 1024,
        mels=bank.shape[1],
        fmax_hz=min(14_000.0, rate_hz / 2),
    )


def _stored(converted: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Bank and window among what the tower does not use."""
    for key in converted.extra:
        if key.endswith("logmel_extractor.melW"):
            prefix = key.removesuffix("logmel_extractor.melW")
            return banks.stored(converted.extra, prefix)
    return None, None


@functools.lru_cache(maxsize=8)
def read_labels(path: str, classes: int, model: str = "the tagger") -> tuple[str, ...]:
    """The names of so many classes, in order. Raises TaggerError."""
    if not path:
        raise TaggerError(
            f"{model} does not name its {classes} classes: give a file of them, such as "
            "AudioSet's class_labels_indices.csv"
        )
    if path.endswith((".csv", ".tsv", ".parquet", ".jsonl")):
        columns = tables.read(path).columns
        name = next((name for name in LABEL_COLUMNS if name in columns), "")
        if not name:
            raise TaggerError(
                f"{path} has the columns {', '.join(columns)}, expected one of "
                f"{', '.join(LABEL_COLUMNS)}"
            )
        names = list(map(tables.text, columns[name]))
    else:
        with open(path, encoding="utf-8-sig") as file:
            names = list(filter(None, map(str.strip, file)))
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) != classes or twice:
        found = f"{twice[0]!r} twice" if twice else f"{len(names)} names"
        raise TaggerError(f"{path} has {found}; {model} has {classes} classes")
    return tuple(names)
