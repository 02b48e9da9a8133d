"""The options of `python -m data.caption --by=captioner`; what it does is `bootstrap`."""

import argparse
import functools
from typing import Any

from clap_jax.pipeline.tags import TagRule
from data.caption.criteria import FILTERS
from data.caption.filters import Filters
from data.caption.tags import TagWords

KIND = "captioner"
"""The origin of these captions, as configs name it."""

TAG_RULE = "0.3_top5"
"""As AudioCaption chooses the tags that guide its captioners."""

# Options of decoding, as `decode_options.Options` and `Clap.caption` know them.
DECODING = {
    "length": (int, "tokens of a caption at most, its end included"),
    "top_k": (int, "sample: of so many likeliest tokens"),
    "top_p": (float, "sample: of the fewest tokens with this share"),
    "alpha": (float, "scores are divided by the length to this power"),
    "min_length": (int, "tokens of a caption at least"),
    "no_repeat_ngram": (int, "no so many tokens in a row come twice"),
}
# Which other ways of making captions have as well, with defaults of their own.
SHARED = ("beams", "temperature")

# Options of other ways that this one does without.
OTHERS = ("prompt", "rules", "url", "body", "min_seconds")


def add_options(group: Any, of_filters: Any) -> None:
    """Add what only captioners take to a command line."""
    add = group.add_argument
    add("--n", type=int, default=1, help="captions a clip (default: %(default)s)")
    add("--method", default="beam", help="beam (default), greedy or sample")
    for name, (kind, what) in DECODING.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=what)
    add("--tags", default="", metavar="FILE", help="tags of clips by id")
    add("--tagger", default="", metavar="MODEL", help="for clips without labels")
    add("--tagger-labels", default="", metavar="FILE", help="its classes, in order")
    add("--tagger-frontend", default="", metavar="NAME", help="where it tells none")
    rule = "which likely tags count (default: %(default)s)"
    add("--tag-rule", default=TAG_RULE, help=rule)
    add("--soft-tags", action="store_true", help="the captioner hears how likely")
    add("--no-tags", action="store_true", help="nothing guides the captioner")
    add("--clap", default="", metavar="MODEL", help="scores captions and clips")
    add("--exclude", default="", metavar="FILE", help="ids to leave out, one a line")
    workers = "processes, each with its own models (default: %(default)s)"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--parts", default="", metavar="FOLDER", help="of blocks (OUT.parts)")
    add = of_filters.add_argument
    for row in FILTERS:
        if row.option == "max_words":  # other ways know it, too
            continue
        default = "off" if row.default is None else f"{row.default:g}"
        says = f"{row.name}: {row.says.format('N')} (default: {default})"
        kind = functools.partial(_threshold, whole=row.allowed[0] == 1)
        add(f"--{row.option.replace('_', '-')}", type=kind, metavar="N", help=says)
    add("--tag-words", default="", metavar="FILE", help="words that name tags")


def _threshold(text: str, whole: bool) -> float | str:
    """A number, or "off"."""
    if text == "off":
        return text
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor off") from None


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot be, or that lack another."""
    if not options.model:
        raise ValueError("--by=captioner needs --model")
    for name in OTHERS:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is not for --by=captioner")
    if options.n < 1:
        raise ValueError(f"--n is {options.n}, expected 1 or more")
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}, expected 1 or more")
    TagRule.parse(options.tag_rule)
    threshold = options.min_clap_score
    if threshold is not None and threshold != "off" and not options.clap:
        raise ValueError("--min-clap-score needs --clap, the model that scores")
    if options.no_tags:
        for name in ("tags", "tagger", "soft_tags"):
            if getattr(options, name):
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} and --no-tags exclude each other")


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """The options of decoding that are given."""
    found = {name: getattr(options, name) for name in (*SHARED, *DECODING)}
    return {name: value for name, value in found.items() if value is not None}


def filters(options: argparse.Namespace) -> Filters:
    """The filters with the thresholds that are given. Raises ValueError."""
    thresholds: dict[str, float | None] = {}
    for row in FILTERS:
        value = getattr(options, row.option)
        if value is not None:
            thresholds[row.option] = None if value == "off" else value
    words = TagWords(options.tag_words) if options.tag_words else None
    return Filters(thresholds, words)
