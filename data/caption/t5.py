"""Captions by T5, or any encoder-decoder model of the `transformers` library."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import clap_jax
from data.caption.answers import Answer, clean, problem
from data.caption.clips import Clip

BATCHES_IN_A_GROUP = 16

MAX_PROMPT_TOKENS = 512
"""What T5 was trained with."""

PRECISIONS = ("float32", "bfloat16", "float16")

# What another try is drawn with, since beams would give the same again.
RETRY_TEMPERATURE = 1.0


class T5Error(RuntimeError):
    """A model that cannot be had; one sentence that says what to do."""


class T5:
    """A keyword-to-text model (LAION-CLAP took one of gagan3012/keytotext).

    model: a hub id, or a folder.
    join, prompt: the labels are joined by `join` and put in place of the {} of `prompt`.
        The defaults are keytotext's.
    beams, max_new_tokens: of the search; its other settings are keytotext's. With
        `temperature` above 0 captions are drawn instead, from `seed`.
    tries: answers that are asked for, before there is none; those after the first are
        drawn. max_words: longer answers are broken.
    device: of PyTorch; "": a GPU if there is one.

    Clips are captioned in groups of batches of equal lengths; a group's captions depend
    on its clips and the settings alone (and on the device's arithmetic). Raises T5Error.
    """

    def __init__(
        self,
        model: str,
        join: str = "| ",
        prompt: str = "{}",
        batch_size: int = 64,
        beams: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        tries: int = 3,
        max_words: int = 50,
        device: str = "",
        precision: str = "float32",
    ):
        self.group = BATCHES_IN_A_GROUP * batch_size
        self._batch_size, self._device = batch_size, device
        self._settings = {
            "join": join,
            "prompt": prompt,
            "beams": beams,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "tries": tries,
            "max_words": max_words,
            "precision": precision,
            "batch_size": batch_size,  # last digits depend on it
        }
        self._name = model
        self._torch, self._transformers = _libraries()
        self._tokenizer, self._model = self._load(model, precision)

    def _load(self, name: str, precision: str) -> tuple[Any, Any]:
        torch, transformers = self._torch, self._transformers
        if not self._device:
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                name, dtype=getattr(torch, precision)
            )
            return tokenizer, model.to(self._device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise T5Error(
                f"{name}: no encoder-decoder model and tokenizer can be loaded from "
                f"this folder or hub id: {first}"
            ) from None

    def origin(self) -> dict[str, Any]:
        """The model with its commit, where it has one, and what was asked of it."""
        libraries = (clap_jax, self._transformers, self._torch)
        versions = [
            f"{library.__name__} {library.__version__}" for library in libraries
        ]
        commit = getattr(self._model.config, "_commit_hash", None)
        return {
            "kind": "t5",
            "model": self._name,
            "version": ", ".join(
                [*([f"commit {commit}"] if commit else []), *versions]
            ),
            "settings": self._settings,
        }

    def answers(self, clips: Iterable[Clip]) -> Iterator[Answer]:
        """An answer for every clip, in order; the first clip begins a group."""
        for group in _batched(list(clips), self.group):
            yield from self._group(group)

    def _group(self, clips: Sequence[Clip]) -> list[Answer]:
        settings = self._settings
        good: dict[int, str] = {}
        broken: dict[int, list[str]] = {number: [] for number in range(len(clips))}
        for attempt in range(settings["tries"]):
            left = [number for number in broken if number not in good]
            texts = self._ask([clips[number] for number in left], attempt)
            for number, text in zip(left, texts, strict=True):
                names = clips[number].names
                prompt = self._prompt(names)
                found = problem(text, prompt, names, settings["max_words"])
                if found:
                    broken[number].append(found)
                else:
                    good[number] = text
        return [Answer(good.get(n, ""), tuple(broken[n])) for n in broken]

    def _ask(self, clips: Sequence[Clip], attempt: int) -> list[str]:
        """A text for every clip; equal labels are asked about once, unless drawn."""
        drawn = attempt > 0 or self._settings["temperature"] > 0
        keys = [(self._prompt(clip.names), clip.id if drawn else "") for clip in clips]
        asked = list(dict.fromkeys(keys))
        ids = dict(
            zip(asked, self._tokens([prompt for prompt, _ in asked]), strict=True)
        )
        asked.sort(key=lambda key: (len(ids[key]), key))
        texts: dict[tuple[str, str], str] = {}
        for batch in _batched(asked, self._batch_size):
            seed = zlib.crc32(f"{self._settings['seed']}/{attempt}/{batch}".encode())
            found = self._generate([ids[key] for key in batch], drawn, seed)
            texts |= zip(batch, map(clean, found), strict=True)
        return [texts[key] for key in keys]

    def _prompt(self, names: Sequence[str]) -> str:
        # Not str.format: other braces mean themselves.
        return self._settings["prompt"].replace(
            "{}", self._settings["join"].join(names)
        )

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        if not prompts:
            return []
        options = {"truncation": True, "max_length": MAX_PROMPT_TOKENS}
        return self._tokenizer(list(prompts), **options)["input_ids"]

    def _generate(
        self, ids: Sequence[Sequence[int]], drawn: bool, seed: int
    ) -> list[str]:
        torch = self._torch
        search = self._search(drawn)
        rows = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=search.pad_token_id
        )
        lengths = torch.tensor([[len(row)] for row in rows])
        mask = (torch.arange(padded.shape[1]) < lengths).long()
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            found = self._model.generate(
                input_ids=padded.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=search,
            )
        return self._tokenizer.batch_decode(found, skip_special_tokens=True)

    def _search(self, drawn: bool) -> Any:
        """How answers are searched for, in the words of transformers."""
        settings, own = self._settings, self._model.generation_config
        options: dict[str, Any] = {
            "max_new_tokens": settings["max_new_tokens"],
            "no_repeat_ngram_size": 3,
            "decoder_start_token_id": own.decoder_start_token_id,
            "eos_token_id": own.eos_token_id,
            "pad_token_id": own.pad_token_id,
        }
        if drawn:
            temperature = settings["temperature"] or RETRY_TEMPERATURE
            options |= {"do_sample": True, "temperature": temperature}
        elif settings["beams"] > 1:
            options |= {
                "num_beams": settings["beams"],
                "length_penalty": 1.5,
                "early_stopping": True,
            }
        return self._transformers.GenerationConfig(**options)


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _libraries() -> tuple[Any, Any]:
    """PyTorch and transformers, imported when they are needed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise T5Error(
            f"captions by T5 need PyTorch: pip install 'clap_jax[torch]' ({error})"
        ) from None
    return torch, transformers
