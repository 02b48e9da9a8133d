"""What a packing came to: `report.json`, `report.txt`, rejects and duplicates as tables."""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from clap_jax import remote
from data import listing, shards

REJECTS, DUPLICATES, DUPLICATE_IDS = "rejects.csv", "duplicates.csv", "duplicates.txt"


def write(
    plan: shards.Plan, clip_list: listing.Listing, parts: Sequence[shards.Part]
) -> dict[str, Any]:
    """Write the report of these parts into OUT; returns what report.json holds."""
    rejected = [*clip_list.rejected, *(row for part in parts for row in part.rejected)]
    same = duplicates([mark for part in parts for mark in part.marks])
    kinds = Counter(row.kind for row in rejected)
    report = {
        "source": clip_list.description,
        "path": plan.query.path,
        "kind": plan.query.kind,
        "settings": dataclasses.asdict(plan.settings),
        "listed": plan.listed + clip_list.excluded + len(clip_list.rejected),
        "clips": sum(part.clips for part in parts),
        "hours": round(sum(part.seconds for part in parts) / 3600, 6),
        "bytes": sum(part.bytes for part in parts),
        "excluded": clip_list.excluded,
        "rejected": len(rejected),
        "rejected_by_kind": dict(sorted(kinds.items(), key=lambda k: (-k[1], k[0]))),
        "duplicates_by_bytes": sum(row[2] == "bytes" for row in same),
        "duplicates_by_samples": sum(row[2] == "samples" for row in same),
        "shards": [
            {"file": p.file, "clips": p.clips, "bytes": p.bytes, "sha256": p.sha256}
            for p in parts
        ],
    }
    rows = ((r.id, r.path, r.reason, r.kind) for r in rejected)
    files = {
        REJECTS: as_csv(("id", "path", "reason", "kind"), rows),
        DUPLICATES: as_csv(("id", "same_as", "same"), same),
        DUPLICATE_IDS: "".join(f"{row[0]}\n" for row in same),
        "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "report.txt": text(report) + "\n",
    }
    for name, content in files.items():
        remote.write(remote.join(plan.out, name), content.encode())
    return report


def duplicates(marks: Sequence[shards.Mark]) -> list[tuple[str, str, str]]:
    """(id, id of the first that is the same, "bytes" or "samples") of each later one."""
    by_bytes: dict[str, str] = {}
    by_samples: dict[str, str] = {}
    found = []
    for mark in marks:
        if mark.bytes_mark in by_bytes:
            found.append((mark.id, by_bytes[mark.bytes_mark], "bytes"))
        elif mark.samples_mark in by_samples:
            found.append((mark.id, by_samples[mark.samples_mark], "samples"))
        by_bytes.setdefault(mark.bytes_mark, mark.id)
        by_samples.setdefault(mark.samples_mark, mark.id)
    return found


def text(report: dict[str, Any]) -> str:
    """The report for reading."""
    same = report["duplicates_by_bytes"] + report["duplicates_by_samples"]
    rows = [
        ("source", report["source"]),
        ("packed", f"{report['clips']} of {report['listed']} clips"),
        ("", f"{report['hours']:.4g} hours, {report['bytes'] / 2**20:.1f} MiB"),
        ("encoding", report["settings"]["encoding"]),
        ("shards", str(len(report["shards"]))),
        ("excluded", str(report["excluded"])),
        ("duplicates", f"{same} ({DUPLICATES})" if same else "0"),
        (
            "rejected",
            f"{report['rejected']} ({REJECTS})" if report["rejected"] else "0",
        ),
        *((f"  {kind}", str(n)) for kind, n in report["rejected_by_kind"].items()),
    ]
    return "\n".join(f"{name:<18} {value}".rstrip() for name, value in rows)


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()
