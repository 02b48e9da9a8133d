"""Variables as trees: the shapes that a model expects, filled from a source."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from clap_jax import sharding
from clap_jax.convert import rules
from clap_jax.convert.rules import Extra, Rule
from clap_jax.models import captioner, classifier, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec


def shapes(spec: zoo.Spec | CaptionerSpec | ClassifierSpec) -> dict[str, Any]:
    """The tree of shapes and dtypes of a model's variables; nothing is computed."""
    return _shapes(type(spec), spec.to_json())


_BUILD = {CaptionerSpec: captioner.build, ClassifierSpec: classifier.build}


# A spec is no key of a dict, its JSON is. Tracing a model takes a second.
@functools.lru_cache(maxsize=32)
def _shapes(kind: type, text: str) -> dict[str, Any]:
    build = _BUILD.get(kind, zoo.build)
    return jax.eval_shape(build(kind.from_json(text)).init, jax.random.key(0))


def fill(
    table: Iterable[Rule],
    extras: Iterable[Extra],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A tree like `target` from a state dict, and the extras. Errors: `rules.apply`."""
    filled, extra = rules.apply(table, extras, source, sharding.flatten(target))
    return with_empty(target, sharding.unflatten(filled)), extra


def with_empty(shapes: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the empty dicts of `shapes` (a tower without state) put back."""
    return {
        name: with_empty(value, tree.get(name, {}))
        if isinstance(value, Mapping)
        else tree[name]
        for name, value in shapes.items()
    }
