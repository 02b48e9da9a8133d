"""A fixed set of made sounds and texts, and what a model's towers say to them.

Enough to tell whether a conversion went wrong or two models differ; nothing is read
from disk but the tokenizer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio import views
from clap_jax.audio.mel import Frontend
from clap_jax.models import captioner, classifier, temporal, zoo
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.classifier import ClassifierSpec
from clap_jax.models.dual import l2_normalise
from clap_jax.models.tower import Sound
from clap_jax.text import tokenize

TEXTS = (
    "a dog barks",
    "heavy rain falls on a roof",
    "a woman speaks while a crowd applauds",
    "an acoustic guitar plays a slow melody",
    "the engine of a truck starts and idles",
    "birds sing in a forest",
    "glass breaks",
    "a violin and a piano play together in a concert hall",
)

# Rows that are encoded at a time: a large HTSAT needs a GiB for eight.
_ROWS = 4

# Bytes of variables after which the memory of mapped pages is given back.
_RELEASE_BYTES = 2**26

# Tokens of a probe text, at most.
_LENGTH = 32


def waves(rate_hz: int, samples: int) -> np.ndarray:
    """Eight sounds that nobody confuses, float32 [8, samples] in [-1, 1]."""
    seconds = np.arange(samples) / rate_hz
    noise = np.random.default_rng(0).standard_normal((3, samples))
    beat = np.exp(-12 * (seconds * 3 % 1))
    octaves = np.minimum(seconds, 10) / 10 * 6
    sounds = [
        np.sin(2 * np.pi * 440 * seconds),
        sum(np.sin(2 * np.pi * 130 * k * seconds) / k for k in range(1, 20)),
        np.sin(2 * np.pi * 100 / (6 / 10 * np.log(2)) * 2**octaves),
        noise[0],
        np.cumsum(noise[1] - noise[1].mean()),
        noise[2] * beat,
        np.sin(2 * np.pi * 3000 * seconds) * (seconds * 2 % 1 < 0.1),
        np.sin(2 * np.pi * 220 * seconds + 8 * np.sin(2 * np.pi * 5 * seconds)),
    ]
    sounds = np.stack(sounds)
    sounds *= 0.5 / np.abs(sounds).max(axis=1, keepdims=True)
    return np.round(sounds * 32767).astype(np.float32) / np.float32(32767)


def sound(frontend: Frontend) -> Sound:
    """The eight sounds as a front end's tower hears them.

    With views, every other one is half as long again as the window.
    """
    samples = frontend.clip_samples
    if frontend.views == 1:
        mel = frontend_lib.log_mels(waves(frontend.rate_hz, samples), frontend)
        if not frontend.whole_clip:
            return Sound(mel)
        return Sound(mel, frames=np.full(len(mel), mel.shape[1], np.int32))
    stacks = []
    for i, wave in enumerate(waves(frontend.rate_hz, samples * 3 // 2)):
        mel = frontend_lib.log_mel(wave if i % 2 else wave[:samples], frontend)
        stacks.append(views.views(mel, frontend.clip_frames))
    return Sound(np.stack([x for x, _ in stacks]), np.array([x for _, x in stacks]))


def tokens(spec: zoo.Spec, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [8, L] and mask bool [8, L] of `TEXTS`.

    Without a tokenizer (`folder` is None) random ids that the model has, between its
    start and end token. Errors: ValueError on a tokenizer that is not the model's.
    """
    length = min(_LENGTH, spec.text_length)
    if folder is not None:
        ids, mask = tokenize.load(folder, length, spec.tokenizer_style)(TEXTS)
        if ids.max() >= spec.vocab_size:
            raise ValueError(
                f"{folder} gives the token {ids.max()}; the model has {spec.vocab_size}"
            )
        return ids, mask
    start, end, low = _special(spec)
    rng = np.random.default_rng(0)
    ids = np.zeros((len(TEXTS), length), np.int32)
    ids += spec.text.options.get("pad_id", 0)
    mask = np.zeros(ids.shape, bool)
    for i in range(len(ids)):
        count = min(4 + 2 * i, length)
        row = rng.integers(low, max(spec.vocab_size - 2, low + 1), count)
        row[0], row[-1] = row[0] if start is None else start, end
        ids[i, :count], mask[i, :count] = row, True
    return ids, mask


