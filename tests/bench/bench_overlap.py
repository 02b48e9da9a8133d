"""Recall and false hits of the overlap filter, on planted versions of real clips.

    python tests/bench/bench_overlap.py ../shared/data [--every 2] [--workers 2]

Every other clip of the data is the evaluation set; the training set is the rest, and
eight versions of each evaluation clip.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import listing
from data.overlap import find
from tests.data import planted


def main() -> int:
    """Print the table; the exit status is 1 when a hit is false."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th clip")
    parser.add_argument("--workers", type=int, default=1)
    known = parser.parse_args()
    clips = planted.clips(known.data.resolve(), every=known.every)
    evals, others = clips[::2], clips[1::2]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        training, evaluation = planted.write(place / "in", evals, others)
        queries = [listing.Query("manifest", str(p)) for p in (training, evaluation)]
        find(queries[0], queries[1:], str(place / "out"), "off", known.workers)
        found, true, false = planted.judge(place / "out", training, evals, others)
    report(found, true, false)
    return 1 if false else 0


def report(found: dict, true: list[str], false: list[str]) -> None:
    """Print recall by set and kind, and the hits among clips that were not planted."""
    print("recall           ", *(f"{kind:>8}" for kind in planted.KINDS), "     all")
    for kind in planted.KINDS:
        found["all", kind] = [
            hit for (_, k), row in found.items() if k == kind for hit in row
        ]
    for name in (*planted.SETS, planted.SHORT, "all"):
        rows = [found.get((name, kind), []) for kind in planted.KINDS]
        shares = [f"{sum(r) / len(r):8.3f}" if r else "       -" for r in rows]
        every = [hit for row in rows for hit in row]
        if every:
            share = sum(every) / len(every)
            print(f"{name:<17}", *shares, f"{share:8.3f} of {len(every)}")
    print(f"\n{len(true)} hits between clips of one recording:", *true, sep="\n  ")
    print(f"\n{len(false)} false hits:", *false, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
