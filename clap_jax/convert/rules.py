"""Weight converters as tables that read in both directions. Numpy only.

A table is a list of `Rule`s and a list of `Extra`s. `apply` turns a source state dict
into the project's parameter tree and sets aside what the model does not use, `invert`
goes back; both account for every tensor and report everything that is wrong in one
error. No data is copied that need not be: what `apply` gives are views of the source
wherever dtype and layout allow it.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
CONV1D = _one(
    "conv: OIW to WIO",
    lambda x: x.transpose(2, 1, 0),
    lambda x: x.transpose(2, 1, 0),
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

    def source_of(self, path: str) -> str | None:
        """The source key that fills a target path, any of several; None if no match."""
        for target in self.targets:
            key = self._source_of(target, path)
            if key is not None:
                return key
        return None

    def backward(self, path: str) -> tuple[str, tuple[str, ...]] | None:
        """(source key, all target paths) of a first target path, None if no match."""
        key = self._source_of(self.targets[0], path)
        paths = None if key is None else self.forward(key)
        return None if paths is None else (key, paths)

    def _source_of(self, target: str, path: str) -> str | None:
        groups = [match.group() for match in _GROUP.finditer(self.source_regex)]
        parts = re.split(r"{(\d+)}", target)
        pattern = "".join(
            f"(?P<g{part}>{groups[int(part)][1:-1]})" if i % 2 else re.escape(part)
            for i, part in enumerate(parts)
        )
        match = re.fullmatch(pattern, path)
        if match is None:
            return None
        texts = _GROUP.split(self.source_regex)
        key = re.sub(r"\\(.)", r"\1", texts[0])
        for i, text in enumerate(texts[1:]):
            key += match.group(f"g{i}") + re.sub(r"\\(.)", r"\1", text)
        return key


@dataclasses.dataclass(frozen=True)
class Extra:
    """Source keys that the model does not use, kept as they are for the way back.

    same_as: the source key that these are other names of (tied weights). Equal copies
    are not kept but made again; where they differ, the model uses `same_as` alone.
    """

    source_regex: str
    reason: str
    same_as: str = ""

    @property
    def names(self) -> list[str]:
        """Every key of a regex that is escaped text and groups such as (a|b)."""
        texts = [re.sub(r"\\(.)", r"\1", x) for x in _GROUP.split(self.source_regex)]
        groups = [
            x.group()[1:-1].split("|") for x in _GROUP.finditer(self.source_regex)
        ]
        return [
            texts[0] + "".join(map("".join, zip(choice, texts[1:], strict=True)))
            for choice in itertools.product(*groups)
        ]


class ConversionError(ValueError):
    """Everything that is wrong with a conversion, one line each."""

    def __init__(self, errors: Sequence[str], what: str = "tensors do not fit"):
        self.errors = list(errors)
        lines = "\n".join(f"  {error}" for error in errors)
        super().__init__(f"{len(errors)} {what}:\n{lines}")


def apply(
    rules: Iterable[Rule],
    extras: Iterable[Extra],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Convert a state dict.

    source: key -> array. target: path -> anything with `shape` and `dtype`, the leaves
    to fill. Returns path -> array with exactly the paths of `target`, of its dtypes
    (views of the source where it has that dtype), and key -> array of the extras, as
    they are. Errors: ConversionError that lists every source key that no rule or extra
    covers, every target that is missing, unknown or filled twice, every wrong shape
    and every array that is not of floats.
    """
    rules, extras = list(rules), list(extras)
    filled: dict[str, np.ndarray] = {}
    extra: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    errors: list[str] = []
    for key, array in source.items():
        matches = ((rule, rule.forward(key)) for rule in rules)
        rule, paths = next((match for match in matches if match[1]), (None, ()))
        if rule is None:
            found = (entry for entry in extras if re.fullmatch(entry.source_regex, key))
            entry = next(found, None)
            if entry is None:
                errors.append(f"{key}: no rule for this source tensor")
            elif not same(array, source.get(entry.same_as)):
                extra[key] = array
            continue
        array = np.asarray(array)
        problem = _problem(rule.transform, paths, array, target, origin)
        if problem:
            errors.append(f"{key}: {problem}")
        else:
            parts = zip(paths, rule.transform.forward(array), strict=True)
            filled |= {path: np.asarray(x, target[path].dtype) for path, x in parts}
        # A tensor that is wrong is not reported as missing, too.
        origin = dict.fromkeys(paths, key) | origin
    errors += _missing(rules, [path for path in target if path not in origin])
    if errors:
        raise ConversionError(errors)
    return {path: filled[path] for path in target}, extra


