"""The calls of other packages over `clap_jax.api`, for code that is there already.

    laion_clap                      from clap_jax.dropin import CLAP_Module
    transformers (ClapModel)        from clap_jax.dropin import ClapModel
    msclap                          from clap_jax.dropin import CLAP

All return numpy arrays, float32, rows of length one. What differs from the originals,
everywhere: results are the same at every call (a clip longer than the model's window is
cut into windows side by side that are averaged, or goes through all four views of a
fused model, and nothing is drawn at random); files and arrays may have any rate, stereo
is mixed down; the architecture is read from the checkpoint. New code is better served
by `clap_jax.load`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clap_jax import api

# What LAION-CLAP's package calls its released models by number.
LAION_FILES = (
    "lukewys/laion_clap/630k-best.pt",
    "lukewys/laion_clap/630k-audioset-best.pt",
    "lukewys/laion_clap/630k-fusion-best.pt",
    "lukewys/laion_clap/630k-audioset-fusion-best.pt",
)
MSCLAP_FILES = {
    "2022": "microsoft/msclap/CLAP_weights_2022.pth",
    "2023": "microsoft/msclap/CLAP_weights_2023.pth",
}

# LAION-CLAP's names of towers, and ours.
_AUDIO_NAMES = {
    "HTSAT-tiny": "htsat_tiny",
    "HTSAT-base": "htsat_base",
    "HTSAT-large": "htsat_large",
    "PANN-14": "pann14",
    "PANN-10": "pann10",
    "PANN-6": "pann6",
}
_TEXT_NAMES = {
    "roberta": "roberta",
    "bert": "bert",
    "bart": "bart",
    "transformer": "clip",
}


class CLAP_Module:
    """`laion_clap.CLAP_Module`.

    enable_fusion, amodel, tmodel: checked against the checkpoint; where they differ,
        the checkpoint is right and a warning says so. device: ignored (JAX's first).
    tokenizer: as in `clap_jax.load`.
    """

    def __init__(
        self,
        enable_fusion: bool = False,
        device: Any = None,
        amodel: str = "HTSAT-tiny",
        tmodel: str = "roberta",
        *,
        tokenizer: str | Path | None = None,
    ):
        del device
        for name, known in ((amodel, _AUDIO_NAMES), (tmodel, _TEXT_NAMES)):
            if name not in known:
                raise ValueError(f"{name!r} is none of {', '.join(known)}")
        self.enable_fusion, self.clap = enable_fusion, None
        fusion = "fusion_" if enable_fusion else ""
        self._wanted = f"laion_{_AUDIO_NAMES[amodel]}_{fusion}{_TEXT_NAMES[tmodel]}"
        self._tokenizer = tokenizer

    def load_ckpt(
        self,
        ckpt: str | Path | None = None,
        model_id: int = -1,
        verbose: bool = True,
    ) -> None:
        """Load a checkpoint: a path, or a released one by its number (0 to 3).

        Without either, LAION's default: 3 with fusion, else 1, from the hub's cache or
        the hub. Any path that `clap_jax.load` takes is taken. verbose: ignored.
        """
        del verbose
        if ckpt is None:
            number = model_id if model_id != -1 else (3 if self.enable_fusion else 1)
            if number not in range(len(LAION_FILES)):
                raise ValueError(f"model_id is {model_id}, expected 0 to 3, or -1")
            ckpt = LAION_FILES[number]
        self.clap = api.load(ckpt, tokenizer=self._tokenizer)
        found = self.clap.spec.name
        if found != self._wanted:
            logging.warning("%s is %s, not %s", ckpt, found, self._wanted)

    def get_audio_embedding_from_filelist(
        self, x: Sequence[str], use_tensor: bool = False
    ) -> np.ndarray:
        """Embeddings float32 [N, E] of files."""
        return self._loaded(use_tensor).embed_audio(list(x))

    def get_audio_embedding_from_data(
        self, x: Any, use_tensor: bool = False
    ) -> np.ndarray:
        """Embeddings float32 [N, E] of waves [N, T] at the model's rate, 48 kHz."""
        clap = self._loaded(use_tensor)
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}, expected (N, T)")
        rate_hz = clap.spec.frontend.rate_hz
        return clap.embed_audio([(wave, rate_hz) for wave in x])

    def get_text_embedding(
        self, x: Sequence[str], tokenizer: Any = None, use_tensor: bool = False
    ) -> np.ndarray:
        """Embeddings float32 [N, E] of texts, one text included."""
        if tokenizer is not None:
            raise ValueError(
                "a tokenizer for one call is not taken: give CLAP_Module or "
                "clap_jax.load a folder, tokenizer=FOLDER"
            )
        return self._loaded(use_tensor).embed_text(x)

    def _loaded(self, use_tensor: bool) -> api.Clap:
        if use_tensor:
            raise ValueError(
                "use_tensor=True is not there, results are numpy arrays: "
                "torch.from_numpy makes tensors of them"
            )
        if self.clap is None:
            raise ValueError("no weights yet: call load_ckpt first")
        return self.clap


