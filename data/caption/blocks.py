"""The jobs of a captioner: each writes the captions of a block of clips, with figures.

A block is so many clips of the list, always the same ones; its file holds every caption
that the model wrote, and appears whole or not at all. What filters keep is decided later
(`data.caption.sift`), so that other thresholds need no new captions.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import clap_jax
from clap_jax import remote
from clap_jax.audio import io as audio_io
from clap_jax.models.spec import Spec
from clap_jax.pipeline import order
from clap_jax.pipeline.tags import TagRule
from data import listing
from data.caption import guides, tagger
from data.caption.guides import Tagged

BLOCK_CLIPS = 64
"""Clips of one job: what is lost when it is killed."""

GROUP_CLIPS = 16
GROUP_BYTES = 1 << 26
"""Clips of a block that models get together: so many, or less where they are long."""

SILENCE_DBFS = -90.0
"""The peak of silence, as for `data.pack`."""

VERSION = 1
"""Of what the jobs leave."""

MODELS = ("model", "clap", "tagger")

# What in a plan says where things lie, not what comes out.
_PLACES = ("query", "folder", "tags", *MODELS)


class BlockError(ValueError):
    """A block that cannot be written; says why."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a worker has to know; it can be pickled.

    folder: for what jobs leave. model, clap, tagger: models, "" for none of the last
    two; digests: of these, and of the file of tags. options: of decoding, besides n and
    method, as pairs. listed, list_digest: the clips. platform: where models run.
    """

    query: listing.Query
    folder: str
    model: str
    seed: int
    n: int
    method: str
    options: tuple[tuple[str, Any], ...]
    use_tags: bool
    tag_rule: str
    soft_tags: bool
    tags: str
    separator: str
    clap: str
    tagger: str
    tagger_labels: str
    tagger_frontend: str
    listed: int
    list_digest: str
    digests: tuple[tuple[str, str], ...]
    platform: str

    @property
    def digest(self) -> str:
        """Changes with everything that may change a byte of a block."""
        facts = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _PLACES
        }
        return order.digest([VERSION, BLOCK_CLIPS, json.dumps(facts, sort_keys=True)])

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.listed // BLOCK_CLIPS)

    def part(self, block: int) -> str:
        """Where a job leaves its block."""
        return remote.join(self.folder, f"{self.digest}/block-{block:06d}.json")


def clip_seed(seed: int, clip_id: str) -> int:
    """What a clip's captions are drawn from, whatever its neighbours: 0 to 2^31 - 1."""
    text = f"{seed}/{clip_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33


def read(plan: Plan, block: int) -> list[dict[str, Any]]:
    """The clips of a block that is there."""
    return json.loads(remote.read(plan.part(block)))


def write(plan: Plan, block: int) -> None:
    """Leave a block. Raises BlockError when the clips are others than planned."""
    clip_list = listing.read(plan.query)
    if clip_list.digest != plan.list_digest:
        raise BlockError(
            f"{plan.query.label} changed since captioning began: run the command again"
        )
    first = block * BLOCK_CLIPS
    numbers = range(first, min(first + BLOCK_CLIPS, len(clip_list)))
    rows = []
    for group in _groups(clip_list, numbers):
        rows += _captioned(plan, clip_list, group)
    content = json.dumps(rows, ensure_ascii=True, separators=(",", ":"))
    remote.write(plan.part(block), content.encode())


# --- clips ---


class _Sound(NamedTuple):
    """A clip of the list as samples with their rate; or what is wrong with it."""

    number: int
    audio: tuple[np.ndarray, float] | None
    problem: str = ""
    reason: str = ""


def _groups(
    clip_list: listing.Listing, numbers: Sequence[int]
) -> Iterator[list[_Sound]]:
    group: list[_Sound] = []
    held = 0
    for number in numbers:
        group.append(_sound(clip_list, number))
        held += group[-1].audio[0].nbytes if group[-1].audio else 0
        if len(group) == GROUP_CLIPS or held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _sound(clip_list: listing.Listing, number: int) -> _Sound:
    name = clip_list.id(number)
    try:
        wave, rate_hz = audio_io.read(clip_list[number]["audio"], name)
    except audio_io.AudioError as error:
        return _Sound(number, None, "broken", str(error))
    peak = float(np.abs(wave).max())
    if peak <= 10 ** (SILENCE_DBFS / 20):
        level = f"{20 * math.log10(peak):.1f} dBFS" if peak else "digital silence"
        return _Sound(number, None, "silent", f"{name}: its peak is {level}")
    return _Sound(number, (wave, rate_hz))


# --- captions ---


