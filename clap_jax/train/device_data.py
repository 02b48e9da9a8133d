"""Batches that never leave the device: training without any input.

`data.source = synthetic_device`: one batch of noise, made on the devices, is every
batch. What a run then reaches is what its input has to keep up with.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.labels import Targets
from clap_jax.pipeline.loader import batch_fields
from clap_jax.pipeline.ops import Prepare

Batch = dict[str, jax.Array]


def abstract_batch(
    prepare: Prepare,
    text_length: int,
    batch_size: int,
    mesh: Mesh,
    targets: Targets | Answers | None = None,
    sentences: int = 0,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a global batch, B = batch_size; of one with
    labels or answers in place of captions where there are `targets`. sentences: of
    each caption, see `loader.batch_fields`."""
    rows = sharding.batch_sharding(mesh)
    fields = batch_fields(prepare, text_length, targets, sentences)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in fields.items()
    }


def noise(abstract: dict[str, jax.ShapeDtypeStruct], vocab_size: int) -> Batch:
    """A batch of noise in the shape of `abstract`, each device's rows made there.

    Sounds and tokens are random; every clip has a text of its own; no clip is bad; of
    clips with a length every second one is longer than the window, and all fill theirs;
    the segments of long ones are all heard, and equal shares of a text are sentences.
    """

    def make(name: str, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        match name:
            case "wave" if leaf.dtype == jnp.int16:
                return jax.random.randint(key, leaf.shape, -8000, 8000, jnp.int16)
            case "features":
                return jax.random.normal(key, leaf.shape, leaf.dtype)
            case "wave" | "mel":
                sound = jax.random.normal(key, leaf.shape, jnp.float32)
                scale, mean = (10.0, -30.0) if name == "mel" else (0.2, 0.0)
                return (sound * scale + mean).astype(leaf.dtype)
            case "ids":
                return jax.random.randint(key, leaf.shape, 0, vocab_size, jnp.int32)
            case "seconds":  # one behind the other
                begin = jnp.arange(leaf.shape[1], dtype=leaf.dtype)
                seconds = jnp.stack([begin, begin + 1], axis=-1)
                return jnp.broadcast_to(seconds, leaf.shape)
            case "spans":
                most, tokens = leaf.shape[1], abstract["ids"].shape[1]
                ends = jnp.arange(most + 1, dtype=leaf.dtype) * tokens // most
                spans = jnp.stack([ends[:-1], ends[1:]], axis=-1)
                return jnp.broadcast_to(spans, leaf.shape)
            case "group":
                return jnp.arange(leaf.shape[0], dtype=jnp.int32)
            case "longer":
                return jnp.arange(leaf.shape[0]) % 2 == 0
            case "frames":
                frames = abstract["mel"].shape[1]
                return jnp.full(leaf.shape, frames, jnp.int32)
            case "target":  # one of the classes that come first
                return jnp.eye(*leaf.shape, dtype=leaf.dtype)
            case "tags":  # a tenth of them
                return jax.random.bernoulli(key, 0.1, leaf.shape).astype(leaf.dtype)
            case "head":
                return jnp.zeros(leaf.shape, leaf.dtype)
            case "answer":  # behind a prompt of half the length
                behind = jnp.arange(leaf.shape[1]) >= leaf.shape[1] // 2
                return jnp.broadcast_to(behind, leaf.shape)
            case "mask" | "heard":
                return jnp.ones(leaf.shape, bool)
            case "bad" | "start_seconds":
                return jnp.zeros(leaf.shape, leaf.dtype)
        raise ValueError(f"no noise for {name!r} in a batch")

    def batch() -> Batch:
        keys = jax.random.split(jax.random.key(0), len(abstract))
        return {
            name: make(name, leaf, key)
            for (name, leaf), key in zip(abstract.items(), keys, strict=True)
        }

    shardings = {name: leaf.sharding for name, leaf in abstract.items()}
    return jax.jit(batch, out_shardings=shardings)()


class DeviceData:
    """An endless iterator over one batch, with the face of `loader.TrainIterator`."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __iter__(self) -> "DeviceData":
        return self

    def __next__(self) -> Batch:
        return self._batch

    def get_state(self) -> dict[str, str]:
        """Every place in the data is the same."""
        return {"source": "synthetic_device"}

    def set_state(self, state: dict[str, str]) -> None:
        """Raises ValueError for the state of other data."""
        if state != self.get_state():
            raise ValueError(
                "the checkpoint was trained on other data than data.source="
                "synthetic_device: use another --workdir"
            )

    def close(self) -> None:
        pass
