"""Training steps per second against a PyTorch peer, on the accelerator of this machine.

    python tests/bench/bench_train.py [--batches=64,128,256,512] [--files=FOLDER] [--small]

LAION-CLAP at its published size (HTSAT tiny, RoBERTa base, 10 s at 48 kHz, 77 tokens),
fresh weights, bfloat16, AdamW, the same loss. The peer is transformers' ClapModel under
`torch.compile` and autocast (transformers 5.23 refuses SDPA for it). Everything is in the device's memory; with --files
(a folder of sounds, whose names serve as captions) both sides also read, decode and
resample. A process of its own measures each number, so that none finds the memory that
another left; a batch that does not fit shows as such. --small: towers of a test, two
small batches, for a machine without accelerator.

MFU counts the same model FLOPs for both (`clap_jax.train.throughput`).
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
RATE_HZ, SECONDS, TOKENS = 48_000, 10, 77
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
SMALL_CLAP = {
    "audio_config": {
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "hidden_size": 32,
    },
    "text_config": {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
    },
}


def our_config(options: argparse.Namespace, folder: Path) -> Any:
    """The recipe of configs/laion_htsat_roberta.py on other data, with fresh weights."""
    sys.path.insert(0, str(REPOSITORY))
    from configs import laion_htsat_roberta

    config = laion_htsat_roberta.get_config("smoke" if options.small else "")
    config.init_from = ""
    config.precision = options.precision
    config.remat = options.remat
    config.train.batch_size = options.batch
    config.train.total_epochs = 0.0
    config.train.total_steps = 3 * options.steps
    config.train.log_steps = options.steps
    config.optim.name, config.optim.warmup_steps = "adamw", 10
    config.data.workers, config.data.threads = 0, options.threads
    config.data.source = "synthetic_device"
    if options.files:
        config.data.source = "files"
        config.model_overrides = {**config.model_overrides, "tokenizer": ""}
        manifest = folder / "sounds.csv"
        with manifest.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "caption"])
            for path in sounds(options):
                rows.writerow([path, path.stem.replace("_", " ")])
        config.data.sources = ({"kind": "manifest", "path": str(manifest)},)
    return config


def sounds(options: argparse.Namespace) -> list[Path]:
    """The files, over and over until they fill a batch."""
    found = sorted(
        path
        for path in Path(options.files).resolve().rglob("*")
        if path.suffix.lower() in SOUNDS
    )
    if not found:
        raise SystemExit(f"{options.files}: no {', '.join(SOUNDS)} in there")
    return found * -(-options.batch // len(found))


def run_ours(options: argparse.Namespace) -> dict[str, float]:
    """The training loop itself; its last line of the log."""
    from clap_jax.train import loop

    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        loop.train(our_config(options, Path(folder)), workdir)
        text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    line = [x for x in lines if "train/clips_per_s" in x][-1]
    return {
        "clips_per_s": line["train/clips_per_s"],
        "mfu": line["train/mfu"],
        "memory_gib": line["train/device_memory_gib"],
    }


def run_peer(options: argparse.Namespace) -> dict[str, float]:
    """transformers' ClapModel: forward, loss, backward, AdamW."""
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = transformers.ClapConfig(**SMALL_CLAP if options.small else {})
    model = transformers.ClapModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(5, 50_000, (options.batch, TOKENS))).to(device)
    mask, target = torch.ones_like(ids), torch.arange(options.batch, device=device)

    def loss_of(mels: Any) -> Any:
        with torch.autocast(
            device.type, torch.bfloat16, options.precision != "float32"
        ):
            za = model.get_audio_features(mels).pooler_output
            zt = model.get_text_features(ids, mask).pooler_output
        logits = model.logit_scale_a.exp() * za.float() @ zt.float().T
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2

    compiled = torch.compile(loss_of) if options.compile else loss_of
    batches = peer_batches(options, device)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = compiled(next(batches))
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        return time.perf_counter() - began

    steps(options.steps)  # compiles and warms up
    seconds = min(steps(options.steps), steps(options.steps))
    on_gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    clips_per_s = options.batch * options.steps / seconds
    return {"clips_per_s": clips_per_s, "mfu": float("nan"), "memory_gib": memory}


