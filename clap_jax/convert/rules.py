"""Weight converters as tables that read in both directions. Numpy only.

A table is a list of `Rule`s and a list of `Ignore`s. `apply` turns a source state dict
into the project's parameter tree, `invert` goes back; both account for every tensor and
report everything that is wrong in one error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one source tensor becomes `parts` target tensors, and back."""

    name: str
    forward: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    inverse: Callable[..., np.ndarray]
    parts: int = 1


def _one(name: str, forward: Any, inverse: Any) -> Transform:
    return Transform(name, lambda x: (forward(x),), inverse)


IDENTITY = _one("identity", lambda x: x, lambda x: x)
LINEAR = _one("linear: [out, in] to [in, out]", np.transpose, np.transpose)
CONV = _one(
    "conv: OIHW to HWIO",
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
)
THIRDS = Transform(
    "thirds: stacked query, key, value biases apart",
    lambda x: tuple(np.split(x, 3, axis=0)),
    lambda *parts: np.concatenate(parts, axis=0),
    parts=3,
)
LINEAR_THIRDS = Transform(
    "linear thirds: stacked query, key, value [3 out, in] to three [in, out]",
    lambda x: tuple(part.T for part in np.split(x, 3, axis=0)),
    lambda *parts: np.concatenate([part.T for part in parts], axis=0),
    parts=3,
)


def conv_patches(channels: int, tall: int, wide: int) -> Transform:
    """A convolution with stride = kernel, OIHW, to a Dense kernel [H * W * I, O]."""
    return _one(
        f"conv patches: O{channels}x{tall}x{wide} to [H * W * I, O]",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(tall, wide, channels, -1).transpose(3, 2, 0, 1),
    )


# One group of a source pattern; groups may not be nested.
_GROUP = re.compile(r"\([^()]*\)")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    source_regex: matches a whole source key. So that the rule can be read backwards it
        may hold only escaped text and groups such as `(\\d+)` or `(norm1|norm2)`.
    target_path: `/`-joined path with `{0}`, `{1}`, ... for the groups; a tuple of paths
        where `transform` has several parts.
    """

    source_regex: str
    target_path: str | tuple[str, ...]
    transform: Transform = IDENTITY

    def __post_init__(self) -> None:
        if len(self.targets) != self.transform.parts:
            raise ValueError(
                f"rule {self.source_regex}: {len(self.targets)} targets for "
                f"{self.transform.parts} parts of {self.transform.name}"
            )
        count = re.compile(self.source_regex).groups
        for target in self.targets:
            if sorted(re.findall(r"{(\d+)}", target)) != [str(i) for i in range(count)]:
                raise ValueError(
                    f"rule {self.source_regex}: {target} must name each of the "
                    f"{count} groups once"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        path = self.target_path
        return (path,) if isinstance(path, str) else tuple(path)

    def forward(self, key: str) -> tuple[str, ...] | None:
        """Target paths of a source key, None where the rule does not match."""
        match = re.fullmatch(self.source_regex, key)
        if match is None:
            return None
        return tuple(target.format(*match.groups()) for target in self.targets)

    def backward(self, path: str) -> tuple[str, tuple[str, ...]] | None:
        """(source key, all target paths) of a first target path, None if no match."""
        groups = [match.group() for match in _GROUP.finditer(self.source_regex)]
        parts = re.split(r"{(\d+)}", self.targets[0])
        pattern = "".join(
            f"(?P<g{part}>{groups[int(part)][1:-1]})" if i % 2 else re.escape(part)
            for i, part in enumerate(parts)
        )
        match = re.fullmatch(pattern, path)
        if match is None:
            return None
        values = [match.group(f"g{i}") for i in range(len(groups))]
        texts = _GROUP.split(self.source_regex)
        key = re.sub(r"\\(.)", r"\1", texts[0])
        for value, text in zip(values, texts[1:], strict=True):
            key += value + re.sub(r"\\(.)", r"\1", text)
        return key, tuple(target.format(*values) for target in self.targets)


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Source keys that are left behind, and why."""

    source_regex: str
    reason: str


class ConversionError(ValueError):
    """Everything that is wrong with a conversion, one line each."""

    def __init__(self, errors: Sequence[str]):
        self.errors = list(errors)
        lines = "\n".join(f"  {error}" for error in errors)
        super().__init__(f"{len(errors)} tensors do not fit:\n{lines}")


def apply(
    rules: Iterable[Rule],
    ignored: Iterable[Ignore],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Convert a state dict.

    source: key -> array. target: path -> anything with `shape` and `dtype`, the leaves
    to fill. Returns path -> array with exactly the paths of `target`, cast to its
    dtypes. Errors: ConversionError that lists every source key that no rule or ignore
    covers, every target that is missing, unknown or filled twice, every wrong shape
    and every array that is not of floats.
    """
    rules, ignored = list(rules), list(ignored)
    filled: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    errors: list[str] = []
    for key, array in source.items():
        matches = ((rule, rule.forward(key)) for rule in rules)
        rule, paths = next((match for match in matches if match[1]), (None, ()))
        if rule is None:
            if not any(re.fullmatch(entry.source_regex, key) for entry in ignored):
                errors.append(f"{key}: no rule for this source tensor")
            continue
        array = np.asarray(array)
        try:
            parts = rule.transform.forward(array)
        except ValueError as error:
            errors.append(f"{key} {array.shape}: {rule.transform.name}: {error}")
            # Their fault is known: do not report them as missing too.
            origin.update(dict.fromkeys(paths, key))
            continue
        for path, part in zip(paths, parts, strict=True):
            problem = _problem(path, part, target, origin)
            if problem:
                errors.append(f"{key} -> {path}: {problem}")
            else:
                filled[path] = np.asarray(part, target[path].dtype, order="C")
            origin.setdefault(path, key)
    missing = (path for path in target if path not in origin)
    errors += [f"{path}: nothing in the source fills it" for path in missing]
    if errors:
        raise ConversionError(errors)
    return {path: filled[path] for path in target}


def _problem(
    path: str, part: np.ndarray, target: Mapping[str, Any], origin: Mapping[str, str]
) -> str | None:
    if path not in target:
        return "the model has no such parameter"
    if path in origin:
        return f"filled already, from {origin[path]}"
    if part.shape != target[path].shape:
        return f"shape {part.shape}, the model has {target[path].shape}"
    # numpy does not know bfloat16 as a kind of float.
    if part.dtype.kind != "f" and part.dtype.name != "bfloat16":
        return f"dtype {part.dtype}, the model has {target[path].dtype}"
    return None


def invert(
    rules: Iterable[Rule], target: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Convert back: path -> array to source key -> array.

    Errors: ConversionError that lists every path that no rule produces, and every
    source tensor of which a part is missing.
    """
    rules = list(rules)
    source: dict[str, np.ndarray] = {}
    used: set[str] = set()
    errors: list[str] = []
    for path in target:
        for rule in rules:
            found = rule.backward(path)
            if found is None:
                continue
            key, paths = found
            absent = [other for other in paths if other not in target]
            if absent:
                errors.append(f"{key}: needs {', '.join(absent)}")
            elif key in source:
                errors.append(f"{path}: {key} is made already")
            else:
                parts = [np.asarray(target[other]) for other in paths]
                source[key] = np.asarray(rule.transform.inverse(*parts), order="C")
            used.update(paths)
            break
    errors += [
        f"{path}: no rule for this parameter" for path in target if path not in used
    ]
    if errors:
        raise ConversionError(errors)
    return source