def _missing(rules: Sequence[Rule], paths: Sequence[str]) -> list[str]:
    """A sentence for each source tensor that should have filled some of `paths`."""
    wanted: dict[str, list[str]] = {}
    unruled = []
    for path in paths:
        keys = (rule.source_of(path) for rule in rules)
        key = next((key for key in keys if key), None)
        if key is None:
            unruled.append(f"{path}: no rule fills this parameter")
        else:
            wanted.setdefault(key, []).append(path)
    missing = [f"{key}: missing; it fills {', '.join(p)}" for key, p in wanted.items()]
    return missing + unruled


def _problem(
    transform: Transform,
    paths: tuple[str, ...],
    array: np.ndarray,
    target: Mapping[str, Any],
    origin: Mapping[str, str],
) -> str | None:
    unknown = [path for path in paths if path not in target]
    if unknown:
        return f"the model has no parameter {', '.join(unknown)}"
    again = next((path for path in paths if path in origin), None)
    if again:
        return f"{again} is filled already, from {origin[again]}"
    zero = np.zeros((), np.float32)
    parts = [np.broadcast_to(zero, target[path].shape) for path in paths]
    expected = transform.inverse(*parts).shape
    if array.shape != expected:
        return f"shape {array.shape}, expected {expected}"
    if not is_float(array.dtype):
        return f"dtype {array.dtype}, expected {target[paths[0]].dtype}"
    return None


def same(a: np.ndarray, b: np.ndarray | None) -> bool:
    """Whether two arrays are of one dtype and equal in every bit that counts."""
    if b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    return bool(np.array_equal(a, b))


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a float of 16 bits or more."""
    # numpy does not know bfloat16 as a kind of float.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def back_cast(key: str, array: np.ndarray, dtype: str | np.dtype) -> np.ndarray:
    """`array` in `dtype`. Errors: ValueError where a value is not exact in it."""
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    # Out-of-range values become infinite, which the comparison finds.
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    same = cast.astype(array.dtype) == array
    if not np.all(same | np.isnan(array)):
        raise ValueError(
            f"{key}: {np.size(same) - np.count_nonzero(same)} of {np.size(same)} "
            f"values are not exact in {dtype}"
        )
    return cast


class Step(NamedTuple):
    """How one source tensor is made from target tensors."""

    transform: Transform
    paths: tuple[str, ...]

    def make(self, target: Mapping[str, np.ndarray]) -> np.ndarray:
        """The source tensor, contiguous."""
        parts = [np.asarray(target[path]) for path in self.paths]
        return np.asarray(self.transform.inverse(*parts), order="C")


def steps_back(rules: Iterable[Rule], paths: Iterable[str]) -> dict[str, Step]:
    """Source key -> how to make it, with nothing made yet.

    Errors: ConversionError that lists every path that no rule produces, and every
    source tensor of which a part is missing.
    """
    rules, paths = list(rules), dict.fromkeys(paths)
    steps: dict[str, Step] = {}
    used: set[str] = set()
    errors: list[str] = []
    for path in paths:
        for rule in rules:
            found = rule.backward(path)
            if found is None:
                continue
            key, parts = found
            absent = [other for other in parts if other not in paths]
            if absent:
                errors.append(f"{key}: needs {', '.join(absent)}")
            elif key in steps:
                errors.append(f"{path}: {key} is made already")
            else:
                steps[key] = Step(rule.transform, parts)
            used.update(parts)
            break
    errors += [
        f"{path}: no rule for this parameter" for path in paths if path not in used
    ]
    if errors:
        raise ConversionError(errors)
    return steps


def invert(
    rules: Iterable[Rule], target: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Convert back: path -> array to source key -> array.

    Errors: as `steps_back`.
    """
    return {key: step.make(target) for key, step in steps_back(rules, target).items()}
