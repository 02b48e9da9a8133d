"""Random ClapModels of transformers, and their folders."""

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clap_jax.text import tokenize

SENTENCES = (
    "a dog barks twice and a child laughs",
    "rain falls on a tin roof",
    "This is a sound of a church bell.",
    "someone plays the cello, slowly",
    "a crow",
)

# Small models: clips of 2 s, 201 frames. Fused ones need 64 mels, to which their
# feature extractor resizes.
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 90,
}
AUDIO = {
    "spec_size": 128,
    "patch_embeds_hidden_size": 8,
    "hidden_size": 32,
    "depths": [1, 2, 1],
    "num_attention_heads": [2, 2, 4],
}
EXTRACTOR = {"max_length_s": 2, "frequency_min": 50}
MODELS: dict[str, dict[str, Any]] = {
    "unfused": {"audio": AUDIO, "text": TEXT, "projection_dim": 16},
    "fused": {
        "audio": AUDIO | {"enable_fusion": True},
        "text": TEXT,
        "projection_dim": 16,
    },
    # Every option that has another value.
    "unusual": {
        "audio": {
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_size": 2,
            "patch_stride": 2,
            "patch_embeds_hidden_size": 12,
            "hidden_size": 24,
            "depths": [2, 3],
            "num_attention_heads": [3, 6],
            "mlp_ratio": 2.5,
            "drop_path_rate": 0.2,
        },
        "text": {
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "max_position_embeddings": 60,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-6,
        },
        "projection_dim": 12,
        "projection_hidden_act": "gelu",
        "logit_scale_init_value": 20.0,
        "extractor": {
            "feature_size": 16,
            "sampling_rate": 16_000,
            "hop_length": 160,
            "fft_window_size": 512,
            "frequency_min": 0,
            "frequency_max": 7_000,
            "padding": "pad",
        },
    },
    "unusual_fused": {
        "audio": AUDIO
        | {
            "enable_fusion": True,
            "patch_embeds_hidden_size": 10,
            "hidden_size": 40,
            "aff_block_r": 3,
        },
        "text": TEXT,
        "projection_dim": 16,
        "extractor": {"padding": "repeat", "frequency_max": 16_000},
    },
}


@functools.cache
def transformers() -> ModuleType:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


@functools.cache
def tokenizer() -> tokenize.Tokenizer:
    """RoBERTa's layout, learned from a few sentences (none can be downloaded)."""
    return tokenize.train(SENTENCES, 300, 77)


def model(
    seed: int, audio: dict, text: dict, extractor: dict | None = None, **top: Any
) -> Any:
    """A ClapModel whose weights are all different, of scales that keep signals alive."""
    del extractor
    import torch

    text = {"vocab_size": tokenizer().vocab_size} | text
    config = transformers().ClapConfig(audio_config=audio, text_config=text, **top)
    found = transformers().ClapModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in found.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        z = torch.randn(tensor.shape, generator=generator)
        if key.endswith("batch_norm.running_mean"):
            z = -30 + 5 * z
        elif key.endswith("batch_norm.running_var"):
            z = 200 * torch.exp(0.2 * z)
        elif key.endswith("running_var"):
            z = torch.exp(0.2 * z)
        elif z.ndim > 1 and "embeddings" not in key and "bias_table" not in key:
            z = z / z[0].numel() ** 0.5
        elif z.ndim == 1 and key.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.1 * z
        tensor.copy_(z)
    # Not equal, so that nobody can take one for the other.
    found.state_dict()["logit_scale_a"].fill_(2.5)
    found.state_dict()["logit_scale_t"].fill_(1.9)
    return found


def extractor(model: Any, **options: Any) -> Any:
    """The ClapFeatureExtractor that belongs to a model."""
    mode = "fusion" if model.config.audio_config.enable_fusion else "rand_trunc"
    make = transformers().ClapFeatureExtractor
    return make(truncation=mode, **({"frequency_min": 50} | options))


def save(folder: Path, model: Any, extractor: Any, *, pickled: bool = False) -> Path:
    """A folder as `save_pretrained` leaves it; `pickled` with PyTorch's .bin."""
    import torch

    model.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    processor = transformers().ClapProcessor(extractor, tokenizer().tokenizer)
    processor.save_pretrained(folder)
    return folder


def waves(extractor: Any, seconds: tuple[float, ...]) -> list[np.ndarray]:
    """Sounds with tones and noise at the extractor's rate, float32."""
    rng = np.random.default_rng(0)
    rate_hz, found = extractor.sampling_rate, []
    for length in seconds:
        time = np.arange(int(length * rate_hz)) / rate_hz
        tone = np.sin(2 * np.pi * rng.uniform(100, 3000) * time * (1 + time / 20))
        noise = rng.normal(0, rng.uniform(0.01, 0.1), len(time))
        found.append((0.3 * tone + noise).astype(np.float32))
    return found
