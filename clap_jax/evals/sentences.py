"""How near sentences are in meaning, by a sentence-BERT from the hub or a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FENSE_MODEL = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
"""What FENSE compares captions of sounds with (Zhou et al. 2022, arXiv 2110.04684)."""

# Longer sentences are cut, as this model's own configuration says.
MAX_TOKENS = 128


class SentencesError(RuntimeError):
    """A model that cannot be had; says why and what would help."""


class Sentences:
    """Embeds sentences: the mean over tokens of what a BERT makes of them.

    Args:
        model: id on the hub, or a folder, of a sentence-BERT that averages its tokens, as
            `FENSE_MODEL` does.
        batch_size: sentences at a time.

    Raises SentencesError where transformers has no PyTorch, or there is no such model.
    """

    def __init__(self, model: str | Path, batch_size: int = 32):
        from transformers import AutoModel, AutoTokenizer, is_torch_available

        if not is_torch_available():
            raise SentencesError(
                "sentence similarity needs PyTorch: pip install -e .[torch]"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(model))
            self._model = AutoModel.from_pretrained(str(model))
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise SentencesError(
                f"the model {str(model)!r} cannot be had: give the id of a model of the "
                f"hub, such as {FENSE_MODEL}, or a folder ({why:.200})"
            ) from None
        self._model.eval().requires_grad_(False)
        longest = getattr(self._model.config, "max_position_embeddings", MAX_TOKENS)
        self._tokens, self._batch_size = min(MAX_TOKENS, longest), batch_size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of unit length, float32 [n, D]; a text that repeats is run once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        # Sentences of like length together need little padding.
        ordered = sorted(place, key=len)
        rows: dict[str, np.ndarray] = {}
        for start in range(0, len(ordered), self._batch_size):
            part = ordered[start : start + self._batch_size]
            rows |= zip(part, self._embed(part), strict=True)
        return np.stack([rows[text] for text in texts])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        batch: Any = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        )
        hidden = self._model(**batch).last_hidden_state.numpy()
        mask = batch["attention_mask"].numpy()[..., None].astype(np.float32)
        mean = (hidden * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def similarity(
    embed: Sentences, captions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
    """The mean cosine of each caption with its references, float64 [n].

    It is FENSE without the penalty for broken language, whose detector no package
    offers for present versions of what it needs.
    """
    z = embed([*captions, *(text for own in references for text in own)])
    z = z.astype(np.float64)
    ends = len(captions) + np.cumsum([len(own) for own in references])
    begins = [len(captions), *ends[:-1]]
    return np.array(
        [
            (z[begin:end] @ row).mean()
            for row, begin, end in zip(z, begins, ends)  # z begins with the captions
        ]
    )
