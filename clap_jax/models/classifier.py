"""Classifiers: an audio tower with heads that name classes, as data and as functions.

What LAION-CLAP calls linear probe and finetune (`evaluate/eval_linear_probe.py`,
`clap_module/linear_probe.py`): a head on what the projection gives, before L2; the text
tower is left out.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clap_jax import config as config_lib
from clap_jax.audio.mel import Frontend
from clap_jax.models import dual, heads, zoo
from clap_jax.models.spec import (
    AUDIO_TOWERS,
    Spec,
    TowerSpec,
    check_front_ends,
    from_dict,
)
from clap_jax.models.tower import Tower

# What the heads hear: the projection before L2 (LAION), after it, or the tower alone.
FEATURES = ("projection", "normalised", "embedding")
# "ce": every clip is of one class (softmax); "bce": of any number (sigmoids).
LOSSES = ("ce", "bce")


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """One head: its classes, in the order of its scores, and what they compete by.

    loss: a name in `LOSSES`. Errors: ValueError on fewer than two classes that compete
    (one that does not), on labels that repeat or are no text, and on an unknown loss.
    """

    labels: tuple[str, ...]
    loss: str = "ce"

    def __post_init__(self) -> None:
        labels = self.labels
        if self.loss not in LOSSES:
            raise ValueError(config_lib.unknown("loss of a head", self.loss, LOSSES))
        if not all(isinstance(label, str) and label for label in labels):
            raise ValueError(f"labels must be texts, got {labels!r:.200}")
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"labels repeat: {', '.join(twice)}")
        least = 2 if self.loss == "ce" else 1
        if len(labels) < least:
            raise ValueError(
                f"a head with loss {self.loss!r} needs {least} or more classes, got "
                f"{', '.join(labels) or 'none'}"
            )


@dataclasses.dataclass(frozen=True)
class ClassifierSpec:
    """Everything that defines a classifier but its weights; JSON both ways.

    frontend, audio, head, embed_dim: those of a `spec.Spec`. heads: name -> `HeadSpec`,
    kept in the order of their names. features: a name in `FEATURES`. hidden: widths of
    the layers of each head before its last; () is a linear head, (1024,) LAION's
    `lp-mlp`. dropout: behind each of these. classifier: the key that tells this JSON
    from a `spec.Spec`. Errors: ValueError on unknown names and impossible sizes.
    """

    name: str
    frontend: Frontend
    audio: TowerSpec
    head: str
    embed_dim: int
    heads: dict[str, HeadSpec]
    features: str = "projection"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.1
    classifier: str = "heads"

    def __post_init__(self) -> None:
        for role, name, known in (
            ("classifier", self.classifier, ("heads",)),
            ("audio tower", self.audio.kind, AUDIO_TOWERS),
            ("head", self.head, heads.HEADS),
            ("features of a classifier", self.features, FEATURES),
        ):
            if name not in known:
                raise ValueError(config_lib.unknown(role, name, known))
        check_front_ends(self)
        for size in (self.embed_dim, *self.hidden):
            if type(size) is not int or size < 1:
                raise ValueError(f"a width must be a positive integer, got {size!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}, expected 0 to less than 1")
        if not self.heads:
            raise ValueError("a classifier needs at least one head")
        for name in self.heads:
            # It becomes a part of paths of parameters and of names of metrics.
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ValueError(f"{name!r} is no name for a head: expected a word")
        object.__setattr__(self, "heads", dict(sorted(self.heads.items())))

    @property
    def columns(self) -> dict[str, slice]:
        """Which columns of the scores [B, C] are of which head."""
        found, start = {}, 0
        for name, head in self.heads.items():
            found[name] = slice(start, start + len(head.labels))
            start = found[name].stop
        return found

    @property
    def classes(self) -> int:
        """C, the classes of all heads together."""
        return sum(len(head.labels) for head in self.heads.values())

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ClassifierSpec":
        """The inverse of `to_json`. Errors: ValueError on unknown or missing keys."""
        tree = json.loads(text)
        given = tree.get("heads")
        if isinstance(given, Mapping):
            tree["heads"] = {name: _head(name, own) for name, own in given.items()}
        if "hidden" in tree:
            tree["hidden"] = tuple(tree["hidden"])
        parts = {"frontend": Frontend, "audio": TowerSpec}
        return from_dict(tree, cls, parts)


def _head(name: str, tree: Mapping[str, Any]) -> HeadSpec:
    fields = [field.name for field in dataclasses.fields(HeadSpec)]
    problems = config_lib.unknown_keys(tree, fields, f"the head {name!r}")
    if problems or "labels" not in tree:
        raise ValueError("; ".join(problems) or f"the head {name!r} needs labels")
    return HeadSpec(**{**tree, "labels": tuple(tree["labels"])})


class Classifier(NamedTuple):
    """A classifier as pure functions.

    init: `init(key) -> variables`, `{"params": {"audio", "audio_projection", "heads":
        {name: ...}}, "state": {"audio"}}`; no projection with features "embedding". The
        tower starts with the bits that it has in a `Dual` of the same key.
    features: `(variables, audio, *, train=False, key=None) -> ((x, aux), new_state)`;
        `audio` as `Dual.encode_audio` takes it, x float32 [B, D].
    scores: `(params, x, *, train=False, key=None) -> float32 [B, C]`, the heads' scores
        side by side (`ClassifierSpec.columns`).
    encode_audio: `(variables, audio, *, train=False, key=None) -> ((scores [B, C],
        aux), new_state)`: the two in one.
    constrain: `(params) -> params`, as in a `Dual`; changes nothing.

    aux is that of a `Dual`. Errors: ValueError when `train` is true and `key` is None.
    """

    init: Callable[..., dict[str, Any]]
    features: Callable[..., Any]
    scores: Callable[..., jax.Array]
    encode_audio: Callable[..., Any]
    constrain: Callable[..., dict[str, Any]]


def of(
    spec: Spec | ClassifierSpec,
    made: Mapping[str, HeadSpec],
    *,
    features: str = "projection",
    hidden: tuple[int, ...] = (),
    dropout: float = 0.1,
) -> ClassifierSpec:
    """The spec of a classifier with the audio side of `spec` and these heads."""
    return ClassifierSpec(
        name=spec.name,
        frontend=spec.frontend,
        audio=spec.audio,
        head=spec.head,
        embed_dim=spec.embed_dim,
        heads=dict(made),
        features=features,
        hidden=hidden,
        dropout=dropout,
    )


def build(
    spec: ClassifierSpec,
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Classifier:
    """The functions of a spec. Nothing is computed until they are called.

    Arguments and errors are those of `zoo.build`; heads are float32 always.
    """
    audio = zoo.audio_tower(
        spec,
        dtype=dtype,
        remat=remat,
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    projected = spec.features != "embedding"
    projection = heads.tower(spec.head, spec.embed_dim) if projected else _IDENTITY
    towers = {
        name: heads.classes(len(head.labels), spec.hidden, spec.dropout)
        for name, head in spec.heads.items()
    }
    encode = dual.encoder("audio", audio, projection)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        example = zoo.example_sound(spec)
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        keys = jax.random.split(jax.random.fold_in(key, 0))
        heard = audio.init(keys[0], example)
        (embedding, _), _ = jax.eval_shape(
            lambda v, e: audio.apply(v, e, train=False), heard, example
        )
        params, x = {"audio": heard["params"]}, jnp.zeros(embedding.shape)
        if projected:
            params["audio_projection"] = projection.init(keys[1], x)["params"]
            x = jnp.zeros((1, spec.embed_dim))
        head_key = jax.random.fold_in(key, 2)
        params["heads"] = {
            name: tower.init(jax.random.fold_in(head_key, i), x)["params"]
            for i, (name, tower) in enumerate(towers.items())
        }
        return {"params": params, "state": {"audio": heard["state"]}}

    def features(
        variables: Mapping[str, Any],
        sound: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        params = {"audio_projection": {}} | variables["params"]
        variables = {"params": params, "state": variables["state"]}
        (unit, aux), state = encode(variables, dual.heard(sound), train, key)
        x = unit if spec.features == "normalised" else aux["projection"]
        return (x.astype(jnp.float32), aux), state

    def scores(
        params: Mapping[str, Any],
        x: Float[Array, "B D"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Float[Array, "B C"]:
        parts = []
        for i, (name, tower) in enumerate(towers.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            variables = {"params": params["heads"][name], "state": {}}
            (part, _), _ = tower.apply(variables, x, train=train, key=own)
            parts.append(part)
        return jnp.concatenate(parts, axis=1)

    def encode_audio(
        variables: Mapping[str, Any],
        sound: Any,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        keys = (None, None) if key is None else jax.random.split(key)
        (x, aux), state = features(variables, sound, train=train, key=keys[0])
        found = scores(variables["params"], x, train=train, key=keys[1])
        return (found, aux), state

    return Classifier(init, features, scores, encode_audio, lambda params: params)


# In the place of a projection where there is none.
_IDENTITY = Tower(
    init=lambda key, example: {"params": {}, "state": {}},
    apply=lambda variables, x, **_: ((x, {}), {}),
)