class ClapModel:
    """`transformers.ClapModel` together with its processor: sounds and texts go in.

    The original takes what its processor made; here there is no processor, and flags
    such as `is_longer` follow from the sound alone, not from chance.
    """

    def __init__(self, clap: api.Clap):
        self.clap = clap

    @classmethod
    def from_pretrained(
        cls, where: str | Path, *, tokenizer: str | Path | None = None
    ) -> "ClapModel":
        """From a folder of `save_pretrained`, or what else `clap_jax.load` takes."""
        return cls(api.load(where, tokenizer=tokenizer))

    def get_audio_features(
        self, audio: Any, sampling_rate: float | None = None
    ) -> np.ndarray:
        """Embeddings float32 [n, E] of one wave [T] or of a sequence of them.

        sampling_rate: Hz; the model's own rate when none is given. Paths are taken too.
        """
        rate_hz = sampling_rate or self.clap.spec.frontend.rate_hz
        if isinstance(audio, str | Path) or getattr(audio, "ndim", 0) == 1:
            audio = [audio]
        elif len(audio) and isinstance(audio[0], int | float):
            audio = [np.asarray(audio)]
        return self.clap.embed_audio(
            [
                clip if isinstance(clip, str | Path) else (np.asarray(clip), rate_hz)
                for clip in audio
            ]
        )

    def get_text_features(self, text: str | Sequence[str]) -> np.ndarray:
        """Embeddings float32 [n, E] of one text or several."""
        return self.clap.embed_text(text)


class CLAP:
    """`msclap.CLAP`.

    The original's embeddings are not normalised; these are, which changes neither
    `compute_similarity` nor any cosine. Stereo is mixed down and not, as there, played
    one channel after the other.

    model_fp: a path or hub id, or None for the released weights of `version` ("2022" or
        "2023"), from the hub's cache or the hub. use_cuda: ignored, JAX's first device.
    """

    def __init__(
        self,
        model_fp: str | Path | None = None,
        version: str = "2023",
        use_cuda: bool = False,
        *,
        tokenizer: str | Path | None = None,
    ):
        del use_cuda
        if version not in MSCLAP_FILES:
            raise ValueError(
                f"version is {version!r}, expected {' or '.join(MSCLAP_FILES)}"
            )
        self.clap = api.load(model_fp or MSCLAP_FILES[version], tokenizer=tokenizer)

    def get_audio_embeddings(
        self, audio_files: Sequence[str], resample: bool = True
    ) -> np.ndarray:
        """Embeddings float32 [n, E] of files. resample: always done where needed."""
        del resample
        return self.clap.embed_audio(list(audio_files))

    def get_text_embeddings(self, class_labels: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [n, E] of texts."""
        return self.clap.embed_text(list(class_labels))

    def compute_similarity(
        self, audio_embeddings: np.ndarray, text_embeddings: np.ndarray
    ) -> np.ndarray:
        """The scaled cosine of every pair, float32 [n, m]."""
        return self.clap.score(_unit(audio_embeddings), _unit(text_embeddings))


def _unit(embeddings: Any) -> np.ndarray:
    embeddings = np.asarray(embeddings, np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
