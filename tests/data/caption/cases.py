"""Clips with labels, and a tiny T5 of random weights, for the tests of captions."""

import itertools
import json
import random
from pathlib import Path

LABELS = (
    *("dog", "rain", "church bells", "engine", "man speaking", "water", "sea waves"),
    *("crowd", "clock", "thunder", "piano", "siren", "wind", "bird", "footsteps"),
    *("door", "laughter", "train", "insect", "crackling fire"),
)


def clips(count: int) -> list[tuple[str, list[str]]]:
    """(id, labels) of so many clips with one to four labels each."""
    rng = random.Random(5)
    return [
        (f"clips/{number}.wav", rng.sample(LABELS, 1 + number % 4))
        for number in range(count)
    ]


def write_table(path: Path, count: int, **columns) -> Path:
    """A JSON lines table of `clips`; no audio is there. columns: lists of more."""
    rows = zip(clips(count), *columns.values(), strict=True)
    lines = [
        {"path": name, "tags": tags} | dict(zip(columns, more, strict=True))
        for (name, tags), *more in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines(path: Path) -> list[dict]:
    """The lines of a file of captions."""
    return list(map(json.loads, path.read_text().splitlines()))


def save_t5(folder: Path, words: int = 60) -> Path:
    """An encoder-decoder of one layer and its tokenizer, a word a token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    spoken = itertools.chain.from_iterable(map(str.split, LABELS))
    more = [f"word{number}" for number in range(words)]
    tokens = ["<pad>", "</s>", "<unk>", *dict.fromkeys([*spoken, *more, "|"])]
    tokenizer = Tokenizer(
        models.WordLevel({token: n for n, token in enumerate(tokens)}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokens),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    torch.manual_seed(2)
    # Answers of all kinds: weights that matter, and ends that may come early.
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.6)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens.index("</s>")] *= 3
    model.save_pretrained(folder)
    return folder
