"""Real clips, and what people do to them: the test of the overlap filter."""

import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from clap_jax.audio import io as audio_io

SETS = ("esc10", "fsdk_instruments", "fsdd", "sonicpi_cc0", "music_long")

KINDS = ("mp3", "ogg", "cut", "into", "louder", "softer", "clipped", "cut_mp3")

LONG_SECONDS = 1.0
SHORT = "shorter than 1 s"

HEARD_DBFS = -50
"""What a cut leaves is silence below this, and no clip any more."""

# Freesound files (`source_id`) that have a part in common: found by the filter, and then
# looked at. The first is one file in two of the sets; the others are versions that one
# person made of one recording.
SAME_RECORDINGS = (
    {"19433"},  # a drum roll
    {"28314", "30322"},  # FireBurning, FireBurning_v2
    {"142601", "142605"},  # sneeze2, sneeze3
    {"34133", "34135"},  # snare drum rolls
    {"100056", "100057"},  # drum_cymbal_hard, drum_cymbal_soft
    {"100060", "100061"},  # drum_splash_hard, drum_splash_soft
)


class Clip(NamedTuple):
    path: Path
    id: str
    source: str  # the Freesound file that it is of
    seconds: float


def clips(data: Path, sets: Sequence[str] = SETS, every: int = 1) -> list[Clip]:
    """Every n-th clip of the sets."""
    found = []
    for name in sets:
        with open(data / name / "metadata.csv", newline="") as file:
            rows = list(csv.DictReader(file))[::every]
        for row in rows:
            path = data / name / row["path"]
            label = f"{name}/{path.stem}"
            found.append(Clip(path, label, row["source_id"], float(row["duration_s"])))
    return found


def same_recording(one: Clip, other: Clip) -> bool:
    """Whether two clips are known to have a part in common."""
    sources = {one.source, other.source}
    return any(sources <= known for known in SAME_RECORDINGS)


def _encoded(wave: np.ndarray, rate_hz: int, kind: str, level: float = 0.0) -> bytes:
    subtypes = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS", "WAV": "PCM_16"}
    options = {"compression_level": level} if kind != "WAV" else {}
    if kind == "MP3" and rate_hz > 48_000:
        wave, rate_hz = audio_io.resample(wave, rate_hz, 48_000), 48_000
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", rate_hz, 1, subtypes[kind], format=kind, **options
    ) as writer:
        for first in range(0, len(wave), 1 << 16):
            writer.write(wave[first : first + (1 << 16)])
    return file.getvalue()


def versions(clip: Clip, host: Clip, kinds: Sequence[str] = KINDS) -> Iterator[tuple]:
    """(kind, suffix, bytes) of a clip: re-encoded at a low rate, half of it cut out, put
    between two parts of another sound, as loud as can be, 26 dB softer, 12 dB louder and
    so clipped, and half of it cut out, louder, re-encoded."""
    wave, rate_hz = audio_io.read(clip.path)
    rng = np.random.default_rng(zlib.crc32(clip.id.encode()))
    first = int(rng.uniform(0.1, 0.4) * len(wave))
    part = wave[first : first + len(wave) // 2]
    for kind in kinds:
        if kind == "mp3":
            yield kind, "mp3", _encoded(wave, rate_hz, "MP3", 0.6)
        elif kind == "ogg":
            yield kind, "ogg", _encoded(wave, rate_hz, "OGG", 0.8)
        elif kind == "louder":
            yield kind, "wav", _encoded(wave / np.abs(wave).max(), rate_hz, "WAV")
        elif kind == "clipped":
            yield kind, "wav", _encoded(wave * 4, rate_hz, "WAV")
        elif kind == "softer":
            yield kind, "wav", _encoded(wave * 0.05, rate_hz, "WAV")
        elif kind == "into":
            other = audio_io.load(host.path, rate_hz)
            whole = [other[: 5 * rate_hz], wave, other[: 3 * rate_hz]]
            yield kind, "wav", _encoded(np.concatenate(whole), rate_hz, "WAV")
        elif 20 * np.log10(np.abs(part).max() + 1e-9) > HEARD_DBFS:
            if kind == "cut":
                yield kind, "wav", _encoded(part, rate_hz, "WAV")
            else:
                yield kind, "mp3", _encoded(part * 2, rate_hz, "MP3", 0.6)


def write(
    folder: Path,
    evals: Sequence[Clip],
    others: Sequence[Clip],
    kinds: Sequence[str] = KINDS,
) -> tuple[Path, Path]:
    """Tables of an evaluation set, and of a training set with versions of its clips.

    Names of training clips are planted/KIND/ID or, of others, other/ID.
    """
    (folder / "audio").mkdir(parents=True)
    evaluation = [(clip.id, clip.path) for clip in evals]
    training = [(f"other/{clip.id}", clip.path) for clip in others]
    for number, clip in enumerate(evals):
        host = others[number % len(others)]
        for kind, suffix, content in versions(clip, host, kinds):
            path = folder / "audio" / f"{kind}_{clip.id.replace('/', '_')}.{suffix}"
            path.write_bytes(content)
            training.append((f"planted/{kind}/{clip.id}", path))
    tables = folder / "training.csv", folder / "evaluation.csv"
    for table, rows in zip(tables, (training, evaluation), strict=True):
        with open(table, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "path", "caption"))
            writer.writerows((name, path, "a sound") for name, path in rows)
    return tables


def judge(
    out: Path, training: Path, evals: Sequence[Clip], others: Sequence[Clip]
) -> tuple[dict[tuple[str, str], list[bool]], list[str], list[str]]:
    """What a search found: {(set, kind): whether each planted clip was}, and the pairs
    of other clips, those that are of one recording and those that are not. Clips of less
    than LONG_SECONDS are a set of their own.

    A host that is known to be of a clip's recording makes no false hit.
    """
    by_id = {clip.id: clip for clip in (*evals, *others)}
    with open(training, newline="") as file:
        planted = [
            r["id"] for r in csv.DictReader(file) if r["id"].startswith("planted")
        ]
    with open(out / "hits.csv", newline="") as file:
        hits = [(r["id"], r["eval_id"]) for r in csv.DictReader(file)]
    found, true, false = {}, [], []
    for name in planted:
        _, kind, clip = name.split("/", 2)
        long = by_id[clip].seconds >= LONG_SECONDS
        row = found.setdefault((clip.split("/")[0] if long else SHORT, kind), [])
        row.append((name, clip) in hits)
    hosts = {clip.id: others[n % len(others)] for n, clip in enumerate(evals)}
    for name, clip in hits:
        own = name.split("/", 2)[2] if name.startswith("planted") else name[6:]
        if own == clip:
            continue
        sounds = [by_id[own]]
        if name.startswith("planted/into/"):
            sounds.append(hosts[own])
        known = any(same_recording(sound, by_id[clip]) for sound in sounds)
        (true if known else false).append(f"{name} = {clip}")
    return found, true, false
