"""Captions to token ids: pretrained tokenizers, or one trained on the captions."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from clap_jax import config as config_lib

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Special tokens of `train`, ids 0 to 4 (the first four are RoBERTa's)."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
"""The special tokens and every byte."""


class Rows(NamedTuple):
    """Tokens of n texts: ids int32 [n, L], and mask bool [n, L], true where there is one."""

    ids: np.ndarray
    mask: np.ndarray


class Tokenizer:
    """A Hugging Face fast tokenizer that truncates and pads to one length.

    Safe in threads and worker processes: the state of the Rust tokenizer is set once,
    here, and its own thread pool, which does not survive a fork, is never started.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", length: int):
        """length: tokens L of every text, special tokens included."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer")
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token: set its pad_token")
        # A copy, so that nobody else changes its truncation in the middle of a batch.
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        special = backend.num_special_tokens_to_add(is_pair=False)
        if length <= special:
            raise ValueError(
                f"length is {length}, expected more than the {special} special tokens"
            )
        backend.no_padding()
        backend.enable_truncation(length)
        self.tokenizer, self.length, self._backend = tokenizer, length, backend
        self._shorter: dict[int, Tokenizer] = {}

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: one more than the highest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.pad_token_id

    def __call__(self, texts: Sequence[str]) -> Rows:
        """Ids int32 [n, L] and mask bool [n, L], True where there is a token.

        Raises ValueError for a text that is empty, blank or not a string.
        """
        if isinstance(texts, str):
            raise TypeError(f"expected a sequence of texts, found the text {texts!r}")
        ids = np.full((len(texts), self.length), self.pad_id, np.int32)
        mask = np.zeros((len(texts), self.length), bool)
        for row, text in enumerate(texts):
            found = self._encode(text, f"text {row}")
            ids[row, : len(found)] = found
            mask[row, : len(found)] = True
        return Rows(ids, mask)

    def count(self, text: str) -> int:
        """Tokens of a text, L at most, special ones included. ValueError as above."""
        return len(self._encode(text, "the text"))

    def shorter(self, length: int) -> "Tokenizer":
        """The same tokenizer, which cuts texts after fewer tokens."""
        if length not in self._shorter:
            self._shorter[length] = Tokenizer(self.tokenizer, length)
        return self._shorter[length]

    def _encode(self, text: str, name: str) -> list[int]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is {text!r}, expected words")
        return self._backend.encode(text).ids

    @property
    def ending(self) -> tuple[int, ...]:
        """Ids that end a text: the special tokens behind it, or the end token.

        Raises ValueError for a tokenizer that has neither.
        """
        found = self._backend.encode("a")
        own = [i for i, special in enumerate(found.special_tokens_mask) if not special]
        behind = tuple(found.ids[own[-1] + 1 :])
        if behind or self.tokenizer.eos_token_id is not None:
            return behind or (self.tokenizer.eos_token_id,)
        raise ValueError("the tokenizer has no end token: set its eos_token")

    def pieces(self, text: str) -> list[int]:
        """Ids of a text alone, without special tokens, at most L of them."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it, as characters; special ones, which
        stand nowhere, have (0, 0)."""
        return self._backend.encode(text).offsets

    def text(self, ids: Sequence[int]) -> str:
        """The text that these ids stand for, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        """All that the ids of a text depend on: equal for equal tokenizers."""
        return self._backend.to_str()

    def save(self, folder: str | os.PathLike) -> None:
        """Write Hugging Face's tokenizer files into `folder`, whole or not at all."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
        try:
            self.tokenizer.save_pretrained(fresh)
            if folder.is_dir():  # it may hold more than the tokenizer
                for file in fresh.iterdir():
                    os.replace(file, folder / file.name)
            else:
                os.rename(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def load(
    path_or_hub_id: str | os.PathLike, length: int, style: str = "plain"
) -> Tokenizer:
    """A tokenizer from a folder, or from the Hugging Face hub (its local cache first).

    style: a name in `STYLES`. A folder that `Tokenizer.save` wrote may be loaded with
    the same style again. Raises ValueError on an unknown style, on a tokenizer that the
    style does not fit, and when there is none in either place.
    """
    if style not in STYLES:
        raise ValueError(config_lib.unknown("tokenizer style", style, STYLES))
    return Tokenizer(STYLES[style](_find(os.fspath(path_or_hub_id))), length)


def _find(where: str) -> "PreTrainedTokenizerFast":
    if os.path.isdir(where):
        try:
            return _from_files(where)
        except OSError as error:
            raise ValueError(
                f"{where}: no tokenizer in this folder, expected tokenizer.json and "
                f"tokenizer_config.json ({_first_line(error)})"
            ) from error
    with contextlib.suppress(OSError):
        return _from_files(where)
    try:
        return _from_files(_download(where))
    except OSError as error:
        raise ValueError(
            f"tokenizer {where!r} is not a folder here, is not in the local cache and "
            f"cannot be had from the Hugging Face hub ({_first_line(error)}). Give a "
            "folder with tokenizer.json, or connect once so that it gets into the cache, "
            "or leave the name empty to train a tokenizer on the captions."
        ) from error


def _plain(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    return tokenizer


def _msclap(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """GPT-2's tokenizer as MS-CLAP 2023 uses it (`CLAPWrapper.preprocess_text`).

    MS-CLAP puts " <|endoftext|>" behind every text, so that it ends with a lone space
    and the end token. Here both are put there as special tokens, which cutting a long
    text spares; MS-CLAP does not cut, and fails on texts of different lengths.
    Padding is "!", whose id is 0. As a special token it is also a token of its own
    within a text ("!!!" is three of them), as in MS-CLAP.
    """
    names = ("\u0120", "<|endoftext|>")  # a space, in GPT-2's alphabet of bytes
    backend = tokenizer.backend_tokenizer
    ids = {name: backend.token_to_id(name) for name in (*names, "!")}
    absent = [name for name, index in ids.items() if index is None]
    if absent:
        raise ValueError(
            f"a tokenizer of style msclap needs GPT-2's tokens {', '.join(absent)}"
        )
    tokenizer.add_special_tokens({"pad_token": "!"})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {names[0]} {names[1]}",
        special_tokens=[(name, ids[name]) for name in names],
    )
    return tokenizer


STYLES: dict[str, Callable] = {"plain": _plain, "msclap": _msclap}
"""How a tokenizer is changed before its use: by name, see `load`."""


def train(texts: Iterable[str], vocab_size: int, length: int) -> Tokenizer:
    """Byte-level BPE learned from `texts`, with RoBERTa's layout `<s> text </s>`.

    The same texts give the same tokenizer. It has `vocab_size` tokens at most: fewer
    where the texts have nothing more to merge.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected {MIN_VOCAB_SIZE} or more: the "
            "special tokens and every byte"
        )
    start, pad, end, unknown, mask = SPECIAL_TOKENS
    backend = tokenizers.Tokenizer(models.BPE())
    # With the space, a word is the same token at the start and within a caption.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with _one_thread():
        backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (start, end)],
    )
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=length,
    )
    return Tokenizer(tokenizer, length)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the Rust library from starting threads, of which it warns at every fork."""
    variable = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(variable)
    os.environ[variable] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _transformers() -> ModuleType:
    """The library, imported at first use (it takes a second) and without its advice
    that PyTorch, which tokenizers do not need, is not here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _from_files(where: str) -> "PreTrainedTokenizerFast":
    """From a folder, or by id from the local cache. OSError when there is none."""
    try:
        return _transformers().AutoTokenizer.from_pretrained(
            where, local_files_only=True
        )
    except ValueError as error:  # which of the two depends on the files that there are
        raise OSError(_first_line(error)) from error


def _download(hub_id: str) -> str:
    """Folder with the files of a tokenizer of the hub. OSError without a connection.

    AutoTokenizer would do, but retries for most of a minute when there is no network.
    """
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            hub_id, allow_patterns=["*.json", "vocab.txt", "merges.txt", "*.model"]
        )
    except ValueError as error:  # not an id at all
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
