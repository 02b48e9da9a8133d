"""Captions of clips by a captioner: the plan, its blocks through Beam, and the report."""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from clap_jax import checkpoint, hub, remote
from clap_jax.models import decode
from clap_jax.pipeline import manifest, sources
from data import jobs, listing, pack
from data.caption import blocks, captioner, sift
from data.caption.filters import Filters


def run(options: argparse.Namespace, flags: Sequence[str] = ()) -> int:
    """Caption what the options say; prints what came of it. flags: of Apache Beam.

    Raises ValueError for options that cannot be, what the source raises when nothing of
    it can be used, and JobError when a job fails.
    """
    captioner.check(options)
    jobs.check_flags(flags)
    decoding, filters = check_decoding(options), captioner.filters(options)
    out = pack.absolute(options.out)
    _check_out(out)
    blocks.forget()
    plan, clip_list = make_plan(options, decoding, out)
    print(clip_list.description)
    for line in _warnings(plan):
        print(line, file=sys.stderr, flush=True)
    _work(plan, options.workers, flags)
    listed = {
        "source": clip_list.description,
        "clips_listed": plan.listed,
        "clips_excluded": clip_list.excluded,
        "rejected": [row._asdict() for row in clip_list.rejected],
        "tag_file": plan.tags and {"path": plan.tags, "found": bool(_has_tags(plan))},
    }
    sieve = sift.Sieve(plan, filters)
    result = sift.write(sieve, out, listed)
    print("\n".join(report(out, plan, clip_list, filters, result)))
    return 0


def _work(plan: blocks.Plan, workers: int, flags: Sequence[str]) -> None:
    """Write the blocks that are missing."""
    folder = os.path.dirname(plan.part(0))

    def done() -> set[str]:
        return {name for name in remote.names(folder) if name.endswith(".json")}

    names = {os.path.basename(plan.part(block)): block for block in range(plan.count)}
    there = done()
    todo = [block for name, block in names.items() if name not in there]
    unit = f"blocks of {blocks.BLOCK_CLIPS} clips"
    with jobs.progress(lambda: len(names.keys() & done()), plan.count, unit):
        jobs.run(functools.partial(blocks.write, plan), todo, workers, flags)


# --- the plan ---


def check_decoding(options: argparse.Namespace) -> tuple[tuple[str, Any], ...]:
    """The options of decoding that are given. ValueError for what no captioner does."""
    given = captioner.decoding(options)
    whole = {"beams": options.n} if options.method == "beam" else {}
    decode.Options(method=options.method, count=options.n, **(whole | given))
    return tuple(sorted(given.items()))


def _check_out(out: str) -> None:
    """Refuse to write over a file that no run of this command wrote."""
    if not remote.is_file(out):
        return
    try:
        known = json.loads(remote.read(sift.beside(out, sift.REPORT)))["origin"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        known = ""
    if known != captioner.KIND:
        raise ValueError(
            f"{out} exists, and was not written by --by=captioner: remove it, or write "
            "to another file"
        )


def make_plan(
    options: argparse.Namespace, decoding: tuple[tuple[str, Any], ...], out: str
) -> tuple[blocks.Plan, listing.Listing]:
    """What is to be done, and the clips. Loads the models, to know which they are."""
    query = make_query(options)
    clip_list = listing.read(query)
    if not len(clip_list):
        raise ValueError(f"{query.label}: no clip is left to be captioned")
    plan = blocks.Plan(
        query=query,
        folder=pack.absolute(options.parts) or f"{out}.parts",
        model=_place(options.model),
        seed=options.seed,
        n=options.n,
        method=options.method,
        options=decoding,
        use_tags=not options.no_tags,
        tag_rule=options.tag_rule,
        soft_tags=options.soft_tags,
        tags=pack.absolute(options.tags),
        separator=options.separator or "",
        clap=_place(options.clap),
        tagger=_place(options.tagger),
        tagger_labels=pack.absolute(options.tagger_labels),
        tagger_frontend=options.tagger_frontend,
        listed=len(clip_list),
        list_digest=clip_list.digest,
        digests=(),
        platform=jax.default_backend(),
    )
    try:
        blocks.captioner(plan)  # says what is wrong with it
        found = tuple(sorted(blocks.digests(plan).items()))
    except (checkpoint.CheckpointError, hub.HubError) as error:
        raise ValueError(str(error)) from error
    return dataclasses.replace(plan, digests=found), clip_list


def make_query(options: argparse.Namespace) -> listing.Query:
    """The clips; of a table of sounds alone, too, whose names then are its captions."""
    entry = sources.entry(options.data)
    of_table = ("label_column", "id_column", "separator")
    given = {n: getattr(options, n) for n in of_table if getattr(options, n)}
    for name in ("weight", "generated", "captions"):  # of training
        entry.pop(name, None)
    entry |= given
    if entry["kind"] == "manifest" and not {"caption_columns", "label_column"} & {
        *entry
    }:
        alone = manifest.audio_alone(entry["path"])
        if alone:
            entry["caption_columns"] = [alone]
    return pack.query(json.dumps(entry), "", "{}", options.exclude)


def _place(model: str) -> str:
    """A model's path as other processes see it; a hub's id stays as it is."""
    return os.path.abspath(model) if model and os.path.exists(model) else model


def _has_tags(plan: blocks.Plan) -> bool:
    return bool(plan.tags) and blocks.tag_file(plan).is_there


def _warnings(plan: blocks.Plan) -> Iterator[str]:
    if plan.tags and not _has_tags(plan):
        yield (
            f"warning: there is no file {plan.tags}: no clip has tags from it, only "
            "what the source and --tagger give"
        )


# --- report ---


def report(
    out: str,
    plan: blocks.Plan,
    clip_list: listing.Listing,
    filters: Filters,
    result: sift.Result,
) -> Iterator[str]:
    """Lines that say what is in the result, and what is not."""
    counts = result.counts
    if clip_list.rejected:
        first = clip_list.rejected[0].reason
        yield f"left out by the source: {len(clip_list.rejected):,}, as {first}"
    if plan.tags and not _has_tags(plan):
        yield f"file of tags: there is none at {plan.tags}"
    elif counts.missing_from_tag_file:
        names = ", ".join(counts.not_in_tag_file)
        yield f"not in {plan.tags}: {counts.missing_from_tag_file:,} clips, as {names}"
    origins = ", ".join(f"{n} {c:,}" for n, c in sorted(counts.tags_from.items()))
    yield f"tags from: {origins}" if plan.use_tags else "tags: off"
    if counts.unknown_tags:
        shown = [f"{n!r} {c:,}" for n, c in sift.most(counts.unknown_tags)[:10]]
        yield f"tags that the captioner does not know: {', '.join(shown)}"
    for problem, count in sorted(counts.problems.items()):
        yield f"{problem}: {count:,} clips, as {counts.reasons[problem][0]:.160}"
    if counts.missing_captions:
        yield f"captions that came out empty, or not at all: {counts.missing_captions:,}"
    yield from result.report.lines(filters)
    yield (
        f"{result.captions:,} captions of {result.clips:,} of {plan.listed:,} clips: "
        f"{out}; the others: {sift.beside(out, sift.LEFT_OUT)}"
    )