def _captioned(
    plan: Plan, clip_list: listing.Listing, group: Sequence[_Sound]
) -> list[dict[str, Any]]:
    """The rows of a group of clips."""
    heard = [sound for sound in group if sound.audio]
    tagged = dict.fromkeys((sound.number for sound in group), Tagged())
    if plan.use_tags:
        tagged |= _tags(plan, clip_list, group)
    seeds = [clip_seed(plan.seed, clip_list.id(sound.number)) for sound in heard]
    model, columns = captioner(plan)
    guided = [(columns or _no_columns)(tagged[sound.number]) for sound in heard]
    written: list[list[Any]] = []
    if heard:
        written = model.caption(
            [sound.audio for sound in heard],
            n=plan.n,
            method=plan.method,
            tags=None if columns is None else np.stack([row for row, _ in guided]),
            seeds=seeds,
            **dict(plan.options),
        )
    candidates = [
        [
            {"caption": one.text, "log_likelihood": _finite(one.score)}
            for one in own
            if one.text.strip()
        ]
        for own in written
    ]
    if plan.clap:
        _score(plan, [sound.audio for sound in heard], candidates)
    rows = []
    for sound in group:
        own = tagged[sound.number]
        row = {
            "id": clip_list.id(sound.number),
            "path": clip_list.path(sound.number),
            "tags": own.names,
            "tags_from": own.origin,
        }
        if own.probabilities:
            row["probabilities"] = own.probabilities
        if plan.tags and plan.use_tags:
            row["in_tag_file"] = row["id"] in tag_file(plan)
        if sound.audio is None:
            row |= {"problem": sound.problem, "reason": sound.reason}
        else:
            place = heard.index(sound)
            row |= {
                "seed": seeds[place],
                "unknown_tags": guided[place][1],
                "missing": plan.n - len(candidates[place]),
                "candidates": candidates[place],
            }
        rows.append(row)
    return rows


def _no_columns(tagged: Tagged) -> tuple[None, tuple[str, ...]]:
    """Of a captioner that hears no tags, none is unknown."""
    return None, ()


def _tags(
    plan: Plan, clip_list: listing.Listing, group: Sequence[_Sound]
) -> dict[int, Tagged]:
    """The file's, else the clip's own, else the tagger's."""
    found, missing = {}, []
    for sound in group:
        name, own = clip_list.id(sound.number), clip_list.tags(sound.number)
        if plan.tags and name in tag_file(plan):
            found[sound.number] = tag_file(plan)[name]
        elif own:
            found[sound.number] = Tagged(tuple(dict.fromkeys(own)), (), "source")
        elif sound.audio:
            missing.append(sound)
    if plan.tagger and missing:
        ear, rule = clip_tagger(plan), TagRule.parse(plan.tag_rule)
        rows = ear.probabilities([sound.audio for sound in missing])
        for sound, row in zip(missing, rows, strict=True):
            found[sound.number] = guides.chosen(ear.labels, row, rule, "tagger")
    return found


def _score(plan: Plan, audio: Sequence[Any], candidates: Sequence[list[dict]]) -> None:
    """Give every caption the cosine of its embedding and its clip's."""
    texts = list(dict.fromkeys(one["caption"] for own in candidates for one in own))
    if not texts:
        return
    model = clap(plan)
    sounds = model.embed_audio(audio)
    vectors = dict(zip(texts, model.embed_text(texts), strict=True))
    for sound, own in zip(sounds, candidates, strict=True):
        for one in own:
            one["clap_score"] = _finite(vectors[one["caption"]] @ sound)


def _finite(value: Any) -> float | None:
    """A score of six digits; None for one that is no number."""
    return round(float(value), 6) if math.isfinite(value) else None


# --- what a process reads once ---


@functools.lru_cache(maxsize=1)
def _model(path: str) -> Any:
    return clap_jax.load(path)


@functools.lru_cache(maxsize=1)
def _clap(path: str) -> Any:
    model = clap_jax.load(path)
    if not isinstance(model.spec, Spec):
        raise BlockError(
            f"{path} holds {model.spec.name}, which does not compare sounds with texts"
        )
    return model


_tagger = functools.lru_cache(maxsize=1)(tagger.load)


@functools.lru_cache(maxsize=1)
def _tag_file(path: str, rule: str, separator: str) -> guides.TagFile:
    return guides.TagFile(path, TagRule.parse(rule), separator)


def captioner(plan: Plan) -> tuple[Any, guides.Columns | None]:
    """The model that writes, and how it takes tags; None where it gets none.

    Raises GuideError for a captioner that cannot be guided as planned, and BlockError
    for a model that writes nothing.
    """
    model = _model(plan.model)
    if not model.is_captioner:
        raise BlockError(f"{plan.model} holds {model.spec.name}, which is no captioner")
    if not plan.use_tags:
        return model, None
    return model, guides.columns_of(model.spec, plan.model, plan.soft_tags)


def clap(plan: Plan) -> Any:
    """The model that judges captions."""
    return _clap(plan.clap)


def clip_tagger(plan: Plan) -> tagger.Tagger:
    """The model that tags clips without labels."""
    return _tagger(plan.tagger, plan.tagger_labels, plan.tagger_frontend)


def tag_file(plan: Plan) -> guides.TagFile:
    """The file of tags."""
    return _tag_file(plan.tags, plan.tag_rule, plan.separator)


def digests(plan: Plan) -> Mapping[str, str]:
    """What the models and the file of tags of a plan are, by what they are for."""
    found = {"model": _model(plan.model).digest()}
    if plan.clap:
        found["clap"] = _clap(plan.clap).digest()
    if plan.tagger:
        ear = clip_tagger(plan)
        found["tagger"] = order.digest([ear.digest, *ear.labels])
    if plan.tags:
        found["tags"] = tag_file(plan).digest
    return found


def forget() -> None:
    """Begin a run: nothing is taken from what this process read before."""
    for function in (listing.read, _model, _clap, _tagger, _tag_file):
        function.cache_clear()
