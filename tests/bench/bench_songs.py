"""Memory and time of embedding long clips in segments, on this machine.

    python tests/bench/bench_songs.py --model=runs/songs music/ [--minutes 0.05 5 20]

Files of so many minutes, stereo at 44.1 kHz, are made of the music in a folder, one
behind the other, again from the start where it ends. Each is embedded by a
`clap-jax embed --segments` of its own, whose peak memory and time are printed; what
the shortest file takes (start, compilation) is subtracted in "times real time".
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import librosa
import numpy as np
import soundfile

RATE_HZ = 44_100
SUFFIXES = {".ogg", ".wav", ".flac", ".mp3"}


def write(path: Path, music: list[Path], minutes: float) -> None:
    """A stereo file of so many minutes, 16 bit."""
    wanted, written, place = round(minutes * 60 * RATE_HZ), 0, 0
    with soundfile.SoundFile(path, "w", RATE_HZ, 2, "PCM_16") as file:
        while written < wanted:
            song = music[place % len(music)]
            wave, _ = librosa.load(song, sr=RATE_HZ, mono=False, dtype=np.float32)
            stereo = np.broadcast_to(np.atleast_2d(wave), (2, wave.shape[-1])).T
            stereo = stereo[: wanted - written]
            file.write(stereo)
            written, place = written + len(stereo), place + 1


def embed(model: str, song: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a process that embeds a file."""
    clap_jax = [sys.executable, "-m", "clap_jax.cli", "embed", "--segments"]
    command = [*clap_jax, f"--model={model}", f"--out={out}", str(song)]
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("music", help="a folder of sounds")
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.05, 5, 20])
    given = parser.parse_args()
    music = sorted(p for p in Path(given.music).rglob("*") if p.suffix in SUFFIXES)
    if not music:
        raise SystemExit(f"{given.music} holds no {', '.join(sorted(SUFFIXES))}")
    shortest = None
    with tempfile.TemporaryDirectory() as folder:
        for minutes in sorted(given.minutes):
            song = Path(folder) / f"{minutes:g}.wav"
            write(song, music, minutes)
            seconds, memory = embed(given.model, song, Path(folder) / f"{minutes:g}")
            line = f"{minutes:g} minutes: {seconds:.1f} s, {memory:.2f} GiB at most"
            if shortest is None:
                shortest = seconds
            else:
                speed = minutes * 60 / (seconds - shortest)
                line += f", {speed:.0f} times real time"
            print(line, flush=True)


if __name__ == "__main__":
    main()
