"""Clips per second of our loader and of a PyTorch `DataLoader` that does LAION's steps.

    python tests/bench/bench_loader.py DATA/esc10/metadata.csv [--epochs 10] [--rounds 5]

Both read the same files, in one process and in turn, and make the same batches:

    waves   decode, resample to 48 kHz, 16-bit trip, repeat and pad, or crop, to 10 s:
            int16 [B, 480000], from which the device makes the mels
    mels    the same wave, and of it the four views of a fused model: float16
            [B, 4, 1001, 64]
    (and the caption's 77 tokens with their mask)

Theirs: a `Dataset` whose items are made by librosa (load and resample) and torch (STFT,
mel bank, dB), after LAION-AI/CLAP's `get_audio_features`, in 2 worker processes. Ours:
`clap_jax.pipeline.loader`, the same number of cores.

A round is a run of some epochs over the files by each of the two, which take turns in
going first. The first epoch starts with nothing in memory. What is timed: the first epoch (every clip is decoded by both),
those after it, and the whole run. Ours keeps decoded clips (`data.cache_gib`), so that
from the second epoch on nothing is decoded; `--cache=0` turns this off. Of Ogg Vorbis
the first epoch is mostly libsndfile's decoder (4.5 of 6.5 ms of a wave), which is the
same for both: three times as fast is out of reach there, whatever the loader.
Printed: medians over rounds; ratios are medians of the ratio within a round.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import librosa
import numpy as np
import torch
import torch.nn.functional as F

from clap_jax.audio import io, mel
from clap_jax.pipeline import loader
from clap_jax.pipeline.manifest import ManifestSource
from clap_jax.pipeline.ops import Prepare
from clap_jax.text import tokenize

TOKENS = 77
SAMPLES = 480_000
FRAMES = 1001


class Laion(torch.utils.data.Dataset):
    """LAION-CLAP's steps from a file to a training example."""

    def __init__(self, source: ManifestSource, tokenizer: Any, kind: str):
        self.source, self.tokenizer, self.kind = source, tokenizer, kind

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        wave, _ = librosa.load(self.source[index]["audio"], sr=48_000)
        wave = torch.from_numpy(wave)
        # float32_to_int16, and for mels int16_to_float32
        whole = (wave.clamp(-1, 1) * 32767.0).type(torch.int16)
        if self.kind == "mels":
            whole = whole / 32767.0
        longer = len(whole) > SAMPLES
        if not longer:  # data_filling="repeatpad"
            whole = whole.repeat(SAMPLES // len(whole))
            whole = F.pad(whole, (0, SAMPLES - len(whole)))
        if self.kind == "mels":
            sound, longer = self.fused(whole)
        else:
            start = int(torch.randint(0, len(whole) - SAMPLES + 1, ()))
            sound = whole[start : start + SAMPLES]
        captions = self.source.captions(index)
        text = self.tokenizer(
            captions[int(torch.randint(0, len(captions), ()))],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="np",
        )
        return {
            self.kind: sound,
            "longer": torch.tensor(longer),
            "ids": torch.from_numpy(text["input_ids"][0].astype(np.int32)),
            "mask": torch.from_numpy(text["attention_mask"][0].astype(bool)),
            "index": torch.tensor(index),
        }

    def fused(self, wave: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """`get_mel`, and the views of data_truncating="fusion"."""
        mels = log_mel(wave)
        if len(mels) == FRAMES:
            return torch.stack([mels] * 4).half(), False
        parts = np.array_split(np.arange(len(mels) - FRAMES + 1), 3)
        starts = [int(np.random.choice(p)) if len(p) else 0 for p in parts]
        shrunk = F.interpolate(
            mels[None, None], (FRAMES, 64), mode="bilinear", align_corners=False
        )[0, 0]
        crops = [mels[start : start + FRAMES] for start in starts]
        return torch.stack([shrunk, *crops]).half(), True


def log_mel(wave: torch.Tensor) -> torch.Tensor:
    """torchaudio's MelSpectrogram (HTK bank, made anew as LAION does) and dB, [N, 64]."""
    bank = librosa.filters.mel(
        sr=48_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000, htk=True, norm=None
    )
    spectrum = torch.stft(
        wave,
        n_fft=1024,
        hop_length=480,
        window=torch.hann_window(1024),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    mels = torch.from_numpy(bank) @ spectrum.abs().pow(2.0)
    return 10 * torch.log10(mels.clamp(min=1e-10)).T


def theirs(source: ManifestSource, tokenizer: Any, kind: str, options: Any) -> Iterator:
    """Endless batches by PyTorch."""
    data = torch.utils.data.DataLoader(
        Laion(source, tokenizer.tokenizer, kind),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        prefetch_factor=2,
        persistent_workers=True,
    )
    while True:
        yield from data


def ours(source: ManifestSource, tokenizer: Any, kind: str, options: Any) -> Iterator:
    """Endless batches by clap_jax."""
    prepare = Prepare(
        frontend(kind),
        mel="host" if kind == "mels" else "device",
        cache_gib=options.cache,
    )
    return iter(
        loader.train_dataset(
            [(source, None)],
            prepare,
            tokenizer,
            batch_size=options.batch,
            seed=0,
            threads=options.threads,
            prefetch=4,
        )
    )


def frontend(kind: str) -> mel.Frontend:
    return mel.FRONTENDS["laion_fused" if kind == "mels" else "laion_unfused"]


def check(source: ManifestSource, tokenizer: Any, kind: str) -> float:
    """The largest difference of the two sides over clips without any chance in them."""
    dataset = Laion(source, tokenizer.tokenizer, kind)
    prepare = Prepare(frontend(kind), mel="host" if kind == "mels" else "device")
    worst, rng = 0.0, np.random.default_rng(0)
    for index in range(0, len(source), max(len(source) // 24, 1)):
        path = source[index]["audio"]
        if len(io.load(path, 48_000)) > SAMPLES:
            continue
        expected, example = dataset[index], prepare.example(prepare(path), rng)
        field = prepare.field
        difference = expected[kind].numpy().astype(np.float32) - example[field]
        worst = max(worst, float(np.abs(difference).max()))
        ids, mask = tokenizer([source.captions(index)[0]])
        assert (ids[0] == expected["ids"].numpy()).all()
        assert (mask[0] == expected["mask"].numpy()).all()
    return worst


def run(batches: Iterator, count: int) -> list[float]:
    """When each batch had come, in seconds since the first (starting is not timed).

    They are touched, as a copy to a device would.
    """
    times, start = [], 0.0
    for _ in range(count):
        batch = next(batches)
        start = start or time.perf_counter()
        for value in batch.values():
            np.asarray(value).reshape(-1)[::1024].sum()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", help="table of sounds, e.g. esc10/metadata.csv")
    parser.add_argument("--kinds", default="waves,mels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--cache", type=float, default=2.0, help="GiB of decoded clips")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    source = ManifestSource(options.manifest)
    captions = [c for index in range(len(source)) for c in source.captions(index)]
    tokenizer = tokenize.train(captions, 1000, TOKENS)
    epoch = len(source) // options.batch
    print(
        f"{len(source)} clips, batches of {options.batch}, {options.epochs} epochs, "
        f"{options.rounds} rounds, {os.cpu_count()} cores"
    )
    for kind in options.kinds.split(","):
        unit = "dB" if kind == "mels" else "of 32767"
        print(f"{kind}: sides differ by {check(source, tokenizer, kind):.2g} {unit}")
        rates: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.rounds):
            sides = {}
            for make in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                batches = make(source, tokenizer, kind, options)
                times = run(batches, epoch * options.epochs)
                batches.close()
                sides[make] = spans(times, epoch, options.batch)
            for name, rate in sides[ours].items():
                rates.setdefault(name, []).append((rate, sides[theirs][name]))
        print(f"  {'clips/s':16}{'clap_jax':>10}{'DataLoader':>12}{'ratio':>8}")
        for name, pairs in rates.items():
            a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"  {name:16}{a:10.0f}{b:12.0f}{ratio:8.2f}", flush=True)
    if hasattr(os, "getloadavg"):  # not on every system
        load = os.getloadavg()[0]
        print(f"load {load:.1f}; where it is more than this program's, measure again")


def spans(times: list[float], epoch: int, batch: int) -> dict[str, float]:
    """Clips per second in the first epoch, after it, and over all."""
    whole = {"whole run": batch * (len(times) - 1) / times[-1]}
    first = {"first epoch": batch * (epoch - 1) / times[epoch - 1]}
    if len(times) == epoch:
        return first
    rest = times[-1] - times[epoch - 1]
    return first | {"after it": batch * (len(times) - epoch) / rest} | whole


if __name__ == "__main__":
    main()
