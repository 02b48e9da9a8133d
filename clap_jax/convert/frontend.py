"""torchlibrosa's front end in a state dict: LAION-CLAP, MS-CLAP, BLAT and PANN save it.

Two frozen convolutions that make the spectrogram and the mel bank.
"""

import dataclasses
import re

import numpy as np

from clap_jax.audio import mel
from clap_jax.convert.rules import Extra

_CONVOLUTION = "spectrogram_extractor.stft.conv_{}.weight"
_BANK = "logmel_extractor.melW"


def extras(prefix: str) -> list[Extra]:
    """The keys, none of which a tower uses. `prefix` is plain text."""
    return [
        Extra(re.escape(prefix) + regex, "the front end computes it")
        for regex in (r"spectrogram_extractor\..*", r"logmel_extractor\..*")
    ]


def buffers(prefix: str, frontend: mel.Frontend) -> dict[str, np.ndarray]:
    """What the reference computes for `frontend`, float32, bit for bit.

    Convolutions [n_fft / 2 + 1, 1, n_fft], bank [n_fft / 2 + 1, F].
    """
    size, bins = frontend.n_fft, frontend.n_fft // 2 + 1
    # Powers of one root, not exp() of every angle: the rounding differs.
    steps = np.outer(np.arange(size), np.arange(bins))
    waves = np.power(np.exp(-2j * np.pi / size), steps) * _window(frontend)[:, None]
    if frontend.bank == "htk":
        # A fused model hears mels that torchaudio made, from a bank of its own, and
        # yet saves the other one.
        frontend = dataclasses.replace(frontend, bank="slaney")
    found = {
        prefix + _CONVOLUTION.format(name): part.T[:, None].astype(np.float32)
        for name, part in (("real", waves.real), ("imag", waves.imag))
    }
    found[prefix + _BANK] = np.array(mel.mel_bank(frontend))
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


def _window(frontend: mel.Frontend) -> np.ndarray:
    """The window in float64, which the reference rounds after the product."""
    if frontend.window_values:
        return mel.window(frontend).astype(np.float64)
    samples = frontend.window_samples
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)
    left = (frontend.n_fft - samples) // 2
    return np.pad(hann, (left, frontend.n_fft - samples - left))
