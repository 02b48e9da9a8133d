"""`preprocessor_config.json` of Hugging Face's ClapFeatureExtractor, both ways.

Source: transformers 5.23, `models/clap/feature_extraction_clap.py`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap_jax.audio import mel
from clap_jax.convert import files

FILE = "preprocessor_config.json"

# Transformers 5 saves a processor's parts in this file instead.
PROCESSOR_FILE = "processor_config.json"

# What a key means that a file does not have. Every published file has frequency_min 50.
DEFAULTS: dict[str, Any] = {
    "feature_size": 64,
    "sampling_rate": 48_000,
    "hop_length": 480,
    "max_length_s": 10,
    "fft_window_size": 1024,
    "frequency_min": 0,
    "frequency_max": 14_000,
    "truncation": "fusion",
    "padding": "repeatpad",
}

# What is done to long clips of fused and other models. It also chooses the bank.
TRUNCATION = {True: "fusion", False: "rand_trunc"}
BANK = {True: "htk", False: "slaney"}


def find(folder: Path) -> dict[str, Any] | None:
    """The extractor's settings of a Hugging Face folder; None when it has none.

    Errors: files.FileError on a damaged file.
    """
    if (folder / FILE).is_file():
        return files.read_json(folder / FILE)
    if (folder / PROCESSOR_FILE).is_file():
        return files.read_json(folder / PROCESSOR_FILE).get("feature_extractor")
    return None


def published(fused: bool, mels: int) -> mel.Frontend:
    """The front end of the published models, for weights that come without one.

    Hugging Face never sends a wave through 16-bit integers, as LAION-CLAP does.
    """
    row = mel.FRONTENDS["laion_fused" if fused else "laion_unfused"]
    return dataclasses.replace(row, int16_trip=False, mels=mels)


def to_frontend(settings: Mapping[str, Any], fused: bool, mels: int) -> mel.Frontend:
    """The front end that an extractor with these settings is.

    fused, mels: what the model's weights take. Errors: ValueError with everything that
    does not fit, a sentence each.
    """
    values = DEFAULTS | {k: v for k, v in settings.items() if v is not None}
    found = []
    if values["truncation"] != TRUNCATION[fused]:
        # Not to be guessed: it chooses the bank, and the two differ by 22 dB.
        found.append(
            f"truncation is {values['truncation']!r}, expected {TRUNCATION[fused]!r}: "
            f"the weights are {'fused' if fused else 'not fused'}"
        )
    if values["feature_size"] != mels:
        found.append(f"feature_size is {values['feature_size']}, the weights' {mels}")
    try:
        frontend = mel.Frontend(
            rate_hz=values["sampling_rate"],
            clip_seconds=values["max_length_s"],
            n_fft=values["fft_window_size"],
            window_samples=values["fft_window_size"],
            hop_samples=values["hop_length"],
            mels=values["feature_size"],
            fmin_hz=values["frequency_min"],
            fmax_hz=values["frequency_max"],
            bank=BANK[fused],
            # Theirs fills with zeros for every other word.
            fill=values["padding"] if values["padding"] in mel.FILLS else "pad",
            views=mel.VIEWS if fused else 1,
        )
    except (ValueError, TypeError) as error:
        found.append(str(error))
    if found:
        raise ValueError("; ".join(f"{FILE}: {problem}" for problem in found))
    return frontend


def problems(frontend: mel.Frontend, fused: bool) -> list[str]:
    """Why ClapFeatureExtractor cannot be this front end, a sentence each."""
    wanted = {
        "bank": BANK[fused],
        "views": mel.VIEWS if fused else 1,
        "window_samples": frontend.n_fft,
        "whole_clip": False,
        "window_values": "",
        "antialias": False,
        "bank_rate_hz": frontend.bank_rate_hz and frontend.rate_hz,
        "clip_seconds": int(frontend.clip_seconds),
        # Its views are resized to 64 bands, whatever feature_size says.
        "mels": 64 if fused else frontend.mels,
    }
    return [
        f"its front end has {name} {getattr(frontend, name)!r}, "
        f"ClapFeatureExtractor can do only {value!r}"
        for name, value in wanted.items()
        if getattr(frontend, name) != value
    ]


def to_settings(frontend: mel.Frontend) -> dict[str, Any]:
    """`preprocessor_config.json` of a front end without problems."""
    seconds = int(frontend.clip_seconds)
    return {
        "feature_extractor_type": "ClapFeatureExtractor",
        "processor_class": "ClapProcessor",
        "feature_size": frontend.mels,
        "sampling_rate": frontend.rate_hz,
        "hop_length": frontend.hop_samples,
        "max_length_s": seconds,
        "fft_window_size": frontend.n_fft,
        "frequency_min": frontend.fmin_hz,
        "frequency_max": frontend.fmax_hz,
        "nb_frequency_bins": frontend.n_fft // 2 + 1,
        "nb_max_samples": seconds * frontend.rate_hz,
        "padding": frontend.fill,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "top_db": None,
        "truncation": TRUNCATION[frontend.views > 1],
    }
