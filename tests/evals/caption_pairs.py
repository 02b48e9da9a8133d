"""Captions and references made of real captions of music by plain rules."""

import csv
import re


def read(folder):
    """Real captions, a few sentences each, as they are written."""
    path = folder / "captions" / "open" / "musiccaps_train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def pairs(captions, count=200):
    """`count` candidates, and 1 to 5 references of each.

    Candidates are a sentence, a text with words left out, sentences of another clip, or
    sentences in another order; references are the text, its parts, and a neighbour.
    """
    candidates, references = [], []
    for i in range(count):
        parts = re.split(r"(?<=[.!?])\s+", captions[i].strip())
        other = re.split(r"(?<=[.!?])\s+", captions[count + i].strip())
        words = captions[i].split()
        candidates.append(
            [
                parts[0],
                " ".join(word for j, word in enumerate(words) if j % 3),
                " ".join(other[:2]),
                " ".join(reversed(parts)),
            ][i % 4]
        )
        own = [captions[i], parts[-1], " ".join(parts[:2]), parts[len(parts) // 2]]
        references.append([*own, captions[count + i]][: 1 + i % 5])
    return candidates, references
