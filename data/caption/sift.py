"""From the captions that models wrote to those that are kept: the last pass of a run.

Three files come of it: the manifest, a line for every clip with a caption; `*.left_out.txt`
with the ids of the others; and `*.report.json`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import clap_jax
from clap_jax import remote
from data.caption import blocks
from data.caption.captioner import KIND
from data.caption.clips import Clip
from data.caption.filters import Filters, Frequencies, Report, Sifted, merged

LEFT_OUT, REPORT = "left_out.txt", "report.json"
"""Ends of the names of the other two files."""

EXAMPLES = 5


class Counts:
    """What became of clips before any filter saw their captions."""

    def __init__(self) -> None:
        self.tags_from: Counter[str] = Counter()
        self.unknown_tags: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.reasons: dict[str, list[str]] = {}
        self.not_in_tag_file: list[str] = []
        self.missing_from_tag_file = self.missing_captions = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a clip in."""
        self.tags_from[row["tags_from"]] += 1
        if not row.get("in_tag_file", True):
            self.missing_from_tag_file += 1
            self.not_in_tag_file = [*self.not_in_tag_file, row["id"]][:EXAMPLES]
        problem = row.get("problem")
        if problem:
            self.problems[problem] += 1
            own = self.reasons.setdefault(problem, [])
            self.reasons[problem] = [*own, row["reason"]][:EXAMPLES]
        self.unknown_tags.update(row.get("unknown_tags", ()))
        self.missing_captions += row.get("missing", 0)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a report file."""
        return {
            "tags_from": dict(sorted(self.tags_from.items())),
            "unknown_tags": dict(most(self.unknown_tags)),
            "missing_from_tag_file": self.missing_from_tag_file,
            "not_in_tag_file": self.not_in_tag_file,
            "missing_captions": self.missing_captions,
            "problems": {
                name: {"clips": count, "examples": self.reasons[name]}
                for name, count in sorted(self.problems.items())
            },
        }


def most(counter: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, equally frequent ones by name."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


class Sieve(NamedTuple):
    """What is needed to sift the blocks of a plan, all of which are there."""

    plan: blocks.Plan
    filters: Filters

    @property
    def origin(self) -> dict[str, Any]:
        """What made the captions, and with which settings."""
        plan, digests = self.plan, dict(self.plan.digests)
        settings: dict[str, Any] = {"method": plan.method, "n": plan.n}
        settings |= dict(plan.options) | {"seed": plan.seed}
        settings["tags"] = plan.tag_rule if plan.use_tags else "off"
        if plan.soft_tags:
            settings["soft_tags"] = True
        for name in ("clap", "tagger"):
            if getattr(plan, name):
                settings[name] = f"{getattr(plan, name)} {digests[name]}"
        settings["filters"] = self.filters.origin()
        return {
            "kind": KIND,
            "model": plan.model,
            "version": f"weights {digests['model']}, clap_jax {clap_jax.__version__}",
            "settings": settings,
        }

    def each(self) -> Iterator[tuple[dict[str, Any], Clip, Sifted]]:
        """Every clip in order, and what the filters of one clip left of its captions."""
        for block in range(self.plan.count):
            for row in blocks.read(self.plan, block):
                clip = Clip(row["id"], tuple(row["tags"]))
                yield row, clip, self.filters.of_clip(clip, row.get("candidates", ()))

    def common(self) -> Frequencies:
        """How often each caption occurs."""
        most = self.filters.thresholds["max_clips"]
        if most is None:
            return {}
        parts = (self.filters.frequencies([pair]) for _, *pair in self.each())
        return merged(parts, int(most))


class Result(NamedTuple):
    """What came of a run. clips: with a caption; captions: all that were kept."""

    clips: int
    captions: int
    counts: Counts
    report: Report


def beside(out: str, name: str) -> str:
    """A file that goes with a manifest."""
    return f"{out.removesuffix('.jsonl')}.{name}"


def write(sieve: Sieve, out: str, more: Mapping[str, Any]) -> Result:
    """Write the three files, each whole or not at all, the manifest last.

    more: what else the report is to hold.
    """
    counts, report, left_out = Counts(), Report(), []
    common, origin = sieve.common(), sieve.origin
    written: Counter[str] = Counter()

    def lines() -> Iterator[bytes]:
        for row, clip, sifted in sieve.each():
            counts.add(row)
            if "candidates" in row:
                sifted = sieve.filters.finish(clip, sifted, common)
                report.add(sifted)
            if not sifted.kept:
                left_out.append(row["id"])
                continue
            written.update(clips=1, captions=len(sifted.kept))
            yield _line(row, sifted, origin)

    def finish() -> None:
        done = {
            **more,
            "clips_with_captions": written["clips"],
            "captions": written["captions"],
            **counts.as_json(),
            **report.as_json(sieve.filters),
            "origin": origin,
        }
        _write(beside(out, LEFT_OUT), "".join(f"{name}\n" for name in left_out))
        _write(beside(out, REPORT), json.dumps(done, indent=1) + "\n")

    _write_lines(out, lines(), finish)
    return Result(written["clips"], written["captions"], counts, report)


def _line(row: Mapping[str, Any], sifted: Sifted, origin: Mapping[str, Any]) -> bytes:
    """A clip's line of the manifest."""
    line: dict[str, Any] = {"id": row["id"]}
    if row["path"]:
        line["path"] = row["path"]
    line["captions"] = [one["caption"] for one in sifted.kept]
    for name in ("clap_score", "log_likelihood"):
        values = [one.get(name) for one in sifted.kept]
        if any(value is not None for value in values):
            line[f"{name}s"] = values
    line |= {name: row[name] for name in ("tags", "tags_from", "seed")}
    if "probabilities" in row:
        line["tag_probabilities"] = row["probabilities"]
    try:
        text = json.dumps(line | {"origin": origin}, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        text = json.dumps(line | {"origin": origin}).encode()
    return text + b"\n"


def _write(path: str, text: str) -> None:
    remote.write(path, text.encode("utf-8", "surrogateescape"))


def _write_lines(path: str, lines: Iterable[bytes], before: Callable[[], None]) -> None:
    """Write a file line by line; `before` is called when all are written, and before
    the file has its name."""
    if remote.is_remote(path):
        content = b"".join(lines)
        before()
        remote.write(path, content)
        return
    partial = f"{path}.part"
    with open(partial, "wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    before()
    os.replace(partial, path)
