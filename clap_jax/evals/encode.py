"""The model as evaluators and the API see it: sounds and texts in, numpy vectors out.

Every call runs at one of a few static batch shapes, so that nothing is compiled twice
and a clip's vector does not depend on its neighbours.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.audio import frontend as frontend_lib
from clap_jax.models import zoo
from clap_jax.models.dual import Dual
from clap_jax.pipeline import loader
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import Source
from clap_jax.text.tokenize import Tokenizer


class ModelEncoder:
    """Encodes with one set of variables; satisfies `evals.base.Encoder`.

    It has none until `using` gives them; what is compiled is kept over all of them.

    Args:
        batch_size: rows of the largest batch. Smaller calls run at a quarter, a
            sixteenth, ... of it (rounded up to the number of devices).
        threads: clips decoded at a time.
    """

    def __init__(
        self,
        spec: zoo.Spec,
        dual: Dual,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        batch_size: int = 64,
        threads: int = 4,
    ):
        self.spec, self._dual, self._tokenizer = spec, dual, tokenizer
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        self._threads = threads
        devices = self._mesh.size
        largest = -(-batch_size // devices) * devices
        self._batch_sizes = [largest]
        while self._batch_sizes[-1] > devices:
            smaller = self._batch_sizes[-1] // 4
            self._batch_sizes.append(max(-(-smaller // devices) * devices, devices))
        self._encode_wave = jax.jit(partial(_encode_wave, spec, dual))
        self._encode_text = jax.jit(partial(_encode_text, dual))

    def using(self, variables: dict[str, Any]) -> "ModelEncoder":
        """This encoder with these variables, put where the mesh wants them."""
        encoder = copy.copy(self)
        encoder._variables = jax.device_put(
            variables, sharding.fsdp_sharding(variables, self._mesh)
        )
        return encoder

    @property
    def scale(self) -> float:
        """What similarities are multiplied by in the model's score."""
        return float(jnp.exp(self._variables["params"]["logit_scale_a"]))

    def audio(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [n, E] of every clip of `source` (its middle window when
        it is longer than the model's), and which could be read, bool [n]."""
        prepare = Prepare(self.spec.frontend, mel="exact", random_crop=False)
        embeddings = np.zeros((len(source), self.spec.embed_dim), np.float32)
        kept = np.zeros(len(source), bool)
        batches = loader.eval_batches(
            source,
            prepare,
            self._batch_sizes[0] // jax.process_count(),
            shard=(jax.process_index(), jax.process_count()),
            threads=self._threads,
        )
        for batch in batches:
            za = self._encode_wave(self._variables, self._to_device(batch["wave"]))
            rows = _gather(
                (za, *map(self._to_device, (batch["index"], batch["valid"])))
            )
            za, index, valid = rows
            embeddings[index[valid]] = za[valid]
            kept[index[valid]] = True
        return embeddings, kept

    def waves(self, waves: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, E] of waves float32 [n, T] of exactly one window."""
        rows = [
            _gather(self._encode_wave(self._variables, self._to_device(part)))[:count]
            for part, count in self._padded(waves)
        ]
        return np.concatenate(rows)

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [m, E] of texts."""
        ids, mask = self._tokenizer(list(texts))
        rows = []
        for (part_ids, count), (part_mask, _) in zip(
            self._padded(ids), self._padded(mask), strict=True
        ):
            zt = self._encode_text(
                self._variables, self._to_device(part_ids), self._to_device(part_mask)
            )
            rows.append(_gather(zt)[:count])
        return np.concatenate(rows)

    def score(self, za: np.ndarray, zt: np.ndarray) -> np.ndarray:
        """The model's scaled score of every pair, float32 [n, m]."""
        params = self._variables["params"]
        return np.asarray(self._dual.score(params, jnp.asarray(za), jnp.asarray(zt)))

    def _padded(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Parts of `rows` at a static batch size, and how many rows of each are real.

        The last row is repeated, since rows of zeros might not encode to numbers.
        """
        largest = self._batch_sizes[0]
        for start in range(0, len(rows), largest):
            part = rows[start : start + largest]
            size = min(size for size in self._batch_sizes if size >= len(part))
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            yield np.concatenate([part, padding]), len(part)

    def _to_device(self, rows: np.ndarray) -> jax.Array:
        return sharding.to_global({"rows": rows}, self._mesh)["rows"]


def _encode_wave(spec: zoo.Spec, dual: Dual, variables: Any, wave: jax.Array):
    mel = frontend_lib.log_mel(wave, spec.frontend, xp=jnp)
    (za, _), _ = dual.encode_audio(variables, mel)
    return za


def _encode_text(dual: Dual, variables: Any, ids: jax.Array, mask: jax.Array):
    (zt, _), _ = dual.encode_text(variables, ids, mask)
    return zt


def _gather(tree: Any) -> Any:
    """Global arrays as numpy on every host."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