def _special(spec: zoo.Spec) -> tuple[int | None, int, int]:
    """Start and end token, and the lowest id of a word."""
    last = spec.vocab_size - 1
    if spec.text.kind == "gpt2":
        return None, min(spec.text.options["end_id"], last), 1
    if spec.text.kind == "clip_text":
        return last - 1, last, 1
    if spec.text.options.get("positions") == "bert" and last > 1000:
        return 101, 102, 999
    return 0, min(2, last), min(5, last)


def audio_embeddings(
    spec: zoo.Spec | CaptionerSpec | ClassifierSpec,
    variables: Mapping[str, Any],
    release: Callable[[], None],
) -> np.ndarray:
    """Embeddings of the eight sounds, float32 [8, E], rows of length one.

    release: called now and then while the variables are copied, see `Converted`.
    """
    heard = sound(spec.frontend)
    if isinstance(spec, CaptionerSpec):
        encode = captioner.build(spec).prefix
    elif isinstance(spec, ClassifierSpec):
        features = classifier.build(spec).features

        def encode(part: Any, x: Sound) -> Any:
            return l2_normalise(features(part, x)[0][0])

    else:
        dual = zoo.build(spec)

        def encode(part: Any, x: Sound) -> Any:
            return temporal.whole(dual.encode_audio(part, x)[0][0])

    return _in_parts(encode, _side(variables, "audio", release), heard)


def text_embeddings(
    spec: zoo.Spec,
    variables: Mapping[str, Any],
    tokenizer: Path | None,
    release: Callable[[], None],
) -> np.ndarray:
    """Embeddings of the eight texts, float32 [8, E], rows of length one."""
    dual = zoo.build(spec)

    def encode(part: Any, x: tuple[Any, Any]) -> Any:
        return temporal.whole(dual.encode_text(part, *x)[0][0])

    side = _side(variables, "text", release)
    return _in_parts(encode, side, tokens(spec, tokenizer))


def _side(
    variables: Mapping[str, Any], side: str, release: Callable[[], None]
) -> dict[str, Any]:
    """The variables of one tower and its head, on the device."""
    params, names = variables["params"], (side, f"{side}_projection")
    state = variables["state"].get(side, {})
    known = {n: params[n] for n in names if n in params}
    tree = {"params": known, "state": {side: state}}
    leaves, structure = jax.tree.flatten(tree)
    placed, seen = [], 0
    for leaf in leaves:
        placed.append(jax.device_put(leaf))
        seen += leaf.nbytes
        if seen > _RELEASE_BYTES:
            jax.block_until_ready(placed)
            release()
            seen = 0
    return jax.tree.unflatten(structure, placed)


def _in_parts(encode: Callable[..., Any], variables: Any, x: Any) -> np.ndarray:
    """A few rows at a time."""
    run = jax.jit(encode)
    rows = len(jax.tree.leaves(x)[0])
    parts = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + _ROWS], x)
        for i in range(0, rows, _ROWS)
    ]
    return np.concatenate([jax.device_get(run(variables, part)) for part in parts])


@dataclasses.dataclass(frozen=True)
class Closeness:
    """Pairwise cosines of embeddings of different things: mean and largest."""

    mean: float
    largest: float


def closeness(embeddings: np.ndarray) -> Closeness:
    """How alike the rows are, which have length one."""
    pairs = np.triu_indices(len(embeddings), 1)
    cosines = (embeddings.astype(np.float64) @ embeddings.T.astype(np.float64))[pairs]
    return Closeness(float(cosines.mean()), float(cosines.max()))
