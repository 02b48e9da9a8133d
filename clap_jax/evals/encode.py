"""The model as evaluators and the API see it: sounds and texts in, numpy vectors out.

Every call runs at one of a few static batch shapes, so that nothing is compiled twice
and a clip's vector does not depend on its neighbours.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio import crop, io
from clap_jax.evals import hear
from clap_jax.evals import write as write_lib
from clap_jax.evals.hear import Heard
from clap_jax.evals.songs import SongEncoder, heard_segments
from clap_jax.models import captioner, decode, temporal, zoo
from clap_jax.models import spec as spec_lib
from clap_jax.models.captioner import Captioner, CaptionerSpec
from clap_jax.models.classifier import Classifier, ClassifierSpec
from clap_jax.models.dual import Dual
from clap_jax.pipeline import buckets, once
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import Source
from clap_jax.text.tokenize import Tokenizer

# See `ModelEncoder`.
OUTPUTS = ("vector", "projection", "embedding")


class ModelEncoder(SongEncoder):
    """Encodes with one set of variables; satisfies `evals.base.Encoder`.

    It has none until `using` gives them; what is compiled is kept over all of them.

    Args:
        batch_size: rows of the largest batch. Smaller calls run at a quarter, a
            sixteenth, ... of it (rounded up to the number of devices).
        threads: clips decoded at a time.
        crop_seed: when given, `audio` crops longer clips at random, as some references
            do at inference; another number, other crops.
        output: what a clip becomes: "vector" (of a pair of towers the embedding, of
            length one; of a classifier the scores of its classes; of a captioner what
            `write` and `answer_scores` take), "projection" (before it is normalised) or
            "embedding" (of the audio tower).
        precision: what the towers were built to compute in, for `digest`.
        text_tokens: lengths that texts are padded to, beside the model's own; each to
            the shortest that holds it. () for one length.
    """

    def __init__(
        self,
        spec: zoo.Spec | ClassifierSpec | CaptionerSpec,
        dual: Dual | Classifier | Captioner,
        tokenizer: Tokenizer | None,
        *,
        mesh: Mesh | None = None,
        batch_size: int = 64,
        threads: int = 4,
        crop_seed: int | None = None,
        output: str = "vector",
        precision: str = "float32",
        text_tokens: Sequence[int] = buckets.TEXT_TOKENS,
    ):
        if crop_seed is not None and spec.frontend.whole_clip:
            raise ValueError(
                f"crop_seed is {crop_seed}, expected none: {spec.name} hears whole clips"
            )
        if output not in OUTPUTS:
            raise ValueError(config_lib.unknown("output", output, OUTPUTS))
        self.spec, self._dual, self._tokenizer = spec, dual, tokenizer
        self.output, self._precision = output, precision
        self._unit = output == "vector" and not isinstance(spec, ClassifierSpec)
        super().__init__(spec.frontend, batch_size, mesh)
        self._threads, self._crop_seed = threads, crop_seed
        self._text_tokens = text_tokens if spec_lib.pads_texts_freely(spec) else ()
        random_crop = crop_seed is not None
        self._prepare = Prepare(
            spec.frontend,
            mel="exact",
            random_crop=random_crop,
            segmenter=hear.segmenter(spec),
        )
        if self.hears_segments:
            self._compile_long()
        self._encode_audio = jax.jit(
            partial(_encode_audio, spec, dual, self._mesh, output)
        )
        self._encode_text = jax.jit(partial(_encode_text, dual))
        self._write = jax.jit(partial(write_lib.write, dual), static_argnums=3)
        self._answer_scores = jax.jit(partial(write_lib.answer_scores, dual))
        write_captions = partial(write_lib.captions, spec, dual, self._mesh)
        self._write_captions = jax.jit(write_captions, static_argnames="options")
        caption_losses = partial(write_lib.caption_losses, spec, dual, self._mesh)
        self._caption_losses = jax.jit(caption_losses)

    def using(self, variables: dict[str, Any]) -> "ModelEncoder":
        """This encoder with these variables, put on the mesh unless they are there."""
        encoder = copy.copy(self)
        places = jax.tree.map(
            # What training has on the mesh stays where `mesh.rules` put it.
            lambda leaf, place: leaf.sharding if self._on_mesh(leaf) else place,
            variables,
            sharding.fsdp_sharding(variables, self._mesh),
        )
        encoder._variables = sharding.put(variables, places)
        return encoder

    def _on_mesh(self, leaf: Any) -> bool:
        where = getattr(leaf, "sharding", None)
        return getattr(where, "mesh", None) == self._mesh

    @functools.cached_property
    def width(self) -> int:
        """How many numbers a clip becomes."""
        spec, dual = self.spec, self._dual
        guided = isinstance(spec, CaptionerSpec) and spec.captioner == "guided"
        if self.output == "vector" and not guided:
            return spec.classes if isinstance(spec, ClassifierSpec) else spec.embed_dim
        variables = jax.eval_shape(dual.init, jax.random.key(0))
        example = zoo.example_sound(spec)
        return jax.eval_shape(
            partial(_hear, spec, dual, self.output), variables, example
        ).shape[-1]

    def digest(self) -> str:
        """Short hex of all that makes a clip's vector but the clip: the front end, the
        tower and its weights, what is taken of it, how longer clips are cut, and in
        which precision, on which kind of device, it is computed."""
        facts = {
            "frontend": dataclasses.asdict(self.spec.frontend),
            "audio": dataclasses.asdict(self.spec.audio),
            "head": self.spec.head,
            "output": self.output,
            "crop_seed": self._crop_seed,
            "precision": self._precision,
            # Accelerators multiply float32 matrices in reduced precision unless told.
            "products": str(jax.config.jax_default_matmul_precision),
            "platform": self._mesh.devices.flat[0].platform,
        }
        if self.hears_segments:
            segmenter = self._prepare.segmenter
            facts["segments"] = [segmenter.hop_seconds, segmenter.longest_seconds]
        text = json.dumps(facts, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8)
        flat = sharding.flatten(self._variables)
        for path in sorted(flat):
            if re.match(r"(params|state)/(audio|heads)", path):
                digest.update(path.encode())
                leaf = np.asarray(self._gather(flat[path]), order="C")
                digest.update(leaf.reshape(-1).view(np.uint8))
        return digest.hexdigest()

    @property
    def scale(self) -> float:
        """What similarities are multiplied by in the model's score."""
        return float(jnp.exp(self._variables["params"]["logit_scale_a"]))

    def protocol(self) -> dict[str, Any]:
        """How clips and texts reach the model, for a result's protocol."""
        said = {
            "clip": hear.hearing(
                self.spec.frontend,
                self._crop_seed,
                getattr(self.spec, "temporal", None),
            ),
            "front_end": hear.front_end(self.spec.frontend),
        }
        if self._tokenizer is not None:
            words = self.spec.tokenizer or "trained on the captions"
            said["text"] = (
                f"at most {self._tokenizer.length} tokens ({words}, "
                f"{self.spec.tokenizer_style}), cut at the end"
            )
        return said

    def audio(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [n, E] of every clip of `source`, and which could be read,
        bool [n]. Of a clip that is longer than a window, `hearing` says what is heard.

        With another `output` than "vector", that in their place."""
        if self.hears_segments and self.output == "vector":
            song, kept = self.source_songs(source)
            return song.whole, kept
        embeddings = np.zeros((len(source), self.width), np.float32)
        kept = np.zeros(len(source), bool)
        whole_clip = self.spec.frontend.whole_clip
        read = once.clips_of if whole_clip else once.batches
        parts = read(
            source,
            self._prepare,
            self._batch_sizes[0] // self._hosts,
            shard=(self._host, self._hosts),
            threads=self._threads,
            crop_seed=self._crop_seed,
        )
        for part in parts:
            if whole_clip:
                clips = [
                    (int(index), hear.pieces(clip, self.spec.frontend, 1.0))
                    for index, clip in zip(*part, strict=True)
                    if clip is not None
                ]
                kept[self._fill(embeddings, clips)] = True
                continue
            labels = {name: part.pop(name) for name in ("index", "valid")}
            za, labels = self._encode(self._encode_audio, part, labels)
            index = labels["index"][labels["valid"]]
            embeddings[index], kept[index] = za[labels["valid"]], True
        return embeddings, kept

    def source_songs(self, source: Source) -> tuple[temporal.Song, np.ndarray]:
        """As `audio`, of a model that hears segments: with the segments of each clip."""
        kept = np.zeros(len(source), bool)
        read = once.clips_of(
            source,
            self._prepare,
            max(self._batch_sizes[0] // self._hosts // self._prepare.shape[0], 1),
            shard=(self._host, self._hosts),
            threads=self._threads,
            crop_seed=self._crop_seed,
        )
        parts = (
            [
                (int(index), heard_segments(clip))
                for index, clip in zip(*part, strict=True)
                if clip is not None
            ]
            for part in read
        )
        song = self.songs(parts, len(source))
        kept[song.seconds[:, 0, 1] > 0] = True
        return song, kept

    def hear(self, audio: Any, name: str = "") -> Heard:
        """A clip as the model takes it; `audio` as `clap_jax.audio.io.load` does.

        One that is longer than the window comes in windows side by side, the last one
        filled up, or in four views; a whole clip comes whole, up to `hear.MAX_WHOLE_SECONDS`;
        for a model that hears segments, in all of its segments. Raises AudioError.
        """
        frontend = self.spec.frontend
        if self.hears_segments:
            whole = self._prepare(audio, name)
            return heard_segments(self._prepare.segmenter.whole(whole))
        wave = io.load(audio, frontend.rate_hz, name)
        if frontend.whole_mel:
            clip = self._prepare.example(self._prepare.whole(wave))
            return hear.pieces(clip, frontend, len(wave) / frontend.rate_hz)
        if frontend.int16_trip:
            wave = io.quantise(wave)
        samples = frontend.clip_samples
        waves, held = crop.windows(wave, samples, samples, frontend.fill)
        return Heard({"wave": waves}, held / np.float32(frontend.rate_hz))

    def hear_middle(self, audio: Any, name: str = "") -> Heard:
        """As `hear`, in one piece: of a clip that is longer than the window, or comes
        whole and is longer than `hear.MAX_WHOLE_SECONDS`, the middle."""
        frontend = self.spec.frontend
        wave = io.load(audio, frontend.rate_hz, name)
        clip = self._prepare.example(self._prepare.whole(wave))
        return hear.middle(clip, frontend, len(wave) / frontend.rate_hz)

    def clips(self, clips: Sequence[Heard]) -> np.ndarray:
        """Embeddings float32 [n, E] of clips, each the same alone and among others.

        The vectors of a clip's pieces are averaged by their seconds, and normalised
        where they were of length one.
        """
        if self.hears_segments and self.output == "vector":
            return self.songs([enumerate(clips)], len(clips)).whole
        embeddings = np.zeros((len(clips), self.width), np.float32)
        self._fill(embeddings, list(enumerate(clips)))
        return embeddings

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [m, E] of texts, each the same alone and among others.

        How far a text is padded depends on itself alone; texts of one length go together.
        ValueError where nothing embeds them.
        """
        if not hasattr(self._dual, "encode_text"):
            raise ValueError(f"{self.spec.name} has no text tower to encode texts with")
        ids, mask = self._tokenizer(list(texts))
        known = buckets.lengths(self._text_tokens, self._tokenizer.length)
        lengths = np.array([buckets.shortest(known, n) for n in mask.sum(1)])
        embeddings = np.zeros((len(ids), self.spec.embed_dim), np.float32)
        for length in np.unique(lengths):
            rows = lengths == length
            own = {"ids": ids[rows, :length], "mask": mask[rows, :length]}
            embeddings[rows] = self._in_parts(self._encode_text, own)
        return embeddings

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the model's texts."""
        return self._tokenizer

    def write(self, z: np.ndarray, prompt: Sequence[int], length: int) -> np.ndarray:
        """What a captioner writes behind a prompt about clips float32 [n, E]: the
        likeliest token each time, int32 [n, length]."""
        prompt = np.asarray(prompt, np.int32)
        return self._in_parts(
            lambda variables, z: self._write(variables, z, prompt, length), {"z": z}
        )

    def middles(self, source: Source) -> Iterator[list[tuple[int, Heard]]]:
        """This host's clips of a source that can be read, by number, as `hear_middle`
        hears them; in lists, equally many on all hosts."""
        parts = once.clips_of(
            source,
            self._prepare,
            self._batch_sizes[0] // self._hosts,
            shard=(self._host, self._hosts),
            threads=self._threads,
            crop_seed=self._crop_seed,
        )
        for part in parts:
            yield [
                (int(number), hear.middle(clip, self.spec.frontend, 1.0))
                for number, clip in zip(*part, strict=True)
                if clip is not None
            ]

    def write_captions(
        self,
        clips: Iterable[tuple[int, Heard]],
        options: decode.Options,
        blank: Mapping[str, np.ndarray],
    ) -> dict[int, decode.Captions]:
        """Captions of numbered clips, by their numbers: ids int32 [n, L], lengths and
        scores [n]. The same (but for rounding) for a clip alone and among others.

        clips: each in one piece, with what `write.captions` takes besides. blank: the
        shapes of that, for a host without clips.
        """
        function = partial(self._write_captions, options=options)
        found = self._each(function, clips, blank)
        return {number: captions for captions, number, _ in found}

    def caption_losses(
        self, clips: Iterable[tuple[int, Heard]], blank: Mapping[str, np.ndarray]
    ) -> dict[int, np.ndarray]:
        """What `write.caption_losses` says of people's captions, float32 [K], by the
        clips' numbers; arguments as of `write_captions`."""
        found = self._each(self._caption_losses, clips, blank)
        return {number: losses for losses, number, _ in found}

    def answer_scores(
        self, z: np.ndarray, ids: np.ndarray, answer: np.ndarray
    ) -> np.ndarray:
        """Log-likelihood, float32 [n, C], of C texts as a captioner's answers about clips
        float32 [n, E]: the sum over the tokens of `ids` int32 [C, L] that are `answer`
        bool [C, L]."""
        return self._in_parts(
            lambda variables, z: self._answer_scores(variables, z, ids, answer),
            {"z": z},
        )

    def score(self, za: np.ndarray, zt: np.ndarray) -> np.ndarray:
        """The model's scaled score of every pair, float32 [n, m]."""
        params = self._variables["params"]
        return np.asarray(self._dual.score(params, jnp.asarray(za), jnp.asarray(zt)))

    def _fill(
        self, embeddings: np.ndarray, clips: Sequence[tuple[int, Heard]]
    ) -> list[int]:
        """Encode numbered clips and write each into the row of its number.

        Several hosts each have their own clips, take as many steps, and all get all
        rows. Returns the numbers of these rows.
        """
        shares: dict[int, float] = {}
        rows = self._each(self._encode_audio, clips)
        for vector, number, share in rows:
            embeddings[number] += share * vector
            shares[number] = share
        cut = [n for n, share in shares.items() if share < 1 and self._unit]
        embeddings[cut] /= np.linalg.norm(embeddings[cut], axis=1, keepdims=True)
        return list(shares)


def _encode_audio(
    spec: zoo.Spec | ClassifierSpec | CaptionerSpec,
    dual: Dual | Classifier | Captioner,
    mesh: Mesh,
    output: str,
    variables: Any,
    batch: dict[str, jax.Array],
) -> jax.Array:
    return _hear(spec, dual, output, variables, hear.sound(batch, spec.frontend, mesh))


def _hear(
    spec: zoo.Spec | ClassifierSpec | CaptionerSpec,
    dual: Dual | Classifier | Captioner,
    output: str,
    variables: Any,
    sound: Any,
) -> jax.Array:
    if isinstance(spec, CaptionerSpec) and output == "vector":
        return dual.prefix(variables, sound)
    told = {}
    if isinstance(spec, CaptionerSpec):
        rows = len(jax.tree.leaves(sound)[0])
        told["tags"] = captioner.no_tags(spec, rows)
    (za, aux), _ = dual.encode_audio(variables, sound, **told)
    return temporal.whole(za) if output == "vector" else aux[output].astype(jnp.float32)


def _encode_text(dual: Dual, variables: Any, ids: jax.Array, mask: jax.Array):
    (zt, _), _ = dual.encode_text(variables, ids, mask)
    return temporal.whole(zt)