def peer_batches(options: argparse.Namespace, device: Any) -> Any:
    """Log-mels [B, 1, 1001, 64]: the same one from memory, or made of files' waves."""
    import librosa
    import torch

    if not options.files:
        shape = (options.batch, 1, 1001, 64)
        mels = torch.randn(shape, device=device) * 10 - 30
        while True:
            yield mels
    bank = librosa.filters.mel(sr=RATE_HZ, n_fft=1024, n_mels=64, fmin=50, fmax=14000)
    bank = torch.from_numpy(bank).to(device)
    window = torch.hann_window(1024, device=device)
    files = sounds(options)
    loader = torch.utils.data.DataLoader(
        Waves([str(path) for path in files]),
        batch_size=options.batch,
        num_workers=options.threads,
        shuffle=True,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    while True:
        for waves in loader:
            waves = waves.to(device, non_blocking=True).float() / 32767
            spectrum = torch.stft(waves, 1024, 480, window=window, return_complex=True)
            mels = 10 * torch.log10((bank @ spectrum.abs() ** 2).clamp(min=1e-10))
            yield mels.transpose(1, 2)[:, None]


class Waves:
    """LAION's steps for one file: decode and resample, 16 bits, repeat or crop."""

    def __init__(self, files: list[str]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        import librosa

        wave, _ = librosa.load(self._files[index], sr=RATE_HZ)
        wave = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
        length = RATE_HZ * SECONDS
        if len(wave) < length:
            return np.pad(np.tile(wave, length // len(wave)), (0, length % len(wave)))
        start = np.random.randint(len(wave) - length + 1)
        return wave[start : start + length]


def measure(role: str, batch: int, arguments: list[str]) -> dict[str, Any]:
    """One number in a process of its own."""
    command = [sys.executable, __file__, f"--role={role}", f"--batch={batch}"]
    done = subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    full = any(
        word in done.stderr
        for word in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of m")
    )
    reason = "does not fit" if full else done.stderr.strip().splitlines()[-1]
    return {"failed": reason}


def table(options: argparse.Namespace, arguments: list[str]) -> None:
    """Both sides at every batch, as lines of a Markdown table."""
    print("| batch | clap_jax clips/s | MFU | GiB | peer clips/s | MFU | GiB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for batch in map(int, options.batches.split(",")):
        ours = measure("clap_jax", batch, arguments)
        peer = measure("peer", batch, arguments)
        cells = []
        for found in (ours, peer):
            if "failed" in found:
                cells += [found["failed"], "-", "-"]
                continue
            if found is peer and "failed" not in ours:
                # The same work: their share follows from ours.
                found["mfu"] = ours["mfu"] * found["clips_per_s"] / ours["clips_per_s"]
            cells += [
                f"{found['clips_per_s']:,.1f}",
                f"{100 * found['mfu']:.1f} %",
                f"{found['memory_gib']:.1f}",
            ]
        both = "failed" not in ours and "failed" not in peer
        ratio = ours["clips_per_s"] / peer["clips_per_s"] if both else float("nan")
        print("|", " | ".join([str(batch), *cells, f"{ratio:.2f}"]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="64,128,256,512,1024")
    parser.add_argument("--steps", type=int, default=20, help="steps in one timing")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--remat", default="none", help="ours: none, dots, blocks")
    parser.add_argument("--files", default="", help="folder of sounds")
    parser.add_argument("--threads", type=int, default=16, help="that decode files")
    parser.add_argument("--small", action="store_true")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="the peer runs eager"
    )
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small and options.batches == parser.get_default("batches"):
        options.batches = "4,8"
    if not options.role:
        table(options, sys.argv[1:])
        return
    run = {"clap_jax": run_ours, "peer": run_peer}[options.role]
    print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
