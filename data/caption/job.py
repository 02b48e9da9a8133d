"""A captioning job: what is left is captioned, line by line, until the file is whole.

A job writes to OUT.part and renames it at the end. Killed at any moment and started
again, it goes on behind the last line that is whole (for a writer that captions groups of
clips: behind the last whole group), so that the result is the same file.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data.caption.answers import Answer, Writer
from data.caption.clips import Clip
from data.caption.rules import Rules
from data.caption.templates import Templates


class JobError(RuntimeError):
    """A job that cannot go on; one sentence that says what to do."""


class Summary(NamedTuple):
    """What is in the result.

    kinds: captions by the kind of their origin. instead: those of them that are a
    template because no answer was any good. broken: answers by what was wrong. changes:
    words by the rule that replaced them, changed: captions with such words.
    """

    captions: int
    kinds: Counter
    instead: int
    broken: Counter
    changes: Counter
    changed: int


def run(
    clips: Sequence[Clip],
    writer: Writer,
    fallback: Templates,
    rules: Rules,
    out: str | os.PathLike,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Caption `clips` into the JSON lines file `out`.

    fallback: what captions the clips that the writer has no good answer for.
    on_progress: called with the clips done, and all.
    Raises JobError where `out`, or what was begun of it, is another job's; what the
    writer raises; the lines before stay.
    """
    out = Path(out)
    job = _Job(clips, writer, fallback, rules)
    if out.exists():
        with out.open("rb") as file:
            done, size = _whole_lines(file, job, out)
        if done < len(clips) or size < out.stat().st_size:
            raise JobError(
                f"{out} exists and holds captions of {done} of the {len(clips)} clips "
                "and maybe others: remove it, or write to another file"
            )
        return summary(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    with part.open("a+b") as file:
        _lock(file, part)
        file.seek(0)
        _, size = _whole_lines(file, job, part, writer.group)
        done = _truncate(file, size)
        on_progress(done, len(clips))
        for line in job.lines(done):
            file.write(line)
            file.flush()
            done += 1
            on_progress(done, len(clips))
        os.fsync(file.fileno())
        os.replace(part, out)
    return summary(out)


class _Job:
    """The clips of a job, and the lines that it makes of them."""

    def __init__(
        self, clips: Sequence[Clip], writer: Writer, fallback: Templates, rules: Rules
    ):
        self.clips = clips
        self._writer, self._fallback, self._rules = writer, fallback, rules
        self._origin = writer.origin()
        self._instead = fallback.origin() | {"instead_of": self._origin}

    def lines(self, first: int) -> Iterator[bytes]:
        """The lines of the clips from number `first` on."""
        rest = self.clips[first:]
        for clip, answer in zip(rest, self._writer.answers(rest), strict=True):
            row = self._row(clip, answer)
            try:
                line = json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # the name of a file that is no UTF-8
                line = json.dumps(row).encode()
            yield line + b"\n"

    def _row(self, clip: Clip, answer: Answer) -> dict[str, Any]:
        text, changes = self._rules(answer.text or self._fallback(clip))
        origin = dict(self._origin if answer.text else self._instead)
        if answer.version:
            origin["version"] = answer.version
        if self._rules.origin():
            origin["rules"] = {**self._rules.origin(), "applied": dict(changes)}
        if answer.broken:
            origin["broken"] = list(answer.broken)
        return {
            "id": clip.id,
            "tags": list(clip.tags),
            "caption": text,
            "origin": origin,
        }

    def difference(self, number: int, row: Mapping[str, Any]) -> str:
        """What shows that a line is not this job's, "" if it is."""
        if number >= len(self.clips):
            return f"more than {len(self.clips)} captions"
        clip, origin = self.clips[number], row["origin"]
        if row["id"] != clip.id:
            return f"clip {row['id']!r} where {clip.id!r} is now"
        if tuple(row["tags"]) != clip.tags:
            return f"clip {clip.id!r} with other labels"
        rules = {k: v for k, v in origin.get("rules", {}).items() if k != "applied"}
        if rules != self._rules.origin():
            return f"rules {rules}, not {self._rules.origin()}"
        if "instead_of" not in origin:
            return _difference(origin, self._origin)
        return _difference(origin, self._instead) or _difference(
            origin["instead_of"], self._origin
        )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What shows that another job, or another setting, made a caption."""
    for key in ("kind", "model"):
        if found[key] != wanted[key]:
            return f"{key} {found[key]!r}, not {wanted[key]!r}"
    there, here = found["settings"], wanted["settings"]
    differing = [
        f"{key} {there.get(key)!r}, not {here.get(key)!r}"
        for key in there | here
        if there.get(key) != here.get(key)
    ]
    return "; ".join(differing)


def _whole_lines(
    file: BinaryIO, job: _Job, path: Path, group: int = 1
) -> tuple[int, int]:
    """How many lines are whole, in whole groups, and how many bytes these take.

    Raises JobError where one of them is another job's.
    """
    ends, size = [0], 0
    for text in file:
        try:
            row = json.loads(text)
            difference = job.difference(len(ends) - 1, row)
        except (ValueError, KeyError, TypeError, AttributeError):
            break  # written when the machine stopped
        if not text.endswith(b"\n"):
            break
        if difference:
            raise JobError(
                f"{path} was made otherwise: line {len(ends)} has {difference}: remove "
                "it to begin anew, or write to another file"
            )
        size += len(text)
        ends.append(size)
    done = len(ends) - 1
    if done < len(job.clips):
        done -= done % group
    return done, ends[done]


def _truncate(file: BinaryIO, size: int) -> int:
    """Drop what is behind so many bytes; returns the lines that are left."""
    file.truncate(size)
    file.seek(0)
    return sum(1 for _ in file)


def _lock(file: BinaryIO, path: Path) -> None:
    """Held until this process ends, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise JobError(f"another process is writing to {path}") from None


def summary(path: str | os.PathLike) -> Summary:
    """Count what is in a finished file."""
    captions = instead = changed = 0
    kinds, broken, changes = Counter(), Counter(), Counter()
    with open(path, "rb") as file:
        for text in file:
            origin = json.loads(text)["origin"]
            captions += 1
            kinds[origin["kind"]] += 1
            instead += "instead_of" in origin
            broken.update(origin.get("broken", ()))
            applied = origin.get("rules", {}).get("applied", {})
            changes.update(applied)
            changed += bool(applied)
    return Summary(captions, kinds, instead, broken, changes, changed)
