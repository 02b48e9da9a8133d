"""A tokenizer that is loaded at the first text: sounds do without one."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from clap_jax.text.tokenize import Tokenizer


class LateTokenizer:
    """Stands in for the `Tokenizer` that `load` gives, which is called once, if at all.

    It raises what `load` raises, whenever the tokenizer is used.
    """

    def __init__(self, load: Callable[[], Tokenizer]):
        self._load: Callable[[], Tokenizer] = load
        self._found: Tokenizer | None = None

    @property
    def found(self) -> Tokenizer:
        """The tokenizer itself."""
        if self._found is None:
            self._found = self._load()
        return self._found

    @property
    def vocab_size(self) -> int:
        """As `Tokenizer.vocab_size`."""
        return self.found.vocab_size

    @property
    def length(self) -> int:
        """As `Tokenizer.length`."""
        return self.found.length

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.__call__`."""
        return self.found(texts)

    def places(self, text: str) -> list[tuple[int, int]]:
        """As `Tokenizer.places`."""
        return self.found.places(text)

    def save(self, folder: str | os.PathLike) -> None:
        """As `Tokenizer.save`."""
        self.found.save(folder)
