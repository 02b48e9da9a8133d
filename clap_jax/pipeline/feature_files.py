"""Files of features, and the source that reads them.

ArrayRecord files of packed clips (see `array_record`), a clip's features where its
sound would be: an .npz with `features`, `seconds` and `heard`. `clap-jax embed
--segments` writes them.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from clap_jax.audio.io import AudioError
from clap_jax.pipeline import array_record, order
from clap_jax.pipeline.array_record import ArrayRecordError, ArrayRecordSource
from clap_jax.pipeline.features import Features


class FeaturesSource(ArrayRecordSource):
    """Features by index: a `Features` where other sources have sound.

    path, cache_folder, cache_gib: as `ArrayRecordSource`'s. features_width: D, of all.

    A clip may have no captions of its own: the option `generated` gives it some.
    Raises ArrayRecordError as that does, and where the first clip has no features.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        name: str = "features",
        cache_folder: str = "",
        cache_gib: float = 100.0,
    ):
        super().__init__(path, name, cache_folder, cache_gib)
        if not len(self):
            raise ArrayRecordError(f"{os.fspath(path)}: there are no clips")
        try:
            self.features_width = self[0]["audio"].width
        except AudioError as error:
            raise ArrayRecordError(str(error)) from None

    def _example(self, index: int, record: bytes) -> dict[str, Any]:
        example = super()._example(index, record)
        name = f"{self._path}, clip {example['id']}"
        found = Features.from_bytes(example["audio"], name)
        width = getattr(self, "features_width", found.width)
        if found.width != width:
            raise AudioError(
                f"{name}: features of {found.width} numbers, expected {width} as the "
                "first clip has"
            )
        return example | {"audio": found}

    def _clips(self) -> str:
        return f"{len(self)} clips as features of {self.features_width} numbers"

    def digest(self) -> str:
        """Short hex of the headers of all clips, and of the width."""
        return order.digest([super().digest(), self.features_width])


def write_features(
    path: str | os.PathLike,
    examples: Iterable[Mapping[str, Any]],
    dtype: str = "float16",
) -> int:
    """Write examples whose `audio` is a `Features` into one file; returns how many.

    Raises ValueError as `array_record.write_array_record`, and for features that cannot
    be written; it names the clip. Clips may have no captions.
    """
    packed = (example | {"audio": _bytes(example, dtype)} for example in examples)
    return array_record.write_array_record(
        path, packed, with_captions=False, may_be_empty=True
    )


def _bytes(example: Mapping[str, Any], dtype: str) -> bytes:
    try:
        return example["audio"].to_bytes(dtype)
    except ValueError as error:
        raise ValueError(f"clip {example['id']!r}: {error}") from None
