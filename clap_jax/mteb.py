"""Any model as the benchmark MTEB takes it, for its audio tasks (MAEB).

    import mteb
    import clap_jax.mteb

    model = clap_jax.mteb.model("runs/quickstart")
    mteb.evaluate(model, mteb.get_tasks(["ClothoT2ARetrieval", "ESC50_Zeroshot"]))

Retrieval, zero-shot classification, classification, and all other tasks over sounds,
texts or pairs of them. Sounds are read as `Clap.embed_audio` reads them, from the bytes
that the data set holds, so that numbers are those of our own evaluations; TorchCodec and
torchaudio are not needed. The extra `mteb` installs the benchmark.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clap_jax import api, sharding


class MtebEncoder:
    """A model with the methods of `mteb.models.EncoderProtocol`.

    Also what a `ModelMeta` of MTEB has as `loader`: then `name` is what `clap_jax.load`
    takes.
    """

    def __init__(
        self,
        name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ):
        """Load a model.

        Args:
            name: what `clap_jax.load` takes.
            revision: how results are filed; by default a digest of the weights.
            device: must be None, JAX chooses (JAX_PLATFORMS).
            options: of `clap_jax.load`, and `called`: the name under which results are
                filed, "owner/name"; by default "clap_jax/" and the folder's name.

        Raises:
            ImportError: MTEB is not installed.
            ValueError: `device` is given, `called` has no slash, or the model cannot be
                loaded.
        """
        _need_mteb()
        if device is not None:
            raise ValueError(
                f"device is {device!r}, expected None: set JAX_PLATFORMS to cpu, cuda or "
                "tpu instead"
            )
        called = options.pop("called", None) or f"clap_jax/{Path(name).resolve().name}"
        if "/" not in called:
            raise ValueError(f"called is {called!r}, expected owner/name")
        self.clap = api.load(name, **options)
        self.mteb_model_meta = _meta(self.clap, called, revision)

    def encode(self, inputs: Any, **settings: Any) -> np.ndarray:
        """Embeddings of a task's inputs, float32 [n, E].

        Of unit length; where an input has a sound and a text, the normalised sum of both.

        Args:
            inputs: MTEB's DataLoader over a data set with the columns audio, text or both.
            settings: what else MTEB tells (task, split, prompt type, batch size); a CLAP
                model has no instructions and needs none of it.

        Raises:
            ValueError: neither column is there, or a sound cannot be read (the row).
        """
        dataset = inputs.dataset
        parts = []
        if "audio" in dataset.column_names:
            parts.append(self._audio(dataset))
        if "text" in dataset.column_names:
            parts.append(self.clap.embed_text(list(dataset["text"])))
        if not parts:
            raise ValueError(
                f"the task's columns are {', '.join(dataset.column_names)}, expected "
                "audio, text or both"
            )
        return parts[0] if len(parts) == 1 else _unit(parts[0] + parts[1])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines of all pairs, float32 [n, m]; arrays or tensors [n, E] and [m, E]."""
        first, second = (_unit(np.atleast_2d(x)) for x in (embeddings1, embeddings2))
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines of pairs, float32 [n]; arrays or tensors [n, E] both."""
        first, second = (_unit(np.atleast_2d(x)) for x in (embeddings1, embeddings2))
        return (first * second).sum(axis=1)

    def _audio(self, dataset: Any) -> np.ndarray:
        rows = []
        for row, embedded in enumerate(self.clap.stream(_sounds(dataset))):
            if embedded.vector is None:
                raise ValueError(f"sound in row {row} of the task: {embedded.error}")
            rows.append(embedded.vector)
        return np.stack(rows)


def model(path: str | Path, **options: Any) -> MtebEncoder:
    """A model for `mteb.evaluate`; arguments as `MtebEncoder` takes them."""
    return MtebEncoder(path, **options)


def _sounds(dataset: Any) -> Iterator[api.Audio]:
    """The sounds of a data set, as they lie there: encoded bytes, files or samples."""
    from datasets import Audio

    if isinstance(dataset.features["audio"], Audio):
        dataset = dataset.cast_column("audio", Audio(decode=False))
    for row, item in enumerate(dataset.select_columns("audio")):
        sound = item["audio"]
        if not isinstance(sound, dict):
            raise ValueError(
                f"sound in row {row} of the task is a {type(sound).__name__}, expected "
                "the feature Audio, or samples with their rate"
            )
        if sound.get("array") is not None:
            yield np.asarray(sound["array"], np.float32), float(sound["sampling_rate"])
        elif sound.get("bytes") is not None:
            yield sound["bytes"]
        else:
            yield str(sound["path"])


def _meta(clap: api.Clap, called: str, revision: str | None) -> Any:
    """What MTEB wants to know of a model; what is not known is None."""
    from mteb.models.model_meta import ModelMeta

    leaves = sharding.flatten(clap.variables["params"]).values()
    return ModelMeta(
        loader=None,
        name=called,
        revision=revision or clap.digest(),
        release_date=None,
        languages=None,
        n_parameters=sum(int(np.size(leaf)) for leaf in leaves),
        memory_usage_mb=sum(np.asarray(leaf).nbytes for leaf in leaves) / 2**20,
        max_tokens=clap.spec.text_length,
        embed_dim=clap.spec.embed_dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["JAX"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["audio", "text"],
    )


def _unit(rows: Any) -> np.ndarray:
    """Rows [n, E] as float32 of unit length."""
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _need_mteb() -> None:
    try:
        import mteb  # noqa: F401 (is it there?)
    except ImportError as error:
        raise ImportError(
            f"MTEB cannot be imported ({error}): pip install 'clap_jax[mteb]'"
        ) from error
