"""Numbers of written captions against those that people wrote.

BLEU, ROUGE-L and CIDEr-D are computed by pycocoevalcap, the Python 3 edition of COCO's
caption evaluation, which is what papers on audio captioning report by way of DCASE; so
are METEOR and SPICE, by its programs in Java. aac-metrics computes the same, but asks for
NumPy 1 and transformers 4, through msclap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clap_jax import config as config_lib
from clap_jax.evals import caption_java, caption_words, sentences

TOKENIZERS = ("auto", "stanford", "words")
BLEU = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4")

Words = list[list[str]]


class Scores(NamedTuple):
    """What was measured of n clips.

    metrics: name -> number. per_clip: of those that are means over clips, float64 [n].
    absent: metric -> why it is not there, and what would help. tokenizer: what split
    captions into words.
    """

    metrics: dict[str, float]
    per_clip: dict[str, np.ndarray]
    absent: dict[str, str]
    tokenizer: str


def measure(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = "auto",
    sentence_model: str | Path = "",
    training: Sequence[str] = (),
) -> Scores:
    """All metrics that can be had; what is missing is listed, not an error.

    Args:
        candidates: a caption for each clip; "" counts as one without words.
        references: one or more captions of each clip.
        tokenizer: "stanford" (needs Java), "words" (`caption_words.words`), or "auto",
            the first where it can be had.
        sentence_model: of `sentences.Sentences`; "" for none.
        training: captions that the captioner was trained on, for `novel_captions`.

    Returns:
        `CIDEr_D` (10 is perfect), `SPIDEr`, `SPICE`, `METEOR`, `ROUGE_L`, `BLEU_1` to
        `BLEU_4`, `sentence_similarity` (a cosine), `mean_words`, `novel_captions`, and
        those of `caption_words.vocabulary`.

    Raises:
        ValueError: no clip, a clip without references, unknown tokenizer.
        JavaError: `tokenizer` is "stanford" and cannot be had.
    """
    _check(candidates, references)
    split, used = _split(
        [*candidates, *(r for own in references for r in own)], tokenizer
    )
    found = Scores({}, {}, {}, used)
    own, of_people = _divided(split, [len(own) for own in references])
    _add_ngram_scores(found, own, of_people)
    _add_java_scores(found, own, of_people)
    _add_similarity(found, candidates, references, sentence_model)
    _add_mean(found, "mean_words", caption_words.lengths(candidates))
    found.metrics.update(caption_words.vocabulary(candidates))
    if training:
        novel = caption_words.novel(candidates, training)
        _add_mean(found, "novel_captions", novel)
    else:
        found.absent["novel_captions"] = "no training captions are given"
    return found


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates or len(candidates) != len(references):
        raise ValueError(
            f"captions: found {len(candidates)} of them and references of "
            f"{len(references)} clips, expected one of each clip"
        )
    for clip, own in enumerate(references):
        if not own or isinstance(own, str):
            raise ValueError(
                f"captions: the references of clip {clip} are {own!r:.60}, expected a "
                "list of one caption or more"
            )


def _split(captions: Sequence[str], tokenizer: str) -> tuple[Words, str]:
    """The words of captions, and what split them."""
    if tokenizer not in TOKENIZERS:
        raise ValueError(config_lib.unknown("tokenizer", tokenizer, TOKENIZERS))
    if tokenizer != "words":
        try:
            return caption_java.tokenize(captions), "stanford"
        except caption_java.JavaError:
            if tokenizer == "stanford":
                raise
    return [caption_words.words(caption) for caption in captions], "words"


def _divided(split: Words, counts: Sequence[int]) -> tuple[Words, list[Words]]:
    """Candidates, and the references of each."""
    ends = len(counts) + np.cumsum(counts)
    return split[: len(counts)], [
        split[end - count : end] for end, count in zip(ends, counts)
    ]


def _add_mean(found: Scores, name: str, values: np.ndarray) -> None:
    values = np.asarray(values, np.float64)
    found.metrics[name], found.per_clip[name] = float(values.mean()), values


def _add_ngram_scores(
    found: Scores, candidates: Words, references: list[Words]
) -> None:
    """CIDEr-D, ROUGE-L and BLEU."""
    missing = caption_java.package_problem()
    if missing:
        found.absent.update(dict.fromkeys(("CIDEr_D", "ROUGE_L", *BLEU), missing))
        return
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    written = {i: [" ".join(own)] for i, own in enumerate(candidates)}
    wanted = {i: [" ".join(one) for one in own] for i, own in enumerate(references)}
    if len(candidates) < 2:
        found.absent["CIDEr_D"] = (
            "of one clip it is always 0: a word is worth the more the fewer clips have it"
        )
    elif not any(word for own in references for one in own for word in one):
        _add_mean(found, "CIDEr_D", np.zeros(len(candidates)))
    else:
        _add_mean(found, "CIDEr_D", Cider().compute_score(wanted, written)[1])
    _add_mean(found, "ROUGE_L", Rouge().compute_score(wanted, written)[1])
    together, _ = Bleu(4).compute_score(wanted, written, verbose=0)
    found.metrics.update(zip(BLEU, map(float, together), strict=True))


def _add_java_scores(found: Scores, candidates: Words, references: list[Words]) -> None:
    """METEOR, SPICE and SPIDEr, the mean of SPICE and CIDEr-D (arXiv 1612.00370)."""
    try:
        found.metrics["METEOR"], _ = caption_java.meteor(candidates, references)
    except caption_java.JavaError as error:
        found.absent["METEOR"] = str(error)
    try:
        _add_mean(found, "SPICE", caption_java.spice(candidates, references))
    except caption_java.JavaError as error:
        found.absent["SPICE"] = found.absent["SPIDEr"] = str(error)
        return
    if "CIDEr_D" in found.absent:
        found.absent["SPIDEr"] = found.absent["CIDEr_D"]
        return
    both = found.per_clip["SPICE"], found.per_clip["CIDEr_D"]
    _add_mean(found, "SPIDEr", np.mean(both, axis=0))


def _add_similarity(
    found: Scores,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    model: str | Path,
) -> None:
    name = "sentence_similarity"
    if not str(model):
        found.absent[name] = (
            f"no sentence_model is given, such as {sentences.FENSE_MODEL} or a folder"
        )
        return
    try:
        embed = sentences.Sentences(model)
    except sentences.SentencesError as error:
        found.absent[name] = str(error)
        return
    _add_mean(found, name, sentences.similarity(embed, candidates, references))


def described(absent: dict[str, str]) -> dict[str, Any]:
    """What is absent, for a result's protocol: reason -> metrics."""
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent.items():
        reasons.setdefault(reason, []).append(metric)
    return {", ".join(metrics): reason for reason, metrics in reasons.items()}
